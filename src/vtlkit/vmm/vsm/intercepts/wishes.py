"""Which VTL wants to hear of what, and what the hypervisor is to stop for all of them together.

A VTL's wish for one processor is a `UserIntercepts`: what it has installed for the partition, and what its registers of
that processor say. The hypervisor gets the union of the wishes of the VTLs above, of those that are enabled on the
processor; `covers` then says of a stop whether it is in one wish. The two must agree: a stop that nobody wants would be
made again for ever.

All of it is guarded by the partition's lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Intercept, touches_port
from vtlkit.hvdef.vsm import (
    HV_VSM_PARTITION_CONFIG_DENY_LOWER_VTL_STARTUP,
    HV_VSM_PARTITION_CONFIG_INTERCEPT_VP_STARTUP,
)
from vtlkit.hvdef.vsm import HvCrInterceptControl as Control
from vtlkit.kvm import uapi
from vtlkit.kvm.uapi import CpuidOverride, UserIntercepts, Vcpu
from vtlkit.x86 import msr

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.partition import Partition
    from vtlkit.vmm.vsm.vp import Vp

NOTHING: Final = UserIntercepts()
_TOLD_OF_STARTS: Final = HV_VSM_PARTITION_CONFIG_INTERCEPT_VP_STARTUP.mask
_DENIES_STARTS: Final = HV_VSM_PARTITION_CONFIG_DENY_LOWER_VTL_STARTUP.mask

_MSR_READS: Final = {
    Control.IA32MiscEnableRead: msr.MSR_IA32_MISC_ENABLE,
    Control.MsrLstarRead: msr.MSR_LSTAR,
    Control.MsrStarRead: msr.MSR_STAR,
    Control.MsrCstarRead: msr.MSR_CSTAR,
    Control.ApicBaseMsrRead: msr.MSR_IA32_APICBASE,
    Control.MsrEferRead: msr.MSR_EFER,
}
_MSR_WRITES: Final = {
    Control.IA32MiscEnableWrite: (msr.MSR_IA32_MISC_ENABLE,),
    Control.MsrLstarWrite: (msr.MSR_LSTAR,),
    Control.MsrStarWrite: (msr.MSR_STAR,),
    Control.MsrCstarWrite: (msr.MSR_CSTAR,),
    Control.ApicBaseMsrWrite: (msr.MSR_IA32_APICBASE,),
    Control.MsrEferWrite: (msr.MSR_EFER,),
    Control.MsrSysenterCsWrite: (msr.MSR_IA32_SYSENTER_CS,),
    Control.MsrSysenterEipWrite: (msr.MSR_IA32_SYSENTER_EIP,),
    Control.MsrSysenterEspWrite: (msr.MSR_IA32_SYSENTER_ESP,),
    Control.MsrSfmaskWrite: (msr.MSR_SYSCALL_MASK,),
    Control.MsrTscAuxWrite: (msr.MSR_TSC_AUX,),
    Control.MsrSgxLaunchControlWrite: tuple(range(msr.MSR_IA32_SGXLEPUBKEYHASH0, msr.MSR_IA32_SGXLEPUBKEYHASH0 + 4)),
}
_TABLES: Final = {
    Control.GdtrWrite: Intercept.GDTR_WRITE,
    Control.IdtrWrite: Intercept.IDTR_WRITE,
    Control.LdtrWrite: Intercept.LDTR_WRITE,
    Control.TrWrite: Intercept.TR_WRITE,
}
OF_INSTRUCTIONS: Final = (
    Control.Cr0Write
    | Control.Cr4Write
    | Control.XCr0Write
    | Control.GdtrWrite
    | Control.IdtrWrite
    | Control.LdtrWrite
    | Control.TrWrite
)
"""Control bits that are no MSR's: for these the engine has to stop at an instruction."""
_TABLE_OF: Final = {
    "gdtr": Intercept.GDTR_WRITE,
    "idtr": Intercept.IDTR_WRITE,
    "ldtr": Intercept.LDTR_WRITE,
    "tr": Intercept.TR_WRITE,
}


@dataclass
class CrIntercepts:
    """HvX64RegisterCrInterceptControl and its masks, of one VTL of one processor."""

    control: int = 0
    cr0_mask: int = 0
    cr4_mask: int = 0
    misc_enable_mask: int = 0

    def wish(self) -> UserIntercepts:
        if not self.control:
            return NOTHING
        writes: dict[int, int | None] = {
            index: None for bit, indices in _MSR_WRITES.items() if bit & self.control for index in indices
        }
        if msr.MSR_IA32_MISC_ENABLE in writes:
            writes[msr.MSR_IA32_MISC_ENABLE] = self.misc_enable_mask
        tables = Intercept.NONE
        for bit, flag in _TABLES.items():
            if bit & self.control:
                tables |= flag
        return UserIntercepts(
            msr_reads=frozenset(index for bit, index in _MSR_READS.items() if bit & self.control),
            msr_writes=writes,
            cr0=self.cr0_mask if self.control & Control.Cr0Write else 0,
            cr4=self.cr4_mask if self.control & Control.Cr4Write else 0,
            xcr0=bool(self.control & Control.XCr0Write),
            tables=tables,
        )


@dataclass
class Results:
    """What a VTL has registered for lower ones of one processor (HvCallRegisterInterceptResult)."""

    cpuid: dict[tuple[int, int | None], CpuidOverride] = field(default_factory=dict)
    msrs: dict[tuple[int, bool], bool] = field(default_factory=dict)
    """(MSR, whether writes) -> whether an access to a register that is not there is ignored, or faults."""


@dataclass
class VpIntercepts:
    """One processor's, by intercepting VTL."""

    registers: dict[int, CrIntercepts] = field(default_factory=dict)
    results: dict[int, Results] = field(default_factory=dict)


def of_vtl(vp: Vp, setter: int) -> UserIntercepts:
    """What VTL `setter` wants to hear of lower ones on this processor."""
    vtl = vp.partition.vtls[setter]
    wish = vtl.installed
    registers = vp.intercepts.registers.get(setter)
    if registers is not None:
        wish = union([wish, registers.wish()])
    if vtl.config & (_TOLD_OF_STARTS | _DENIES_STARTS) == _TOLD_OF_STARTS and not wish.init_sipi:
        wish = replace(wish, init_sipi=True)
    return wish


def above(vp: Vp, level: int) -> list[int]:
    """The VTLs that can be told of VTL `level` here, in the order in which they are."""
    return [setter for setter in sorted(vp.vcpus) if setter > level]


def first_to_be_told(vp: Vp, level: int, vcpu: Vcpu, exit_: uapi.Intercepted) -> int | None:
    """The lowest VTL above `level` that wants this."""
    return next((setter for setter in above(vp, level) if covers(of_vtl(vp, setter), vcpu, exit_)), None)


def apply(partition: Partition) -> None:
    """Have the hypervisor stop what is wanted now, on every processor, before the next instruction there."""
    for vp in partition.vps:
        apply_to(vp)


def apply_to(vp: Vp) -> None:
    """As `apply` for one processor."""
    for level, vcpu in vp.vcpus.items():
        setters = above(vp, level)
        wanted = _with_results(vp, setters, union(of_vtl(vp, setter) for setter in setters))
        if wanted != vcpu.user.wanted.load():
            vcpu.set_user_intercepts(None if wanted == NOTHING else wanted)


def _with_results(vp: Vp, setters: list[int], wanted: UserIntercepts) -> UserIntercepts:
    cpuid: dict[tuple[int, int | None], CpuidOverride] = {}
    msrs: dict[tuple[int, bool], bool] = {}
    for setter in setters:
        # The highest VTL has the last word.
        results = vp.intercepts.results.get(setter)
        if results is not None:
            cpuid.update(results.cpuid)
            msrs.update(results.msrs)
    return replace(
        wanted,
        cpuid_results=cpuid,
        msr_ignored_reads=frozenset(index for (index, write), ignored in msrs.items() if ignored and not write),
        msr_ignored_writes=frozenset(index for (index, write), ignored in msrs.items() if ignored and write),
    )


# --- sets of wishes -------------------------------------------------------------------------------------------------


def union(wishes: Iterable[UserIntercepts]) -> UserIntercepts:
    """What is in any of them; results registered for CPUID and MSRs are none."""
    total = NOTHING
    for wish in wishes:
        if wish == NOTHING:
            continue
        total = UserIntercepts(
            port_reads=_both_ports(total.port_reads, wish.port_reads),
            port_writes=_both_ports(total.port_writes, wish.port_writes),
            msr_reads=total.msr_reads | wish.msr_reads,
            msr_writes=_both_masks(total, wish),
            cpuid_all=total.cpuid_all or wish.cpuid_all,
            cpuid=total.cpuid | wish.cpuid,
            exceptions=total.exceptions | wish.exceptions,
            cr0=total.cr0 | wish.cr0,
            cr4=total.cr4 | wish.cr4,
            xcr0=total.xcr0 or wish.xcr0,
            tables=total.tables | wish.tables,
            hypercalls=total.hypercalls or wish.hypercalls,
            init_sipi=total.init_sipi or wish.init_sipi,
            eoi=total.eoi or wish.eoi,
            apic_writes=total.apic_writes | wish.apic_writes,
        )
    return total


def _both_ports(one: bytes | None, other: bytes | None) -> bytes | None:
    if one is None or other is None:
        return one if other is None else other
    return (int.from_bytes(one, "little") | int.from_bytes(other, "little")).to_bytes(len(one), "little")


def _both_masks(one: UserIntercepts, other: UserIntercepts) -> dict[int, int | None]:
    result = dict(one.msr_writes)
    for index, mask in other.msr_writes.items():
        if index in result:
            known = result[index]
            mask = None if known is None or mask is None else known | mask
        result[index] = mask
    return result


def covers(wish: UserIntercepts, vcpu: Vcpu, exit_: uapi.Intercepted) -> bool:
    """Whether what was stopped is in the wish. The vCPU is where it was stopped."""
    match exit_:
        case uapi.InterceptedIo():
            ports = wish.port_writes if exit_.write else wish.port_reads
            return touches_port(ports, exit_.port, exit_.size)
        case uapi.InterceptedMsr(write=False):
            return exit_.index in wish.msr_reads
        case uapi.InterceptedMsr():
            return _covers_write(wish, vcpu, exit_)
        case uapi.InterceptedCpuid():
            return wish.cpuid_all or exit_.function in wish.cpuid
        case uapi.InterceptedException():
            return bool(wish.exceptions >> exit_.vector & 1)
        case uapi.InterceptedRegister():
            return _covers_register(wish, vcpu, exit_)
        case uapi.InterceptedHypercall():
            return wish.hypercalls
        case uapi.InterceptedEoi():
            return wish.eoi
        case uapi.InterceptedApicWrite():
            return exit_.offset in wish.apic_writes
        case uapi.InterceptedStartup():
            return wish.init_sipi
        case _:
            raise AssertionError(f"nobody asks for {exit_}")


def _covers_write(wish: UserIntercepts, vcpu: Vcpu, exit_: uapi.InterceptedMsr) -> bool:
    if exit_.index not in wish.msr_writes:
        return False
    mask = wish.msr_writes[exit_.index]
    return mask is None or bool(((vcpu.get_msr(exit_.index) or 0) ^ exit_.value) & mask)


def _covers_register(wish: UserIntercepts, vcpu: Vcpu, exit_: uapi.InterceptedRegister) -> bool:
    if exit_.register == "cr0":
        return bool((vcpu.engine.cr0 ^ exit_.value) & wish.cr0)
    if exit_.register == "cr4":
        return bool((vcpu.engine.cr4 ^ exit_.value) & wish.cr4)
    if exit_.register == "xcr0":
        return wish.xcr0
    return bool(wish.tables & _TABLE_OF[exit_.register])
