"""Each design of waiting for inactive VTLs keeps the promises of the switch under many schedules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.known_bad import end_within, fails
from tests.sim.test_vtl_switch import (
    ROUNDS,
    VECTOR,
    counting_guests,
    give_back,
    halted_guests,
    interrupted_guests,
    simulator,
    supervised_guests,
    writing_guests,
)
from tests.unit.vmm.vsm.vsm_rig import Body, Guest, Script, VsmRig
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.kvm.uapi import Hyperv, Vcpu
from vtlkit.vmm.vsm.vtl_wait import VtlWait
from vtlkit.vmm.vsm.vtl_waiters import Blocking, CompletionWaiter, Waiter

SEEDS = range(15)
BAD_SEEDS = range(1500)
SHORT_NS, LONG_NS = 500_000, 1_500_000
"""More than the worlds of the broken steps take while all is well; the long one where two exchange interrupts."""

every_design = pytest.mark.parametrize("design", list(VtlWait), ids=str)
every_seed = pytest.mark.parametrize("seed", SEEDS)


def rig(
    design: VtlWait, guests: dict[tuple[int, int], Body], host: Simulator, *, cpus: int = 1, vtls: int = 2
) -> VsmRig:
    return VsmRig(guests, cpus=cpus, vtls=vtls, host=host, vtl_wait=design)


@every_design
@every_seed
def test_calls_and_returns(design: VtlWait, seed: int) -> None:
    world = rig(design, counting_guests(ROUNDS), simulator(seed)).run()
    assert world.partition.vps[0].switches == 2 * ROUNDS
    assert world.tasks == 0


@every_design
@every_seed
def test_interrupts_for_vtl1_against_calls(design: VtlWait, seed: int) -> None:
    world = rig(design, interrupted_guests(ROUNDS, flag=seed % 2 == 0), simulator(seed), cpus=2).run()
    assert [(each.vp, each.vtl, each.vector) for each in world.taken] == [
        (1, 1, VECTOR + number) for number in range(ROUNDS)
    ]


@every_design
@every_seed
def test_interrupts_for_two_higher_vtls(design: VtlWait, seed: int) -> None:
    world = rig(design, supervised_guests(ROUNDS), simulator(seed), cpus=2, vtls=3).run()
    for vtl in (1, 2):
        assert [each.vector for each in world.taken if each.vtl == vtl] == [VECTOR + number for number in range(ROUNDS)]


@every_design
@every_seed
def test_a_halted_vtl0_is_woken_for_vtl1_and_for_itself(design: VtlWait, seed: int) -> None:
    world = rig(design, halted_guests(ROUNDS), simulator(seed), cpus=2).run()
    assert [each.vtl for each in world.taken] == [1, 0] * ROUNDS


@every_design
@every_seed
def test_register_hypercalls_reach_an_inactive_vtl_that_is_waited_for(design: VtlWait, seed: int) -> None:
    rig(design, writing_guests(2 * ROUNDS), simulator(seed), cpus=2).run()


# --- the end, and the middle, of a run --------------------------------------------------------------------------------


def spinning_guests() -> dict[tuple[int, int], Body]:
    """VP 1's VTL1 never gives the processor back; VP 0 ends the run at any time."""

    def upper(guest: Guest) -> Script:
        if guest.vp:
            while True:
                yield ops.Compute(3)
        yield from guest.enable_vp_vtl(1, vp=1)
        guest.note("enabled")
        yield ops.Compute(guest.rig.partition.host.choose(60, "until the end") + 1)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
        while guest.vp and "enabled" not in guest.rig.log:
            yield ops.Compute(1)
        yield from guest.vtl_call()

    return {(vp, vtl): upper if vtl else vtl0 for vp in range(2) for vtl in range(2)}


@every_design
@every_seed
def test_a_run_that_ends_while_a_vtl_is_entered_ends(design: VtlWait, seed: int) -> None:
    assert rig(design, spinning_guests(), simulator(seed), cpus=2).run().tasks == 0


@every_design
def test_a_vtl_that_was_never_entered_is_waited_for(design: VtlWait) -> None:
    """Its first event enters it: an NMI, as its local APIC is off."""

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield ops.Compute(5)
        vcpu = guest.rig.partition.vps[0].vcpus[1]
        yield ops.Host(vcpu.nmi)
        while True:
            yield ops.Compute(5)

    def vtl1(guest: Guest) -> Script:
        guest.note("entered")
        yield ops.Compute(1)
        yield from guest.end()

    world = rig(design, {(0, 0): vtl0, (0, 1): vtl1}, Simulator()).run()
    assert world.log == ["entered"]
    assert [(each.vtl, each.vector) for each in world.taken] == [(1, 2)]


# --- calls into the hypervisor ----------------------------------------------------------------------------------------


def visiting_guests(rounds: int) -> dict[tuple[int, int], Body]:
    """VTL0 calls VTL1, each time when whoever waits for VTL1 has had time to sit down."""

    def pause(guest: Guest) -> Script:
        def body() -> None:
            for _ in range(10):
                guest.rig.partition.host.relax()

        yield ops.Host(body)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        for _ in range(rounds):
            yield ops.Compute(1)
            yield from pause(guest)
            yield from guest.vtl_call()
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        while True:
            yield from guest.vtl_return()

    return {(0, 0): vtl0, (0, 1): vtl1}


def test_calls_that_a_visit_of_vtl1_costs() -> None:
    """VTL1 waits, is called, and returns: set, run, set; wait; run. Poll looks when VTL1 has become inactive."""
    found: dict[VtlWait, int] = {}
    for design in VtlWait:
        counts = []
        for rounds in (10, 20):
            world = rig(design, visiting_guests(rounds), Simulator()).run()
            counts.append(world.partition.vps[0].waits.calls)
        found[design] = (counts[1] - counts[0]) // 10
        assert counts[1] - counts[0] == 10 * found[design]
    assert found == {VtlWait.MP_STATE: 3, VtlWait.WAIT: 1, VtlWait.COMPLETION: 1, VtlWait.POLL: 1}


def test_a_completion_that_was_used_up_is_armed_anew() -> None:
    armed: list[bool] = []

    class Counting(CompletionWaiter):
        def _set_block(self, block: bool) -> None:
            armed.append(block)
            super()._set_block(block)

    world = rig(VtlWait.COMPLETION, visiting_guests(3), Simulator())
    vp = world.partition.vps[0]
    vp.waits = Blocking(vp, Counting)
    world.run()
    assert armed == [True, False], "before the first entry, when there was nothing to answer; never after"


# --- known-bad variants -----------------------------------------------------------------------------------------------


def broken_wait(*, looks: bool = True, ask_first: bool = False, forgets: bool = True) -> Callable[[Waiter], None]:
    """`Waiter._wait` with a step missing or in the wrong place."""

    def wait(self: Waiter) -> None:
        host = self._host
        while True:
            host.wait_event(self._queue, self._has_to_move, interruptible=False)
            if self._ended.load():
                return
            self._sitting.store(True)
            woken = not (looks and self._reasons.load()) and self.sit()
            if woken and ask_first:
                self._vp.ask(self.level)
            if woken and forgets:
                self.woken.store(True)
            self._sitting.store(False)
            self._queue.wake()
            if woken and not forgets:
                self.woken.store(True)
            if woken and not ask_first:
                self._vp.ask(self.level)

    return wait


LOOKS_AT_NOTHING = broken_wait(looks=False)
ASKS_FIRST = broken_wait(ask_first=True)
REMEMBERS = broken_wait(forgets=False)


def keep_out_that_does_not_wait(self: Waiter) -> None:
    self._reasons.fetch_add(1)
    if self._sitting.load():
        self.vcpu.signal()
    self.woken.store(False)


def changed_without_a_look_at_who_wants_out(self: Blocking, source: int, giver: Vcpu, newcomer: Vcpu) -> None:
    self.settle()


def answer_whenever(self: CompletionWaiter, exit_: Hyperv) -> None:
    """The flag, and nobody who would clear it."""
    exit_.block = True


def halted(design: VtlWait) -> Callable[[Simulator], VsmRig]:
    return lambda host: rig(design, halted_guests(4), host, cpus=2)


def called_guests(host: Simulator) -> dict[tuple[int, int], Body]:
    """VTL0 calls VTL1 as an interrupt for it comes, and halts; then another one comes."""

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        yield from guest.vtl_call()
        guest.note("ready")
        yield ops.Compute(host.choose(20, "until the call") + 1)
        yield from guest.vtl_call()
        while True:
            yield ops.Hlt()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield ops.Sti()
        while True:
            yield from give_back(guest)

    def sender(guest: Guest) -> Script:
        while "ready" not in guest.rig.log:
            yield ops.Cpuid()
        for number in range(2):
            guest.rig.partition.vps[0].vcpus[1].apic.accept_irq(0, VECTOR, 1, False)
            while len(guest.rig.taken) <= number:
                yield ops.Cpuid()
            for _ in range(20):
                yield ops.Cpuid()
        yield from guest.end()

    return {(0, 0): vtl0, (0, 1): vtl1, (1, 0): sender}


def called(design: VtlWait) -> Callable[[Simulator], VsmRig]:
    return lambda host: rig(design, called_guests(host), host, cpus=2)


def spinning(design: VtlWait) -> Callable[[Simulator], VsmRig]:
    return lambda host: rig(design, spinning_guests(), host, cpus=2)


def counting(design: VtlWait) -> Callable[[Simulator], VsmRig]:
    return lambda host: rig(design, counting_guests(ROUNDS), host)


@pytest.mark.parametrize(
    ("owner", "method", "bad", "make"),
    [
        (Waiter, "_wait", LOOKS_AT_NOTHING, counting(VtlWait.WAIT)),
        (Waiter, "_wait", LOOKS_AT_NOTHING, counting(VtlWait.MP_STATE)),
        (Waiter, "_wait", ASKS_FIRST, halted(VtlWait.WAIT)),
        (Waiter, "_wait", REMEMBERS, called(VtlWait.WAIT)),
        (Waiter, "keep_out", keep_out_that_does_not_wait, counting(VtlWait.MP_STATE)),
        (Blocking, "changed", changed_without_a_look_at_who_wants_out, spinning(VtlWait.WAIT)),
        (CompletionWaiter, "answer", answer_whenever, counting(VtlWait.COMPLETION)),
    ],
)
def test_each_broken_step_is_found(
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    bad: Callable[..., None],
    make: Callable[[Simulator], VsmRig],
) -> None:
    limit_ns = LONG_NS if bad in (ASKS_FIRST, REMEMBERS) else SHORT_NS

    def attempt(seed: int) -> None:
        end_within(limit_ns, make(simulator(seed)), lambda world: world.tasks == 0)

    assert not fails(attempt, range(10))
    monkeypatch.setattr(owner, method, bad)
    assert fails(attempt, BAD_SEEDS)
