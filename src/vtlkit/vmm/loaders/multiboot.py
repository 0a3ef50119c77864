"""Multiboot 1 (specification 0.6.96): header, image and information structure, placed as QEMU's multiboot.c does.

Promise: the guest gets memory sizes, memory map, command line, module list and loader name, and nothing that it did not
ask for and that this machine has not. Both image forms are taken: addresses in the header, and ELF of either class.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vtlkit.vmm.loaders.elf import ElfImage
from vtlkit.vmm.loaders.errors import LoadError
from vtlkit.vmm.loaders.memory import HIGH_MEMORY_START, KIB, low_ram_end, memory_map
from vtlkit.vmm.loaders.placement import BootData, Piece

HEADER_MAGIC: Final = 0x1BADB002
BOOTLOADER_MAGIC: Final = 0x2BADB002
SEARCH_SIZE: Final = 8192
"""The header lies in this many bytes of the file, 4-byte aligned."""

FLAG_PAGE_ALIGN: Final = 1 << 0
FLAG_MEMORY_INFO: Final = 1 << 1
FLAG_VIDEO_MODE: Final = 1 << 2
FLAG_ADDRESSES: Final = 1 << 16
_FLAGS_REQUIRED: Final = 0xFFFF
_FLAGS_KNOWN: Final = FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO

INFO_MEMORY: Final = 1 << 0
INFO_BOOT_DEVICE: Final = 1 << 1
INFO_COMMAND_LINE: Final = 1 << 2
INFO_MODULES: Final = 1 << 3
INFO_MEMORY_MAP: Final = 1 << 6
INFO_LOADER_NAME: Final = 1 << 9
_INFO_FLAGS: Final = (
    INFO_MEMORY | INFO_BOOT_DEVICE | INFO_COMMAND_LINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME
)
_INFO: Final = struct.Struct("<IIIIIII16xII12xI20x")
_MODULE: Final = struct.Struct("<IIII")
_MAP_ENTRY: Final = struct.Struct("<IQQI")
_HEADER: Final = struct.Struct("<III")
_ADDRESSES: Final = struct.Struct("<IIIII")
_BOOT_DEVICE: Final = 0x8000FFFF
"""First hard disk, no partition: QEMU says so, too."""
_LOADER_NAME: Final = b"vtlkit\0"
_LOW_MEMORY_KIB: Final = 639
_ADDRESS_LIMIT: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class Header:
    """A multiboot header. `addresses` are header, load, load end, bss end and entry, if the image has them."""

    offset: int
    flags: int
    addresses: tuple[int, int, int, int, int] | None


def find_header(data: bytes) -> Header | None:
    """The first header in `data`: magic and checksum must be right. LoadError if it is cut off by the file's end."""
    window = data[:SEARCH_SIZE]
    magic = HEADER_MAGIC.to_bytes(4, "little")
    offset = window.find(magic)
    while offset >= 0:
        if offset % 4 == 0 and offset + _HEADER.size <= len(window):
            _, flags, checksum = _HEADER.unpack_from(window, offset)
            if (HEADER_MAGIC + flags + checksum) % _ADDRESS_LIMIT == 0:
                return _decode(data, offset, flags)
        offset = window.find(magic, offset + 1)
    return None


def _decode(data: bytes, offset: int, flags: int) -> Header:
    if not flags & FLAG_ADDRESSES:
        return Header(offset, flags, None)
    start = offset + _HEADER.size
    if start + _ADDRESSES.size > len(data):
        raise LoadError(f"truncated multiboot image: the header at byte {offset} goes past the file's end; rebuild it")
    header, load, load_end, bss_end, entry = _ADDRESSES.unpack_from(data, start)
    return Header(offset, flags, (header, load, load_end, bss_end, entry))


def check_header(header: Header) -> None:
    """LoadError if the image demands what this loader does not do."""
    if header.flags & FLAG_VIDEO_MODE:
        raise LoadError("the multiboot image demands a video mode and this machine has no display: clear header flag 2")
    unknown = header.flags & _FLAGS_REQUIRED & ~_FLAGS_KNOWN
    if unknown:
        raise LoadError(f"the multiboot image demands unknown features (header flags {unknown:#x}): clear them")


def pieces_from_addresses(data: bytes, header: Header) -> tuple[list[Piece], int]:
    """The image as its header's address fields describe it, and its entry point."""
    assert header.addresses is not None
    header_gpa, load, load_end, bss_end, entry = header.addresses
    file_start = header.offset - (header_gpa - load)
    if header_gpa < load or file_start < 0:
        raise LoadError(
            f"bad multiboot image: header address {header_gpa:#x} and load address {load:#x} contradict "
            f"the header's place at byte {header.offset}; mend its linker script"
        )
    size = load_end - load if load_end else len(data) - file_start
    if size <= 0:
        raise LoadError(f"bad multiboot image: load end {load_end:#x} is not above its start {load:#x}; mend it")
    if file_start + size > len(data):
        raise LoadError(
            f"truncated multiboot image: its text ends at byte {file_start + size} and the file has {len(data)}; "
            "rebuild it"
        )
    end = bss_end or load + size
    if end < load + size:
        raise LoadError(f"bad multiboot image: bss end {bss_end:#x} is below load end {load + size:#x}; mend it")
    if not load <= entry < end:
        raise LoadError(f"bad multiboot image: entry point {entry:#x} is outside {load:#x}..{end:#x}; mend it")
    return [Piece("image", load, memoryview(data)[file_start : file_start + size], end - load)], entry


def check_elf(image: ElfImage) -> None:
    """LoadError if an ELF image cannot start in 32-bit protected mode."""
    for segment in image.loadable():
        if segment.paddr + segment.memsz > _ADDRESS_LIMIT:
            raise LoadError(
                f"multiboot image with segment {segment.number} at {segment.paddr:#x}: 32-bit code cannot reach it; "
                "link it below 4 GiB"
            )


def build_info(boot: BootData, memory_size: int, command_line: bytes, modules: Sequence[tuple[int, int, bytes]]) -> int:
    """Put the information structure into `boot`; returns its address. `modules` are (start, end, string) triples."""
    info = boot.put(bytes(_INFO.size))
    map_entries = b"".join(
        _MAP_ENTRY.pack(_MAP_ENTRY.size - 4, base, size, kind) for base, size, kind in memory_map(memory_size)
    )
    map_gpa = boot.put(map_entries)
    strings = [boot.put(string + b"\0", 1) for _, _, string in modules]
    module_list = b"".join(
        _MODULE.pack(start, end, string, 0) for (start, end, _), string in zip(modules, strings, strict=True)
    )
    modules_gpa = boot.put(module_list)
    line_gpa = boot.put(command_line + b"\0", 1)
    name_gpa = boot.put(_LOADER_NAME, 1)
    boot.patch(
        info,
        _INFO.pack(
            _INFO_FLAGS,
            min(_LOW_MEMORY_KIB, memory_size // KIB),
            max(low_ram_end(memory_size) - HIGH_MEMORY_START, 0) // KIB,
            _BOOT_DEVICE,
            line_gpa,
            len(modules),
            modules_gpa,
            len(map_entries),
            map_gpa,
            name_gpa,
        ),
    )
    return info
