"""The hypervisor's registers: those that are synthetic MSRs, and the CPUID leaves that are registers, too.

What may be written, and what a write does, is what the MSR says (TLFS, "Synthetic MSRs"; `kvm.hyperv.msrs`). An MSR
that the vCPU does not have is an unknown name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef import cpuid as leaves
from vtlkit.hvdef import msrs
from vtlkit.hvdef.register_values import (
    HV_EMULATION_HINTS_PARTITION_SECURE_VTL_ENABLED,
    HV_INTERNAL_ACTIVITY_HALT_SUSPEND,
    HV_INTERNAL_ACTIVITY_STARTUP_SUSPEND,
)
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import MpState, Vcpu
from vtlkit.vmm.vsm.registers.msrs import read_only, reader, writable
from vtlkit.vmm.vsm.registers.table import U64, Register, Scope, Set, write_only

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_IPT_FEATURES: Final = 0x4000000B
_CRASH_PARAMETERS: Final = range(msrs.HV_X64_MSR_CRASH_PARAMETERS)
_SINTS: Final = range(16)
_STIMER_REGISTERS: Final = range(msrs.HV_X64_MSR_STIMER3_COUNT - msrs.HV_X64_MSR_STIMER0_CONFIG + 1)

_ACTIVITY: Final = {
    MpState.UNINITIALIZED: HV_INTERNAL_ACTIVITY_STARTUP_SUSPEND,
    MpState.INIT_RECEIVED: HV_INTERNAL_ACTIVITY_STARTUP_SUSPEND,
    MpState.HALTED: HV_INTERNAL_ACTIVITY_HALT_SUSPEND,
}


def _command(index: int) -> Set:
    """Write a register that cannot be read."""

    def write(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
        accepted = value <= U64 and vcpu.set_guest_msr(index, value)
        return HvStatus.SUCCESS if accepted else HvStatus.INVALID_REGISTER_VALUE

    return write


def _information(leaf: int) -> Register:
    """A CPUID leaf: EAX, EBX, ECX, EDX from the lowest word up."""

    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int | HvStatus:
        entry = vcpu.cpuid.find(leaf)
        if entry is None:
            return HvStatus.INVALID_PARAMETER
        return entry.eax | entry.ebx << 32 | entry.ecx << 64 | entry.edx << 96

    return Register(read, None, Scope.PARTITION)


def _khz(index: int) -> Register:
    """A frequency MSR, which is in Hz, as the register of HV_REGISTER_NAME, which is in kHz."""
    hertz = reader(index)

    def read(vp: Vp, level: int, vcpu: Vcpu) -> int | HvStatus:
        value = hertz(vp, level, vcpu)
        return value if isinstance(value, HvStatus) else value // 1000

    return Register(read)


def _vp_index(vp: Vp, _level: int, _vcpu: Vcpu) -> int:
    return vp.index


def _activity(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
    """What the vCPU does while its VTL is the active one."""
    return _ACTIVITY.get(vcpu.get_mp_state(), 0)


def _emulation_hints(vp: Vp, _level: int, _vcpu: Vcpu) -> int:
    """Whether the partition has VTLs above 0. There is no MBEC."""
    return HV_EMULATION_HINTS_PARTITION_SECURE_VTL_ENABLED if vp.partition.enabled_set() >> 1 else 0


REGISTERS: Final[Mapping[int, Register]] = {
    Name.HvRegisterInternalActivityState: Register(_activity),
    Name.HvRegisterInstructionEmulationHints: Register(_emulation_hints, None, Scope.PARTITION),
    # CPUID leaves.
    Name.HvRegisterHypervisorVersion: _information(leaves.HV_CPUID_FUNCTION_MS_HV_VERSION),
    Name.HvRegisterPrivilegesAndFeaturesInfo: _information(leaves.HV_CPUID_FUNCTION_MS_HV_FEATURES),
    Name.HvRegisterFeaturesInfo: _information(leaves.HV_CPUID_FUNCTION_MS_HV_ENLIGHTENMENT_INFORMATION),
    Name.HvRegisterImplementationLimitsInfo: _information(leaves.HV_CPUID_FUNCTION_MS_HV_IMPLEMENTATION_LIMITS),
    Name.HvRegisterHardwareFeaturesInfo: _information(leaves.HV_CPUID_FUNCTION_MS_HV_HARDWARE_FEATURES),
    Name.HvRegisterCpuManagementFeaturesInfo: _information(leaves.HV_CPUID_FUNCTION_MS_HV_CPU_MANAGEMENT_FEATURES),
    Name.HvRegisterPasidFeaturesInfo: _information(leaves.HV_CPUID_FUNCTION_MS_HV_SVM_FEATURES),
    Name.HvRegisterNestedVirtFeaturesInfo: _information(leaves.HV_CPUID_FUNCTION_MS_HV_NESTED_FEATURES),
    Name.HvRegisterIptFeaturesInfo: _information(_IPT_FEATURES),
    # Identity, time, crash.
    Name.HvRegisterGuestOsId: writable(msrs.HV_X64_MSR_GUEST_OS_ID),
    Name.HvX64RegisterHypercall: writable(msrs.HV_X64_MSR_HYPERCALL),
    Name.HvRegisterVpIndex: Register(_vp_index, None, Scope.PARTITION),
    Name.HvRegisterVpRuntime: read_only(msrs.HV_X64_MSR_VP_RUNTIME, Scope.VP),
    Name.HvRegisterTimeRefCount: read_only(msrs.HV_X64_MSR_TIME_REF_COUNT),
    Name.HvRegisterReferenceTsc: writable(msrs.HV_X64_MSR_REFERENCE_TSC),
    Name.HvRegisterProcessorClockFrequency: _khz(msrs.HV_X64_MSR_TSC_FREQUENCY),
    Name.HvRegisterInterruptClockFrequency: _khz(msrs.HV_X64_MSR_APIC_FREQUENCY),
    Name.HvRegisterGuestIdle: read_only(msrs.HV_X64_MSR_GUEST_IDLE),
    **{
        Name(Name.HvRegisterGuestCrashP0 + number): writable(msrs.HV_X64_MSR_CRASH_P0 + number)
        for number in _CRASH_PARAMETERS
    },
    Name.HvRegisterDebugDeviceOptions: writable(msrs.HV_X64_MSR_DEBUG_DEVICE_OPTIONS),
    Name.HvRegisterGuestCrashCtl: writable(msrs.HV_X64_MSR_CRASH_CTL),
    # The local APIC's, by MSR: they need it to be enabled.
    Name.HvX64RegisterSyntheticEoi: Register(write_only, _command(msrs.HV_X64_MSR_EOI)),
    Name.HvX64RegisterSyntheticIcr: writable(msrs.HV_X64_MSR_ICR),
    Name.HvX64RegisterSyntheticTpr: writable(msrs.HV_X64_MSR_TPR),
    Name.HvRegisterVpAssistPage: writable(msrs.HV_X64_MSR_VP_ASSIST_PAGE),
    # SynIC and timers.
    **{Name(Name.HvRegisterSint0 + number): writable(msrs.HV_X64_MSR_SINT0 + number) for number in _SINTS},
    Name.HvRegisterScontrol: writable(msrs.HV_X64_MSR_SCONTROL),
    Name.HvRegisterSversion: read_only(msrs.HV_X64_MSR_SVERSION),
    Name.HvRegisterSifp: writable(msrs.HV_X64_MSR_SIEFP),
    Name.HvRegisterSipp: writable(msrs.HV_X64_MSR_SIMP),
    Name.HvRegisterEom: writable(msrs.HV_X64_MSR_EOM),
    **{
        Name(Name.HvRegisterStimer0Config + number): writable(msrs.HV_X64_MSR_STIMER0_CONFIG + number)
        for number in _STIMER_REGISTERS
    },
    Name.HvRegisterStimeUnhaltedTimerConfig: writable(msrs.HV_X64_MSR_STIME_UNHALTED_TIMER_CONFIG),
    Name.HvRegisterStimeUnhaltedTimerCount: writable(msrs.HV_X64_MSR_STIME_UNHALTED_TIMER_COUNT),
}
