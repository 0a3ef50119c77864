"""Remembered code against a byte-by-byte model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vtlkit.engine.api import RamBlock
from vtlkit.engine.unicorn.codepages import TranslatedCode

SIZE = 4096
spans = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 100)).map(
    lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
)


@given(st.lists(st.one_of(st.tuples(st.just("add"), spans), st.tuples(st.just("write"), spans)), max_size=40))
def test_every_change_of_remembered_bytes_is_found(steps: list[tuple[str, tuple[int, int]]]) -> None:
    """What was translated and reads differently is reported; what is reported has been near something translated."""
    block = RamBlock(SIZE)
    code = TranslatedCode(block)
    remembered: dict[int, int] = {}
    for number, (what, (start, size)) in enumerate(steps):
        if what == "add":
            # An engine looks for changes before it runs, and so before it translates.
            _settle(code, remembered, block)
            code.add(start, size)
            remembered |= {at: block.view[at] for at in range(start, start + size)}
        else:
            block.view[start : start + size] = bytes([number % 255 + 1]) * size
    _settle(code, remembered, block)
    assert code.changed() == []


def _settle(code: TranslatedCode, remembered: dict[int, int], block: RamBlock) -> None:
    stale = {at for at, value in remembered.items() if block.view[at] != value}
    reported = set()
    for start, data in code.changed():
        assert bytes(block.view[start : start + len(data)]) == data
        reported |= set(range(start, start + len(data)))
    assert stale <= reported
    for at in reported:
        remembered.pop(at, None)


@given(st.lists(spans, max_size=20), spans)
def test_overlaps(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    """Never "no" for bytes that have been translated; never "yes" far from all of them."""
    code = TranslatedCode(RamBlock(SIZE))
    for start, size in added:
        code.add(start, size)
    low, high = asked[0], asked[0] + asked[1]
    answer = code.overlaps(low, high)
    if any(start < high and low < start + size for start, size in added):
        assert answer
    if all(start >= high + 64 or start + size + 64 <= low for start, size in added):
        assert not answer
