"""A guest-physical map: which ranges are RAM, exits or devices, and what RAM permits (memslots seen from the CPU).

The part that every engine needs; an engine that keeps a map of its own besides (Unicorn's, the kernel's) overrides
`_appear`, `_vanish` and `_permit` to follow. Belongs to the vCPU's task. Ranges are sorted, disjoint and page aligned.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from vtlkit.engine.api import PAGE_SIZE, Access, MmioRead8, MmioWrite8, RamBlock


class Kind(enum.Enum):
    """What backs a range."""

    RAM = "ram"
    EXIT = "exit"
    DEVICE = "device"


class Range:
    """[gpa, end): `offset` is that of `gpa` in the RAM block; `callbacks` is the engine's own."""

    __slots__ = ("access", "block", "callbacks", "end", "gpa", "kind", "offset", "read", "visible", "write")

    def __init__(self, gpa: int, end: int, kind: Kind, block: RamBlock | None, offset: int, access: Access) -> None:
        self.gpa = gpa
        self.end = end
        self.kind = kind
        self.block = block
        self.offset = offset
        self.access = access
        self.read: MmioRead8 | None = None
        self.write: MmioWrite8 | None = None
        self.callbacks: tuple[Any, ...] = ()
        self.visible = True
        """Whether the engine's own map has it."""

    def split(self, at: int) -> Range:
        """Cut at `at`; self keeps the lower part, the upper part is returned."""
        upper = Range(at, self.end, self.kind, self.block, self.offset + (at - self.gpa), self.access)
        upper.callbacks = self.callbacks
        upper.visible = self.visible
        self.end = at
        return upper


def _aligned(gpa: int, size: int) -> None:
    if gpa % PAGE_SIZE or size % PAGE_SIZE or size <= 0 or gpa < 0:
        raise ValueError(f"guest-physical range {gpa:#x}+{size:#x} is not made of whole pages")


class MemoryMap:
    """See the module."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ranges: list[Range] = []
        self._last: Range | None = None
        self.generation = 0
        """Changes with the map."""

    # --- what an engine follows -----------------------------------------------------------------------------------

    def _appear(self, item: Range) -> None:
        """A range has come into being."""

    def _vanish(self, item: Range) -> None:
        """A range is going."""

    def _permit(self, item: Range, was: Access) -> None:
        """RAM permits `item.access` from now on, `was` before."""

    # --- look-ups -------------------------------------------------------------------------------------------------

    def find(self, gpa: int) -> Range | None:
        """The range that holds `gpa`."""
        last = self._last
        if last is not None and last.gpa <= gpa < last.end:
            return last
        index = bisect_right(self._starts, gpa) - 1
        if index < 0:
            return None
        candidate = self._ranges[index]
        if gpa >= candidate.end:
            return None
        self._last = candidate
        return candidate

    def ram(self, gpa: int, access: Access) -> tuple[RamBlock, int] | None:
        """Block and offset of RAM at `gpa` if it permits `access`."""
        found = self.find(gpa)
        # Plain integers: an IntFlag operation costs more than all the rest.
        if found is None or found.block is None or int(access) & ~int(found.access):
            return None
        return found.block, found.offset + (gpa - found.gpa)

    def each(self, visit: Callable[[Range], None]) -> None:
        for item in self._ranges:
            visit(item)

    # --- changes --------------------------------------------------------------------------------------------------

    def map_ram(self, gpa: int, size: int, block: RamBlock, offset: int, access: Access) -> None:
        _aligned(gpa, size)
        _aligned(offset, size)
        if offset + size > block.size:
            raise ValueError(f"RAM block has {block.size:#x} bytes, not {offset + size:#x}")
        new = Range(gpa, gpa + size, Kind.RAM, block, offset, access)
        self._insert(new)
        self._appear(new)

    def map_io(self, gpa: int, size: int, kind: Kind, read: MmioRead8, write: MmioWrite8) -> None:
        """Loads and stores call back with the offset into the range."""
        new = self._io(gpa, size, kind)
        new.read, new.write = read, write
        self._insert(new)
        self._appear(new)

    def insert(self, gpa: int, size: int, kind: Kind, callbacks: tuple[Any, ...]) -> None:
        """An I/O range with the engine's own callbacks."""
        new = self._io(gpa, size, kind)
        new.callbacks = callbacks
        self._insert(new)
        self._appear(new)

    def _io(self, gpa: int, size: int, kind: Kind) -> Range:
        _aligned(gpa, size)
        return Range(gpa, gpa + size, kind, None, 0, Access.READ | Access.WRITE)

    def unmap(self, gpa: int, size: int) -> None:
        _aligned(gpa, size)
        for old in self._cut(gpa, gpa + size):
            self._vanish(old)
            index = bisect_right(self._starts, old.gpa) - 1
            del self._starts[index]
            del self._ranges[index]
        self._last = None
        self.generation += 1

    def protect(self, gpa: int, size: int, access: Access) -> None:
        _aligned(gpa, size)
        for old in self._cut(gpa, gpa + size, Kind.RAM):
            if old.kind is Kind.RAM and old.access != access:
                was, old.access = old.access, access
                self._permit(old, was)

    def forget(self) -> None:
        """Drop all ranges and what they hold; the engine's own map is gone already."""
        self._starts.clear()
        self._ranges.clear()
        self._last = None
        self.generation += 1

    def _insert(self, new: Range) -> None:
        index = bisect_right(self._starts, new.gpa)
        before = self._ranges[index - 1] if index else None
        after = self._ranges[index] if index < len(self._ranges) else None
        if (before and before.end > new.gpa) or (after and after.gpa < new.end):
            raise ValueError(f"guest-physical range {new.gpa:#x}+{new.end - new.gpa:#x} is in use")
        self._starts.insert(index, new.gpa)
        self._ranges.insert(index, new)
        self._last = None
        self.generation += 1

    def _cut(self, gpa: int, end: int, only: Kind | None = None) -> list[Range]:
        """Split at both ends and return the ranges within; ranges of a kind but `only` stay whole."""
        for at in (gpa, end):
            index = bisect_right(self._starts, at) - 1
            if index < 0 or not self._ranges[index].gpa < at < self._ranges[index].end:
                continue
            if self._ranges[index].kind is Kind.RAM:
                upper = self._ranges[index].split(at)
                self._starts.insert(index + 1, at)
                self._ranges.insert(index + 1, upper)
            elif only is None:
                raise ValueError(f"an I/O range is freed whole, not at {at:#x}")
        self._last = None
        self.generation += 1
        first = bisect_right(self._starts, gpa - 1)
        last = bisect_right(self._starts, end - 1)
        return self._ranges[first:last]
