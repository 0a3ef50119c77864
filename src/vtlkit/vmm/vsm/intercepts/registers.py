"""HvX64RegisterCrInterceptControl and its masks (TLFS, "Secure Register Intercepts").

Registers of the intercepting VTL, which is above 0, of one processor; the partition's lock guards them, and no vCPU has
to stand still for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HV_CR_INTERCEPT_CONTROL_VALID
from vtlkit.kvm.uapi import Vcpu
from vtlkit.vmm.vsm.intercepts import wishes
from vtlkit.vmm.vsm.intercepts.wishes import OF_INSTRUCTIONS, CrIntercepts
from vtlkit.vmm.vsm.registers.table import Register, Scope

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_U64: Final = 0xFFFFFFFFFFFFFFFF
_FIELDS: Final = {
    Name.HvX64RegisterCrInterceptControl: ("control", HV_CR_INTERCEPT_CONTROL_VALID),
    Name.HvX64RegisterCrInterceptCr0Mask: ("cr0_mask", _U64),
    Name.HvX64RegisterCrInterceptCr4Mask: ("cr4_mask", _U64),
    Name.HvX64RegisterCrInterceptIa32MiscEnableMask: ("misc_enable_mask", _U64),
}
"""Name -> field of `CrIntercepts`, bits that may be set."""


def _getter(field: str) -> Callable[[Vp, int, Vcpu], int | HvStatus]:
    def read(vp: Vp, level: int, _vcpu: Vcpu) -> int | HvStatus:
        if level == 0:
            return HvStatus.ACCESS_DENIED
        with vp.partition.lock:
            value: int = getattr(vp.intercepts.registers.get(level, CrIntercepts()), field)
        return value

    return read


def _setter(field: str, valid: int) -> Callable[[Vp, int, Vcpu, int], HvStatus]:
    def write(vp: Vp, level: int, vcpu: Vcpu, value: int) -> HvStatus:
        if level == 0:
            return HvStatus.ACCESS_DENIED
        if value & ~valid:
            return HvStatus.INVALID_REGISTER_VALUE
        if field == "control" and value & OF_INSTRUCTIONS and not vcpu.engine.intercepts_instructions:
            return HvStatus.INVALID_REGISTER_VALUE
        with vp.partition.lock:
            setattr(vp.intercepts.registers.setdefault(level, CrIntercepts()), field, value)
            wishes.apply_to(vp)
        vp.partition.wait_for_intercepts(range(level))
        return HvStatus.SUCCESS

    return write


REGISTERS: Final[Mapping[int, Register]] = {
    name: Register(_getter(field), _setter(field, valid), Scope.PARTITION) for name, (field, valid) in _FIELDS.items()
}
