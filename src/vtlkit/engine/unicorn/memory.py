"""The guest-physical map of one instance: which ranges are RAM, exits or devices, and what RAM permits.

Unicorn keeps a map of its own; this one is kept beside it because Unicorn's forgets what a hypervisor needs: a page
that permits no reads is not mapped there at all (its page walker would read through mere protection), yet it is still
RAM, and an access to it is a violation and not a hole.

Belongs to the vCPU's task. Ranges are sorted, disjoint and page aligned.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from vtlkit.engine.api import PAGE_SIZE, Access, MmioRead8, MmioWrite8, RamBlock
from vtlkit.engine.unicorn import binding
from vtlkit.engine.unicorn.binding import Library, MmioReadCallback, MmioWriteCallback


class Kind(enum.Enum):
    """What backs a range."""

    RAM = "ram"
    EXIT = "exit"
    DEVICE = "device"


class Range:
    """[gpa, end): `offset` is that of `gpa` in the RAM block; `callbacks` keeps C callbacks alive."""

    __slots__ = ("access", "block", "callbacks", "end", "gpa", "kind", "offset", "visible")

    def __init__(self, gpa: int, end: int, kind: Kind, block: RamBlock | None, offset: int, access: Access) -> None:
        self.gpa = gpa
        self.end = end
        self.kind = kind
        self.block = block
        self.offset = offset
        self.access = access
        self.callbacks: tuple[Any, ...] = ()
        self.visible = True
        """Whether Unicorn has it mapped."""

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


class GuestPhysicalMap:
    """Applies every change to the Unicorn instance and remembers it."""

    def __init__(self, lib: Library, handle: int) -> None:
        self._lib = lib
        self._handle = handle
        self._starts: list[int] = []
        self._ranges: list[Range] = []
        self._last: Range | None = None
        self.hides = False
        """Whether RAM has ever been hidden from the instance because it permits no reads."""

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

    def map_ram(self, gpa: int, size: int, block: RamBlock, offset: int, access: Access) -> None:
        _aligned(gpa, size)
        _aligned(offset, size)
        if offset + size > block.size:
            raise ValueError(f"RAM block has {block.size:#x} bytes, not {offset + size:#x}")
        new = Range(gpa, gpa + size, Kind.RAM, block, offset, access)
        self._insert(new)
        new.visible = False
        self._show(new)

    def map_io(self, gpa: int, size: int, kind: Kind, read: MmioRead8, write: MmioWrite8) -> None:
        """Loads and stores call back with the offset into the range."""
        _aligned(gpa, size)
        new = Range(gpa, gpa + size, kind, None, 0, Access.READ | Access.WRITE)
        self._insert(new)
        read_callback = MmioReadCallback(lambda _uc, offset, length, _data: read(offset, length))
        write_callback = MmioWriteCallback(lambda _uc, offset, length, value, _data: write(offset, length, value))
        new.callbacks = (read_callback, write_callback)
        self._lib.check(
            self._lib.mmio_map(self._handle, gpa, size, read_callback, None, write_callback, None), "an I/O range"
        )

    def unmap(self, gpa: int, size: int) -> None:
        _aligned(gpa, size)
        for old in self._cut(gpa, gpa + size):
            if old.visible:
                self._lib.check(self._lib.mem_unmap(self._handle, old.gpa, old.end - old.gpa), "an unmap")
            index = bisect_right(self._starts, old.gpa) - 1
            del self._starts[index]
            del self._ranges[index]
        self._last = None

    def protect(self, gpa: int, size: int, access: Access) -> None:
        _aligned(gpa, size)
        for old in self._cut(gpa, gpa + size):
            if old.kind is not Kind.RAM or old.access == access:
                continue
            was, old.access = old.access, access
            if old.visible and access & Access.READ:
                self._lib.check(
                    self._lib.mem_protect(self._handle, old.gpa, old.end - old.gpa, int(access)), "a protection"
                )
            elif (was ^ access) & Access.READ:
                self._show(old)

    def ram(self, gpa: int, access: Access) -> tuple[RamBlock, int] | None:
        """Block and offset of RAM at `gpa` if it permits `access`."""
        found = self.find(gpa)
        if found is None or found.block is None or access & ~found.access:
            return None
        return found.block, found.offset + (gpa - found.gpa)

    def each(self, visit: Callable[[Range], None]) -> None:
        for item in self._ranges:
            visit(item)

    def _show(self, item: Range) -> None:
        size = item.end - item.gpa
        if item.access & Access.READ:
            assert item.block is not None
            self._lib.check(
                self._lib.mem_map_ptr(
                    self._handle, item.gpa, size, int(item.access), item.block.address + item.offset
                ),
                "a RAM range",
            )
            item.visible = True
        else:
            self.hides = True
        if item.visible and not item.access & Access.READ:
            self._lib.check(self._lib.mem_unmap(self._handle, item.gpa, size), "hiding a range")
            item.visible = False

    def _insert(self, new: Range) -> None:
        index = bisect_right(self._starts, new.gpa)
        before = self._ranges[index - 1] if index else None
        after = self._ranges[index] if index < len(self._ranges) else None
        if (before and before.end > new.gpa) or (after and after.gpa < new.end):
            raise ValueError(f"guest-physical range {new.gpa:#x}+{new.end - new.gpa:#x} is in use")
        self._starts.insert(index, new.gpa)
        self._ranges.insert(index, new)
        self._last = None

    def _cut(self, gpa: int, end: int) -> list[Range]:
        """Split at both ends and return the ranges within."""
        for at in (gpa, end):
            index = bisect_right(self._starts, at) - 1
            if index >= 0 and self._ranges[index].gpa < at < self._ranges[index].end:
                if self._ranges[index].kind is not Kind.RAM:
                    raise ValueError(f"an I/O range is freed whole, not at {at:#x}")
                upper = self._ranges[index].split(at)
                self._starts.insert(index + 1, at)
                self._ranges.insert(index + 1, upper)
        self._last = None
        first = bisect_right(self._starts, gpa - 1)
        last = bisect_right(self._starts, end - 1)
        return self._ranges[first:last]


assert (int(Access.READ), int(Access.WRITE), int(Access.EXECUTE)) == (
    binding.UC_PROT_READ,
    binding.UC_PROT_WRITE,
    binding.UC_PROT_EXEC,
)
