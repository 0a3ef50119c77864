"""Sizes, counts and times as users write them: what is taken means what it says, all else is refused with a reason."""

from __future__ import annotations

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.cli.quantities import (
    GIB,
    KIB,
    MEMORY_MAXIMUM,
    MEMORY_MINIMUM,
    MIB,
    PAGE_SIZE,
    count_parser,
    parse_memory,
    parse_seconds,
    show_size,
)
from vtlkit.engine import api
from vtlkit.engine.unicorn.registers import MAXPHYADDR
from vtlkit.vmm.loaders.memory import HOLE_END, HOLE_START


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256M", 256 * MIB),
        ("256m", 256 * MIB),
        ("256MiB", 256 * MIB),
        ("1G", GIB),
        ("262144K", 256 * MIB),
        ("268435456", 256 * MIB),
        ("1023G", MEMORY_MAXIMUM),
        ("1M", MEMORY_MINIMUM),
        ("1028k", 1028 * KIB),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_memory(text) == size


@given(st.integers(MEMORY_MINIMUM // PAGE_SIZE, MEMORY_MAXIMUM // PAGE_SIZE))
def test_a_shown_size_can_be_typed(pages: int) -> None:
    size = pages * PAGE_SIZE
    assert parse_memory(show_size(size)) == size
    assert parse_memory(size) == size


@given(st.text())
def test_any_text_is_a_value_or_refused(text: str) -> None:
    for parse in (parse_memory, parse_seconds, count_parser(1, 16)):
        try:
            value = parse(text)
        except typer.BadParameter:
            continue
        assert value > 0


@pytest.mark.parametrize(("text", "value"), [("10", 10.0), ("0.5", 0.5), (".25", 0.25), ("1.", 1.0)])
def test_seconds(text: str, value: float) -> None:
    assert parse_seconds(text) == value


def test_the_limits_are_the_machines() -> None:
    assert MEMORY_MAXIMUM + (HOLE_END - HOLE_START) == 1 << MAXPHYADDR
    assert PAGE_SIZE == api.PAGE_SIZE
