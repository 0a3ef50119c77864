"""Control registers and XCR0. What may be written is what MOV and XSETBV take, in the state the vCPU is in.

The intermediate registers are the same ones: a write from here is refused rather than intercepted, so there is nothing
between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu, set_cr0, set_cr3, set_cr4, set_xcr0, xcr0_allowed
from vtlkit.vmm.vsm.registers.table import U64, Register, Scope

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_CR8_WIDTH: Final = 4


def _control(field: str, store: Callable[[Vcpu, int], bool], scope: Scope = Scope.VTL) -> Register:
    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
        value: int = getattr(vcpu.get_sregs(), field)
        return value

    def write(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
        return HvStatus.SUCCESS if store(vcpu, value) else HvStatus.INVALID_REGISTER_VALUE

    return Register(read, write, scope)


def _set_cr2(vcpu: Vcpu, value: int) -> bool:
    if value > U64:
        return False
    sregs = vcpu.get_sregs()
    sregs.cr2 = value
    vcpu.set_sregs(sregs)
    return True


def _set_cr8(vcpu: Vcpu, value: int) -> bool:
    if value >> _CR8_WIDTH:
        return False
    vcpu.apic.set_tpr(value)
    return True


def _get_xcr0(_vp: Vp, _level: int, vcpu: Vcpu) -> int | HvStatus:
    return vcpu.engine.xcr0 if xcr0_allowed(vcpu) else HvStatus.INVALID_PARAMETER


def _set_xcr0(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
    if not xcr0_allowed(vcpu):
        return HvStatus.INVALID_PARAMETER
    return HvStatus.SUCCESS if set_xcr0(vcpu, value) else HvStatus.INVALID_REGISTER_VALUE


_CR0: Final = _control("cr0", set_cr0)
_CR3: Final = _control("cr3", set_cr3)
_CR4: Final = _control("cr4", set_cr4)
_CR8: Final = _control("cr8", _set_cr8)

REGISTERS: Final[Mapping[int, Register]] = {
    Name.HvX64RegisterCr0: _CR0,
    Name.HvX64RegisterCr2: _control("cr2", _set_cr2, Scope.VP),
    Name.HvX64RegisterCr3: _CR3,
    Name.HvX64RegisterCr4: _CR4,
    Name.HvX64RegisterCr8: _CR8,
    Name.HvX64RegisterIntermediateCr0: _CR0,
    Name.HvX64RegisterIntermediateCr3: _CR3,
    Name.HvX64RegisterIntermediateCr4: _CR4,
    Name.HvX64RegisterIntermediateCr8: _CR8,
    Name.HvX64RegisterXfem: Register(_get_xcr0, _set_xcr0, Scope.VP),
}
