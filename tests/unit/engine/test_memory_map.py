"""The guest-physical map against a page-by-page model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.engine.api import PAGE_SIZE, Access, RamBlock
from vtlkit.engine.memory_map import Kind, MemoryMap, Range

PAGES = 24
BLOCK = RamBlock(PAGES * PAGE_SIZE)


class Followed(MemoryMap):
    """A map that checks what it is told to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Access | Kind] = {}

    def _pages(self, item: Range) -> range:
        return range(item.gpa // PAGE_SIZE, item.end // PAGE_SIZE)

    def _appear(self, item: Range) -> None:
        for page in self._pages(item):
            assert page not in self.seen
            self.seen[page] = item.access if item.kind is Kind.RAM else item.kind

    def _vanish(self, item: Range) -> None:
        for page in self._pages(item):
            del self.seen[page]

    def _permit(self, item: Range, was: Access) -> None:
        for page in self._pages(item):
            assert self.seen[page] == was != item.access
            self.seen[page] = item.access


def _ignore(*_: int) -> int:
    return 0


def _ignore_write(*_: int) -> None:
    pass


span = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 8)).map(
    lambda pair: (pair[0], min(pair[1], PAGES - pair[0]))
)
access = st.sampled_from([Access.NONE, Access.READ, Access.READ | Access.WRITE, Access.ALL])
steps = st.lists(st.tuples(st.sampled_from(["ram", "io", "unmap", "protect"]), span, access), max_size=25)


@given(steps)
def test_behaves_like_an_array_of_pages(operations: list[tuple[str, tuple[int, int], Access]]) -> None:
    memory = Followed()
    model: dict[int, tuple[Kind, Access, int]] = {}
    for number, (name, (first, count), permitted) in enumerate(operations):
        pages = range(first, first + count)
        gpa, size = first * PAGE_SIZE, count * PAGE_SIZE
        if name in ("ram", "io"):
            free = not any(page in model for page in pages)
            try:
                if name == "ram":
                    memory.map_ram(gpa, size, BLOCK, gpa, permitted)
                else:
                    memory.map_io(gpa, size, Kind.EXIT, _ignore, _ignore_write)
            except ValueError:
                assert not free
                continue
            assert free
            for page in pages:
                model[page] = (
                    (Kind.RAM, permitted, -1) if name == "ram" else (Kind.EXIT, Access.READ | Access.WRITE, number)
                )
        elif name == "unmap":
            # An I/O range goes as a whole or not at all.
            cut = {entry[2] for page, entry in model.items() if entry[0] is Kind.EXIT and page in pages}
            whole = all(page in pages for page, entry in model.items() if entry[2] in cut and entry[2] >= 0)
            try:
                memory.unmap(gpa, size)
            except ValueError:
                assert not whole
                continue
            assert whole
            for page in pages:
                model.pop(page, None)
        else:
            memory.protect(gpa, size, permitted)
            for page in pages:
                if page in model and model[page][0] is Kind.RAM:
                    model[page] = (Kind.RAM, permitted, -1)
        for page in range(PAGES):
            found = memory.find(page * PAGE_SIZE + 5)
            assert (found is None) == (page not in model)
            if found is not None:
                assert (found.kind, found.access) == model[page][:2]
                backed = memory.ram(page * PAGE_SIZE + 5, Access.NONE)
                assert backed == ((BLOCK, page * PAGE_SIZE + 5) if found.kind is Kind.RAM else None)
        assert memory.seen == {page: entry[1] if entry[0] is Kind.RAM else entry[0] for page, entry in model.items()}


@pytest.mark.parametrize(("gpa", "size"), [(1, PAGE_SIZE), (0, 1), (0, 0), (-PAGE_SIZE, PAGE_SIZE), (0, -PAGE_SIZE)])
def test_ranges_are_whole_pages(gpa: int, size: int) -> None:
    with pytest.raises(ValueError):
        MemoryMap().map_ram(gpa, size, BLOCK, 0, Access.ALL)


def test_a_range_lies_within_its_block() -> None:
    with pytest.raises(ValueError):
        MemoryMap().map_ram(0, 2 * PAGE_SIZE, BLOCK, (PAGES - 1) * PAGE_SIZE, Access.ALL)


def test_ram_says_whether_it_permits() -> None:
    memory = MemoryMap()
    memory.map_ram(0, PAGE_SIZE, BLOCK, PAGE_SIZE, Access.READ)
    assert memory.ram(8, Access.READ) == (BLOCK, PAGE_SIZE + 8)
    assert memory.ram(8, Access.WRITE) is None
