"""Registers by name that a higher VTL intercepts: HvCallGetVpRegisters and HvCallSetVpRegisters are no way around it.

What a VTL above the caller would be told of, were it the target's own instruction, is refused (ACCESS_DENIED): the call
may be about another processor, whose VTL executes nothing that could be told. OpenVMM refuses a VTL all architectural
registers of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.kvm.uapi import InterceptedMsr, InterceptedRegister, UserIntercepts, Vcpu
from vtlkit.vmm.vsm.intercepts import wishes

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_REGISTERS: Final = {
    Name.HvX64RegisterCr0: "cr0",
    Name.HvX64RegisterIntermediateCr0: "cr0",
    Name.HvX64RegisterCr4: "cr4",
    Name.HvX64RegisterIntermediateCr4: "cr4",
    Name.HvX64RegisterXfem: "xcr0",
    Name.HvX64RegisterGdtr: "gdtr",
    Name.HvX64RegisterIdtr: "idtr",
    Name.HvX64RegisterLdtr: "ldtr",
    Name.HvX64RegisterTr: "tr",
}


def wanted_above(vp: Vp, level: int) -> UserIntercepts:
    """What VTLs above `level` want to hear of lower ones on this processor, which has a VTL not above `level`."""
    nearest = max(other for other in vp.vcpus if other <= level)
    return vp.vcpus[nearest].user.wanted.load()


def read(wanted: UserIntercepts, msr: int | None) -> bool:
    """Whether reading a register, an MSR or none, is in `wanted`."""
    return msr in wanted.msr_reads


def written(wanted: UserIntercepts, name: int, msr: int | None, vcpu: Vcpu, value: int) -> bool:
    """Whether writing it is; the vCPU stands still."""
    if msr is not None:
        return wishes.covers(wanted, vcpu, InterceptedMsr(0, msr, True, value))
    register = _REGISTERS.get(name)  # type: ignore[call-overload]
    return register is not None and wishes.covers(wanted, vcpu, InterceptedRegister(0, register, value))
