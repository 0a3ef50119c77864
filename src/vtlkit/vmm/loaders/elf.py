"""The ELF header, program headers and notes of a static executable (System V gABI, chapters 4 and 5; x86-64 psABI).

Promise: `parse` accepts what can be put into memory as it stands and nothing else; every byte range it returns lies in
the file. Anything wrong is a `LoadError` that names the header at fault. Pure.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from vtlkit.vmm.loaders.errors import LoadError

ELF_MAGIC: Final = b"\x7fELF"
_IDENT_SIZE: Final = 16
_CLASS_OFFSET: Final = 4
_DATA_OFFSET: Final = 5
_LITTLE_ENDIAN: Final = 1
_PN_XNUM: Final = 0xFFFF

EM_386: Final = 3
EM_X86_64: Final = 62
_MACHINE_NAMES: Final = {
    2: "SPARC",
    8: "MIPS",
    20: "PowerPC",
    21: "64-bit PowerPC",
    22: "S/390",
    40: "32-bit Arm",
    43: "64-bit SPARC",
    50: "Itanium",
    183: "aarch64",
    243: "RISC-V",
    258: "LoongArch",
}

XEN_ELFNOTE_PHYS32_ENTRY: Final = 18
_XEN_OWNER: Final = b"Xen\0"
_NOTE_HEADER: Final = struct.Struct("<III")


class Type(enum.IntEnum):
    """e_type."""

    REL = 1
    EXEC = 2
    DYN = 3
    CORE = 4


class SegmentType(enum.IntEnum):
    """p_type."""

    LOAD = 1
    DYNAMIC = 2
    INTERP = 3
    NOTE = 4


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a class of ELF file keeps the fields that a loader needs."""

    header: struct.Struct
    program_header: struct.Struct
    fields: tuple[int, int, int, int, int, int, int]
    """Indices of p_type, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align in the unpacked program header."""


_LAYOUTS: Final = {
    32: _Layout(struct.Struct("<16sHHIIIIIHHHHHH"), struct.Struct("<IIIIIIII"), (0, 1, 2, 3, 4, 5, 7)),
    64: _Layout(struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ"), (0, 2, 3, 4, 5, 6, 7)),
}
_CLASS_BITS: Final = {1: 32, 2: 64}


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header. `number` is its index in the table."""

    number: int
    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


@dataclass(frozen=True, slots=True)
class ElfImage:
    """A static executable for x86."""

    bits: int
    machine: int
    entry: int
    segments: tuple[Segment, ...]

    def loadable(self) -> list[Segment]:
        """The segments that occupy memory, by physical address."""
        segments = [segment for segment in self.segments if segment.type == SegmentType.LOAD and segment.memsz]
        return sorted(segments, key=lambda segment: segment.paddr)

    def physical_entry(self) -> int | None:
        """e_entry as a physical address; None if it is in no segment."""
        for start in ("vaddr", "paddr"):
            for segment in self.loadable():
                offset = self.entry - int(getattr(segment, start))
                if 0 <= offset < segment.memsz:
                    return segment.paddr + offset
        return None


def parse(data: bytes) -> ElfImage:
    """Decode and check `data`, which starts with ELF_MAGIC. LoadError if it is not a static x86 executable."""
    bits = _identify(data)
    layout = _LAYOUTS[bits]
    if len(data) < layout.header.size:
        raise LoadError(
            f"truncated ELF file: its header takes {layout.header.size} bytes and the file has {len(data)}; rebuild it"
        )
    _, e_type, machine, _, entry, phoff, _, _, _, phentsize, phnum, _, _, _ = layout.header.unpack_from(data)
    if machine not in (EM_386, EM_X86_64):
        name = _MACHINE_NAMES.get(machine, f"machine type {machine}")
        raise LoadError(f"ELF file for {name}: only x86 images run here; build it for x86-64")
    segments = _program_headers(data, layout, phoff, phentsize, phnum)
    _check_type(e_type, segments)
    image = ElfImage(bits, machine, entry, segments)
    _check_loadable(image, len(data))
    return image


def _identify(data: bytes) -> int:
    if len(data) < _IDENT_SIZE:
        raise LoadError(f"truncated ELF file: {len(data)} bytes do not even hold its identification; rebuild it")
    bits = _CLASS_BITS.get(data[_CLASS_OFFSET])
    if bits is None:
        raise LoadError(f"bad ELF file: class {data[_CLASS_OFFSET]} is neither 32-bit (1) nor 64-bit (2); rebuild it")
    if data[_DATA_OFFSET] != _LITTLE_ENDIAN:
        raise LoadError("big-endian ELF file: only x86 images run here; build it for x86-64")
    return bits


def _program_headers(data: bytes, layout: _Layout, phoff: int, phentsize: int, phnum: int) -> tuple[Segment, ...]:
    if phnum == 0:
        return ()
    if phnum == _PN_XNUM or phentsize != layout.program_header.size:
        raise LoadError(
            f"bad ELF file: {phnum} program headers of {phentsize} bytes make no sense "
            f"(each takes {layout.program_header.size}); rebuild it"
        )
    end = phoff + phnum * phentsize
    if end > len(data):
        raise LoadError(
            f"truncated ELF file: its {phnum} program headers end at byte {end} and the file has {len(data)}; "
            "rebuild it"
        )
    segments = []
    for number in range(phnum):
        fields = layout.program_header.unpack_from(data, phoff + number * phentsize)
        segments.append(Segment(number, *(fields[index] for index in layout.fields)))
    return tuple(segments)


def _check_type(e_type: int, segments: tuple[Segment, ...]) -> None:
    types = {segment.type for segment in segments}
    if SegmentType.INTERP in types:
        raise LoadError("dynamic executable that needs an interpreter: link it with -static -no-pie")
    if e_type == Type.DYN:
        raise LoadError("position-independent executable or shared library: link it at a fixed address with -no-pie")
    if e_type == Type.REL:
        raise LoadError("relocatable object file, not an executable: link it first")
    if e_type == Type.CORE:
        raise LoadError("core dump, not an executable: give the program's own file")
    if e_type != Type.EXEC:
        raise LoadError(f"bad ELF file: type {e_type} is not an executable's; rebuild it")


def _check_loadable(image: ElfImage, file_size: int) -> None:
    segments = image.loadable()
    if not segments:
        raise LoadError("ELF file without a loadable segment: link it as an executable")
    for segment in image.segments:
        if segment.type not in (SegmentType.LOAD, SegmentType.NOTE):
            continue
        if segment.type == SegmentType.LOAD and segment.filesz > segment.memsz:
            raise LoadError(
                f"bad ELF file: segment {segment.number} has {segment.filesz} bytes for {segment.memsz} bytes of "
                "memory; rebuild it"
            )
        if segment.offset + segment.filesz > file_size:
            raise LoadError(
                f"truncated ELF file: segment {segment.number} ends at byte {segment.offset + segment.filesz} "
                f"and the file has {file_size}; rebuild it"
            )
    for before, after in pairwise(segments):
        if before.paddr + before.memsz > after.paddr:
            raise LoadError(
                f"bad ELF file: segments {before.number} and {after.number} both occupy physical address "
                f"{after.paddr:#x}; mend its linker script"
            )


def _notes(data: bytes, segment: Segment) -> Iterator[tuple[bytes, int, bytes]]:
    """(owner, type, description) of each whole note in a PT_NOTE segment; one that runs past its end ends the walk."""
    alignment = 8 if segment.align == 8 else 4
    position, end = segment.offset, segment.offset + segment.filesz
    while position + _NOTE_HEADER.size <= end:
        name_size, description_size, note_type = _NOTE_HEADER.unpack_from(data, position)
        name_start = position + _NOTE_HEADER.size
        description_start = segment.offset + -(-(name_start + name_size - segment.offset) // alignment) * alignment
        description_end = description_start + description_size
        if description_end > end:
            return
        yield data[name_start : name_start + name_size], note_type, data[description_start:description_end]
        position = segment.offset + -(-(description_end - segment.offset) // alignment) * alignment


def phys32_entry(data: bytes, image: ElfImage) -> int | None:
    """The 32-bit physical entry point of Xen's PVH note; None without one. LoadError if the note is malformed."""
    for segment in image.segments:
        if segment.type != SegmentType.NOTE:
            continue
        for owner, note_type, description in _notes(data, segment):
            if owner == _XEN_OWNER and note_type == XEN_ELFNOTE_PHYS32_ENTRY:
                if len(description) not in (4, 8):
                    raise LoadError(
                        f"bad ELF file: its PVH entry note has {len(description)} bytes instead of 4 or 8; rebuild it"
                    )
                return int.from_bytes(description, "little")
    return None
