"""x87 and SSE registers, which all VTLs of a processor share: pieces of the FXSAVE64 image (SDM volume 1, table 10-2).

`HvX64RegisterFpMmx<n>` is ST(n), the register that is n below the top of the stack. The tag byte is FXSAVE's: a bit per
physical register that is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.register_values import (
    HV_X64_FP_CONTROL_STATUS_REGISTER,
    HV_X64_FP_REGISTER,
    HV_X64_XMM_CONTROL_STATUS_REGISTER,
)
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu
from vtlkit.vmm.vsm.registers.table import VALUE_SIZE, Register, Scope
from vtlkit.x86.registers import FXSAVE_XMM0

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_CONTROL_STATUS: Final = 0
_XMM_CONTROL_STATUS: Final = 16
_ST0: Final = 32
"""Offsets in the image; all of them have the registers' 16 bytes."""

_FCW_RESERVED: Final = 0xE080
_FOP_RESERVED: Final = 0xF800
_SIGN_EXPONENT: Final = 0xFFFF
_MXCSR_DEFAULT_MASK: Final = 0xFFBF
"""What a mask of zero in the image means (SDM volume 1, 11.6.6)."""
_MASK_OFFSET: Final = HV_X64_XMM_CONTROL_STATUS_REGISTER.OFFSETS["XmmStatusControlMask"]


def _any(_data: bytes, _old: bytes) -> bytes | None:
    return _data


def _st(data: bytes, _old: bytes) -> bytes | None:
    return data if HV_X64_FP_REGISTER.unpack(data).SignExponent <= _SIGN_EXPONENT else None


def _control_status(data: bytes, _old: bytes) -> bytes | None:
    register = HV_X64_FP_CONTROL_STATUS_REGISTER.unpack(data)
    if register.FpControl & _FCW_RESERVED or register.Reserved or register.LastFpOp & _FOP_RESERVED:
        return None
    return data


def _xmm_control_status(data: bytes, old: bytes) -> bytes | None:
    """The mask says what MXCSR has; it is the processor's, and what is written there does not count."""
    mask = old[_MASK_OFFSET:]
    register = HV_X64_XMM_CONTROL_STATUS_REGISTER.unpack(data)
    if register.XmmStatusControl & ~(int.from_bytes(mask, "little") or _MXCSR_DEFAULT_MASK):
        return None
    return data[:_MASK_OFFSET] + mask


def _piece(offset: int, accept: Callable[[bytes, bytes], bytes | None] = _any) -> Register:
    """`accept`: (written, present) -> what is stored, None if no register holds it."""
    end = offset + VALUE_SIZE

    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
        return int.from_bytes(vcpu.engine.get_fpu()[offset:end], "little")

    def write(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
        image = vcpu.engine.get_fpu()
        stored = accept(value.to_bytes(VALUE_SIZE, "little"), image[offset:end])
        if stored is None:
            return HvStatus.INVALID_REGISTER_VALUE
        vcpu.engine.set_fpu(image[:offset] + stored + image[end:])
        return HvStatus.SUCCESS

    return Register(read, write, Scope.VP)


REGISTERS: Final[Mapping[int, Register]] = {
    **{Name[f"HvX64RegisterXmm{number}"]: _piece(FXSAVE_XMM0 + VALUE_SIZE * number) for number in range(16)},
    **{Name[f"HvX64RegisterFpMmx{number}"]: _piece(_ST0 + VALUE_SIZE * number, _st) for number in range(8)},
    Name.HvX64RegisterFpControlStatus: _piece(_CONTROL_STATUS, _control_status),
    Name.HvX64RegisterXmmControlStatus: _piece(_XMM_CONTROL_STATUS, _xmm_control_status),
}
