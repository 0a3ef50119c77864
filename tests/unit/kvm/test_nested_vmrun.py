"""VMRUN, and what is around a nested guest: reset, save and restore, capabilities. The processor is a script."""

from __future__ import annotations

import errno

import pytest

from tests.unit.kvm.core_rig import RAM_SIZE, Machine, recorder, script
from tests.unit.kvm.nested_rig import L2_RIP, VMCB, Nest
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.msrs import HV_X64_MSR_GUEST_OS_ID
from vtlkit.kvm.cpuid import for_vcpu
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.nested.vmcb import (
    EVENTINJ_TYPE_SHIFT,
    EVENTINJ_VALID,
    INTERRUPT_SHADOW,
    V_INTR_MASKING,
    VMCB_SAVE_OFFSET,
    VmcbControl,
    VmcbSave,
)
from vtlkit.kvm.uapi import Cap, HvFeatures, Kvm, NestedState, hv_cpuid_entries
from vtlkit.x86 import msr
from vtlkit.x86.apic import APIC_LVTT, APIC_TDCR, APIC_TMICT
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import CR0_NW, CR0_PE, EFER_SVME
from vtlkit.x86.svm import EXCEPTION_BASE, VMEXIT_INVALID, SvmExit

# --- VMRUN itself -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("area", "field", "value"),
    [
        ("control", "asid", 0),
        ("control", "nested_ctl", 1),
        ("control", "tlb_control", 2),
        ("control", "intercept_4", 0),
        ("control", "iopm_base_pa", (1 << 52) - 0x1000),
        ("control", "msrpm_base_pa", (1 << 52) - 0x1000),
        ("control", "event_inj", EVENTINJ_VALID | 1 << EVENTINJ_TYPE_SHIFT),
        ("control", "event_inj", EVENTINJ_VALID | 3 << EVENTINJ_TYPE_SHIFT | 2),
        ("control", "event_inj", EVENTINJ_VALID | 3 << EVENTINJ_TYPE_SHIFT | 32),
        ("save", "efer", 0),
        ("save", "efer", EFER_SVME | 1 << 9),
        ("save", "cr0", 1 << 32),
        ("save", "cr0", CR0_NW),
        ("save", "cr4", 1 << 63),
        ("save", "dr6", 1 << 32),
        ("save", "dr7", 1 << 32),
    ],
)
def test_vmrun_refuses_a_control_block_that_breaks_a_rule(area: str, field: str, value: int) -> None:
    nest = Nest(script(ops.Vmmcall()))
    setattr(getattr(nest, area), field, value)
    assert nest.enter() == VMEXIT_INVALID
    assert nest.save.rip == L2_RIP


@pytest.mark.parametrize(
    ("address", "hsave", "cpl", "svme", "vector"),
    [
        (VMCB + 8, VMCB, 0, True, Vector.GP),
        (RAM_SIZE, VMCB, 0, True, Vector.GP),
        (VMCB, 0, 0, True, Vector.GP),
        (VMCB, VMCB, 3, True, Vector.GP),
        (VMCB, VMCB, 0, False, Vector.UD),
    ],
)
def test_vmrun_faults(address: int, hsave: int, cpl: int, svme: bool, vector: Vector) -> None:
    seen: list[int] = []
    program = script(ops.Set(address), ops.Intercepted("vmrun"))
    machine = Machine(program, handlers={v: recorder(seen, ops.Out(0x99, 1, 0)) for v in (6, 13)}, nested=True)
    sregs = machine.cpu.get_sregs()
    sregs.cr0 |= CR0_PE
    sregs.ss.attributes |= cpl << 5
    machine.cpu.set_sregs(sregs)
    machine.cpu.set_msr(msr.MSR_EFER, EFER_SVME if svme else 0)
    machine.vcpu.nested.hsave_pa = hsave
    machine.vcpu.run()
    assert seen == [vector]


def test_without_the_capability_there_is_no_svm() -> None:
    machine = Machine(script())
    entry = machine.vcpu.cpuid.find(0x80000001)
    assert entry is not None
    assert not entry.ecx & 4
    assert machine.vcpu.cpuid.find(0x8000000A) is None
    assert not machine.vcpu.msrs.set(msr.MSR_EFER, EFER_SVME)
    assert not machine.vcpu.msrs.set(msr.MSR_VM_HSAVE_PA, 0x1000)
    assert machine.vcpu.msrs.get(msr.MSR_VM_CR) == msr.VM_CR_SVMDIS


def test_the_capability_offers_svm_and_comes_before_the_first_vcpu() -> None:
    machine = Machine(script(), nested=True)
    entry = machine.vcpu.cpuid.find(0x8000000A)
    assert entry is not None
    assert entry.ebx
    assert machine.vcpu.msrs.set(msr.MSR_EFER, EFER_SVME)
    assert not machine.vcpu.msrs.set(msr.MSR_VM_CR, msr.VM_CR_SVMDIS), "SVM is on"
    assert machine.vcpu.msrs.set(msr.MSR_VM_HSAVE_PA, 0x3000)
    assert not machine.vcpu.msrs.set(msr.MSR_VM_HSAVE_PA, 0x3008)
    for value in (0, 1):
        with pytest.raises(KvmError) as caught:
            machine.vm.enable_cap(Cap.NESTED, value)
        assert caught.value.errno == errno.EINVAL


def test_a_locked_vm_cr_keeps_svm_off() -> None:
    machine = Machine(script(), nested=True)
    msrs = machine.vcpu.msrs
    assert msrs.set(msr.MSR_VM_CR, msr.VM_CR_SVMDIS | msr.VM_CR_LOCK)
    assert not msrs.set(msr.MSR_EFER, EFER_SVME)
    assert msrs.set(msr.MSR_VM_CR, 0)
    assert msrs.get(msr.MSR_VM_CR) == msr.VM_CR_SVMDIS | msr.VM_CR_LOCK
    assert not msrs.set(msr.MSR_VM_CR, 1 << 5)


# --- what is around it ------------------------------------------------------------------------------------------------


def test_reset_leaves_l2() -> None:
    nest = Nest(script(ops.Out(0x99, 1, 0), ops.Vmmcall()))
    nest.store()
    nest.vcpu.run()
    assert nest.vcpu.guest_mode
    nest.vcpu.reset_to_power_on()
    assert (nest.vcpu.guest_mode, nest.vcpu.gif, nest.vcpu.nested.hsave_pa) == (False, True, 0)
    assert nest.vcpu.mp_state is MpState.RUNNABLE


def test_l2_survives_save_and_restore() -> None:
    """L2 stops at user space, is saved, and goes on in another VM with the same memory."""
    first = Nest(script(ops.Out(0x99, 1, 0), ops.Cpuid(), ops.Vmmcall()))
    first.intercept(SvmExit.CPUID)
    first.control.tsc_offset = 0x1234
    first.store()
    first.vcpu.run()
    first.vcpu.complete_exit()
    state = first.vcpu.get_nested_state()
    assert state.guest_mode
    assert not state.run_pending

    second = Nest(script(ops.Compute(1), ops.Cpuid()))
    second.ram.view[:] = first.ram.view
    sregs, regs = first.vcpu.get_sregs(), first.vcpu.get_regs()
    second.vcpu.set_sregs(sregs)
    second.vcpu.set_regs(regs)
    host = VmcbSave.unpack(state.host)
    second.cpu.programs[regs.rip + sregs.cs.base] = script(ops.Cpuid())
    second.cpu.programs[host.rip + host.cs.base] = script(ops.Out(0x99, 1, 0))
    second.vcpu.set_nested_state(state)
    assert second.vcpu.get_nested_state() == state
    second.vcpu.run()
    second.load()
    assert not second.vcpu.guest_mode
    assert second.control.exit_code == SvmExit.CPUID
    assert second.cpu.regs.rax == VMCB


def test_a_pending_entry_is_saved_with_its_event() -> None:
    nest = Nest(script(ops.Compute(1), ops.Vmmcall()), handlers={0x71: recorder([])})
    nest.control.event_inj = EVENTINJ_VALID | 0x71
    state = NestedState(
        True, True, True, VMCB, nest.control.pack(), VmcbSave(cr0=CR0_PE, efer=EFER_SVME, rip=0x77).pack()
    )
    nest.vcpu.set_nested_state(state)
    assert nest.cpu.injected() == Event(0, 0x71)  # type: ignore[arg-type]
    assert nest.vcpu.get_nested_state() == state
    # The ordinary events have it, too, whichever of the two is set first.
    events = nest.vcpu.get_vcpu_events()
    nest.vcpu.set_vcpu_events(events)
    assert nest.vcpu.nested.entry_pending()
    other = Nest(script(ops.Compute(1), ops.Vmmcall()), handlers={0x71: recorder([])})
    other.vcpu.set_vcpu_events(events)
    other.vcpu.set_nested_state(state)
    assert other.vcpu.nested.entry_pending()
    assert other.vcpu.get_nested_state() == state


@pytest.mark.parametrize(
    "state",
    [
        NestedState(True, True, False, VMCB, b"", b""),
        NestedState(True, True, False, VMCB + 8, VmcbControl().pack(), VmcbSave().pack()),
        NestedState(True, True, False, VMCB, VmcbControl().pack(), VmcbSave().pack()),
    ],
)
def test_a_state_that_cannot_be_is_refused(state: NestedState) -> None:
    nest = Nest(script(ops.Vmmcall()))
    with pytest.raises(KvmError) as caught:
        nest.vcpu.set_nested_state(state)
    assert caught.value.errno == errno.EINVAL
    assert not nest.vcpu.guest_mode


def test_a_shutdown_of_l2_is_l1s() -> None:
    nest = Nest(script(ops.Fault(13, 0)))
    nest.intercept(SvmExit.SHUTDOWN)
    assert nest.enter() == SvmExit.SHUTDOWN


def test_an_exception_of_the_hypervisors_own_is_l1s_if_it_wants() -> None:
    """RDMSR of an MSR that is not there: the hypervisor raises #GP for L2."""
    nest = Nest(script(ops.Set(0x1234, "rcx"), ops.Rdmsr(), ops.Vmmcall()))
    nest.control.intercept_exceptions = 1 << Vector.GP
    assert nest.enter() == EXCEPTION_BASE + Vector.GP
    assert nest.save.rip == L2_RIP + 1


def test_an_event_cut_short_is_named() -> None:
    """The handler of the injected event is missing: #GP, which L1 intercepts, comes of the delivery."""
    nest = Nest(script(ops.Vmmcall()))
    nest.control.intercept_exceptions = 1 << Vector.GP
    nest.control.event_inj = EVENTINJ_VALID | 0x71
    assert nest.enter() == EXCEPTION_BASE + Vector.GP
    assert nest.control.exit_info_1 == 0x71 << 3 | 3
    assert nest.control.exit_int_info == EVENTINJ_VALID | 0x71
    assert nest.save.rip == L2_RIP


def test_the_shadow_goes_in_and_comes_out() -> None:
    nest = Nest(script(ops.Vmmcall()))
    nest.control.int_state = INTERRUPT_SHADOW
    assert nest.enter() == SvmExit.VMMCALL
    assert nest.control.int_state & INTERRUPT_SHADOW


def test_kvm_makes_all_its_vms_nested() -> None:
    machine = Machine(script())
    assert Kvm(machine.vm.host, machine.vm.engines, nested=True).create_vm().nested
    assert not Kvm(machine.vm.host, machine.vm.engines).create_vm().nested
    assert VMCB_SAVE_OFFSET == VmcbControl.SIZE


def test_a_vtl_switch_from_l2_is_undefined() -> None:
    """L1 lets VMMCALL through."""
    seen: list[int] = []
    nest = Nest(
        script(ops.Set(HvCallCode.HvCallVtlCall), ops.Vmmcall(), ops.Intercepted("vmrun")),
        handlers={Vector.UD: recorder(seen, ops.Intercepted("vmrun"))},
    )
    entries = for_vcpu(nest.vm.get_supported_cpuid(), 0, 1) + hv_cpuid_entries(HvFeatures())
    nest.vcpu.set_cpuid2(entries)
    assert nest.vcpu.set_msr(HV_X64_MSR_GUEST_OS_ID, 1)
    nest.control.intercept_4 &= ~(1 << SvmExit.VMMCALL - SvmExit.VMRUN)
    assert nest.enter() == SvmExit.VMRUN
    assert seen == [Vector.UD]


def test_a_timer_under_the_vmx_run_loop_ends_l2() -> None:
    """The slow path of the preemption timer."""

    def arm() -> None:
        apic = nest.vcpu.apic
        apic.mmio_write(APIC_TDCR, 4, 0xB)
        apic.mmio_write(APIC_LVTT, 4, 0x41)
        apic.mmio_write(APIC_TMICT, 4, 2000)

    nest = Nest(script(ops.Compute(1 << 40)), before=(ops.Host(arm),), vendor="vmx")
    nest.interrupts_on()
    nest.control.int_ctl = V_INTR_MASKING
    nest.intercept(SvmExit.INTR)
    codes: list[int] = []
    nest.run(lambda: codes.append(nest.enter()))
    assert codes == [SvmExit.INTR]
    assert nest.vcpu.statistics.exits["preemption_timer"]
