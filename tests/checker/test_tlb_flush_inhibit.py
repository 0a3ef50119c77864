"""The scenarios of the TLB-flush inhibit find a step that is left out, in either design."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.known_bad import fails, scenario
from tests.sim.test_tlb_flush_inhibit_known_bad import (
    clear_that_looks_for_waiters_first,
    flush_that_ignores_the_inhibit,
)
from vtlkit.checker.protocols.worlds.flush_inhibit import KicksOnly, LooksThenSaysSo, NoGracePeriod, WakesFirst
from vtlkit.kvm.hyperv.flush_inhibit.posted import Posted, PostedDesign
from vtlkit.kvm.hyperv.flush_inhibit.waiting_on import WaitingOn


@pytest.mark.parametrize(
    ("name", "where", "what", "bad"),
    [
        ("ours", WaitingOn, "_suspend", LooksThenSaysSo._suspend),
        ("ours", WaitingOn, "set", clear_that_looks_for_waiters_first),
        ("ours", WaitingOn, "set", KicksOnly.set),
        ("ours", WaitingOn, "flush", flush_that_ignores_the_inhibit),
        ("posted", PostedDesign, "grace_period", NoGracePeriod.grace_period),
        ("posted", Posted, "set", WakesFirst.set),
        ("posted", Posted, "flush", flush_that_ignores_the_inhibit),
        ("destroyed", WaitingOn, "_suspend", LooksThenSaysSo._suspend),
    ],
)
def test_a_broken_step_is_found(monkeypatch: pytest.MonkeyPatch, name: str, where: Any, what: str, bad: Any) -> None:
    monkeypatch.setattr(where, what, bad)
    assert fails(scenario(f"tlb-flush-inhibit.{name}"))
