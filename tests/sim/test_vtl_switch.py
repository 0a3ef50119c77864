"""The VTL switch under many schedules: what docs/design/vtl-switch.md forbids does not happen.

Every access to a shared word is a scheduling point here. A failure prints the token that replays it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, input_vtl
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.host.sim.schedulers import RUN
from vtlkit.host.splitmix import SplitMix64
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus

SEEDS = 40
ROUNDS = 6
VECTOR = 0x60
SLICE_NS = 300
RELUCTANCE = (5, 12, 30)


class Reluctant:
    """Seeded choices that mostly let the running task go on: whoever loses the processor is away for long."""

    def __init__(self, seed: int, reluctance: int) -> None:
        self._below = SplitMix64(seed).below
        self._reluctance = reluctance

    def draw(self, count: int, label: str, /) -> int:
        if label == RUN and self._below(self._reluctance):
            return 0
        return self._below(count)


def simulator(seed: int) -> Simulator:
    """Every other seed switches tasks at each step, every other one seldom."""
    if seed % 2:
        return Simulator(source=Reluctant(seed, RELUCTANCE[seed // 2 % 3]), instrument=True, slice_ns=SLICE_NS)
    return Simulator(seed=seed, instrument=True, slice_ns=SLICE_NS)


def give_back(guest: Guest) -> Script:
    """Return from an entry that VTL0 may know nothing of: no register of its own is missing afterwards."""
    vcpu = guest.rig.partition.vps[guest.vp].vcpus[guest.vtl]
    vcpu.hv.assist.write(16, guest.regs.rax.to_bytes(8, "little") + guest.regs.rcx.to_bytes(8, "little"))
    yield from guest.vtl_return(0)


def active_here(guest: Guest) -> None:
    """The guest executes an instruction: its VTL is the active one, and no other of the processor is in the guest."""
    vp = guest.rig.partition.vps[guest.vp]
    assert vp.active.load() == guest.vtl, f"VTL{guest.vtl} of VP{guest.vp} runs while VTL{vp.active.load()} is active"


# --- calls ------------------------------------------------------------------------------------------------------------


def counting_guests(rounds: int) -> dict[tuple[int, int], Callable[[Guest], Script]]:
    """VTL0 calls, VTL1 adds one to a register that they share; VTL0 checks each sum."""

    def vtl1(guest: Guest) -> Script:
        while True:
            active_here(guest)
            yield ops.Set(guest.regs.rbx + 1, "rbx")
            yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield ops.Set(0, "rbx")
        for number in range(rounds):
            yield from guest.vtl_call()
            active_here(guest)
            assert guest.regs.rbx == number + 1
        yield from guest.end()

    return {(0, 0): vtl0, (0, 1): vtl1}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_calls_and_returns(seed: int) -> None:
    rig = VsmRig(counting_guests(ROUNDS), host=simulator(seed)).run()
    assert rig.partition.vps[0].switches == 2 * ROUNDS
    assert rig.tasks == 0


# --- calls against interrupts -----------------------------------------------------------------------------------------


def interrupted_guests(rounds: int, *, flag: bool) -> dict[tuple[int, int], Callable[[Guest], Script]]:
    """VP 1's VTL0 calls and counts without end; VP 0's VTL1 sends interrupts to VP 1's VTL1, each one when the one
    before has been taken. The run ends when all have been."""

    def upper(guest: Guest) -> Script:
        yield from guest.enable_apic()
        if guest.vp == 0:
            yield from commander(guest)
        yield ops.Sti() if flag else ops.Cli()
        while True:
            active_here(guest)
            yield from give_back(guest)
            if not flag:
                yield ops.Sti()
                yield ops.Compute()
                yield ops.Cli()

    def commander(guest: Guest) -> Script:
        yield from guest.enable_vp_vtl(1, vp=1)
        guest.note("enabled")
        while "ready" not in guest.rig.log:
            yield ops.Compute(5)
        for number in range(rounds):
            yield from guest.send_ipi(1, VECTOR + number)
            while len(guest.rig.taken) <= number:
                yield ops.Compute(5)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
        while "enabled" not in guest.rig.log:
            yield ops.Compute(5)
        yield from guest.vtl_call()
        guest.note("ready")
        while True:
            active_here(guest)
            yield ops.Compute(3)
            yield from guest.vtl_call()

    return {(vp, vtl): upper if vtl else vtl0 for vp in range(2) for vtl in range(2)}


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("seed", range(SEEDS // 2))
def test_interrupts_for_vtl1_against_calls(seed: int, flag: bool) -> None:
    rig = VsmRig(interrupted_guests(ROUNDS, flag=flag), cpus=2, host=simulator(seed)).run()
    assert [(each.vp, each.vtl, each.vector) for each in rig.taken] == [
        (1, 1, VECTOR + number) for number in range(ROUNDS)
    ]


def supervised_guests(rounds: int) -> dict[tuple[int, int], Callable[[Guest], Script]]:
    """VTL1 and VTL2 of one processor are both wanted, at any time, by tasks of nobody; VTL0 never calls them."""

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        guest.note("ready")
        while len(guest.rig.taken) < 2 * rounds:
            active_here(guest)
            yield ops.Compute(3)
        yield from guest.end()

    def upper(guest: Guest) -> Script:
        yield from guest.enable_apic()
        if guest.vtl == 1:
            yield from guest.enable(2)
            yield from guest.vtl_call()
        yield ops.Sti()
        while True:
            active_here(guest)
            yield from give_back(guest)

    def sender(guest: Guest) -> Script:
        while "ready" not in guest.rig.log:
            yield ops.Compute(5)
        vcpus = guest.rig.partition.vps[0].vcpus
        for number in range(rounds):
            for vtl in (1, 2):
                vcpus[vtl].apic.accept_irq(0, VECTOR + number, 1, False)
            while len(guest.rig.taken) < 2 * (number + 1):
                yield ops.Compute(5)

    return {(0, 0): vtl0, (0, 1): upper, (0, 2): upper, (1, 0): sender}


@pytest.mark.parametrize("seed", range(SEEDS // 2))
def test_interrupts_for_two_higher_vtls(seed: int) -> None:
    """Each gets every interrupt."""
    rig = VsmRig(supervised_guests(ROUNDS), cpus=2, vtls=3, host=simulator(seed)).run()
    for vtl in (1, 2):
        mine = [each.vector for each in rig.taken if each.vtl == vtl]
        assert mine == [VECTOR + number for number in range(ROUNDS)]


def halted_guests(rounds: int) -> dict[tuple[int, int], Callable[[Guest], Script]]:
    """VTL0 halts; in turn VTL1 and VTL0 get an interrupt."""

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Sti()
        guest.note("ready")
        while len(guest.rig.taken) < 2 * rounds:
            yield ops.Hlt()
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield ops.Sti()
        while True:
            active_here(guest)
            yield from give_back(guest)

    def sender(guest: Guest) -> Script:
        while "ready" not in guest.rig.log:
            yield ops.Compute(5)
        vcpus = guest.rig.partition.vps[0].vcpus
        for number in range(2 * rounds):
            vcpus[1 - number % 2].apic.accept_irq(0, VECTOR, 1, False)
            while len(guest.rig.taken) <= number:
                # An exit ends the long slice of a processor that was alone as it began.
                yield ops.Cpuid()

    return {(0, 0): vtl0, (0, 1): vtl1, (1, 0): sender}


@pytest.mark.parametrize("seed", range(SEEDS // 2))
def test_a_halted_vtl0_is_woken_for_vtl1_and_for_itself(seed: int) -> None:
    """Nobody sleeps through an interrupt: the simulator would say so."""
    rig = VsmRig(halted_guests(ROUNDS), cpus=2, host=simulator(seed)).run()
    assert [each.vtl for each in rig.taken] == [1, 0] * ROUNDS


# --- other processors' hands ------------------------------------------------------------------------------------------


def writing_guests(rounds: int) -> dict[tuple[int, int], Callable[[Guest], Script]]:
    """VTL1 of VP 0 sets a register that VP 1's VTLs share, while VP 1 does nothing but switch."""
    written: list[int] = []

    def switching(guest: Guest) -> Script:
        while True:
            # Whichever VTL looks sees what was written last before it looked.
            before = len(written)
            assert guest.regs.r12 >= before, f"write {before} of R12 is lost: {guest.regs.r12}"
            yield from guest.vtl_return() if guest.vtl else guest.vtl_call()

    def vtl1(guest: Guest) -> Script:
        if guest.vp:
            yield from switching(guest)
        yield from guest.enable_vp_vtl(1, vp=1)
        guest.note("enabled")
        yield ops.Compute(50)
        for number in range(rounds):
            vtl = input_vtl(number % 2)
            assert (yield from guest.set(Name.HvX64RegisterR12, number + 1, vp=1, vtl=vtl)) == HvStatus.SUCCESS
            written.append(number)
            assert (yield from guest.get(Name.HvX64RegisterR12, vp=1, vtl=vtl)) == (HvStatus.SUCCESS, number + 1)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
        while "enabled" not in guest.rig.log:
            yield ops.Compute(5)
        yield from switching(guest)

    return {(vp, vtl): vtl1 if vtl else vtl0 for vp in range(2) for vtl in range(2)}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_shared_register_set_from_another_processor_is_not_lost(seed: int) -> None:
    VsmRig(writing_guests(2 * ROUNDS), cpus=2, host=simulator(seed)).run()


@pytest.mark.parametrize("seed", range(SEEDS // 2))
def test_two_processors_enable_a_vtl_on_a_third(seed: int) -> None:
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable_vp_vtl(1, vp=1)
            guest.note("enabled")
        while guest.rig.log.count("in VTL1") < 1 and guest.vp == 0:
            yield ops.Compute(5)
        guest.note("in VTL1")
        seen.append((yield from guest.enable_vp_vtl(1, vp=2)))
        while len(seen) < 2:
            yield ops.Compute(5)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
        while guest.vp and "enabled" not in guest.rig.log:
            yield ops.Compute(5)
        yield from guest.vtl_call()

    guests = {(vp, vtl): vtl1 if vtl else vtl0 for vp in range(2) for vtl in range(2)}
    VsmRig(guests, cpus=3, host=simulator(seed)).run()
    assert sorted(seen) == [HvStatus.SUCCESS, HvStatus.VTL_ALREADY_ENABLED]
