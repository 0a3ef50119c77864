"""What ends a wait: each wake event, user space's requests and signals, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, Script, engine_of, recorder, script
from tests.unit.kvm.irqchip_rig import write
from vtlkit.engine.api import Event, EventType
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.host.sim import Deadlock
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.kvm_run import Intr, Io, KvmRun, SystemEvent, SystemEventExit
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import NO_WAKEUP, Req
from vtlkit.x86 import apic as regs
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_IF, RFLAGS_TF

VECTOR = 0x61


def interrupt(machine: Machine) -> None:
    machine.vcpu.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False)


def line(machine: Machine) -> None:
    assert machine.vm.ioapic is not None
    assert machine.vm.pic is not None
    machine.vm.pic.port_write(0x21, 1, 0xFF)
    machine.vm.ioapic.mmio_write(0, 4, 0x10 + 2 * 5)
    machine.vm.ioapic.mmio_write(0x10, 4, VECTOR)
    machine.vm.irq_line(5, 1)


def pic(machine: Machine) -> None:
    assert machine.vm.pic is not None
    for port, value in ((0x20, 0x11), (0x21, VECTOR & ~7), (0x21, 4), (0x21, 1), (0x21, 0)):
        machine.vm.pic.port_write(port, 1, value)
    machine.vm.irq_line(VECTOR & 7, 1)


def msi(machine: Machine) -> None:
    assert machine.vm.signal_msi(0xFEE00000, VECTOR) == 1


def nmi(machine: Machine) -> None:
    machine.vcpu.nmi()


def lapic_timer(machine: Machine) -> None:
    write(machine.vcpu.apic, regs.APIC_LVTT, VECTOR)
    write(machine.vcpu.apic, regs.APIC_TMICT, 40_000)


def init(machine: Machine) -> None:
    machine.vcpu.apic.accept_irq(DeliveryMode.INIT, 0, 1, False)


def halt(machine: Machine) -> list[KvmRun]:
    """Run the guest, which halts with interrupts on; what `run` returned."""
    exits: list[KvmRun] = []

    def vcpu() -> None:
        machine.cpu.rflags |= RFLAGS_IF
        exits.append(machine.vcpu.run())

    machine.host.spawn(vcpu, "vcpu")
    return exits


def halting(*first: Op) -> tuple[Machine, list[int]]:
    log: list[int] = []
    handlers = {vector: recorder(log) for vector in (2, Vector.DB, VECTOR)}
    return Machine(script(*first or (ops.Hlt(),), ops.Out(DONE, 1, 0)), handlers=handlers), log


@pytest.mark.parametrize(
    ("wake", "vector"),
    [(interrupt, VECTOR), (line, VECTOR), (pic, VECTOR), (msi, VECTOR), (nmi, 2), (lapic_timer, VECTOR)],
)
def test_a_halted_vcpu_wakes_for(wake: Callable[[Machine], None], vector: int) -> None:
    machine, log = halting()
    exits = halt(machine)
    machine.host.run(until=10_000)
    assert machine.vcpu.mp_state is MpState.HALTED
    if wake is lapic_timer:
        wake(machine)
        machine.host.run()
    else:
        machine.run(lambda: wake(machine))
    assert isinstance(exits[0], Io)
    assert log == [vector]
    assert machine.vcpu.statistics.halt_wakeups == 1
    assert machine.vcpu.statistics.blocks >= 1


def test_a_halted_vcpu_wakes_for_init() -> None:
    """The bootstrap processor begins anew."""
    machine, _log = halting()
    halts = halt(machine)
    machine.host.run(until=10_000)
    with pytest.raises(Deadlock, match="vm-vcpu0-wait"):
        machine.run(lambda: init(machine))
    assert not halts
    assert machine.vcpu.statistics.exits["hlt"] == 2


def test_hlt_does_not_end_before_its_interrupt() -> None:
    """The vCPU is woken, by whatever else, between the sender's IRR bit and the sender's request."""
    seen: list[int] = []
    behind: list[int] = []

    def look() -> int:
        behind.extend(seen)
        return 0

    def program(_engine: object) -> Script:
        yield ops.Sti()
        yield ops.Hlt()
        yield ops.Host(look)
        yield ops.Out(DONE, 1, 0)

    machine = Machine(program, handlers={VECTOR: recorder(seen)})
    exits = halt(machine)
    machine.host.run(until=10_000)

    def sender() -> None:
        machine.vcpu.apic.irr.test_and_set(VECTOR)
        machine.vcpu.wait_queue.wake()

    machine.run(sender)
    assert isinstance(exits[0], Io)
    assert behind == [VECTOR]


def mask_flag(machine: Machine) -> None:
    machine.cpu.rflags &= ~RFLAGS_IF


def raise_tpr(machine: Machine) -> None:
    machine.vcpu.apic.set_tpr(VECTOR >> 4)


def cover(machine: Machine) -> None:
    machine.cpu.interrupt_shadow = True


def block_nmi(machine: Machine) -> None:
    machine.cpu.nmi_blocked = True
    machine.vcpu.events.nmi_pending = 1


@pytest.mark.parametrize("obstacle", [mask_flag, raise_tpr, cover])
def test_an_interrupt_that_cannot_be_taken_ends_no_halt(obstacle: Callable[[Machine], None]) -> None:
    machine, log = halting()
    machine.vcpu.mp_state = MpState.HALTED
    machine.cpu.rflags |= RFLAGS_IF
    obstacle(machine)
    with pytest.raises(Deadlock):
        machine.run(machine.vcpu.run, lambda: interrupt(machine))
    assert machine.vcpu.mp_state is MpState.HALTED
    assert not log


@pytest.mark.parametrize("first_halt", [False, True])
def test_the_idle_register_waits_for_an_interrupt_that_cannot_be_taken(first_halt: bool) -> None:
    """HV_X64_MSR_GUEST_IDLE; a HLT after it is an ordinary one again."""
    machine, log = halting(*([ops.Hlt()] if first_halt else []), ops.Out(DONE, 1, 0))
    machine.vcpu.mp_state = MpState.HALTED
    machine.vcpu.hv.idle = True
    if first_halt:
        with pytest.raises(Deadlock):
            machine.run(machine.vcpu.run, lambda: interrupt(machine))
        assert machine.vcpu.mp_state is MpState.HALTED
    else:
        machine.run(machine.vcpu.run, lambda: interrupt(machine))
        assert machine.vcpu.mp_state is MpState.RUNNABLE
    assert not log


def test_a_blocked_nmi_ends_no_halt() -> None:
    machine, log = halting()
    machine.vcpu.mp_state = MpState.HALTED
    block_nmi(machine)
    with pytest.raises(Deadlock):
        machine.run(machine.vcpu.run)
    assert not log


@pytest.mark.parametrize("request_", sorted(NO_WAKEUP))
def test_requests_that_can_wait_end_no_halt(request_: Req) -> None:
    machine, _log = halting()
    machine.vcpu.mp_state = MpState.HALTED
    with pytest.raises(Deadlock):
        machine.run(machine.vcpu.run, lambda: machine.vm.make_all_request(request_))
    assert machine.vcpu.mp_state is MpState.HALTED


def test_unblock_ends_one_wait_but_not_the_halt() -> None:
    machine, _log = halting()
    machine.vcpu.mp_state = MpState.HALTED

    def wake() -> None:
        machine.vcpu.make_request(Req.UNBLOCK)
        machine.vcpu.kick()

    with pytest.raises(Deadlock):
        machine.run(machine.vcpu.run, wake)
    assert machine.vcpu.mp_state is MpState.HALTED
    assert machine.vcpu.statistics.blocks == 2
    assert not machine.vcpu.requests.test(Req.UNBLOCK)


@pytest.mark.parametrize(
    "state", [MpState.HALTED, MpState.UNINITIALIZED, MpState.INIT_RECEIVED, MpState.HV_INACTIVE_VTL]
)
def test_a_signal_ends_any_wait_and_leaves_the_state(state: MpState) -> None:
    machine, _log = halting()
    machine.vcpu.mp_state = state
    exits: list[KvmRun] = []
    machine.run(lambda: exits.append(machine.vcpu.run()), machine.vcpu.signal)
    assert [type(exit_) for exit_ in exits] == [Intr]
    assert machine.vcpu.mp_state is state


def test_a_single_stepped_halt_is_left_for_the_debug_exception() -> None:
    """The trap of the HLT is an event, and it is in the engine already when the vCPU would block."""
    machine, log = halting()
    machine.cpu.rflags |= RFLAGS_TF
    exits: list[KvmRun] = []
    machine.run(lambda: exits.append(machine.vcpu.run()))
    assert log[0] == Vector.DB
    assert isinstance(exits[0], Io)


@pytest.mark.parametrize("state", [MpState.UNINITIALIZED, MpState.INIT_RECEIVED])
@pytest.mark.parametrize("wake", [nmi, interrupt])
def test_a_processor_that_waits_to_be_started_sleeps_through_all_else(
    state: MpState, wake: Callable[[Machine], None]
) -> None:
    machine, log = halting()
    machine.vcpu.mp_state = state
    machine.cpu.rflags |= RFLAGS_IF
    with pytest.raises(Deadlock):
        machine.run(machine.vcpu.run, lambda: wake(machine))
    assert machine.vcpu.mp_state is state
    assert not log


def test_init_and_sipi_start_a_waiting_processor() -> None:
    log: list[int] = []
    begun = script(ops.Out(DONE, 1, 0x55))
    machine = Machine(programs={0x8000: begun}, handlers={2: recorder(log)}, vcpus=2)
    target = machine.vcpus[1]
    exits: list[KvmRun] = []

    def start() -> None:
        target.nmi()
        machine.host.relax()
        target.apic.accept_irq(DeliveryMode.INIT, 0, 1, False)
        machine.host.relax()
        target.apic.accept_irq(DeliveryMode.STARTUP, 8, 1, False)

    machine.run(lambda: exits.append(target.run()), start)
    assert exits == [Io(DONE, 1, True, 0x55)]
    assert not log, "INIT forgets the NMI"
    assert engine_of(target).executed == 1


# --- an inactive VTL --------------------------------------------------------------------------------------------------


def inactive() -> tuple[Machine, list[KvmRun]]:
    machine, _log = halting()
    machine.vcpu.mp_state = MpState.HV_INACTIVE_VTL
    return machine, []


@pytest.mark.parametrize("wake", [interrupt, nmi, lapic_timer])
@pytest.mark.parametrize("early", [True, False])
def test_an_inactive_vtl_reports_a_wake_event_whatever_if_says(wake: Callable[[Machine], None], early: bool) -> None:
    machine, exits = inactive()
    assert not machine.cpu.rflags & RFLAGS_IF
    if early:
        wake(machine)
        machine.run(lambda: exits.append(machine.vcpu.run()))
    else:
        machine.run(lambda: exits.append(machine.vcpu.run()), lambda: wake(machine))
    assert exits == [SystemEventExit(SystemEvent.WAKEUP)]
    # User space decides what runs; until then nothing is delivered and nothing is lost.
    assert machine.vcpu.mp_state is MpState.HV_INACTIVE_VTL
    assert machine.cpu.injections == []
    machine.run(lambda: exits.append(machine.vcpu.run()))
    assert exits == [SystemEventExit(SystemEvent.WAKEUP)] * 2


def test_an_event_that_is_pending_already_ends_the_wait_without_a_sleep() -> None:
    machine, exits = inactive()
    interrupt(machine)
    exits.append(machine.vcpu.run())
    assert exits == [SystemEventExit(SystemEvent.WAKEUP)]
    assert machine.vcpu.statistics.blocks == 0


@pytest.mark.parametrize("obstacle", [raise_tpr, cover])
def test_an_inactive_vtl_heeds_priority_and_shadow(obstacle: Callable[[Machine], None]) -> None:
    machine, _exits = inactive()
    obstacle(machine)
    with pytest.raises(Deadlock):
        machine.run(machine.vcpu.run, lambda: interrupt(machine))


def test_a_woken_vtl_takes_its_interrupt_when_it_runs() -> None:
    machine, log = halting(ops.Compute(30))
    machine.vcpu.mp_state = MpState.HV_INACTIVE_VTL
    interrupt(machine)
    machine.cpu.rflags |= RFLAGS_IF
    exits: list[KvmRun] = []

    def user() -> None:
        exits.append(machine.vcpu.run())
        machine.vcpu.set_mp_state(MpState.RUNNABLE)
        exits.append(machine.vcpu.run())

    machine.run(user)
    assert exits[0] == SystemEventExit(SystemEvent.WAKEUP)
    assert isinstance(exits[1], Io)
    assert log == [VECTOR]


def test_an_interrupted_event_ends_a_halt() -> None:
    machine, log = halting(ops.Compute(30))
    machine.vcpu.mp_state = MpState.HALTED
    machine.vcpu.events.interrupted = Event(EventType.INTERRUPT, VECTOR)
    machine.run(machine.vcpu.run)
    assert log == [VECTOR]


def test_on_threads_a_halted_vcpu_wakes_too() -> None:
    log: list[int] = []
    machine = Machine(script(ops.Hlt(), ops.Out(DONE, 1, 0)), handlers={VECTOR: recorder(log)}, host=ThreadHost())
    exits = halt(machine)

    def wake() -> None:
        while machine.vcpu.mp_state is not MpState.HALTED:
            machine.host.relax()
        interrupt(machine)

    machine.run(wake)
    assert isinstance(exits[0], Io)
    assert log == [VECTOR]
