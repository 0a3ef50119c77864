"""Segment, task and descriptor table registers (TLFS, HV_X64_SEGMENT_REGISTER and HV_X64_TABLE_REGISTER).

Checked is what a processor could not have: reserved attributes, a system segment in a code or data register, a limit
that its granularity cannot express. FS and GS bases are not registers of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HV_X64_SEGMENT_REGISTER, HV_X64_TABLE_REGISTER
from vtlkit.kvm.uapi import Vcpu
from vtlkit.vmm.vsm.registers.general import canonical
from vtlkit.vmm.vsm.registers.table import VALUE_SIZE, Register
from vtlkit.x86.registers import EFER_LMA, DescriptorTable, Segment
from vtlkit.x86.segments import TYPE_CODE, access_rights_to_attributes, attributes_to_access_rights

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_ATTRIBUTES_RESERVED: Final = 0xF00
_SYSTEM: Final = ("ldt", "tr")
_PAGE_OFFSET: Final = 0xFFF
_LIMIT_BYTES: Final = 1 << 20
"""What the 20 bits of a limit reach without granularity."""


def _segment(field: str) -> Register:
    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
        segment: Segment = getattr(vcpu.get_sregs(), field)
        packed = HV_X64_SEGMENT_REGISTER(
            segment.base, segment.limit, segment.selector, attributes_to_access_rights(segment.attributes)
        ).pack()
        return int.from_bytes(packed, "little")

    def write(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
        register = HV_X64_SEGMENT_REGISTER.unpack(value.to_bytes(VALUE_SIZE, "little"))
        attributes = access_rights_to_attributes(register.Attributes & ~_ATTRIBUTES_RESERVED)
        segment = Segment(register.Selector, register.Base, register.Limit, attributes)
        if register.Attributes & _ATTRIBUTES_RESERVED or not _valid(field, segment, vcpu):
            return HvStatus.INVALID_REGISTER_VALUE
        sregs = vcpu.get_sregs()
        setattr(sregs, field, segment)
        vcpu.set_sregs(sregs)
        return HvStatus.SUCCESS

    return Register(read, write)


def _valid(field: str, segment: Segment, vcpu: Vcpu) -> bool:
    if not canonical(vcpu, segment.base):
        return False
    if not segment.present:
        # A null segment: nothing else of it counts.
        return True
    if segment.s == (field in _SYSTEM):
        return False
    if segment.s and segment.type & TYPE_CODE and segment.long and vcpu.get_sregs().efer & EFER_LMA:
        # 64-bit code has no limit, and no other default size.
        return not segment.db
    return segment.limit & _PAGE_OFFSET == _PAGE_OFFSET if segment.granularity else segment.limit < _LIMIT_BYTES


def _table(field: str) -> Register:
    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
        table: DescriptorTable = getattr(vcpu.get_sregs(), field)
        return int.from_bytes(HV_X64_TABLE_REGISTER(Limit=table.limit, Base=table.base).pack(), "little")

    def write(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
        register = HV_X64_TABLE_REGISTER.unpack(value.to_bytes(VALUE_SIZE, "little"))
        # The padding is no part of the register: it reads as zero.
        if not canonical(vcpu, register.Base):
            return HvStatus.INVALID_REGISTER_VALUE
        sregs = vcpu.get_sregs()
        setattr(sregs, field, DescriptorTable(register.Base, register.Limit))
        vcpu.set_sregs(sregs)
        return HvStatus.SUCCESS

    return Register(read, write)


REGISTERS: Final[Mapping[int, Register]] = {
    Name.HvX64RegisterEs: _segment("es"),
    Name.HvX64RegisterCs: _segment("cs"),
    Name.HvX64RegisterSs: _segment("ss"),
    Name.HvX64RegisterDs: _segment("ds"),
    Name.HvX64RegisterFs: _segment("fs"),
    Name.HvX64RegisterGs: _segment("gs"),
    Name.HvX64RegisterLdtr: _segment("ldt"),
    Name.HvX64RegisterTr: _segment("tr"),
    Name.HvX64RegisterIdtr: _table("idt"),
    Name.HvX64RegisterGdtr: _table("gdt"),
}
