"""Debug registers. DR0 to DR3 are the processor's; DR6 is each VTL's own, as HvRegisterVsmCapabilities says, and so is
DR7 (TLFS, "Virtual Secure Mode": private and shared state)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu
from vtlkit.vmm.vsm.registers.table import U64, Register, Scope
from vtlkit.x86.registers import DR6_FIXED_1, DR6_VOLATILE, DR7_FIXED_1, DR7_VOLATILE

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_DR6: Final = 4
_DR7: Final = 5
"""Places in `Engine.get_debugregs`."""


def _address(value: int) -> bool:
    return value <= U64


def _dr6(value: int) -> bool:
    return value & ~DR6_VOLATILE == DR6_FIXED_1


def _dr7(value: int) -> bool:
    return value & ~DR7_VOLATILE == DR7_FIXED_1


def _debug(place: int, valid: Callable[[int], bool], scope: Scope) -> Register:
    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
        return vcpu.engine.get_debugregs()[place]

    def write(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
        if not valid(value):
            return HvStatus.INVALID_REGISTER_VALUE
        registers = list(vcpu.engine.get_debugregs())
        registers[place] = value
        dr0, dr1, dr2, dr3, dr6, dr7 = registers
        vcpu.engine.set_debugregs((dr0, dr1, dr2, dr3, dr6, dr7))
        return HvStatus.SUCCESS

    return Register(read, write, scope)


REGISTERS: Final[Mapping[int, Register]] = {
    **{Name[f"HvX64RegisterDr{number}"]: _debug(number, _address, Scope.VP) for number in range(4)},
    Name.HvX64RegisterDr6: _debug(_DR6, _dr6, Scope.VTL),
    Name.HvX64RegisterDr7: _debug(_DR7, _dr7, Scope.VTL),
}
