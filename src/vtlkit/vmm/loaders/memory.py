"""Where RAM is, and the memory map that boot protocols hand to the guest (E820 types, laid out as QEMU's pc).

RAM runs from 0 up to at most 3 GiB; what is left of it runs from 4 GiB up. The gap holds the interrupt controllers and
other devices. All addresses are guest-physical, all sizes bytes. Pure.
"""

from __future__ import annotations

import enum
from typing import Final, Protocol

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

HOLE_START: Final = 3 * GIB
HOLE_END: Final = 4 * GIB
LOW_MEMORY_END: Final = 0x9FC00
"""Where the extended BIOS data area would begin."""
LEGACY_RESERVED_START: Final = 0xA0000
BIOS_RESERVED_START: Final = 0xE0000
HIGH_MEMORY_START: Final = 0x100000


class GuestMemory(Protocol):
    """Guest RAM as a loader sees it. `size` counts RAM; `read` and `write` take addresses inside one RAM range."""

    @property
    def size(self) -> int: ...

    def read(self, gpa: int, size: int) -> bytes: ...

    def write(self, gpa: int, data: bytes) -> None: ...


class E820Type(enum.IntEnum):
    """Memory map entry types, which multiboot and PVH share with E820."""

    RAM = 1
    RESERVED = 2


def ram_ranges(size: int) -> list[tuple[int, int]]:
    """The ranges (start, end) that `size` bytes of RAM occupy."""
    if size <= HOLE_START:
        return [(0, size)]
    return [(0, HOLE_START), (HOLE_END, HOLE_END + size - HOLE_START)]


def low_ram_end(size: int) -> int:
    """The end of the RAM below 4 GiB."""
    return min(size, HOLE_START)


def ram_size_for(end: int) -> int:
    """How much RAM a machine needs for an address range that ends at `end`, which is not in the hole."""
    return end if end <= HOLE_START else max(end - (HOLE_END - HOLE_START), HOLE_START)


def memory_map(size: int) -> list[tuple[int, int, int]]:
    """(base, size, type) in ascending order; what is not listed is no memory at all."""
    low_end = low_ram_end(size)
    entries = [(0, min(LOW_MEMORY_END, low_end), int(E820Type.RAM))]
    for start, end in (
        (LOW_MEMORY_END, LEGACY_RESERVED_START),
        (BIOS_RESERVED_START, HIGH_MEMORY_START),
    ):
        if low_end > start:
            entries.append((start, min(end, low_end) - start, int(E820Type.RESERVED)))
    if low_end > HIGH_MEMORY_START:
        entries.append((HIGH_MEMORY_START, low_end - HIGH_MEMORY_START, int(E820Type.RAM)))
    entries.extend((start, end - start, int(E820Type.RAM)) for start, end in ram_ranges(size)[1:])
    return entries
