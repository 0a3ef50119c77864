"""VINA and starts of processors under many schedules; and with a step left out or in the wrong order, which shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.sim.known_bad import end_within, fails
from tests.sim.test_vtl_switch import simulator
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import MpState
from vtlkit.vmm.vsm import startup
from vtlkit.vmm.vsm.vina import Vina
from vtlkit.vmm.vsm.vp import Vp

SEEDS = 12
GOOD_SEEDS = range(4)
BAD_SEEDS = range(150)
ROUNDS = 4
NOTICE = 0x70
VECTOR = 0x60
ON = NOTICE | 1 << 8
AUTO_RESET = 1 << 9
LIMIT_NS = 10_000_000

Guests = dict[tuple[int, int], Callable[[Guest], Script]]


def notices(guest: Guest) -> int:
    return sum(taken.vector == NOTICE for taken in guest.rig.taken)


# --- VINA -------------------------------------------------------------------------------------------------------------


def notified_guests(rounds: int) -> Guests:
    """VTL 1 of VP 0 runs; VP 1 sends an interrupt to VP 0's VTL 0 when the one before has been notified and Asserted
    has been cleared. Each is notified, once: a lost one leaves both waiting for ever."""

    def notice(guest: Guest, _event: Any) -> Script:
        # The store is the guest's own: nobody hears of it.
        yield ops.Write(guest.assist + 12, 1, 0)

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Sti()
        assert (yield from guest.set(Name.HvRegisterVsmVina, ON)) == HvStatus.SUCCESS
        guest.note("ready")
        while notices(guest) < rounds or "sent" not in guest.rig.log:
            yield ops.Compute(5)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        yield ops.Sti()
        yield ops.Compute(2)
        yield from guest.vtl_call()

    def sender(guest: Guest) -> Script:
        yield from guest.enable_apic()
        while "ready" not in guest.rig.log:
            yield ops.Compute(5)
        vcpu = guest.rig.partition.vps[0].vcpus[1]
        for number in range(rounds):
            yield from guest.send_ipi(0, VECTOR + number % 2)
            # Until it has been notified, and the handler has cleared Asserted.
            while notices(guest) <= number or vcpu.hv.assist.vina_asserted:
                yield ops.Compute(5)
        guest.note("sent")
        while True:
            yield ops.Compute(5)

    rig_handlers[1, NOTICE] = notice
    return {(0, 0): vtl0, (0, 1): vtl1, (1, 0): sender}


rig_handlers: dict[tuple[int, int], Any] = {}


def notified_rig(host: Any, rounds: int = ROUNDS) -> VsmRig:
    rig = VsmRig(notified_guests(rounds), cpus=2, host=host)
    rig.handlers.update(rig_handlers)
    return rig


@pytest.mark.tlfs("interrupts.vina")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_each_new_interrupt_is_notified_once(seed: int) -> None:
    rig = notified_rig(simulator(seed)).run()
    assert [taken.vector for taken in rig.taken] == [NOTICE] * ROUNDS


def preempted_guests(rounds: int) -> Guests:
    """VTL 0 calls VTL 1 without end, VTL 1 stays until it is told that VTL 0 has an interrupt: VTL 0 gets them all, so
    neither an entry nor an arrival is overlooked."""

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Sti()
        assert (yield from guest.set(Name.HvRegisterVsmVina, ON | AUTO_RESET)) == HvStatus.SUCCESS
        guest.note("ready")
        known = 0
        while True:
            while notices(guest) == known:
                yield ops.Compute(5)
            known = notices(guest)
            vcpu = guest.rig.partition.vps[0].vcpus[1]
            vcpu.hv.assist.write(16, guest.regs.rax.to_bytes(8, "little") + guest.regs.rcx.to_bytes(8, "little"))
            yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        yield ops.Sti()
        while True:
            yield from guest.vtl_call()

    def sender(guest: Guest) -> Script:
        yield from guest.enable_apic()
        while "ready" not in guest.rig.log:
            yield ops.Compute(5)
        for number in range(rounds):
            yield from guest.send_ipi(0, VECTOR)
            while sum(taken.vtl == 0 for taken in guest.rig.taken) <= number:
                yield ops.Compute(5)
        # Not VTL 0: it may have called once more before it took the last one.
        yield from guest.end()

    return {(0, 0): vtl0, (0, 1): vtl1, (1, 0): sender}


@pytest.mark.tlfs("interrupts.vina-auto")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_vtl0_gets_its_interrupts_from_a_vtl1_that_stays(seed: int) -> None:
    rig = VsmRig(preempted_guests(ROUNDS), cpus=2, host=simulator(seed)).run()
    assert [taken.vector for taken in rig.taken if taken.vtl == 0] == [VECTOR] * ROUNDS


def enabling_guests(_rounds: int = 1) -> Guests:
    """VP 1's VTL 1 enables VINA for VP 0's VTL 1, which runs, while VP 1's VTL 0... sends nothing more: the interrupt
    came before or comes during the hypercall."""

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Sti()
        if guest.vp == 0:
            assert (yield from guest.enable_vp_vtl(1, vp=1)) == HvStatus.SUCCESS
            guest.note("ready")
            while not notices(guest):
                yield ops.Compute(5)
            yield from guest.end()
        guest.note("enabling")
        assert (yield from guest.set(Name.HvRegisterVsmVina, ON, vp=0)) == HvStatus.SUCCESS
        while True:
            yield ops.Compute(5)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        if guest.vp == 0:
            yield from guest.enable(1)
            yield ops.Sti()
            yield ops.Compute(2)
        while guest.vp and "ready" not in guest.rig.log:
            yield ops.Compute(5)
        if guest.vp == 2:
            while "enabling" not in guest.rig.log:
                yield ops.Compute(1)
            yield from guest.send_ipi(0, VECTOR)
            while True:
                yield ops.Compute(5)
        yield from guest.vtl_call()

    return {(0, 0): vtl0, (0, 1): vtl1, (1, 0): vtl0, (1, 1): vtl1, (2, 0): vtl0}


@pytest.mark.tlfs("interrupts.vina")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_vina_enabled_from_another_processor_as_an_interrupt_comes(seed: int) -> None:
    rig = VsmRig(enabling_guests(), cpus=3, host=simulator(seed)).run()
    assert [(taken.vtl, taken.vector) for taken in rig.taken] == [(1, NOTICE)]


# --- starts -----------------------------------------------------------------------------------------------------------


def starting_guests(_rounds: int = 1) -> Guests:
    """VP 0 and VP 1 both start VP 2."""

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 2:
            guest.note("started")
            while guest.rig.log.count("done") < 2:
                yield ops.Compute(5)
            yield from guest.end()
        status = yield from guest.start_vp(2)
        guest.note(int(status))
        guest.note("done")
        while True:
            yield ops.Compute(5)

    return {(vp, 0): vtl0 for vp in range(3)}


def starting_rig(host: Any) -> VsmRig:
    rig = VsmRig(starting_guests(), cpus=3, host=host)
    rig.partition.vps[2].vcpus[0].reset_to_power_on()
    return rig


@pytest.mark.tlfs("hypercalls.start-vp")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_of_two_starters_one_succeeds(seed: int) -> None:
    rig = starting_rig(simulator(seed)).run()
    assert sorted(each for each in rig.log if isinstance(each, int)) == [HvStatus.SUCCESS, HvStatus.INVALID_VP_STATE]
    assert rig.log.count("started") == 1
    assert rig.partition.vps[2].vcpus[0].get_mp_state() is MpState.RUNNABLE


def nmi_and_start_guests(_rounds: int = 1) -> Guests:
    """VP 1, not started, gets an NMI for its VTL 1 and a start of its VTL 0 at any time to each other."""

    def vtl1(guest: Guest) -> Script:
        if guest.vp:
            while True:
                guest.note("VTL1")
                yield from guest.vtl_return()
        yield from guest.enable_apic()
        assert (yield from guest.enable_vp_vtl(1, vp=1)) == HvStatus.SUCCESS
        guest.note("go")
        yield from guest.wrmsr(0x830, 1 << 32 | 0x4400)
        while True:
            yield ops.Compute(5)

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 1:
            assert "VTL1" in guest.rig.log
            while not guest.rig.taken:
                yield ops.Compute(5)
            yield from guest.end()
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
        while "go" not in guest.rig.log:
            yield ops.Compute(1)
        assert (yield from guest.start_vp(1)) == HvStatus.SUCCESS
        while True:
            yield ops.Compute(5)

    return {(0, 0): vtl0, (0, 1): vtl1, (1, 0): vtl0, (1, 1): vtl1, (2, 0): vtl0}


def nmi_and_start_rig(host: Any) -> VsmRig:
    rig = VsmRig(nmi_and_start_guests(), cpus=3, host=host)
    rig.partition.vps[1].vcpus[0].reset_to_power_on()
    return rig


@pytest.mark.tlfs("start.start-vp-vtl")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_start_against_an_interrupt_for_a_higher_vtl(seed: int) -> None:
    rig = nmi_and_start_rig(simulator(seed)).run()
    assert [(taken.vp, taken.vtl, taken.vector) for taken in rig.taken] == [(1, 1, 2)]


# --- the testers ------------------------------------------------------------------------------------------------------


def ask_that_signals_before_it_sets(self: Vp, *bits: int) -> None:
    """The task may take the signal, find nothing to look at, and sleep for ever."""
    vcpu = self.vcpus.get(self.active.load())
    if vcpu is not None:
        vcpu.signal()
    for bit in bits:
        self._look.set(bit)


def decide_that_looks_on_entry_only(self: Vina, level: int, _kicked: int) -> None:
    """Interrupts that come later are not notified."""
    DECIDE(self, level, 0)


def decide_that_looks_at_kicks_only(self: Vina, level: int, kicked: int) -> None:
    """What came before the entry is not notified."""
    self._switches = self._vp.switches
    DECIDE(self, level, kicked)


def entered_that_does_not_reset(_self: Vina, _level: int) -> None:
    """AutoReset forgotten."""


def write_that_asks_for_no_look(self: Vina, level: int, vcpu: Any, value: int) -> HvStatus:
    """What was pending before is not looked at when VINA is enabled."""
    status = WRITE(self, level, vcpu, value)
    for lower in range(level):
        self._vp._look.clear(lower)
    self._switches = self._vp.switches
    return status


DECIDE = Vina.decide
WRITE = Vina.write


def take_that_empties_first(vp: Vp, active: int) -> None:
    """Another starter succeeds before this one's state is loaded."""
    start = vp.starting.load()
    assert start is not None
    vp.starting.store(None)
    vp.host.relax()
    with vp.vcpus[start.level].mutex:
        start.state.apply(vp.vcpus[start.level])


def fine(_rig: VsmRig) -> bool:
    return True


def started_once(rig: VsmRig) -> bool:
    return rig.log.count(int(HvStatus.SUCCESS)) == 1


@pytest.mark.parametrize(
    ("owner", "method", "bad", "make", "good"),
    [
        (Vp, "ask", ask_that_signals_before_it_sets, starting_rig, fine),
        (Vina, "decide", decide_that_looks_on_entry_only, notified_rig, fine),
        (
            Vina,
            "decide",
            decide_that_looks_at_kicks_only,
            lambda host: VsmRig(preempted_guests(ROUNDS), cpus=2, host=host),
            fine,
        ),
        (
            Vina,
            "entered",
            entered_that_does_not_reset,
            lambda host: VsmRig(preempted_guests(ROUNDS), cpus=2, host=host),
            fine,
        ),
        (
            Vina,
            "write",
            write_that_asks_for_no_look,
            lambda host: VsmRig(enabling_guests(), cpus=3, host=host),
            fine,
        ),
        (startup, "take", take_that_empties_first, starting_rig, started_once),
    ],
)
def test_each_broken_step_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, bad: Any, make: Any, good: Any
) -> None:
    def attempt(seed: int) -> None:
        end_within(LIMIT_NS, make(simulator(seed)), good)

    assert not fails(attempt, GOOD_SEEDS)
    monkeypatch.setattr(owner, method, bad)
    assert fails(attempt, BAD_SEEDS)
