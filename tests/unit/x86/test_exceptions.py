"""How two exceptions combine, against SDM volume 3, table 6-5, written out."""

from __future__ import annotations

import pytest

from vtlkit.x86.exceptions import (
    DOUBLE_FAULT,
    HAS_ERROR_CODE,
    SERIAL,
    SHUTDOWN,
    Vector,
    combine,
    is_contributory,
    selector_error_code,
)

BENIGN = (1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 28, 29, 30)
CONTRIBUTORY = (0, 10, 11, 12, 13, 21)
PAGE_FAULT = (14, 20)
ROWS = {
    BENIGN: (SERIAL, SERIAL, SERIAL),
    CONTRIBUTORY: (SERIAL, DOUBLE_FAULT, SERIAL),
    PAGE_FAULT: (SERIAL, DOUBLE_FAULT, DOUBLE_FAULT),
    (8,): (SERIAL, SHUTDOWN, SHUTDOWN),
}


@pytest.mark.parametrize("firsts", ROWS)
def test_every_pair(firsts: tuple[int, ...]) -> None:
    for first in firsts:
        for seconds, expected in zip((BENIGN, CONTRIBUTORY, PAGE_FAULT), ROWS[firsts], strict=True):
            assert {combine(first, second) for second in seconds} == {expected}


def test_classes_cover_all_vectors() -> None:
    assert sorted(BENIGN + CONTRIBUTORY + PAGE_FAULT + (8,)) == sorted(Vector)
    assert [v for v in Vector if is_contributory(v)] == list(CONTRIBUTORY)


def test_error_codes() -> None:
    assert {int(v) for v in HAS_ERROR_CODE} == {8, 10, 11, 12, 13, 14, 17, 21, 29, 30}
    assert selector_error_code(0x1B) == 0x18
    assert selector_error_code(0x1F, ext=True) == 0x1D
    assert selector_error_code(0x80, idt=True) == 0x402
    assert selector_error_code(0x80, idt=True, ext=True) == 0x403
