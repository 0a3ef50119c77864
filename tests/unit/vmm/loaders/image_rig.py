"""Guest memory that refuses a stray write, and images built by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vtlkit.vmm.loaders import ram_ranges

MULTIBOOT_MAGIC = 0x1BADB002


class SparseMemory:
    """RAM by pages; a read or write that is not wholly inside one RAM range fails the test."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pages: dict[int, bytearray] = {}
        self.writes: list[tuple[int, int]] = []

    def _check(self, gpa: int, size: int) -> None:
        assert any(start <= gpa and gpa + size <= end for start, end in ram_ranges(self.size)), f"{gpa:#x}+{size:#x}"

    def write(self, gpa: int, data: bytes) -> None:
        self._check(gpa, len(data))
        self.writes.append((gpa, len(data)))
        position = 0
        while position < len(data):
            page, offset = divmod(gpa + position, 4096)
            part = data[position : position + 4096 - offset]
            if page in self.pages or any(part):
                self.pages.setdefault(page, bytearray(4096))[offset : offset + len(part)] = part
            position += len(part)

    def read(self, gpa: int, size: int) -> bytes:
        self._check(gpa, size)
        out = bytearray()
        while size:
            page, offset = divmod(gpa, 4096)
            part = min(size, 4096 - offset)
            out += self.pages.get(page, bytearray(4096))[offset : offset + part]
            gpa += part
            size -= part
        return bytes(out)

    def u32(self, gpa: int) -> int:
        return int.from_bytes(self.read(gpa, 4), "little")

    def u64(self, gpa: int) -> int:
        return int.from_bytes(self.read(gpa, 8), "little")

    def string(self, gpa: int) -> bytes:
        out = bytearray()
        while byte := self.read(gpa + len(out), 1):
            if byte == b"\0":
                break
            out += byte
        return bytes(out)


def multiboot_header(flags: int = 0, addresses: Sequence[int] = ()) -> bytes:
    checksum = -(MULTIBOOT_MAGIC + flags) & 0xFFFFFFFF
    return struct.pack(f"<III{len(addresses)}I", MULTIBOOT_MAGIC, flags, checksum, *addresses)


def pvh_note(entry: int) -> bytes:
    return struct.pack("<III4sI", 4, 4, 18, b"Xen\0", entry)


def elf(
    bits: int,
    segments: Sequence[tuple[int, bytes, int]],
    *,
    entry: int,
    e_type: int = 2,
    machine: int | None = None,
    note: bytes = b"",
    vaddr_offset: int = 0,
    extra_types: Sequence[int] = (),
) -> bytes:
    """An ELF file: `segments` are (physical address, contents, memory size)."""
    machine = machine if machine is not None else {32: 3, 64: 62}[bits]
    header_size, entry_size = {32: (52, 32), 64: (64, 56)}[bits]
    count = len(segments) + bool(note) + len(extra_types)
    offset = header_size + count * entry_size
    table, body = b"", b""

    def program_header(kind: int, paddr: int, filesz: int, memsz: int, align: int) -> bytes:
        at = offset + len(body)
        vaddr = paddr + vaddr_offset
        if bits == 32:
            return struct.pack("<8I", kind, at, vaddr, paddr, filesz, memsz, 7, align)
        return struct.pack("<II6Q", kind, 7, at, vaddr, paddr, filesz, memsz, align)

    for paddr, data, memsz in segments:
        table += program_header(1, paddr, len(data), memsz, 4096)
        body += data
    if note:
        table += program_header(4, 0, len(note), len(note), 4)
        body += note
    for kind in extra_types:
        table += program_header(kind, 0, 0, 0, 1)
    ident = b"\x7fELF" + bytes((bits // 32, 1, 1)) + bytes(9)
    layout = "<16sHHIIIIIHHHHHH" if bits == 32 else "<16sHHIQQQIHHHHHH"
    fields = (ident, e_type, machine, 1, entry, header_size, 0, 0, header_size, entry_size, count, 0, 0, 0)
    return struct.pack(layout, *fields) + table + body
