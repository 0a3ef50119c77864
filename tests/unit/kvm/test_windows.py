"""Exit IrqWindowOpen: a vCPU can take an interrupt, an NMI, a message. KVM_INTERRUPT; registers mid-instruction."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, recorder, script
from tests.unit.kvm.irqchip_rig import write
from vtlkit.engine.scripted import ops
from vtlkit.hvdef import msrs as hv_msrs
from vtlkit.kvm.uapi import Io, IrqWindowOpen, KvmError, Vcpu, Windows
from vtlkit.x86.apic import APIC_DEFAULT_PHYS_BASE, APIC_TASKPRI, DeliveryMode
from vtlkit.x86.registers import RFLAGS_IF

VECTOR = 0x51
INTERRUPT = IrqWindowOpen(interrupt=True, nmi=False, sints=0)


def test_interrupts_are_on_at_once() -> None:
    machine = Machine(script(ops.Out(DONE, 1, 0)))
    machine.cpu.rflags |= RFLAGS_IF
    machine.vcpu.events.windows = Windows(interrupt=True)
    assert machine.vcpu.run() == INTERRUPT
    # Once.
    assert isinstance(machine.vcpu.run(), Io)


def test_interrupts_come_on() -> None:
    machine = Machine(script(ops.Compute(20), ops.Sti(), ops.Compute(1), ops.Compute(20), ops.Out(DONE, 1, 0)))
    machine.vcpu.events.windows = Windows(interrupt=True)
    assert machine.vcpu.run() == INTERRUPT
    assert machine.cpu.interrupt_flag
    assert not machine.cpu.interrupt_shadow
    assert isinstance(machine.vcpu.run(), Io)


def test_a_pending_interrupt_comes_first() -> None:
    """It is delivered, and while its handler has interrupts off the window is closed again."""
    log: list[int] = []
    machine = Machine(
        script(ops.Compute(20), ops.Out(DONE, 1, 0)),
        handlers={VECTOR: recorder(log, ops.Out(DONE, 1, 1))},
    )
    machine.cpu.rflags |= RFLAGS_IF
    machine.vcpu.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False)
    machine.vcpu.events.windows = Windows(interrupt=True)
    exit_ = machine.vcpu.run()
    assert isinstance(exit_, Io)
    assert (log, exit_.data) == ([VECTOR], 1)
    assert machine.vcpu.run() == INTERRUPT


@pytest.mark.parametrize(("tpr", "priority", "open_"), [(0x50, 5, False), (0x4F, 5, True), (0xF0, 0, True)])
def test_the_priority_that_the_tpr_lets_through(tpr: int, priority: int, open_: bool) -> None:
    machine = Machine(script(ops.Out(DONE, 1, 0)))
    machine.cpu.rflags |= RFLAGS_IF
    write(machine.vcpu.apic, APIC_TASKPRI, tpr)
    machine.vcpu.events.windows = Windows(interrupt=True, priority=priority)
    assert isinstance(machine.vcpu.run(), IrqWindowOpen) == open_


def test_a_tpr_that_the_guest_lowers_without_an_exit() -> None:
    """A store to the APIC page: the APIC has no interrupt of its own, so only the window makes the guest exit."""
    machine = Machine(
        script(ops.Write(APIC_DEFAULT_PHYS_BASE + APIC_TASKPRI, 4, 0x40), ops.Compute(9), ops.Out(DONE, 1, 0))
    )
    machine.cpu.rflags |= RFLAGS_IF
    write(machine.vcpu.apic, APIC_TASKPRI, 0x50)
    machine.vcpu.events.windows = Windows(interrupt=True, priority=5)
    assert machine.vcpu.run() == INTERRUPT


def test_nmis() -> None:
    machine = Machine(script(ops.Compute(5), ops.Out(DONE, 1, 0)))
    machine.vcpu.events.windows = Windows(nmi=True)
    machine.cpu.nmi_blocked = True
    assert isinstance(machine.vcpu.run(), Io)
    machine.cpu.nmi_blocked = False
    assert machine.vcpu.run() == IrqWindowOpen(interrupt=False, nmi=True, sints=0)


def test_a_halted_vcpu() -> None:
    machine = Machine(script(ops.Sti(), ops.Hlt()))
    seen: list[object] = []
    machine.vcpu.events.windows = Windows(interrupt=True)
    machine.run(lambda: seen.append(machine.vcpu.run()))
    assert seen == [INTERRUPT]


def test_message_slots_of_a_synic_that_is_off_have_no_room() -> None:
    machine = Machine(script(ops.Out(DONE, 1, 0)))
    machine.vcpu.events.windows = Windows(sints=1)
    assert isinstance(machine.vcpu.run(), Io)


def test_message_slots() -> None:
    machine = Machine(script(ops.Out(DONE, 1, 0)))
    for index, value in ((hv_msrs.HV_X64_MSR_SIMP, 0x4001), (hv_msrs.HV_X64_MSR_SCONTROL, 1)):
        assert machine.vcpu.set_msr(index, value)
    machine.vm.memory.write(0x4000 + 0x100, (1).to_bytes(4, "little"))
    machine.vcpu.events.windows = Windows(sints=0b110)
    # SINT 1's is busy.
    assert machine.vcpu.run() == IrqWindowOpen(interrupt=False, nmi=False, sints=0b100)
    assert machine.vcpu.events.windows == Windows(sints=0b010)


def test_what_user_space_asked_for_is_forgotten_by_a_reset() -> None:
    machine = Machine()
    machine.vcpu.events.windows = Windows(interrupt=True, nmi=True, sints=1)
    machine.vcpu.events.queue_interrupt(VECTOR)
    machine.vcpu.reset(init_event=True)
    assert not machine.vcpu.wants_windows()
    assert machine.vcpu.events.external is None


def test_an_interrupt_of_user_space() -> None:
    """KVM_INTERRUPT: no controller has it, so none has it in service."""
    log: list[int] = []
    machine = Machine(
        script(ops.Compute(9), ops.Sti(), ops.Compute(9), ops.Out(DONE, 1, 0)), handlers={VECTOR: recorder(log)}
    )
    machine.vcpu.events.queue_interrupt(VECTOR)
    assert isinstance(machine.vcpu.run(), Io)
    assert log == [VECTOR]
    assert machine.vcpu.apic.ppr == 0


SETTERS: dict[str, Callable[[Vcpu], None]] = {
    "regs": lambda vcpu: vcpu.set_regs(vcpu.get_regs()),
    "sregs": lambda vcpu: vcpu.set_sregs(vcpu.get_sregs()),
}


@pytest.mark.parametrize("call", sorted(SETTERS))
def test_registers_cannot_be_set_in_the_middle_of_an_instruction(call: str) -> None:
    """IN has exited to its device: what it will do with RAX and RIP is settled."""
    machine = Machine(script(ops.In(DONE, 1), ops.Out(DONE, 1)))
    exit_ = machine.vcpu.run()
    assert isinstance(exit_, Io)
    exit_.data = 0x5A
    with pytest.raises(KvmError) as refused:
        SETTERS[call](machine.vcpu)
    assert refused.value.errno == errno.EBUSY
    assert machine.vcpu.complete_exit() is None
    SETTERS[call](machine.vcpu)
    after = machine.vcpu.run()
    assert isinstance(after, Io)
    assert after.data == 0x5A
