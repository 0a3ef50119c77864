"""Guest-physical memory as a dictionary of pages: what slots, overlays, attributes and device pages must add up to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from hypothesis import strategies as st

from vtlkit.engine.api import PAGE_SIZE, Access, RamBlock
from vtlkit.kvm.memslots import KVM_MEM_READONLY, MemoryRegion

PAGES = 12
"""The part of the address space that tests use; a page's number stands for its address."""
BLOCKS = [RamBlock(PAGES * PAGE_SIZE) for _ in range(2)]
OVERLAYS = RamBlock(4 * PAGE_SIZE)
READ_ONLY = Access.READ | Access.EXECUTE

Backing: TypeAlias = tuple[RamBlock, int, Access]
"""Block, offset of the page, what it permits."""


class Oracle:
    """Everything by page number."""

    def __init__(self) -> None:
        self.slots: dict[int, MemoryRegion] = {}
        self.overlays: dict[int, Backing] = {}
        self.attributes = dict.fromkeys(range(PAGES), Access.ALL)

    def apply(self, changes: list[MemoryRegion]) -> bool:
        """Change slots as one transaction; False, and nothing changed, if KVM refuses it."""
        slots = dict(self.slots)
        for region in changes:
            if region.size:
                slots[region.slot] = region
            elif region.slot in slots:
                del slots[region.slot]
            else:
                return False
        taken = [page for region in slots.values() for page in pages_of(region.gpa, region.size)]
        if len(taken) != len(set(taken)):
            return False
        self.slots = slots
        return True

    def slot_page(self, page: int) -> Backing | None:
        for region in self.slots.values():
            if page in pages_of(region.gpa, region.size):
                assert region.block is not None
                offset = region.offset + page * PAGE_SIZE - region.gpa
                return region.block, offset, READ_ONLY if region.flags & KVM_MEM_READONLY else Access.ALL
        return None

    def page(self, page: int) -> Backing | None:
        """What lies at a page, without attributes."""
        return self.overlays.get(page) or self.slot_page(page)

    def permitted(self, page: int) -> Backing | None:
        """What lies at a page, attributes applied."""
        found = self.page(page)
        return None if found is None else (found[0], found[1], found[2] & self.attributes[page])


def pages_of(gpa: int, size: int) -> range:
    return range(gpa // PAGE_SIZE, (gpa + size) // PAGE_SIZE)


def by_page(pieces: Iterator[tuple[int, int, RamBlock, int, Access]]) -> dict[int, Backing]:
    """(gpa, size, block, offset, access) cut into pages; a page twice is an error."""
    found: dict[int, Backing] = {}
    for gpa, size, block, offset, access in pieces:
        for page in pages_of(gpa, size):
            assert page not in found, f"page {page} is there twice"
            found[page] = block, offset + page * PAGE_SIZE - gpa, access
    return found


@st.composite
def regions(draw: st.DrawFn) -> MemoryRegion:
    """A change of a slot: five numbers, so that they meet; one in four deletes."""
    slot = draw(st.integers(0, 4))
    first = draw(st.integers(0, PAGES - 1))
    size = draw(st.integers(0, 3)) and draw(st.integers(1, PAGES - first))
    if not size:
        return MemoryRegion(slot, first * PAGE_SIZE, 0)
    offset = draw(st.integers(0, PAGES - size))
    flags = draw(st.sampled_from([0, 0, KVM_MEM_READONLY]))
    block = draw(st.sampled_from(BLOCKS))
    return MemoryRegion(slot, first * PAGE_SIZE, size * PAGE_SIZE, block, offset * PAGE_SIZE, flags)


ACCESSES = st.sampled_from([access for access in map(Access, range(8)) if not access or access & Access.READ])
"""What a page may permit: nothing, or reads and perhaps more."""


@st.composite
def page_ranges(draw: st.DrawFn) -> tuple[int, int]:
    """(first page, pages)"""
    first = draw(st.integers(0, PAGES - 1))
    return first, draw(st.integers(1, PAGES - first))
