"""L1's I/O permission map: a view of its memory, as the processor reads the map when L2 accesses a port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import PAGE_SIZE, Access, PortBitmap
from vtlkit.kvm.nested.vmcb import IOPM_SIZE

if TYPE_CHECKING:
    from vtlkit.kvm.memory import GuestMemory

_ONES: Final = memoryview(b"\xff" * PAGE_SIZE)


def port_map(memory: GuestMemory, gpa: int) -> PortBitmap:
    """The map at `gpa`, as it is whenever it is looked at; where there is no memory that the guest may read, ones."""
    pages = []
    for page in range(gpa, gpa + IOPM_SIZE, PAGE_SIZE):
        found = memory.find(page) if memory.check(page, PAGE_SIZE, Access.READ) else None
        if found is None:
            pages.append(_ONES)
        else:
            block, offset, _, _ = found
            pages.append(block.view[offset : offset + PAGE_SIZE])
    return _Pages(tuple(pages))


def either(mine: PortBitmap | None, other: PortBitmap | None) -> PortBitmap | None:
    """The ports of both."""
    if mine is None or other is None:
        return other if mine is None else mine
    return _Either(mine, other)


class _Pages:
    """Pages of guest memory in a row."""

    __slots__ = ("_pages",)

    def __init__(self, pages: tuple[memoryview, ...]) -> None:
        self._pages = pages

    def __getitem__(self, part: slice, /) -> bytes:
        return bytes(self._pages[at // PAGE_SIZE][at % PAGE_SIZE] for at in range(part.start, part.stop))


class _Either:
    """Two bitmaps, bit by bit; one may be shorter."""

    __slots__ = ("_mine", "_other")

    def __init__(self, mine: PortBitmap, other: PortBitmap) -> None:
        self._mine = mine
        self._other = other

    def __getitem__(self, part: slice, /) -> bytes:
        mine, other = bytes(self._mine[part]), bytes(self._other[part])
        size = max(len(mine), len(other))
        word = int.from_bytes(mine, "little") | int.from_bytes(other, "little")
        return word.to_bytes(size, "little")
