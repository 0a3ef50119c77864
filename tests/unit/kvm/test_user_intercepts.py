"""What user space intercepts: the exits of `run`, when a change of it begins, and what is not disturbed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.kvm import core_rig
from tests.unit.kvm.core_rig import DONE, Machine, Script
from vtlkit.engine.api import PORT_BITMAP_SIZE, Event
from vtlkit.engine.scripted import Guest, ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.kvm import kvm_run
from vtlkit.kvm.uapi import CpuidOverride, UserIntercepts
from vtlkit.x86 import msr
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.exceptions import Vector

PORT = 0x80


def ports(*numbers: int) -> bytes:
    bitmap = bytearray(PORT_BITMAP_SIZE)
    for number in numbers:
        bitmap[number // 8] |= 1 << number % 8
    return bytes(bitmap)


def script(*operations: Op) -> Guest:
    """These instructions, and the end."""
    return core_rig.script(*operations, ops.Out(DONE, 1))


def run_to_end(machine: Machine) -> list[Any]:
    """Every exit up to the script's end."""
    exits: list[Any] = []
    while not (exits and isinstance(exits[-1], kvm_run.Io) and exits[-1].port == DONE):
        exits.append(machine.vcpu.run())
        assert len(exits) < 100
    return exits[:-1]


def test_cpuid_leaves_the_fast_path_only_for_who_asks() -> None:
    machine = Machine(script(ops.Set(0), ops.Cpuid(), ops.Cpuid(), ops.Cpuid()))
    machine.vcpu.set_user_intercepts(UserIntercepts(cpuid=frozenset({1})))
    assert run_to_end(machine) == []
    assert machine.vcpu.statistics.cpuid_exits == 3
    machine = Machine(script(ops.Set(1), ops.Cpuid()))
    machine.vcpu.set_user_intercepts(UserIntercepts(cpuid=frozenset({1})))
    exit_ = machine.vcpu.run()
    assert isinstance(exit_, kvm_run.InterceptedCpuid)
    assert (exit_.function, exit_.index, exit_.length) == (1, 0, 1)
    assert machine.vcpu.run() == exit_
    assert machine.vcpu.statistics.cpuid_exits == 0
    machine.vcpu.set_user_intercepts(None)
    assert run_to_end(machine) == []
    assert machine.vcpu.statistics.cpuid_exits == 1


def test_results_reach_a_leaf_that_has_no_entry() -> None:
    machine = Machine(script(ops.Set(0x12345678), ops.Cpuid()))
    override = CpuidOverride((1, 2, 3, 4), (0xF, 0, 0xF, 4))
    machine.vcpu.set_user_intercepts(UserIntercepts(cpuid_results={(0x12345678, None): override}))
    run_to_end(machine)
    regs = machine.vcpu.engine.regs
    assert (regs.rax, regs.rbx, regs.rcx, regs.rdx) == (1, 0, 3, 4)


def test_an_intercept_set_in_the_middle_of_an_instruction_begins_behind_it() -> None:
    """The IN has begun and is finished; the next one is intercepted."""
    machine = Machine(script(ops.In(PORT, 1), ops.In(PORT, 1)))
    vcpu = machine.vcpu
    first = vcpu.run()
    assert isinstance(first, kvm_run.Io)
    vcpu.set_user_intercepts(UserIntercepts(port_reads=ports(PORT)))
    assert vcpu.user.behind()
    assert vcpu.may_execute()
    first.data = 0x42
    second = vcpu.run()
    assert isinstance(second, kvm_run.InterceptedIo)
    assert vcpu.engine.regs.rax & 0xFF == 0x42
    assert not vcpu.user.behind()


def test_outside_the_guest_there_is_nothing_to_wait_for() -> None:
    machine = Machine(script(ops.Rdmsr()))
    machine.vcpu.set_user_intercepts(UserIntercepts(msr_reads=frozenset({0})))
    assert machine.vcpu.user.behind()
    assert not machine.vcpu.may_execute()
    machine.vm.wait_for_intercepts()


@pytest.mark.parametrize(("value", "exits"), [(0, 0), (1, 1), (2, 0), (3, 1)])
def test_a_masked_msr_is_about_what_changes(value: int, exits: int) -> None:
    index = msr.MSR_IA32_MISC_ENABLE
    before = Machine(script()).vcpu.get_msr(index)
    assert before is not None

    def change() -> int:
        return (before ^ value) & 0xFFFFFFFF

    machine = Machine(script(ops.Set(index, "rcx"), ops.Rdmsr(), ops.Host(change), ops.Wrmsr()))
    machine.vcpu.set_user_intercepts(UserIntercepts(msr_writes={index: 1}))
    exit_ = machine.vcpu.run()
    assert isinstance(exit_, kvm_run.InterceptedMsr) == bool(exits)
    if isinstance(exit_, kvm_run.InterceptedMsr):
        assert (exit_.index, exit_.write, exit_.value) == (index, True, before ^ value)


def test_an_exception_is_told_once_for_what_user_space_queues() -> None:
    """The guest's own is intercepted; the one that user space answers with is delivered."""
    taken: list[int] = []

    def handler(_cpu: Any, event: Event) -> Script:
        taken.append(event.vector)
        yield ops.Out(DONE, 1)

    machine = Machine(script(ops.Fault(Vector.UD)), handlers={Vector.GP: handler})
    vcpu = machine.vcpu
    vcpu.set_user_intercepts(UserIntercepts(exceptions=1 << Vector.UD | 1 << Vector.GP))
    for _ in range(2):
        exit_ = vcpu.run()
        assert isinstance(exit_, kvm_run.InterceptedException)
        assert (exit_.vector, exit_.error_code, exit_.software) == (Vector.UD, None, False)
    vcpu.queue_exception(Vector.GP, 0)
    assert isinstance(vcpu.run(), kvm_run.Io)
    assert taken == [Vector.GP]


def test_a_refused_msr_is_the_exception_that_it_would_raise() -> None:
    machine = Machine(script(ops.Set(0x12345, "rcx"), ops.Rdmsr()))
    machine.vcpu.set_user_intercepts(UserIntercepts(exceptions=1 << Vector.GP))
    exit_ = machine.vcpu.run()
    assert isinstance(exit_, kvm_run.InterceptedException)
    assert (exit_.vector, exit_.error_code) == (Vector.GP, 0)
    assert not machine.vcpu.events.has_events()
    # Tried again it is refused again.
    assert machine.vcpu.run() == exit_


def test_traps_leave_one_by_one_before_the_next_instruction() -> None:
    """Two registers of the local APIC in a row; none is lost, and the guest executes nothing in between."""
    machine = Machine(
        script(
            *(ops.Set(0x80F, "rcx"), ops.Set(0, "rdx"), ops.Set(0x1F0), ops.Wrmsr()),
            *(ops.Set(0x835, "rcx"), ops.Set(0x10700), ops.Wrmsr()),
        )
    )
    vcpu = machine.vcpu
    assert vcpu.set_msr(msr.MSR_IA32_APICBASE, 0xFEE00D00)
    vcpu.set_user_intercepts(UserIntercepts(apic_writes=frozenset({0xF0, 0x350})))
    executed = []
    exits: list[Any] = []
    for _ in range(2):
        exits.append(vcpu.run())
        executed.append(vcpu.engine.instructions())
    assert exits == [kvm_run.InterceptedApicWrite(0xF0, 0x1F0), kvm_run.InterceptedApicWrite(0x350, 0x10700)]
    assert executed == [4, 7]
    assert run_to_end(machine) == []


def test_one_instruction_may_trap_twice() -> None:
    """The second is told by an entry that executes nothing: a forced exit, whatever that is on the vendor."""
    machine = Machine(script(ops.Write(0xFEE000B0, 4, 0), ops.Compute(5), ops.Out(DONE, 1, 0)))
    vcpu = machine.vcpu
    vcpu.set_user_intercepts(UserIntercepts(eoi=True, apic_writes=frozenset({0xB0})))
    vcpu.apic.accept_irq(DeliveryMode.FIXED, 0x41, 1, False)
    assert vcpu.apic.get_interrupt() == 0x41
    exits: list[tuple[Any, int]] = []
    # Should it never be told.
    machine.host.timer(vcpu.signal, "watchdog").start(1_000_000)

    def user() -> None:
        exits.extend((vcpu.run(), vcpu.engine.regs.rip & 0xF) for _ in range(2))

    machine.run(user)
    assert exits == [(kvm_run.InterceptedEoi(0x41), 1), (kvm_run.InterceptedApicWrite(0xB0, 0), 1)]


def test_what_user_space_does_to_the_local_apic_does_not_trap() -> None:
    """It is told what the guest does. An INIT that it has been told of it may send itself, by the guest's ICR."""
    machine = Machine(script(ops.Compute(1), ops.Out(DONE, 1, 0)), vcpus=2)
    vcpu, other = machine.vcpus
    vcpu.set_user_intercepts(UserIntercepts(eoi=True, init_sipi=True, apic_writes=frozenset({0xF0, 0x300, 0x310})))
    machine.vcpu.signal()
    assert isinstance(vcpu.run(), kvm_run.Intr)
    vcpu.apic.accept_irq(DeliveryMode.FIXED, 0x41, 1, False)
    assert vcpu.apic.get_interrupt() == 0x41
    assert vcpu.set_guest_msr(msr.MSR_IA32_APICBASE, 0xFEE00D00)
    assert vcpu.set_guest_msr(msr.APIC_BASE_MSR + 0xB, 0)
    assert vcpu.apic.statistics().eois == 1
    with vcpu.apic.unheard():
        assert vcpu.apic.write(0xF0, 0x1FF)
    assert not other.events.apic_events.load()
    assert vcpu.set_guest_msr(msr.APIC_BASE_MSR + 0x30, 1 << 32 | DeliveryMode.INIT << 8)
    assert other.events.apic_events.load()
    assert not vcpu.user.traps
    assert vcpu.apic.listener is not None


def test_reset_forgets_traps_and_keeps_intercepts() -> None:
    machine = Machine(script(ops.Compute(1)))
    vcpu = machine.vcpu
    vcpu.set_user_intercepts(UserIntercepts(eoi=True, cpuid_all=True))
    vcpu.run()
    vcpu.user.traps.append(kvm_run.InterceptedEoi(0x41))
    vcpu.reset(init_event=True)
    assert not vcpu.user.traps
    assert vcpu.user_intercepts is not None
    assert vcpu.user_intercepts.cpuid_all
