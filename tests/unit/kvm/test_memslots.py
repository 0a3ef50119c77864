"""Memory slots against a dictionary of pages; transactions are all or nothing."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.page_oracle import BLOCKS, PAGES, Oracle, pages_of, regions
from vtlkit.engine.api import PAGE_SIZE
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.memslots import KVM_MEM_READONLY, MAX_GPA, MAX_SLOTS, MemoryRegion, Memslots


def snapshot(slots: Memslots) -> tuple[int, tuple[MemoryRegion, ...]]:
    return slots.generation, tuple(slots)


@given(st.lists(st.lists(regions(), min_size=1, max_size=4), max_size=12))
def test_slots_are_as_the_pages_say(transactions: list[list[MemoryRegion]]) -> None:
    slots, oracle = Memslots(), Oracle()
    for changes in transactions:
        before = snapshot(slots)
        pages_before = {page: oracle.slot_page(page) for page in range(PAGES)}
        accepted = oracle.apply(changes)
        if not accepted:
            with pytest.raises(KvmError) as refused:
                slots.changed(changes)
            assert refused.value.errno in (errno.EINVAL, errno.EEXIST)
            assert snapshot(slots) == before
            continue
        after, touched = slots.changed(changes)
        assert snapshot(slots) == before, "a set never changes"
        assert after.generation == slots.generation + 1
        slots = after
        moved = {page for gpa, size in touched for page in pages_of(gpa, size)}
        for page in range(PAGES):
            if oracle.slot_page(page) != pages_before[page]:
                assert page in moved, f"nobody is told of page {page}"
    assert len(slots) == len(oracle.slots)
    for number in range(5):
        assert slots.by_id(number) == oracle.slots.get(number)
    for page in range(PAGES):
        for gpa in (page * PAGE_SIZE, page * PAGE_SIZE + PAGE_SIZE - 1):
            region = slots.at(gpa)
            assert (region is None) == (oracle.slot_page(page) is None)
            assert region is None or region.gpa <= gpa < region.end


@given(st.lists(regions(), max_size=5), st.integers(0, PAGES), st.integers(0, PAGES))
def test_within_finds_what_overlaps(changes: list[MemoryRegion], first: int, last: int) -> None:
    slots = Memslots()
    for change in changes:
        try:
            slots, _touched = slots.changed([change])
        except KvmError:
            continue
    low, high = first * PAGE_SIZE, last * PAGE_SIZE
    expected = [region for region in slots if region.gpa < high and region.end > low and low < high]
    if low < high:
        assert list(slots.within(low, high)) == expected


@pytest.mark.parametrize(
    ("region", "error"),
    [
        (MemoryRegion(-1, 0, PAGE_SIZE, BLOCKS[0]), errno.EINVAL),
        (MemoryRegion(MAX_SLOTS, 0, PAGE_SIZE, BLOCKS[0]), errno.EINVAL),
        (MemoryRegion(0, 1, PAGE_SIZE, BLOCKS[0]), errno.EINVAL),
        (MemoryRegion(0, -PAGE_SIZE, PAGE_SIZE, BLOCKS[0]), errno.EINVAL),
        (MemoryRegion(0, 0, PAGE_SIZE + 1, BLOCKS[0]), errno.EINVAL),
        (MemoryRegion(0, 0, -PAGE_SIZE, BLOCKS[0]), errno.EINVAL),
        (MemoryRegion(0, 0, PAGE_SIZE), errno.EINVAL),
        (MemoryRegion(0, 0, PAGE_SIZE, BLOCKS[0], 1), errno.EINVAL),
        (MemoryRegion(0, 0, PAGE_SIZE, BLOCKS[0], -PAGE_SIZE), errno.EINVAL),
        (MemoryRegion(0, 0, PAGE_SIZE, BLOCKS[0], BLOCKS[0].size), errno.EINVAL),
        (MemoryRegion(0, 0, PAGE_SIZE, BLOCKS[0], 0, 1), errno.EINVAL),
        (MemoryRegion(0, 0, 0), errno.EINVAL),
        (MemoryRegion(0, MAX_GPA, PAGE_SIZE, BLOCKS[0]), errno.EINVAL),
        (MemoryRegion(0, (MAX_GPA) - PAGE_SIZE, 2 * PAGE_SIZE, BLOCKS[0]), errno.EINVAL),
    ],
)
def test_malformed_regions_are_refused(region: MemoryRegion, error: int) -> None:
    with pytest.raises(KvmError) as caught:
        Memslots().changed([region])
    assert caught.value.errno == error


def test_an_overlap_is_refused_and_says_of_what() -> None:
    slots, _touched = Memslots().changed([MemoryRegion(3, 0, 2 * PAGE_SIZE, BLOCKS[0])])
    with pytest.raises(KvmError, match="slot 5 at 0x1000 overlaps slot 3, which ends at 0x2000") as caught:
        slots.changed([MemoryRegion(5, PAGE_SIZE, PAGE_SIZE, BLOCKS[0])])
    assert caught.value.errno == errno.EEXIST


def test_two_slots_may_change_places_in_one_step() -> None:
    first, second = (MemoryRegion(number, number * PAGE_SIZE, PAGE_SIZE, BLOCKS[0]) for number in range(2))
    slots, _touched = Memslots().changed([first, second])
    swapped = [
        MemoryRegion(0, PAGE_SIZE, PAGE_SIZE, BLOCKS[0]),
        MemoryRegion(1, 0, PAGE_SIZE, BLOCKS[0], 0, KVM_MEM_READONLY),
    ]
    slots, touched = slots.changed(swapped)
    assert [region.slot for region in slots] == [1, 0]
    assert {page for gpa, size in touched for page in pages_of(gpa, size)} == {0, 1}
    with pytest.raises(KvmError):
        Memslots([first, second]).changed(swapped[:1])
