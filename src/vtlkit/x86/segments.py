"""Segment and gate descriptors, access rights and task-state segments (SDM volume 3, chapters 3, 6 and 8).

Pure codecs between the bytes of descriptor tables, the `Segment` record with its VMCB attributes, and the VMX form of
access rights, which is also the form of Hyper-V's segment attributes. No privilege or presence check is made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vtlkit.layout import ReadBuffer
from vtlkit.x86.registers import SEGMENT_ATTRIBUTES, SEGMENT_G, SEGMENT_S, Segment

SELECTOR_RPL: Final = 3
SELECTOR_TI: Final = 4
SELECTOR_INDEX: Final = 0xFFF8

# Types of system descriptors
TYPE_TSS16_AVAILABLE: Final = 1
TYPE_LDT: Final = 2
TYPE_TSS16_BUSY: Final = 3
TYPE_CALL_GATE16: Final = 4
TYPE_TASK_GATE: Final = 5
TYPE_INTERRUPT_GATE16: Final = 6
TYPE_TRAP_GATE16: Final = 7
TYPE_TSS_AVAILABLE: Final = 9
TYPE_TSS_BUSY: Final = 11
TYPE_CALL_GATE: Final = 12
TYPE_INTERRUPT_GATE: Final = 14
TYPE_TRAP_GATE: Final = 15
TYPE_TSS_BUSY_BIT: Final = 2

# Bits of the type of code and data descriptors
TYPE_ACCESSED: Final = 1
TYPE_WRITABLE: Final = 2
TYPE_READABLE: Final = 2
TYPE_EXPAND_DOWN: Final = 4
TYPE_CONFORMING: Final = 4
TYPE_CODE: Final = 8

AR_UNUSABLE: Final = 1 << 16
_AR_LOW: Final = 0xFF

_LIMIT_MAX: Final = 0xFFFFF


def attributes_to_access_rights(attributes: int) -> int:
    """VMCB attributes to VMX access rights: the upper four bits move from 11:8 to 15:12."""
    return (attributes & _AR_LOW) | (attributes & 0xF00) << 4


def access_rights_to_attributes(access_rights: int) -> int:
    """VMX access rights, or Hyper-V segment attributes, to VMCB attributes; an unusable segment loses P."""
    attributes = (access_rights & _AR_LOW) | (access_rights >> 4 & 0xF00)
    return attributes & ~0x80 if access_rights & AR_UNUSABLE else attributes


def expand_limit(raw_limit: int, granularity: bool) -> int:
    """The limit in bytes of a 20-bit limit field."""
    return raw_limit << 12 | 0xFFF if granularity else raw_limit


def encode_descriptor(segment: Segment) -> bytes:
    """The 8 bytes of a GDT or LDT entry. ValueError if base or limit do not fit their fields."""
    limit = segment.limit
    if segment.attributes & SEGMENT_G:
        if limit & 0xFFF != 0xFFF:
            raise ValueError(f"limit {limit:#x} has no page granularity")
        limit >>= 12
    if not 0 <= limit <= _LIMIT_MAX:
        raise ValueError(f"limit {segment.limit:#x} does not fit a descriptor")
    base = segment.base
    if base >> 32:
        raise ValueError(f"base {base:#x} does not fit an 8-byte descriptor")
    attributes = segment.attributes & SEGMENT_ATTRIBUTES
    value = (
        (limit & 0xFFFF)
        | (base & 0xFFFFFF) << 16
        | (attributes & 0xFF) << 40
        | (limit >> 16) << 48
        | (attributes >> 8) << 52
        | (base >> 24) << 56
    )
    return value.to_bytes(8, "little")


def encode_system_descriptor(segment: Segment) -> bytes:
    """The 16 bytes of a TSS or LDT descriptor in long mode."""
    low = Segment(segment.selector, segment.base & 0xFFFFFFFF, segment.limit, segment.attributes)
    return encode_descriptor(low) + (segment.base >> 32).to_bytes(8, "little")


def decode_descriptor(data: ReadBuffer, selector: int) -> Segment:
    """The segment that loading `selector` gives: from 8 bytes, or from the 16 of a long-mode system descriptor."""
    value = int.from_bytes(data[:8], "little")
    if len(data) not in (8, 16):
        raise ValueError(f"a descriptor has 8 or 16 bytes, not {len(data)}")
    attributes = (value >> 40 & 0xFF) | (value >> 44 & 0xF00)
    base = (value >> 16 & 0xFFFFFF) | (value >> 32 & 0xFF000000)
    if len(data) == 16:
        base |= int.from_bytes(data[8:12], "little") << 32
    limit = (value & 0xFFFF) | (value >> 32 & 0xF0000)
    return Segment(selector, base, expand_limit(limit, bool(attributes & SEGMENT_G)), attributes)


def flat_code64(selector: int = 0x08, dpl: int = 0) -> Segment:
    """64-bit code: base 0, execute/read, accessed."""
    return Segment(selector, 0, 0xFFFFFFFF, 0xA9B | dpl << 5)


def flat_code32(selector: int = 0x08, dpl: int = 0) -> Segment:
    """32-bit code over 4 GiB."""
    return Segment(selector, 0, 0xFFFFFFFF, 0xC9B | dpl << 5)


def flat_data(selector: int = 0x10, dpl: int = 0) -> Segment:
    """32-bit read/write data over 4 GiB."""
    return Segment(selector, 0, 0xFFFFFFFF, 0xC93 | dpl << 5)


def real_mode_segment(selector: int, code: bool = False) -> Segment:
    """What loading a segment register gives in real mode: base selector * 16, 64 KiB."""
    return Segment(selector, selector << 4, 0xFFFF, 0x9B if code else 0x93)


def is_code(segment: Segment) -> bool:
    return bool(segment.attributes & SEGMENT_S and segment.attributes & TYPE_CODE)


@dataclass(slots=True)
class IdtGate:
    """An IDT entry of protected or long mode. `offset` is the handler's address, `ist` 0 for the ordinary stack."""

    offset: int = 0
    selector: int = 0
    ist: int = 0
    type: int = TYPE_INTERRUPT_GATE
    dpl: int = 0
    present: bool = True

    def encode(self, long_mode: bool) -> bytes:
        """16 bytes in long mode, 8 else; ValueError for what does not fit."""
        offset = self.offset
        if offset >> (64 if long_mode else 32):
            raise ValueError(f"gate offset {offset:#x} is too wide")
        if not 0 <= self.ist <= (7 if long_mode else 0):
            raise ValueError(f"IST {self.ist} does not exist in this mode")
        if self.selector >> 16 or self.type >> 4 or self.dpl >> 2:
            raise ValueError(f"no gate encodes {self!r}")
        value = (
            (offset & 0xFFFF)
            | self.selector << 16
            | self.ist << 32
            | self.type << 40
            | self.dpl << 45
            | self.present << 47
            | (offset >> 16 & 0xFFFF) << 48
            | (offset >> 32) << 64
        )
        return value.to_bytes(16 if long_mode else 8, "little")

    @classmethod
    def decode(cls, data: ReadBuffer) -> IdtGate:
        """From 8 bytes (protected mode) or 16 (long mode)."""
        size = len(data)
        if size not in (8, 16):
            raise ValueError(f"a gate has 8 or 16 bytes, not {size}")
        value = int.from_bytes(data, "little")
        return cls(
            offset=(value & 0xFFFF) | (value >> 32 & 0xFFFF0000) | (value >> 64 & 0xFFFFFFFF) << 32,
            selector=value >> 16 & 0xFFFF,
            ist=value >> 32 & 7 if size == 16 else 0,
            type=value >> 40 & 0xF,
            dpl=value >> 45 & 3,
            present=bool(value >> 47 & 1),
        )


@dataclass(slots=True)
class IvtEntry:
    """A real-mode interrupt vector: 4 bytes, offset then segment."""

    offset: int = 0
    selector: int = 0

    def encode(self) -> bytes:
        """OverflowError for what does not fit 16 bits."""
        return self.offset.to_bytes(2, "little") + self.selector.to_bytes(2, "little")

    @classmethod
    def decode(cls, data: ReadBuffer) -> IvtEntry:
        if len(data) != 4:
            raise ValueError(f"a real-mode vector has 4 bytes, not {len(data)}")
        return cls(int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little"))


# Offsets in task-state segments
TSS16_SP0: Final = 2
"""16-bit: SPn at TSS16_SP0 + 4 * n, SSn two bytes after it."""
TSS16_LIMIT_MIN: Final = 0x2B
TSS32_ESP0: Final = 4
"""32-bit: ESPn at TSS32_ESP0 + 8 * n, SSn four bytes after it."""
TSS32_CR3: Final = 0x1C
TSS32_TRAP: Final = 0x64
TSS32_IOMAP_BASE: Final = 0x66
TSS32_LIMIT_MIN: Final = 0x67
TSS64_RSP0: Final = 4
"""64-bit: RSPn at TSS64_RSP0 + 8 * n."""
TSS64_IST1: Final = 0x24
"""ISTn at TSS64_IST1 + 8 * (n - 1), n from 1 to 7."""
TSS64_IOMAP_BASE: Final = 0x66
TSS64_LIMIT_MIN: Final = 0x67
