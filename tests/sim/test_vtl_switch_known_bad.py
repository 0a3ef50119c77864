"""Each step of docs/design/vtl-switch.md that is left out or done too early is found by the tests of the switch."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.known_bad import end_within, fails
from tests.sim.test_vtl_switch import ROUNDS, halted_guests, simulator, supervised_guests, writing_guests
from tests.unit.vmm.vsm.vsm_rig import VsmRig
from vtlkit.hvdef.vsm import HvVtlEntryReason
from vtlkit.vmm.vsm.vp import Vp

GOOD_SEEDS = range(10)
BAD_SEEDS = range(400)
LIMIT_NS = 50_000_000


def kick_that_signals_before_it_asks(self: Vp, level: int) -> None:
    """The task may take the signal, find nothing to look at, and go on for ever."""
    active = self.active.load()
    if active != level:
        self.vcpus[active].signal()
        self._look.set(level)


def broken_switch(
    self: Vp, source: int, target: int, reason: HvVtlEntryReason | None, *, announced: bool, looks_after: bool
) -> None:
    """`Vp.switch`, with one of its steps in the wrong place."""
    giver, newcomer = self.vcpus[source], self.vcpus[target]
    if reason is not None:
        newcomer.hv.assist.set_entry_reason(reason)
    pending = source > target and giver.wake_event_pending()
    count = self._switches.load()
    if announced:
        self._switches.store(count + 1)
    with newcomer.mutex:
        newcomer.copy_shared_state(giver)
    self.host.smp_mb()
    giver.vtl_inactive, newcomer.vtl_inactive = True, False
    self.active.store(target)
    self._switches.store(count + 2)
    if looks_after:
        self.host.smp_mb()
        pending = source > target and giver.wake_event_pending()
    if pending:
        self._look.set(source)


def switch_that_copies_before_it_says_so(
    self: Vp, source: int, target: int, reason: HvVtlEntryReason | None = None
) -> None:
    """A register that is written after the copy, and looked after before the count, is lost."""
    broken_switch(self, source, target, reason, announced=False, looks_after=True)


def switch_that_looks_too_early(self: Vp, source: int, target: int, reason: HvVtlEntryReason | None = None) -> None:
    """An event that comes between the look and the store of the active VTL finds nobody who minds."""
    broken_switch(self, source, target, reason, announced=True, looks_after=False)


def no_second_look(self: Vp, token: int) -> bool:
    """The registers may have been handed over while one was written."""
    return True


@pytest.mark.parametrize(
    ("method", "bad", "make"),
    [
        ("_kicked", kick_that_signals_before_it_asks, lambda host: VsmRig(halted_guests(2), cpus=2, host=host)),
        (
            "switch",
            switch_that_copies_before_it_says_so,
            lambda host: VsmRig(writing_guests(2 * ROUNDS), cpus=2, host=host),
        ),
        (
            "switch",
            switch_that_looks_too_early,
            lambda host: VsmRig(supervised_guests(ROUNDS), cpus=2, vtls=3, host=host),
        ),
        (
            "shared_state_stayed",
            no_second_look,
            lambda host: VsmRig(writing_guests(2 * ROUNDS), cpus=2, host=host),
        ),
    ],
)
def test_each_broken_step_is_found(monkeypatch: pytest.MonkeyPatch, method: str, bad: Any, make: Any) -> None:
    def attempt(seed: int) -> None:
        end_within(LIMIT_NS, make(simulator(seed)))

    assert not fails(attempt, GOOD_SEEDS)
    monkeypatch.setattr(Vp, method, bad)
    assert fails(attempt, BAD_SEEDS)
