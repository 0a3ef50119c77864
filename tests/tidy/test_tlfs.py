"""docs/TLFS.md says what the markers in the tests say: nothing is ticked that no test proves."""

from __future__ import annotations

import re

from tests.tlfs.checklist import DOCUMENT, TESTS, items, marked

_LINE = re.compile(r"- \[(?P<tick>[ x])\] (?P<text>.*)")


def test_markers_name_items_that_exist() -> None:
    known = {item.id for item in items()}
    assert [f"{path.relative_to(TESTS)}:{line}: {item}" for path, item, line in marked() if item not in known] == []


def test_the_document_ticks_what_has_tests_and_nothing_else() -> None:
    """A marked test that fails or is skipped fails, or shows up in, this same run of the suite."""
    with_tests = {item for _, item, _ in marked()}
    ticks = [match["tick"] == "x" for match in map(_LINE.match, DOCUMENT.read_text().splitlines()) if match]
    expected = items()
    assert len(ticks) == len(expected), "run `make tlfs`"
    wrong = [item.id for item, tick in zip(expected, ticks, strict=True) if tick != (item.id in with_tests)]
    assert wrong == [], "run `make tlfs`"


def test_what_is_not_ticked_has_its_reason_in_the_limits() -> None:
    limits = (TESTS.parent / "docs" / "LIMITS.md").read_text()
    assert [item.id for item in items() if item.limit and item.limit not in limits] == []
