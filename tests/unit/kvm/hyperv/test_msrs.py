"""Synthetic MSRs, their privileges, the VP assist page and system events."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.kvm.hyperv.rig import FakeVm
from vtlkit.hvdef import msrs
from vtlkit.hvdef.cpuid import HvPartitionPrivilege as Privilege
from vtlkit.hvdef.vsm import HvVtlEntryReason
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.hyperv.features import NOTHING
from vtlkit.kvm.hyperv.msrs import MSRS
from vtlkit.kvm.kvm_run import SystemEvent
from vtlkit.kvm.requests import Req
from vtlkit.x86 import apic as regs
from vtlkit.x86.msr import X2APIC_ENABLE


def test_nothing_without_the_interface() -> None:
    cpu = FakeVm().cpu
    cpu.hv.set_cpuid([])
    assert not cpu.hv.enabled
    assert all(cpu.rdmsr(index) is None and not cpu.wrmsr(index, 0) for index in MSRS)


def test_privileges_guard_the_msrs() -> None:
    cpu = FakeVm(features=NOTHING).cpu
    allowed = {index for index in MSRS if cpu.rdmsr(index) is not None}
    assert allowed == {
        msrs.HV_X64_MSR_GUEST_OS_ID,
        msrs.HV_X64_MSR_HYPERCALL,
        msrs.HV_X64_MSR_DEBUG_DEVICE_OPTIONS,
    }
    cpu = FakeVm(features=replace(NOTHING, vpindex=True, synic=True)).cpu
    assert cpu.rdmsr(msrs.HV_X64_MSR_SINT0) is not None
    assert cpu.rdmsr(msrs.HV_X64_MSR_CRASH_CTL) is None


@pytest.mark.tlfs("msrs.debug")
def test_indices_that_are_no_msr() -> None:
    """No synthetic debugger (0xF1 to 0xF5), no interrupt response buffer (0x85)."""
    cpu = FakeVm().cpu
    for index in (0x40000004, 0x40000085, 0x400000B8, *range(0x400000F1, 0x400000F6), 0x400000A0, 0x400001FF):
        assert cpu.rdmsr(index) is None
        assert not cpu.wrmsr(index, 0)
        assert not cpu.hv.set_msr(index, 0, host_initiated=True)


def test_what_the_host_reads_it_may_write_back() -> None:
    cpu = FakeVm(2).cpu
    for index in MSRS:
        value = cpu.hv.get_msr(index, host_initiated=True)
        if value is not None:
            assert cpu.hv.set_msr(index, value, host_initiated=True), hex(index)
    assert cpu.requests == set()
    assert not cpu.hv.idle_requested


# --- single registers ---------------------------------------------------------------------------------------------


@pytest.mark.tlfs("msrs.vp-index")
def test_vp_index() -> None:
    vm = FakeVm(3, vp_indices=[7, 1, 2])
    assert [cpu.rdmsr(msrs.HV_X64_MSR_VP_INDEX) for cpu in vm.vcpus] == [7, 1, 2]
    assert not vm.cpu.wrmsr(msrs.HV_X64_MSR_VP_INDEX, 0)
    assert not vm.cpu.hv.set_msr(msrs.HV_X64_MSR_VP_INDEX, 1, host_initiated=True)
    assert not vm.cpu.hv.set_msr(msrs.HV_X64_MSR_VP_INDEX, 4096, host_initiated=True)
    assert vm.cpu.hv.set_msr(msrs.HV_X64_MSR_VP_INDEX, 0, host_initiated=True)
    assert vm.hv.vp(0) is vm.cpu.hv
    assert vm.hv.vp(7) is None
    with pytest.raises(KvmError, match="EEXIST"):
        FakeVm(2, vp_indices=[3, 3])


@pytest.mark.tlfs("msrs.frequencies")
def test_frequencies_and_runtime() -> None:
    cpu = FakeVm().cpu
    assert cpu.rdmsr(msrs.HV_X64_MSR_TSC_FREQUENCY) == 1_000_000_000
    assert cpu.rdmsr(msrs.HV_X64_MSR_APIC_FREQUENCY) == 1_000_000_000
    cpu.hv.runtime_ns += 12_345
    assert cpu.rdmsr(msrs.HV_X64_MSR_VP_RUNTIME) == 123
    assert not cpu.wrmsr(msrs.HV_X64_MSR_VP_RUNTIME, 0)


@pytest.mark.tlfs("msrs.npiep")
def test_npiep() -> None:
    cpu = FakeVm().cpu
    assert cpu.rdmsr(msrs.HV_X64_MSR_NPIEP_CONFIG) == 0
    assert cpu.wrmsr(msrs.HV_X64_MSR_NPIEP_CONFIG, 0xA)
    assert cpu.rdmsr(msrs.HV_X64_MSR_NPIEP_CONFIG) == cpu.intercepted == 0xA
    assert not cpu.wrmsr(msrs.HV_X64_MSR_NPIEP_CONFIG, 0x10)
    assert not cpu.wrmsr(msrs.HV_X64_MSR_NPIEP_CONFIG, 1 << 63)
    cpu.hv.reset(init_event=True)
    assert cpu.rdmsr(msrs.HV_X64_MSR_NPIEP_CONFIG) == 0xA
    cpu.hv.reset(init_event=False)
    assert cpu.rdmsr(msrs.HV_X64_MSR_NPIEP_CONFIG) == 0


@pytest.mark.tlfs("msrs.debug")
def test_debug_device_options_are_the_virtual_machines() -> None:
    vm = FakeVm(2)
    first, second = vm.vcpus
    assert first.rdmsr(msrs.HV_X64_MSR_DEBUG_DEVICE_OPTIONS) == 0
    assert first.wrmsr(msrs.HV_X64_MSR_DEBUG_DEVICE_OPTIONS, 0x123456789ABCDEF0)
    assert second.rdmsr(msrs.HV_X64_MSR_DEBUG_DEVICE_OPTIONS) == 0x123456789ABCDEF0
    other = FakeVm()
    other.hv.share_registers(vm.hv)
    assert other.cpu.rdmsr(msrs.HV_X64_MSR_DEBUG_DEVICE_OPTIONS) == 0x123456789ABCDEF0
    vm.hv.reset()
    assert other.cpu.rdmsr(msrs.HV_X64_MSR_DEBUG_DEVICE_OPTIONS) == 0


def test_idle() -> None:
    cpu = FakeVm().cpu
    assert cpu.rdmsr(msrs.HV_X64_MSR_GUEST_IDLE) == 0
    assert cpu.hv.idle_requested
    assert not cpu.wrmsr(msrs.HV_X64_MSR_GUEST_IDLE, 0)


@pytest.mark.tlfs("msrs.apic")
@pytest.mark.parametrize("x2apic", [False, True])
def test_apic_registers(x2apic: bool) -> None:
    vm = FakeVm(2)
    if x2apic:
        for cpu in vm.vcpus:
            assert cpu.apic.set_base(cpu.apic.get_base() | X2APIC_ENABLE, host_initiated=False)
    cpu, other = vm.vcpus
    destination = 1 << (32 if x2apic else 56)
    assert cpu.wrmsr(msrs.HV_X64_MSR_ICR, destination | regs.APIC_INT_ASSERT | 0x71)
    assert cpu.rdmsr(msrs.HV_X64_MSR_ICR) == destination | regs.APIC_INT_ASSERT | 0x71
    assert other.wrmsr(msrs.HV_X64_MSR_TPR, 0x80)
    assert other.rdmsr(msrs.HV_X64_MSR_TPR) == 0x80
    assert other.take() == -1
    assert other.wrmsr(msrs.HV_X64_MSR_TPR, 0x60)
    assert other.take(eoi=False) == 0x71
    assert other.wrmsr(msrs.HV_X64_MSR_EOI, 0)
    assert other.apic.statistics().eois == 1
    assert not other.wrmsr(msrs.HV_X64_MSR_TPR, 0x100)
    assert not other.wrmsr(msrs.HV_X64_MSR_EOI, 1 << 32)
    assert other.rdmsr(msrs.HV_X64_MSR_EOI) is None


@pytest.mark.tlfs("msrs.apic")
def test_apic_registers_of_a_disabled_apic() -> None:
    cpu = FakeVm().cpu
    assert cpu.apic.set_base(0, host_initiated=True)
    assert cpu.rdmsr(msrs.HV_X64_MSR_TPR) is None
    assert not cpu.wrmsr(msrs.HV_X64_MSR_ICR, 0x71)


@pytest.mark.tlfs("msrs.reenlightenment")
def test_reenlightenment_registers() -> None:
    cpu = FakeVm().cpu
    assert not cpu.wrmsr(msrs.HV_X64_MSR_REENLIGHTENMENT_CONTROL, 1 << 16 | 15)
    for reserved in (1 << 8, 1 << 15, 1 << 17, 1 << 31):
        assert not cpu.wrmsr(msrs.HV_X64_MSR_REENLIGHTENMENT_CONTROL, reserved)
    for value, accepted in ((1, True), (2, False), (0, True)):
        assert cpu.wrmsr(msrs.HV_X64_MSR_TSC_EMULATION_CONTROL, value) is accepted
        assert cpu.rdmsr(msrs.HV_X64_MSR_TSC_EMULATION_CONTROL) == (value if accepted else 1)
    assert cpu.wrmsr(msrs.HV_X64_MSR_REENLIGHTENMENT_CONTROL, 1 << 16 | 0x44)
    assert cpu.rdmsr(msrs.HV_X64_MSR_REENLIGHTENMENT_CONTROL) == 1 << 16 | 0x44
    assert cpu.wrmsr(msrs.HV_X64_MSR_TSC_EMULATION_STATUS, 0)
    assert not cpu.wrmsr(msrs.HV_X64_MSR_TSC_EMULATION_STATUS, 1)
    cpu.vm.hv.reset()
    assert cpu.rdmsr(msrs.HV_X64_MSR_REENLIGHTENMENT_CONTROL) == 0


@pytest.mark.tlfs("msrs.reenlightenment")
def test_the_invariant_tsc_is_told_when_the_guest_asks_for_it() -> None:
    vm = FakeVm(2)
    cpu, other = vm.vcpus
    index = msrs.HV_X64_MSR_TSC_INVARIANT_CONTROL

    def hidden() -> list[bool]:
        return [vcpu.hv.hides_invariant_tsc for vcpu in vm.vcpus]

    assert not cpu.wrmsr(index, 1)
    assert hidden() == [False, False]
    for vcpu in vm.vcpus:
        vcpu.hv.privileges |= Privilege.AccessTscInvariantControls
    assert cpu.rdmsr(index) == 0
    assert cpu.wrmsr(index, 0)
    assert hidden() == [True, True]
    assert not cpu.wrmsr(index, 2)
    assert cpu.wrmsr(index, 1)
    assert other.rdmsr(index) == 1
    assert hidden() == [False, False]
    assert not other.wrmsr(index, 0)
    vm.hv.reset()
    assert hidden() == [True, True]


# --- system events ------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("msrs.crash")
def test_crash() -> None:
    cpu = FakeVm().cpu
    for number in range(5):
        assert cpu.wrmsr(msrs.HV_X64_MSR_CRASH_P0 + number, 100 + number)
    assert cpu.wrmsr(msrs.HV_X64_MSR_CRASH_CTL, 0)
    assert cpu.requests == set()
    control = msrs.HV_CRASH_CTL_CRASH_NOTIFY | msrs.HV_CRASH_CTL_CRASH_MESSAGE
    assert cpu.rdmsr(msrs.HV_X64_MSR_CRASH_CTL) == control
    assert cpu.wrmsr(msrs.HV_X64_MSR_CRASH_CTL, control)
    assert cpu.requests == {Req.HV_CRASH}
    event = cpu.hv.system_event(Req.HV_CRASH)
    assert event.type == SystemEvent.CRASH
    assert event.data == (100, 101, 102, 103, 104, control)


@pytest.mark.tlfs("msrs.reset")
def test_reset() -> None:
    cpu = FakeVm().cpu
    assert cpu.wrmsr(msrs.HV_X64_MSR_RESET, 0)
    assert cpu.requests == set()
    assert cpu.wrmsr(msrs.HV_X64_MSR_RESET, 1)
    assert cpu.requests == {Req.HV_RESET}
    assert cpu.hv.system_event(Req.HV_RESET).type == SystemEvent.RESET


# --- VP assist page -----------------------------------------------------------------------------------------------


@pytest.mark.tlfs("numbers.structures", "vsm.entry-reason", "vsm.return")
def test_assist_page() -> None:
    vm = FakeVm()
    assist = vm.cpu.hv.assist
    assist.set_entry_reason(HvVtlEntryReason.HvVtlEntryInterrupt)
    vm.cpu.wrmsr(msrs.HV_X64_MSR_VP_ASSIST_PAGE, 0x8000 | 1)
    assert vm.cpu.rdmsr(msrs.HV_X64_MSR_VP_ASSIST_PAGE) == 0x8000 | 1
    assert vm.memory.read(0x8008, 4) == b"\2\0\0\0"
    vm.put(0x8010, "<QQ", 0x1111111122222222, 0x3333333344444444)
    assert assist.return_registers_64() == (0x1111111122222222, 0x3333333344444444)
    assert assist.return_registers_32() == (0x22222222, 0x11111111, 0x44444444)
    assist.set_vina_asserted(True)
    assert vm.memory.read(0x800C, 1) == b"\1"
    assert assist.vina_asserted
    assist.set_intercept_message(b"m" * 256)
    assert vm.memory.read(0x8070, 257) == b"m" * 256 + b"\0"
    assist.write(0, b"\1")
    vm.cpu.wrmsr(msrs.HV_X64_MSR_VP_ASSIST_PAGE, 0)
    assert assist.entry_reason == HvVtlEntryReason.HvVtlEntryInterrupt
    vm.cpu.wrmsr(msrs.HV_X64_MSR_VP_ASSIST_PAGE, 0x8000 | 1)
    assert assist.read(0, 1) == b"\0"  # EOI assist starts anew
    vm.cpu.hv.reset(init_event=False)
    assert assist.entry_reason == 0
