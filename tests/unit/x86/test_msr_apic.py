"""The decoders among the MSR and APIC definitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.x86.apic import timer_divisor, x2apic_ldr
from vtlkit.x86.msr import MTRR_FIXED, PAT_RESET, MemoryType, mtrr_type_valid, pat_entry, pat_valid


def test_timer_divisors() -> None:
    table = {0x0: 2, 0x1: 4, 0x2: 8, 0x3: 16, 0x8: 32, 0x9: 64, 0xA: 128, 0xB: 1}
    assert {tdcr: timer_divisor(tdcr) for tdcr in table} == table
    assert timer_divisor(0xFFFFFFF4) == 2, "other bits do not count"


@pytest.mark.parametrize(("apic_id", "ldr"), [(0, 0x1), (5, 0x20), (0x1F, 0x18000), (0x123, 0x120008)])
def test_x2apic_logical_id(apic_id: int, ldr: int) -> None:
    assert x2apic_ldr(apic_id) == ldr


def test_power_up_pat() -> None:
    assert pat_valid(PAT_RESET)
    expected = [MemoryType.WB, MemoryType.WT, MemoryType.UC_MINUS, MemoryType.UC] * 2
    assert [pat_entry(PAT_RESET, i) for i in range(8)] == expected


@given(st.binary(min_size=8, max_size=8))
def test_pat_validity(data: bytes) -> None:
    assert pat_valid(int.from_bytes(data, "little")) == (not set(data) - {0, 1, 4, 5, 6, 7})


def test_pat_is_64_bits() -> None:
    assert not pat_valid(PAT_RESET | 1 << 64)


def test_mtrr_types_and_fixed_ranges() -> None:
    assert [t for t in range(256) if mtrr_type_valid(t)] == [0, 1, 4, 5, 6]
    assert list(MTRR_FIXED) == [0x250, 0x258, 0x259, *range(0x268, 0x270)]
