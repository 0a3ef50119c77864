"""Where an image's pieces and the loader's own data go in guest memory, and whether they fit there.

Promise: `write_pieces` and `BootData` write only to ranges that `check_pieces` or `find_gap` found to be RAM, outside
what the memory map reserves and outside each other. All addresses are guest-physical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vtlkit.vmm.loaders.entry import Loaded
from vtlkit.vmm.loaders.errors import LoadError
from vtlkit.vmm.loaders.memory import (
    BIOS_RESERVED_START,
    HIGH_MEMORY_START,
    HOLE_END,
    HOLE_START,
    LOW_MEMORY_END,
    MIB,
    GuestMemory,
    low_ram_end,
    ram_ranges,
    ram_size_for,
)

PAGE_SIZE: Final = 0x1000
BOOT_DATA_START: Final = 0x9000
"""Where QEMU puts multiboot information, and so where boot data goes if the image leaves it free."""
_LOWEST_GAP: Final = 0x1000
_ZERO_CHUNK: Final = bytes(MIB)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an image: `data` at `gpa`, then zeroes up to `memsz` bytes."""

    what: str
    gpa: int
    data: memoryview
    memsz: int

    @property
    def end(self) -> int:
        return self.gpa + self.memsz


def page_align(address: int) -> int:
    """`address` rounded up to a page."""
    return -(-address // PAGE_SIZE) * PAGE_SIZE


def check_pieces(pieces: Sequence[Piece], memory_size: int) -> None:
    """LoadError unless every piece lies in one RAM range and outside what the memory map reserves below 1 MiB."""
    for piece in pieces:
        span = f"{piece.what} at {piece.gpa:#x}..{piece.end:#x}"
        if piece.gpa < HOLE_END and piece.end > HOLE_START:
            raise LoadError(f"{span} reaches into the device hole {HOLE_START:#x}..{HOLE_END:#x}: link it elsewhere")
        if piece.gpa < HIGH_MEMORY_START and piece.end > LOW_MEMORY_END:
            raise LoadError(
                f"{span} overlaps {LOW_MEMORY_END:#x}..{HIGH_MEMORY_START:#x}, which the PC's firmware area takes "
                f"(tables from {BIOS_RESERVED_START:#x}): link it at {HIGH_MEMORY_START:#x} or above"
            )
    end = max(piece.end for piece in pieces)
    if end > ram_ranges(memory_size)[-1][1]:
        raise too_small("the image", ram_size_for(end), memory_size)


def too_small(what: str, needed: int, memory_size: int) -> LoadError:
    """The error for a machine with too little RAM; sizes in bytes."""
    needed_mib = -(-needed // MIB)
    return LoadError(
        f"{what} needs {needed_mib} MiB of memory and the machine has {memory_size // MIB} MiB: "
        f"say --memory {needed_mib}M or more"
    )


def find_gap(size: int, start: int, end: int, taken: Sequence[Loaded]) -> int | None:
    """The lowest page-aligned address in [start, end) with `size` bytes free of `taken`; None if there is none."""
    address = page_align(start)
    for other in sorted(taken, key=lambda item: item.start):
        if address + size <= other.start:
            break
        if other.end > address:
            address = page_align(other.end)
    return address if address + size <= end else None


def place_boot_data(size: int, memory_size: int, taken: Sequence[Loaded]) -> int:
    """Where `size` bytes of the loader's own data go, in low memory if there is room. LoadError if nowhere."""
    low_end = min(LOW_MEMORY_END, memory_size)
    for start, end in (
        (BOOT_DATA_START, low_end),
        (_LOWEST_GAP, low_end),
        (HIGH_MEMORY_START, low_ram_end(memory_size)),
    ):
        gap = find_gap(size, start, end, taken)
        if gap is not None:
            return gap
    raise LoadError(
        f"the image leaves no {size >> 10} KiB of memory below {HOLE_START:#x} for boot information: "
        "say --memory with more"
    )


def place_initrd(size: int, memory_size: int, taken: Sequence[Loaded], *, high: bool) -> int:
    """Where an initrd goes: at the top of the RAM below 4 GiB if `high`, else behind the image. LoadError if nowhere.

    Behind the image is where QEMU puts multiboot modules; kernels look after the memory they were told of.
    """
    end = low_ram_end(memory_size)
    behind = max([HIGH_MEMORY_START, *(item.end for item in taken if item.end <= end)])
    top = max((end - size) // PAGE_SIZE * PAGE_SIZE, HIGH_MEMORY_START)
    gaps = (find_gap(size, start, end, taken) for start in ((top, behind) if high else (behind,)))
    gap = next((gap for gap in gaps if gap is not None), None)
    if gap is None:
        raise LoadError(
            f"the initrd takes {-(-size // MIB)} MiB and does not fit between the image and {end:#x}: "
            "say --memory with more, or give a smaller one"
        )
    return gap


def write_pieces(memory: GuestMemory, pieces: Sequence[Piece]) -> None:
    """Write every piece, its zeroes too: RAM may hold an earlier run's data."""
    for piece in pieces:
        if piece.data:
            memory.write(piece.gpa, bytes(piece.data))
        gpa = piece.gpa + len(piece.data)
        while gpa < piece.end:
            size = min(piece.end - gpa, len(_ZERO_CHUNK))
            memory.write(gpa, _ZERO_CHUNK[:size])
            gpa += size


class BootData:
    """One block of the loader's own data, built for a base address: `put` returns the address that the data will have.

    Building it twice, once at 0 for its size and once at its place, spares every format its own size arithmetic.
    """

    __slots__ = ("base", "data")

    def __init__(self, base: int) -> None:
        self.base = base
        self.data = bytearray()

    def put(self, data: bytes, alignment: int = 8) -> int:
        self.data.extend(bytes(-len(self.data) % alignment))
        gpa = self.base + len(self.data)
        self.data.extend(data)
        return gpa

    def patch(self, gpa: int, data: bytes) -> None:
        """Overwrite what `put` returned `gpa` for."""
        offset = gpa - self.base
        self.data[offset : offset + len(data)] = data
