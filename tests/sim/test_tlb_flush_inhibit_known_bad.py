"""Every step of the TLB-flush inhibit that is left out shows under some schedule, in either design."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from tests.sim.known_bad import fails
from tests.sim.test_tlb_flush_inhibit import OURS, POSTED, SEEDS, World
from vtlkit.checker.protocols.worlds.flush_inhibit import (
    KicksOnly,
    LooksThenRequests,
    LooksThenSaysSo,
    NoGracePeriod,
    SuspendedFirst,
    WakesFirst,
)
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign, KernelSection
from vtlkit.kvm.hyperv.flush_inhibit.posted import Posted, PostedDesign
from vtlkit.kvm.hyperv.flush_inhibit.waiting_on import WaitingOn
from vtlkit.kvm.hyperv.parameters import Hypercall
from vtlkit.kvm.hyperv.vcpu import HvVcpu
from vtlkit.kvm.hyperv.vp_set import ALL_VPS
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu

BAD_SEEDS = range(400)


def clear_that_looks_for_waiters_first(self: WaitingOn, inhibit: bool) -> None:
    """Who begins to wait after the look is not woken."""
    for other in () if inhibit else self._hv.hv_vm.vps(ALL_VPS):
        if other.flush_inhibit.waits_for() is self._hv:
            other.vcpu.make_request(Req.UNBLOCK)
            other.vcpu.kick()
    self._hv.tlb_flush_inhibit.store(inhibit)


def flush_that_ignores_the_inhibit(_self: object, _call: Hypercall, targets: list[HvVcpu]) -> bool:
    for target in targets:
        target.vcpu.request_tlb_flush()
    return True


class NoSection(KernelSection):
    """Nobody waits for it."""

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, *exc: object) -> None:
        """Nothing to do."""

    def leave(self) -> None:
        """Nothing to do."""

    def enter(self) -> None:
        """Nothing to do."""

    def outside(self) -> AbstractContextManager[None]:
        return nullcontext()


def no_section(_self: PostedDesign) -> NoSection:
    """A run loop outside of read sections: grace periods wait for nobody."""
    return NoSection()


def never_old(_self: Vcpu) -> bool:
    """A flusher that does not wait for its targets."""
    return False


def plain(seed: int, design: FlushInhibitDesign) -> None:
    world = World(seed, design, flushers=1)
    world.run(world.inhibitor)


def strict(seed: int, design: FlushInhibitDesign) -> None:
    world = World(seed, design, flushers=1)
    world.run(world.strict_inhibitor)


def running(seed: int, design: FlushInhibitDesign) -> None:
    World(seed, design, flushers=1, runs_target=True).run()


BROKEN: list[tuple[FlushInhibitDesign, Any, str, Any, Callable[[int, FlushInhibitDesign], None]]] = [
    (OURS, WaitingOn, "_suspend", LooksThenSaysSo._suspend, plain),
    (OURS, WaitingOn, "set", clear_that_looks_for_waiters_first, plain),
    (OURS, WaitingOn, "set", KicksOnly.set, plain),
    (OURS, WaitingOn, "flush", LooksThenRequests.flush, strict),
    (OURS, WaitingOn, "flush", flush_that_ignores_the_inhibit, plain),
    (OURS, Vcpu, "may_run_on_old_translations", never_old, running),
    (POSTED, PostedDesign, "grace_period", NoGracePeriod.grace_period, plain),
    (POSTED, PostedDesign, "grace_period", NoGracePeriod.grace_period, strict),
    (POSTED, PostedDesign, "section", no_section, plain),
    (POSTED, PostedDesign, "section", no_section, strict),
    (POSTED, Posted, "set", WakesFirst.set, plain),
    (POSTED, Posted, "flush", flush_that_ignores_the_inhibit, plain),
    (POSTED, Vcpu, "may_run_on_old_translations", never_old, running),
]


@pytest.mark.parametrize(("design", "where", "what", "bad", "run"), BROKEN)
def test_each_broken_step_is_found(
    monkeypatch: pytest.MonkeyPatch,
    design: FlushInhibitDesign,
    where: Any,
    what: str,
    bad: Any,
    run: Callable[[int, FlushInhibitDesign], None],
) -> None:
    assert not fails(lambda seed: run(seed, design), range(30))
    monkeypatch.setattr(where, what, bad)
    assert fails(lambda seed: run(seed, design), BAD_SEEDS)


@pytest.mark.parametrize("run", [plain, strict])
def test_the_barriers_of_the_posted_words_decide_nothing(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[int, FlushInhibitDesign], None]
) -> None:
    """With a grace period the words may be seen in either order; without one neither order helps."""
    monkeypatch.setattr(Posted, "_say_suspended", SuspendedFirst._say_suspended)
    assert not fails(lambda seed: run(seed, POSTED), SEEDS)
    monkeypatch.setattr(PostedDesign, "grace_period", NoGracePeriod.grace_period)
    assert fails(lambda seed: run(seed, POSTED), BAD_SEEDS)
