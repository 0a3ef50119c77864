"""Memory types of PAT and MTRRs."""

from __future__ import annotations

import pytest

from vtlkit.x86 import msr
from vtlkit.x86.memory_type import mtrr_type, pat_type
from vtlkit.x86.msr import PAT_RESET, MemoryType

ENABLED, FIXED, VALID = 1 << 11, 1 << 10, 1 << 11
WIDTH = (1 << 40) - 1


@pytest.mark.parametrize(
    ("entry", "level", "index"),
    [(0, 1, 0), (8, 1, 1), (0x10, 1, 2), (0x18, 1, 3), (0x80, 1, 4), (0x98, 1, 7), (0x80, 2, 0), (0x1080, 2, 4)],
)
def test_pat_index(entry: int, level: int, index: int) -> None:
    pat = sum(kind << 8 * number for number, kind in enumerate((0, 1, 4, 5, 6, 7, 0, 1)))
    assert pat_type(pat, entry, level) == (0, 1, 4, 5, 6, 7, 0, 1)[index]
    assert pat_type(PAT_RESET, 0, 1) is MemoryType.WB


def registers(**changes: int) -> dict[int, int]:
    values = {msr.MSR_MTRRcap: 0x508, msr.MSR_MTRRdefType: ENABLED | FIXED | MemoryType.UC}
    for number in range(8):
        values[msr.MSR_MTRRphysBase0 + 2 * number] = values[msr.MSR_MTRRphysMask0 + 2 * number] = 0
    values.update(dict.fromkeys(msr.MTRR_FIXED, 0))
    values.update({int(name[1:], 16): value for name, value in changes.items()})
    return values


def put_range(values: dict[int, int], number: int, base: int, size: int, kind: MemoryType) -> None:
    values[msr.MSR_MTRRphysBase0 + 2 * number] = base | kind
    values[msr.MSR_MTRRphysMask0 + 2 * number] = WIDTH & ~(size - 1) | VALID


def test_disabled_mtrrs_say_nothing() -> None:
    assert mtrr_type(registers(x2FF=6).__getitem__, 0x200000) is None


def test_variable_ranges_and_their_overlaps() -> None:
    values = registers()
    put_range(values, 0, 0, 1 << 30, MemoryType.WB)
    put_range(values, 3, 1 << 20, 1 << 20, MemoryType.WT)
    put_range(values, 7, 2 << 20, 1 << 20, MemoryType.UC)
    put_range(values, 5, 3 << 20, 1 << 20, MemoryType.WC)
    found = [mtrr_type(values.__getitem__, megabyte << 20) for megabyte in (1, 2, 3, 4, 1023, 1024)]
    uncached = MemoryType.UC
    assert found == [MemoryType.WT, uncached, uncached, MemoryType.WB, MemoryType.WB, uncached]


@pytest.mark.parametrize(
    ("gpa", "register", "byte"),
    [
        (0, 0x250, 0),
        (0x7FFFF, 0x250, 7),
        (0x80000, 0x258, 0),
        (0xA4000, 0x259, 1),
        (0xC0000, 0x268, 0),
        (0xFFFFF, 0x26F, 7),
    ],
)
def test_fixed_ranges(gpa: int, register: int, byte: int) -> None:
    values = registers()
    values[register] = MemoryType.WP << 8 * byte
    assert mtrr_type(values.__getitem__, gpa) is MemoryType.WP
    values[msr.MSR_MTRRdefType] = ENABLED | MemoryType.WB
    assert mtrr_type(values.__getitem__, gpa) is MemoryType.WB
