"""Memory attributes against a dictionary of pages."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.page_oracle import ACCESSES, PAGES, page_ranges
from vtlkit.engine.api import PAGE_SIZE, Access
from vtlkit.kvm.attributes import MemoryAttributes
from vtlkit.kvm.memslots import MAX_GPA


@given(st.lists(st.tuples(page_ranges(), ACCESSES), max_size=15), page_ranges())
def test_attributes_are_as_the_pages_say(changes: list[tuple[tuple[int, int], Access]], asked: tuple[int, int]) -> None:
    attributes = MemoryAttributes()
    oracle = dict.fromkeys(range(PAGES + 1), Access.ALL)
    for (first, count), access in changes:
        attributes = attributes.changed(first * PAGE_SIZE, count * PAGE_SIZE, access)
        oracle.update(dict.fromkeys(range(first, first + count), access))
    for page in range(PAGES + 1):
        for gpa in (page * PAGE_SIZE, (page + 1) * PAGE_SIZE - 1):
            assert attributes.at(gpa) == oracle[page]
    changes_between_pages = sum(oracle[page] != oracle[page + 1] for page in range(PAGES))
    assert len(attributes) == 1 + changes_between_pages, "runs are maximal"

    first, count = asked
    runs = list(attributes.runs(first * PAGE_SIZE, (first + count) * PAGE_SIZE))
    assert runs[0][0] == first * PAGE_SIZE
    assert runs[-1][1] == (first + count) * PAGE_SIZE
    for before, after in pairwise(runs):
        assert before[1] == after[0]
        assert before[2] != after[2]
    for start, end, access in runs:
        assert all(oracle[page] == access for page in range(start // PAGE_SIZE, end // PAGE_SIZE))


def test_everything_is_permitted_at_first() -> None:
    attributes = MemoryAttributes()
    assert attributes.at(0) == attributes.at((1 << 64) - 1) == Access.ALL
    assert list(attributes.runs(0, 0)) == []


def test_the_last_page_can_be_closed() -> None:
    attributes = MemoryAttributes()
    last = MAX_GPA - PAGE_SIZE
    attributes = attributes.changed(last, PAGE_SIZE, Access.NONE)
    assert attributes.at(last) == Access.NONE
    assert attributes.at(last - 1) == Access.ALL
