"""Model-specific registers of one vCPU. Mirrors `kvm_get_msr_common` and `kvm_set_msr_common` of arch/x86/kvm/x86.c.

Registers fall into four: those the engine keeps (`Engine.native_msrs`), those that other parts answer (local APIC,
Hyper-V, TSC), plain storage with a rule for what may be stored, and read-only constants. What is none of these is #GP.
Belongs to the vCPU's task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

from vtlkit.kvm.nested import msrs as svm_msrs
from vtlkit.x86 import cpuid as bits
from vtlkit.x86 import msr
from vtlkit.x86.paging import is_canonical
from vtlkit.x86.registers import (
    CR0_PG,
    EFER_FFXSR,
    EFER_LMA,
    EFER_LME,
    EFER_LMSLE,
    EFER_NX,
    EFER_SCE,
    EFER_SVME,
)

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

Get: TypeAlias = Callable[["Vcpu"], int]
Set: TypeAlias = Callable[["Vcpu", int, bool], bool]
"""(vCPU, value, host initiated) -> whether the value was accepted"""

HYPERV_MSR_FIRST: Final = 0x40000000
HYPERV_MSR_LAST: Final = 0x400001FF
KVM_MAX_MCE_BANKS: Final = 32
MCE_BANKS: Final = 10
_MCG_CTL_P: Final = 1 << 8
_MCG_SER_P: Final = 1 << 24
_MCG_CAP: Final = MCE_BANKS | _MCG_CTL_P | _MCG_SER_P
_MSR_MC_SPAN: Final = range(msr.MSR_IA32_MC0_CTL, msr.MSR_IA32_MC0_CTL + 4 * KVM_MAX_MCE_BANKS)
_U64: Final = 0xFFFFFFFFFFFFFFFF
_HWCR_WRITABLE: Final = 1 << 24 | 1 << 18
_HWCR_IGNORED: Final = 0x40 | 0x100 | 0x8
_MISC_ENABLE_PMU_READ_ONLY: Final = msr.MISC_ENABLE_PEBS_UNAVAIL | msr.MISC_ENABLE_BTS_UNAVAIL
_HWCR_MC_STATUS_WRITE_ENABLE: Final = 1 << 18
_EFER_KNOWN: Final = EFER_SCE | EFER_LME | EFER_LMA | EFER_NX | EFER_SVME | EFER_LMSLE | EFER_FFXSR
_MTRR_VARIABLE: Final = 8
_MTRR_CAP: Final = _MTRR_VARIABLE | msr.MTRRCAP_FIX | msr.MTRRCAP_WC

_K7_PMU: Final = (
    *range(msr.MSR_K7_EVNTSEL0, msr.MSR_K7_EVNTSEL0 + 4),
    *range(msr.MSR_K7_PERFCTR0, msr.MSR_K7_PERFCTR0 + 4),
)
"""Counters that every AMD processor has: without a PMU they read as zero and swallow writes, as KVM's do."""

_CANONICAL: Final = frozenset(
    {
        msr.MSR_FS_BASE,
        msr.MSR_GS_BASE,
        msr.MSR_KERNEL_GS_BASE,
        msr.MSR_LSTAR,
        msr.MSR_CSTAR,
        msr.MSR_IA32_SYSENTER_ESP,
        msr.MSR_IA32_SYSENTER_EIP,
    }
)


class Msrs:
    """The registers that live nowhere else, and the door to all of them."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self._values: dict[int, int] = {}
        self.shared: Mapping[int, int] = {}
        """Those that all VTLs of a processor share (TLFS): replaced whole, so that a VTL switch copies a reference."""
        self.reset()

    def reset(self) -> None:
        """Power-up values."""
        self._values = {index: 0 for index in _STORED if index not in _SHARED}
        self.shared = dict.fromkeys(_SHARED, 0)
        self._values[msr.MSR_IA32_MISC_ENABLE] = (
            msr.MISC_ENABLE_FAST_STRING | msr.MISC_ENABLE_PEBS_UNAVAIL | msr.MISC_ENABLE_BTS_UNAVAIL
        )

    def get(self, index: int, *, host_initiated: bool = False) -> int | None:
        """The register's value; None is #GP."""
        vcpu = self._vcpu
        if index in vcpu.engine.native_msrs:
            if index == msr.MSR_TSC_AUX and not host_initiated and not _has_rdtscp(vcpu):
                return None
            return vcpu.engine.get_msr(index)
        if index in self._values:
            return self._values[index]
        if index in self.shared:
            return self.shared[index]
        getter = _GETTERS.get(index)
        if getter is not None:
            return getter(vcpu)
        if msr.APIC_BASE_MSR <= index <= msr.MSR_X2APIC_LAST:
            return vcpu.apic.x2apic_msr_read(index)
        if HYPERV_MSR_FIRST <= index <= HYPERV_MSR_LAST:
            return vcpu.hv.get_msr(index, host_initiated)
        return None

    def set(self, index: int, value: int, *, host_initiated: bool = False) -> bool:
        """Store; False is #GP."""
        vcpu = self._vcpu
        setter = _SETTERS.get(index)
        if setter is not None:
            return setter(vcpu, value, host_initiated)
        if index in _CANONICAL:
            # By what the processor supports, not by CR4.LA57: registers keep 57 bits in 4-level paging, too.
            la57 = vcpu.cpuid.has(7, "ecx", bits.CPUID_7_0_ECX_LA57)
            if not host_initiated and not is_canonical(value, la57):
                return False
            vcpu.engine.set_msr(index, value)
            return True
        if index in vcpu.engine.native_msrs:
            vcpu.engine.set_msr(index, value)
            return True
        rule = _STORED.get(index)
        if rule is not None:
            if not host_initiated and not rule(value):
                return False
            self.store(index, value)
            return True
        if msr.APIC_BASE_MSR <= index <= msr.MSR_X2APIC_LAST:
            return vcpu.apic.x2apic_msr_write(index, value)
        if HYPERV_MSR_FIRST <= index <= HYPERV_MSR_LAST:
            return vcpu.hv.set_msr(index, value, host_initiated)
        return False

    def store(self, index: int, value: int) -> None:
        """Set a stored register with no rule applied (for the setters of this module)."""
        if index in self.shared:
            self.shared = {**self.shared, index: value}
        else:
            self._values[index] = value


def _has_rdtscp(vcpu: Vcpu) -> bool:
    return vcpu.cpuid.has(0x80000001, "edx", bits.CPUID_80000001_EDX_RDTSCP)


# --- rules for stored registers ---------------------------------------------------------------------------------------


def _any(_value: int) -> bool:
    return True


def _zero(value: int) -> bool:
    return value == 0


def _mtrr_types(value: int) -> bool:
    return all(msr.mtrr_type_valid(value >> 8 * byte & 0xFF) for byte in range(8))


def _mtrr_default(value: int) -> bool:
    allowed = msr.MTRR_DEF_TYPE_TYPE | msr.MTRR_DEF_TYPE_FE | msr.MTRR_DEF_TYPE_E
    return not value & ~allowed and msr.mtrr_type_valid(value & msr.MTRR_DEF_TYPE_TYPE)


def _mtrr_base(value: int) -> bool:
    return not value & 0xF00 and not value >> 52 and msr.mtrr_type_valid(value & 0xFF)


def _mtrr_mask(value: int) -> bool:
    return not value & 0x7FF and not value >> 52


def _mce_control(value: int) -> bool:
    return value in (0, _U64)


def _bank_control(value: int) -> bool:
    # Some guests (and AMD's errata) clear bit 10 of bank 4, all clear or all set otherwise.
    return value == 0 or value | 1 << 10 | 1 == _U64


_MTRR_RANGES: Final = range(msr.MSR_MTRRphysBase0, msr.MSR_MTRRphysBase0 + 2 * _MTRR_VARIABLE)
_BANK_STATUS: Final = range(msr.MSR_IA32_MC0_STATUS, msr.MSR_IA32_MC0_STATUS + 4 * MCE_BANKS, 4)

_STORED: Final[dict[int, Callable[[int], bool]]] = {
    msr.MSR_IA32_MISC_ENABLE: _any,
    msr.MSR_IA32_MCG_STATUS: _any,
    msr.MSR_IA32_MCG_CTL: _mce_control,
    msr.MSR_IA32_DEBUGCTLMSR: _zero,
    msr.MSR_MTRRdefType: _mtrr_default,
    msr.MSR_AMD64_NB_CFG: _any,
    msr.MSR_AMD64_DE_CFG: _any,
    msr.MSR_AMD64_BU_CFG2: _zero,
    msr.MSR_AMD64_DC_CFG: _any,
    msr.MSR_AMD64_LS_CFG: _any,
    msr.MSR_AMD64_SYSCFG: _any,
    msr.MSR_AMD64_PATCH_LOADER: _any,
    msr.MSR_IA32_UCODE_WRITE: _any,
    msr.MSR_K8_INT_PENDING_MSG: _any,
    msr.MSR_K8_TOP_MEM1: _any,
    msr.MSR_K8_TOP_MEM2: _any,
    msr.MSR_K7_HWCR: lambda value: not value & ~(_HWCR_WRITABLE | _HWCR_IGNORED),
    **dict.fromkeys(msr.MTRR_FIXED, _mtrr_types),
    **{msr.MSR_MTRRphysBase0 + 2 * number: _mtrr_base for number in range(_MTRR_VARIABLE)},
    **{msr.MSR_MTRRphysMask0 + 2 * number: _mtrr_mask for number in range(_MTRR_VARIABLE)},
    **{msr.MSR_IA32_MC0_CTL + 4 * bank: _bank_control for bank in range(MCE_BANKS)},
    **dict.fromkeys(_BANK_STATUS, _zero),
    **{msr.MSR_IA32_MC0_ADDR + 4 * bank: _any for bank in range(MCE_BANKS)},
    **{msr.MSR_IA32_MC0_MISC + 4 * bank: _any for bank in range(MCE_BANKS)},
}

_SHARED: Final = (
    msr.MSR_IA32_MCG_STATUS,
    msr.MSR_MTRRdefType,
    *msr.MTRR_FIXED,
    *_MTRR_RANGES,
)

# --- registers that other parts answer --------------------------------------------------------------------------------

_GETTERS: Final[dict[int, Get]] = {
    msr.MSR_IA32_TSC: lambda vcpu: vcpu.guest_tsc(),
    msr.MSR_IA32_TSC_ADJUST: lambda vcpu: vcpu.tsc_adjust,
    msr.MSR_IA32_TSC_DEADLINE: lambda vcpu: vcpu.apic.get_tscdeadline(),
    msr.MSR_IA32_APICBASE: lambda vcpu: vcpu.apic.get_base(),
    msr.MSR_MTRRcap: lambda _vcpu: _MTRR_CAP,
    msr.MSR_IA32_MCG_CAP: lambda _vcpu: _MCG_CAP,
    msr.MSR_IA32_P5_MC_ADDR: lambda _vcpu: 0,
    msr.MSR_IA32_P5_MC_TYPE: lambda _vcpu: 0,
    msr.MSR_IA32_UCODE_REV: lambda _vcpu: 0x01000065,
    msr.MSR_IA32_EBL_CR_POWERON: lambda _vcpu: 0x2A,
    msr.MSR_IA32_MPERF: lambda vcpu: vcpu.guest_tsc(),
    msr.MSR_IA32_APERF: lambda vcpu: vcpu.guest_tsc(),
    msr.MSR_VM_CR: svm_msrs.get_vm_cr,
    msr.MSR_VM_HSAVE_PA: svm_msrs.get_hsave,
    msr.MSR_FAM10H_MMIO_CONF_BASE: lambda _vcpu: 0,
    **dict.fromkeys(_K7_PMU, lambda _vcpu: 0),
}


def efer_allowed(vcpu: Vcpu) -> int:
    """EFER bits that this vCPU's CPUID offers."""
    allowed = EFER_SCE
    if vcpu.cpuid.has(0x80000001, "edx", bits.CPUID_80000001_EDX_LM):
        allowed |= EFER_LME | EFER_LMA
    if vcpu.cpuid.has(0x80000001, "edx", bits.CPUID_80000001_EDX_NX):
        allowed |= EFER_NX
    if vcpu.cpuid.has(0x80000001, "edx", bits.CPUID_80000001_EDX_FXSR_OPT):
        allowed |= EFER_FFXSR
    if svm_msrs.has_svm(vcpu):
        allowed |= EFER_SVME | EFER_LMSLE
    return allowed


def _set_efer(vcpu: Vcpu, value: int, host_initiated: bool) -> bool:
    if value & ~_EFER_KNOWN:
        return False
    old = vcpu.engine.get_msr(msr.MSR_EFER)
    if not host_initiated:
        if value & ~efer_allowed(vcpu) or (value & EFER_SVME and vcpu.nested.vm_cr & msr.VM_CR_SVMDIS):
            return False
        if vcpu.engine.cr0 & CR0_PG and (old ^ value) & EFER_LME:
            return False
        # LMA is the processor's to set.
        value = (value & ~EFER_LMA) | (old & EFER_LMA)
    vcpu.engine.set_msr(msr.MSR_EFER, value)
    if old & ~value & EFER_SVME and not host_initiated:
        vcpu.nested.switched_off()
    return True


def _set_pat(vcpu: Vcpu, value: int, host_initiated: bool) -> bool:
    if not host_initiated and not msr.pat_valid(value):
        return False
    vcpu.engine.set_msr(msr.MSR_IA32_CR_PAT, value)
    return True


def _set_tsc(vcpu: Vcpu, value: int, host_initiated: bool) -> bool:
    adjust = vcpu.tsc_adjust
    vcpu.write_tsc(value)
    if host_initiated:
        # User space restores the two one by one.
        vcpu.write_tsc_adjust(adjust, move_tsc=False)
    return True


def _set_tsc_adjust(vcpu: Vcpu, value: int, host_initiated: bool) -> bool:
    vcpu.write_tsc_adjust(value, move_tsc=not host_initiated)
    return True


def _set_tscdeadline(vcpu: Vcpu, value: int, _host_initiated: bool) -> bool:
    vcpu.apic.set_tscdeadline(value)
    return True


def _set_apic_base(vcpu: Vcpu, value: int, host_initiated: bool) -> bool:
    return vcpu.apic.set_base(value, host_initiated)


def _set_misc_enable(vcpu: Vcpu, value: int, host_initiated: bool) -> bool:
    if not host_initiated:
        old = vcpu.msrs.get(msr.MSR_IA32_MISC_ENABLE)
        assert old is not None
        if (value ^ old) & _MISC_ENABLE_PMU_READ_ONLY:
            return False
        value = (value & ~msr.MISC_ENABLE_EMON) | (old & msr.MISC_ENABLE_EMON)
    vcpu.msrs.store(msr.MSR_IA32_MISC_ENABLE, value)
    return True


def _set_hwcr(vcpu: Vcpu, value: int, host_initiated: bool) -> bool:
    value &= ~_HWCR_IGNORED
    if not host_initiated and value & ~_HWCR_WRITABLE:
        return False
    vcpu.msrs.store(msr.MSR_K7_HWCR, value)
    return True


def _mtrr_range_setter(index: int) -> Set:
    """A variable range: no address bits that the guest's processor does not have."""

    def set_range(vcpu: Vcpu, value: int, host_initiated: bool) -> bool:
        if not host_initiated and (value >> vcpu.cpuid.maxphyaddr() or not _STORED[index](value)):
            return False
        vcpu.msrs.store(index, value)
        return True

    return set_range


def _bank_status_setter(index: int) -> Set:
    """Banks report what the machine found: only zeros may be written, unless HWCR lets tests write more."""

    def set_status(vcpu: Vcpu, value: int, host_initiated: bool) -> bool:
        if value and not host_initiated:
            hwcr = vcpu.msrs.get(msr.MSR_K7_HWCR)
            assert hwcr is not None
            if not hwcr & _HWCR_MC_STATUS_WRITE_ENABLE:
                return False
        vcpu.msrs.store(index, value)
        return True

    return set_status


def _set_tsc_aux(vcpu: Vcpu, value: int, host_initiated: bool) -> bool:
    if not host_initiated and not _has_rdtscp(vcpu):
        return False
    # AMD processors ignore the high half.
    vcpu.engine.set_msr(msr.MSR_TSC_AUX, value & 0xFFFFFFFF)
    return True


def _set_sfmask(vcpu: Vcpu, value: int, _host_initiated: bool) -> bool:
    vcpu.engine.set_msr(msr.MSR_SYSCALL_MASK, value & 0xFFFFFFFF)
    return True


def _refuse(_vcpu: Vcpu, _value: int, _host_initiated: bool) -> bool:
    return False


_SETTERS: Final[dict[int, Set]] = {
    msr.MSR_EFER: _set_efer,
    msr.MSR_IA32_CR_PAT: _set_pat,
    msr.MSR_IA32_TSC: _set_tsc,
    msr.MSR_IA32_TSC_ADJUST: _set_tsc_adjust,
    msr.MSR_IA32_TSC_DEADLINE: _set_tscdeadline,
    msr.MSR_IA32_APICBASE: _set_apic_base,
    msr.MSR_IA32_MISC_ENABLE: _set_misc_enable,
    msr.MSR_K7_HWCR: _set_hwcr,
    msr.MSR_TSC_AUX: _set_tsc_aux,
    msr.MSR_SYSCALL_MASK: _set_sfmask,
    msr.MSR_MTRRcap: _refuse,
    msr.MSR_VM_CR: svm_msrs.set_vm_cr,
    msr.MSR_VM_HSAVE_PA: svm_msrs.set_hsave,
    **dict.fromkeys(_K7_PMU, lambda _vcpu, _value, _host: True),
    msr.MSR_IA32_MCG_CAP: _refuse,
    msr.MSR_IA32_UCODE_REV: lambda _vcpu, _value, _host: True,
    **{index: _mtrr_range_setter(index) for index in _MTRR_RANGES},
    **{index: _bank_status_setter(index) for index in _BANK_STATUS},
}
"""Writes of the microcode's revision are ignored, as KVM does."""

assert all(index in _MSR_MC_SPAN for index in _STORED if msr.MSR_IA32_MC0_CTL <= index < 0x480)
