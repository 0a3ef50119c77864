"""RAM ranges and the memory map agree with each other at every size."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vtlkit.vmm.loaders.memory import GIB, MIB, memory_map, ram_ranges, ram_size_for

SIZES = st.integers(1, 64 * GIB // 4096).map(lambda pages: pages * 4096)


@given(SIZES)
def test_ram_ranges_hold_all_of_it_outside_the_hole(size: int) -> None:
    ranges = ram_ranges(size)
    assert sum(end - start for start, end in ranges) == size
    assert ranges[0][0] == 0
    assert all(end <= 3 * GIB or start >= 4 * GIB for start, end in ranges)


@given(SIZES)
def test_map_is_sorted_disjoint_and_inside_ram(size: int) -> None:
    entries = memory_map(size)
    for (base, length, _), (after, _, _) in pairwise(entries):
        assert base + length <= after
    for base, length, kind in entries:
        assert length > 0
        assert kind in (1, 2)
        assert any(start <= base and base + length <= end for start, end in ram_ranges(size))


def test_map_of_256_mib_and_of_5_gib() -> None:
    low = [(0, 0x9FC00, 1), (0x9FC00, 0x400, 2), (0xE0000, 0x20000, 2)]
    assert memory_map(256 * MIB) == [*low, (0x100000, 255 * MIB, 1)]
    assert memory_map(5 * GIB) == [*low, (0x100000, 3 * GIB - MIB, 1), (4 * GIB, 2 * GIB, 1)]


@given(SIZES)
def test_needed_size_inverts_the_ranges(size: int) -> None:
    assert ram_size_for(ram_ranges(size)[-1][1]) == size
