"""Every step of the TLB-flush inhibit that is left out shows under some schedule, in either design."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from tests.sim.known_bad import fails
from tests.sim.test_tlb_flush_inhibit import OURS, POSTED, SEEDS, World
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign, KernelSection
from vtlkit.kvm.hyperv.flush_inhibit.posted import Posted, PostedDesign
from vtlkit.kvm.hyperv.flush_inhibit.waiting_on import WaitingOn, first_inhibited
from vtlkit.kvm.hyperv.parameters import Hypercall
from vtlkit.kvm.hyperv.vcpu import HvVcpu
from vtlkit.kvm.hyperv.vp_set import ALL_VPS
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu

BAD_SEEDS = range(400)


def suspend_that_looks_before_it_says_so(self: WaitingOn, call: Hypercall, target: HvVcpu) -> None:
    """The inhibit is cleared between the look and the word: nobody is found waiting, and nobody wakes this vCPU."""
    call.reissue = True
    if target.tlb_flush_inhibit.load():
        self.waiting_on.store(target)
        self._hv.vcpu.suspend()
    self.waiting_on.store(None)


def clear_that_looks_for_waiters_first(self: WaitingOn, inhibit: bool) -> None:
    """Who begins to wait after the look is not woken."""
    if not inhibit:
        wake_all(self._hv, request=True)
    self._hv.tlb_flush_inhibit.store(inhibit)


def wake_without_a_request(self: WaitingOn, inhibit: bool) -> None:
    """A kick alone is lost on a vCPU that is about to sleep."""
    self._hv.tlb_flush_inhibit.store(inhibit)
    if not inhibit:
        wake_all(self._hv, request=False)


def wake_all(hv: HvVcpu, *, request: bool) -> None:
    for other in hv.hv_vm.vps(ALL_VPS):
        if other.flush_inhibit.waits_for() is hv:
            if request:
                other.vcpu.make_request(Req.UNBLOCK)
            other.vcpu.kick()


def flush_that_checks_before_it_requests(self: WaitingOn, call: Hypercall, targets: list[HvVcpu]) -> bool:
    """The order of the posted design, without its grace period."""
    inhibited = first_inhibited(targets)
    if inhibited is not None:
        self._suspend(call, inhibited)
        return False
    return flush_that_ignores_the_inhibit(self, call, targets)


def flush_that_ignores_the_inhibit(_self: object, _call: Hypercall, targets: list[HvVcpu]) -> bool:
    for target in targets:
        target.vcpu.request_tlb_flush()
    return True


def no_grace_period(_self: PostedDesign) -> None:
    """What the words and their barriers do by themselves."""


def words_in_the_other_order(self: Posted, vcpu_id: int) -> None:
    """As a processor may show them to others where the barriers between them are left out."""
    self._suspended.store(True)
    self._waiting_on.store(vcpu_id)


def wake_before_the_words(self: Posted, inhibit: bool) -> None:
    """The vCPU wakes, finds itself suspended still, and sleeps again."""
    self._hv.tlb_flush_inhibit.store(inhibit)
    self._design.grace_period()
    for other in self._hv.hv_vm.vps(ALL_VPS):
        theirs = other.flush_inhibit
        if not inhibit and isinstance(theirs, Posted) and theirs.is_suspended_for(self._hv.vcpu.vcpu_id):
            other.vcpu.make_request(Req.EVENT)
            other.vcpu.kick()
            theirs.take_back()


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
    (OURS, WaitingOn, "_suspend", suspend_that_looks_before_it_says_so, plain),
    (OURS, WaitingOn, "set", clear_that_looks_for_waiters_first, plain),
    (OURS, WaitingOn, "set", wake_without_a_request, plain),
    (OURS, WaitingOn, "flush", flush_that_checks_before_it_requests, strict),
    (OURS, WaitingOn, "flush", flush_that_ignores_the_inhibit, plain),
    (OURS, Vcpu, "may_run_on_old_translations", never_old, running),
    (POSTED, PostedDesign, "grace_period", no_grace_period, plain),
    (POSTED, PostedDesign, "grace_period", no_grace_period, strict),
    (POSTED, PostedDesign, "section", no_section, plain),
    (POSTED, PostedDesign, "section", no_section, strict),
    (POSTED, Posted, "set", wake_before_the_words, plain),
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
    monkeypatch.setattr(Posted, "_say_suspended", words_in_the_other_order)
    assert not fails(lambda seed: run(seed, POSTED), SEEDS)
    monkeypatch.setattr(PostedDesign, "grace_period", no_grace_period)
    assert fails(lambda seed: run(seed, POSTED), BAD_SEEDS)
