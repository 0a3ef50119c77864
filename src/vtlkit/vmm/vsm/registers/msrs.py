"""Model-specific registers of the processor. What may be written is what the guest's own WRMSR takes; bits that the
processor has not are refused here rather than dropped.

One that the vCPU's CPUID does not offer is an unknown name. The MTRRs are the processor's, all others a VTL's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu
from vtlkit.vmm.vsm.registers.table import U64, Get, Register, Scope
from vtlkit.x86 import msr

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_LOW_HALF: Final = 0xFFFFFFFF
_HEX_DIGITS: Final = 16
"""Variable ranges that have a name; a processor has fewer."""


def reader(index: int) -> Get:
    """The register as user space reads it; an unknown name where the vCPU has none."""

    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int | HvStatus:
        value = vcpu.get_msr(index)
        return HvStatus.INVALID_PARAMETER if value is None else value

    return read


def _host_write(vcpu: Vcpu, index: int, value: int) -> bool:
    return vcpu.set_msr(index, value)


def _guest_write(vcpu: Vcpu, index: int, value: int) -> bool:
    return vcpu.set_guest_msr(index, value)


def writable(
    index: int,
    *,
    valid: int = U64,
    scope: Scope = Scope.VTL,
    store: Callable[[Vcpu, int, int], bool] = _guest_write,
) -> Register:
    """`valid`: the bits that the register has."""
    read = reader(index)

    def write(vp: Vp, level: int, vcpu: Vcpu, value: int) -> HvStatus:
        present = read(vp, level, vcpu)
        if isinstance(present, HvStatus):
            return present
        accepted = not value & ~valid and store(vcpu, index, value)
        return HvStatus.SUCCESS if accepted else HvStatus.INVALID_REGISTER_VALUE

    return Register(read, write, scope, index)


def read_only(index: int, scope: Scope = Scope.VTL) -> Register:
    return Register(reader(index), None, scope, index)


def _initial_apic_id(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
    return vcpu.apic.apic_id


def _mtrr(index: int) -> Register:
    return writable(index, scope=Scope.VP)


_FIXED_MTRRS: Final = {
    Name.HvX64RegisterMsrMtrrFix64k00000: msr.MSR_MTRRfix64K_00000,
    Name.HvX64RegisterMsrMtrrFix16k80000: msr.MSR_MTRRfix16K_80000,
    Name.HvX64RegisterMsrMtrrFix16kA0000: msr.MSR_MTRRfix16K_A0000,
    **{
        Name(Name.HvX64RegisterMsrMtrrFix4kC0000 + number): msr.MSR_MTRRfix4K_C0000 + number
        for number in range(msr.MSR_MTRRfix4K_F8000 - msr.MSR_MTRRfix4K_C0000 + 1)
    },
}

REGISTERS: Final[Mapping[int, Register]] = {
    # Written without moving each other: the two are restored one by one, as user space restores them.
    Name.HvX64RegisterTsc: writable(msr.MSR_IA32_TSC, store=_host_write),
    Name.HvX64RegisterTscAdjust: writable(msr.MSR_IA32_TSC_ADJUST, store=_host_write),
    Name.HvX64RegisterEfer: writable(msr.MSR_EFER),
    Name.HvX64RegisterKernelGsBase: writable(msr.MSR_KERNEL_GS_BASE),
    Name.HvX64RegisterApicBase: writable(msr.MSR_IA32_APICBASE),
    Name.HvX64RegisterPat: writable(msr.MSR_IA32_CR_PAT),
    Name.HvX64RegisterSysenterCs: writable(msr.MSR_IA32_SYSENTER_CS, valid=_LOW_HALF),
    Name.HvX64RegisterSysenterEip: writable(msr.MSR_IA32_SYSENTER_EIP),
    Name.HvX64RegisterSysenterEsp: writable(msr.MSR_IA32_SYSENTER_ESP),
    Name.HvX64RegisterStar: writable(msr.MSR_STAR),
    Name.HvX64RegisterLstar: writable(msr.MSR_LSTAR),
    Name.HvX64RegisterCstar: writable(msr.MSR_CSTAR),
    Name.HvX64RegisterSfmask: writable(msr.MSR_SYSCALL_MASK, valid=_LOW_HALF),
    Name.HvX64RegisterInitialApicId: Register(_initial_apic_id, None, Scope.PARTITION),
    Name.HvX64RegisterTscAux: writable(msr.MSR_TSC_AUX, valid=_LOW_HALF),
    Name.HvX64RegisterDebugCtl: writable(msr.MSR_IA32_DEBUGCTLMSR),
    Name.HvX64RegisterMCount: read_only(msr.MSR_IA32_MPERF),
    Name.HvX64RegisterACount: read_only(msr.MSR_IA32_APERF),
    Name.HvX64RegisterTscDeadline: writable(msr.MSR_IA32_TSC_DEADLINE),
    Name.HvX64RegisterMsrMcUpdatePatchLevel: read_only(msr.MSR_IA32_UCODE_REV),
    Name.HvX64RegisterMsrIa32MiscEnable: writable(msr.MSR_IA32_MISC_ENABLE),
    Name.HvX64RegisterAmdVmCr: read_only(msr.MSR_VM_CR),
    Name.HvX64RegisterMsrMtrrCap: read_only(msr.MSR_MTRRcap, Scope.VP),
    Name.HvX64RegisterMsrMtrrDefType: _mtrr(msr.MSR_MTRRdefType),
    **{name: _mtrr(index) for name, index in _FIXED_MTRRS.items()},
    **{
        Name[f"HvX64RegisterMsrMtrrPhys{part}{number:X}"]: _mtrr(first + 2 * number)
        for part, first in (("Base", msr.MSR_MTRRphysBase0), ("Mask", msr.MSR_MTRRphysMask0))
        for number in range(_HEX_DIGITS)
    },
}
