"""The local APIC of a VTL by its x2APIC names, in whatever mode it is (SDM volume 3, table 12-6): the low byte of a
name is the offset in the xAPIC page, in units of 16 bytes.

A write does what the guest's own does, an end of interrupt or an IPI included; reserved bits are refused rather than
dropped. In-service, request and trigger mode registers, PPR, ID, version and current count are read-only, as is LDR in
x2APIC mode, which derives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu
from vtlkit.vmm.vsm.registers.table import Register, Set, write_only
from vtlkit.x86 import apic as regs
from vtlkit.x86.msr import APIC_BASE_MSR

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_U32: Final = 0xFFFFFFFF
_REG_SHIFT: Final = 4
_ANY: Final = -1
"""All bits are valid."""
_FIRST: Final = 0x00084800
"""The name of the register at offset 0."""
_X2APIC_ICR: Final = APIC_BASE_MSR + (regs.APIC_ICR >> _REG_SHIFT)

_LVT: Final = regs.APIC_LVT_MASKED | regs.APIC_VECTOR_MASK
_STATUS: Final = regs.APIC_SEND_PENDING | regs.APIC_LVT_REMOTE_IRR
"""Bits of LVT entries that software cannot change: what is written there does not count."""
_LINT: Final = _LVT | _STATUS | regs.APIC_MODE_MASK | regs.APIC_INPUT_POLARITY | regs.APIC_LVT_LEVEL_TRIGGER

_VALID: Final = {
    Name.HvX64RegisterApicTpr: regs.APIC_TPRI_MASK,
    Name.HvX64RegisterApicEoi: 0,
    Name.HvX64RegisterApicSpurious: (
        regs.APIC_SPIV_VECTOR | regs.APIC_SPIV_APIC_ENABLED | regs.APIC_SPIV_FOCUS_DISABLED
    ),
    Name.HvX64RegisterApicEse: 0,
    Name.HvX64RegisterApicLvtTimer: _LVT | regs.APIC_SEND_PENDING | regs.APIC_LVT_TIMER_MODE_MASK,
    Name.HvX64RegisterApicLvtThermal: _LVT | regs.APIC_SEND_PENDING | regs.APIC_MODE_MASK,
    Name.HvX64RegisterApicLvtPerfmon: _LVT | regs.APIC_SEND_PENDING | regs.APIC_MODE_MASK,
    Name.HvX64RegisterApicLvtLint0: _LINT,
    Name.HvX64RegisterApicLvtLint1: _LINT,
    Name.HvX64RegisterApicLvtError: _LVT | regs.APIC_SEND_PENDING,
    Name.HvX64RegisterApicInitCount: _U32,
    Name.HvX64RegisterApicDivide: regs.APIC_TDR_DIV_MASK,
}
"""Writable in either mode: the bits that the register has."""
_READ_ONLY: Final = (
    Name.HvX64RegisterApicId,
    Name.HvX64RegisterApicVersion,
    Name.HvX64RegisterApicPpr,
    Name.HvX64RegisterApicCurrentCount,
    *(Name[f"HvX64RegisterApic{kind}{number}"] for kind in ("Isr", "Tmr", "Irr") for number in range(8)),
)


def _offset(name: int) -> int:
    return (name - _FIRST) << _REG_SHIFT


def _get(name: int) -> Register:
    offset = _offset(name)

    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
        return vcpu.apic.read(offset)

    return Register(read)


def _write(vcpu: Vcpu, offset: int, value: int, valid: int) -> HvStatus:
    with vcpu.apic.unheard():
        accepted = not value & ~valid and vcpu.apic.write(offset, value)
    return HvStatus.SUCCESS if accepted else HvStatus.INVALID_REGISTER_VALUE


def _writer(name: int, valid: int) -> Set:
    offset = _offset(name)

    def write(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
        return _write(vcpu, offset, value, valid)

    return write


def _set_ldr(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
    if vcpu.apic.x2apic_mode:
        return HvStatus.ACCESS_DENIED
    return _write(vcpu, regs.APIC_LDR, value, regs.APIC_LDR_MASK)


def _get_icr(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
    return vcpu.apic.read(regs.APIC_ICR) | vcpu.apic.read(regs.APIC_ICR2) << 32


def _set_icr(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
    """The destination is in the high half: 32 bits in x2APIC mode, the highest byte in xAPIC mode."""
    apic = vcpu.apic
    if apic.x2apic_mode:
        with apic.unheard():
            accepted = not value >> 64 and apic.x2apic_msr_write(_X2APIC_ICR, value)
        return HvStatus.SUCCESS if accepted else HvStatus.INVALID_REGISTER_VALUE
    destination, low = value >> 32, value & _U32
    if low & regs.APIC_ICR_RESERVED or destination >> 32 or destination & ~(_U32 << 24 & _U32):
        return HvStatus.INVALID_REGISTER_VALUE
    with apic.unheard():
        apic.write(regs.APIC_ICR2, destination)
        apic.write(regs.APIC_ICR, low)
    return HvStatus.SUCCESS


def _set_self_ipi(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
    if not vcpu.apic.x2apic_mode:
        # xAPIC mode has no such register.
        return HvStatus.INVALID_PARAMETER
    # A value of more than a vector is for the APIC to judge.
    return _write(vcpu, regs.APIC_SELF_IPI, value, _ANY)


REGISTERS: Final[Mapping[int, Register]] = {
    **{name: _get(name) for name in _READ_ONLY},
    **{name: _get(name)._replace(set=_writer(name, valid)) for name, valid in _VALID.items()},
    Name.HvX64RegisterApicEoi: Register(write_only, _writer(Name.HvX64RegisterApicEoi, 0)),
    Name.HvX64RegisterApicLdr: _get(Name.HvX64RegisterApicLdr)._replace(set=_set_ldr),
    Name.HvX64RegisterApicIcr: Register(_get_icr, _set_icr),
    Name.HvX64RegisterApicSelfIpi: Register(write_only, _set_self_ipi),
}
