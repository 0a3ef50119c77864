"""The general registers, RIP and RFLAGS. RSP, RIP and RFLAGS are a VTL's own, the others the processor's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu
from vtlkit.vmm.vsm.registers.table import U64, Register, Scope
from vtlkit.x86.paging import is_canonical
from vtlkit.x86.registers import CR4_LA57, EFER_LMA, GENERAL_REGISTERS, RFLAGS_FIXED, RFLAGS_VALID, RFLAGS_VM

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp


def canonical(vcpu: Vcpu, value: int) -> bool:
    """Whether the vCPU's present paging mode has this address."""
    return is_canonical(value, bool(vcpu.engine.cr4 & CR4_LA57))


def _any(_vcpu: Vcpu, _value: int) -> bool:
    return True


def _register(field: str, scope: Scope, valid: Callable[[Vcpu, int], bool] = _any) -> Register:
    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
        value: int = getattr(vcpu.engine.regs, field)
        return value

    def write(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
        if value > U64 or not valid(vcpu, value):
            return HvStatus.INVALID_REGISTER_VALUE
        # This one alone: its owner may be writing another one, outside the guest.
        setattr(vcpu.engine.regs, field, value)
        return HvStatus.SUCCESS

    return Register(read, write, scope)


def _get_rflags(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
    return vcpu.engine.rflags


def _set_rflags(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
    virtual_8086_in_long_mode = value & RFLAGS_VM and vcpu.get_sregs().efer & EFER_LMA
    if value & ~RFLAGS_VALID or not value & RFLAGS_FIXED or virtual_8086_in_long_mode:
        return HvStatus.INVALID_REGISTER_VALUE
    vcpu.engine.rflags = value
    return HvStatus.SUCCESS


REGISTERS: Final[Mapping[int, Register]] = {
    **{
        Name[f"HvX64Register{field.capitalize()}"]: _register(field, Scope.VTL if field == "rsp" else Scope.VP)
        for field in GENERAL_REGISTERS
    },
    Name.HvX64RegisterRip: _register("rip", Scope.VTL, canonical),
    Name.HvX64RegisterRflags: Register(_get_rflags, _set_rflags),
}
