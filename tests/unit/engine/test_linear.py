"""The page walk that engines share: what it remembers changes nothing, and a write is whole or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.engine.api import PAGE_SIZE, Access, RamBlock
from vtlkit.engine.linear import Deciding, GuestFault, LinearWalk, PhysicalFault
from vtlkit.engine.memory_map import MemoryMap
from vtlkit.x86.exceptions import PFERR_PRESENT, PFERR_WRITE, Vector
from vtlkit.x86.paging import PTE_A, PTE_D, PTE_P, PTE_W, READ, WRITE
from vtlkit.x86.registers import CR0_PE, CR0_PG, CR0_WP

TABLE = PAGE_SIZE
FRAMES = (2 * PAGE_SIZE, 3 * PAGE_SIZE)
SIZE = 4 * PAGE_SIZE


class Walk(LinearWalk):
    """32-bit paging at CPL 0 with write protection; one table at `TABLE` maps the first pages to `FRAMES`."""

    def __init__(self, marks: int) -> None:
        """`marks`: the accesses that set accessed and dirty bits."""
        self.block = RamBlock(SIZE)
        self.map = MemoryMap()
        self.map.map_ram(0, SIZE, self.block, 0, Access.ALL)
        super().__init__(self.map, 36)
        self._marked = marks
        self.put(0, TABLE | PTE_P | PTE_W)
        for page, frame in enumerate(FRAMES):
            self.put_entry(page, frame | PTE_P | PTE_W)

    def _registers(self) -> Deciding:
        return CR0_PE | CR0_WP | CR0_PG, 0, 0, 0, 0, 0, 0, self.map.generation

    def _marks(self, access: int) -> bool:
        return bool(access & self._marked)

    def store(self, gva: int, data: bytes) -> None:
        self._store(gva, data, WRITE, False)

    def load(self, gva: int, size: int) -> bytes:
        return self._load(gva, size, READ, False, Access.READ)

    def put(self, gpa: int, entry: int) -> None:
        self.block.mapping[gpa : gpa + 4] = entry.to_bytes(4, "little")

    def put_entry(self, page: int, entry: int) -> None:
        self.put(TABLE + 4 * page, entry)

    def entry(self, page: int) -> int:
        return int.from_bytes(self.block.mapping[TABLE + 4 * page : TABLE + 4 * page + 4], "little")


def _answer(walk: Walk, page: int, access: int) -> object:
    try:
        return walk.translate(page * PAGE_SIZE + 8, access)
    except GuestFault as fault:
        return fault.vector, fault.error_code, fault.address


# Few, so that an entry often comes back as it was.
_ENTRIES = st.sampled_from(
    [0, *(frame | flags for frame in FRAMES for flags in (PTE_P, PTE_P | PTE_W, PTE_P | PTE_W | PTE_A))]
)
_PAGES = st.integers(0, len(FRAMES) - 1)
_STEPS = st.lists(
    st.one_of(
        st.builds(lambda page, entry: lambda walk: walk.put_entry(page, entry), _PAGES, _ENTRIES),
        st.builds(
            lambda page, access: lambda walk: _answer(walk, page, access),
            _PAGES,
            st.sampled_from((READ, WRITE, READ | WRITE)),
        ),
    ),
    max_size=30,
)


@pytest.mark.parametrize("marks", [READ | WRITE, WRITE])
@given(steps=_STEPS)
def test_what_is_remembered_changes_nothing(marks: int, steps: list[Callable[[Walk], object]]) -> None:
    """Against one that walks every time: the same answers, and the same accessed and dirty bits in the tables."""
    remembering, forgetful = Walk(marks), Walk(marks)
    for step in steps:
        forgetful.forget()
        assert step(remembering) == step(forgetful)
        assert remembering.block.mapping[:] == forgetful.block.mapping[:]


@pytest.mark.parametrize("marks", [READ | WRITE, WRITE])
def test_bits_that_the_guest_clears_are_set_again(marks: int) -> None:
    walk = Walk(marks)
    clean = walk.entry(0)
    for _ in range(3):
        walk.store(0, b"x")
        assert walk.entry(0) == clean | PTE_A | PTE_D
        walk.put_entry(0, clean)


def test_reads_leave_no_bits_where_only_writes_mark() -> None:
    walk = Walk(WRITE)
    before = walk.entry(0)
    walk.load(0, 1)
    assert walk.entry(0) == before


def test_a_write_is_whole_or_not_at_all() -> None:
    walk = Walk(READ | WRITE)
    walk.map.protect(FRAMES[1], PAGE_SIZE, Access.READ)
    at = PAGE_SIZE - 2
    with pytest.raises(PhysicalFault) as refused:
        walk.store(at, b"abcd")
    fault = refused.value
    assert (fault.gpa, fault.size, fault.access, fault.mapped, fault.gva) == (
        FRAMES[1],
        2,
        Access.WRITE,
        True,
        PAGE_SIZE,
    )
    walk.map.protect(FRAMES[1], PAGE_SIZE, Access.ALL)
    walk.put_entry(1, FRAMES[1] | PTE_P)
    with pytest.raises(GuestFault) as faulted:
        walk.store(at, b"abcd")
    assert (faulted.value.vector, faulted.value.error_code) == (Vector.PF, PFERR_PRESENT | PFERR_WRITE)
    assert walk.load(at, 4) == bytes(4)
    walk.put_entry(1, FRAMES[1] | PTE_P | PTE_W)
    walk.store(at, b"abcd")
    assert walk.load(at, 4) == b"abcd"


def test_instruction_bytes_end_where_the_next_page_cannot_be_fetched() -> None:
    walk = Walk(WRITE)
    walk.store(PAGE_SIZE - 2, b"ab")
    walk.put_entry(1, 0)
    assert walk.fetch(PAGE_SIZE - 2, 15) == b"ab"
    with pytest.raises(GuestFault):
        walk.fetch(PAGE_SIZE, 15)
    walk.map.protect(FRAMES[0], PAGE_SIZE, Access.READ | Access.WRITE)
    with pytest.raises(PhysicalFault):
        walk.fetch(0, 15)
