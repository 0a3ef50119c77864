"""The real-time clock against Python's own calendar, its flags, interrupts and alarm, and the CMOS contents."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vmm.devices.device_rig import Line, ManualHost
from vtlkit.vmm.devices import cmos
from vtlkit.vmm.devices.cmos import Cmos, CmosRtc

SECOND = 1_000_000_000
EPOCH = 1_700_000_000


class Rig:
    def __init__(self, epoch_s: int = EPOCH, memory: int = 256 << 20) -> None:
        self.host, self.line = ManualHost(), Line()
        self.alarms = 0
        low = min(memory, 3 << 30)
        self.rtc = CmosRtc(
            self.host.as_host(), self.line, epoch_s=epoch_s, memory_size=memory, low_memory=low, on_alarm=self.alarm
        )

    def alarm(self) -> None:
        self.alarms += 1

    def read(self, index: int) -> int:
        self.rtc.write(0x70, 1, index)
        return self.rtc.read(0x71, 1)

    def write(self, index: int, value: int) -> None:
        self.rtc.write(0x70, 1, index)
        self.rtc.write(0x71, 1, value)

    def bcd(self, index: int) -> int:
        value = self.read(index)
        return (value >> 4) * 10 + (value & 0xF)

    def date(self) -> datetime:
        year = self.bcd(Cmos.CENTURY) * 100 + self.bcd(Cmos.YEAR)
        month, day = self.bcd(Cmos.MONTH), self.bcd(Cmos.DAY_OF_MONTH)
        return datetime(
            year, month, day, self.bcd(Cmos.HOURS), self.bcd(Cmos.MINUTES), self.bcd(Cmos.SECONDS), tzinfo=UTC
        )

    def set_date(self, date: datetime) -> None:
        self.write(Cmos.REG_B, self.read(Cmos.REG_B) | cmos.REG_B_SET)
        for index, value in (
            (Cmos.CENTURY, date.year // 100),
            (Cmos.YEAR, date.year % 100),
            (Cmos.MONTH, date.month),
            (Cmos.DAY_OF_MONTH, date.day),
            (Cmos.HOURS, date.hour),
            (Cmos.MINUTES, date.minute),
            (Cmos.SECONDS, date.second),
        ):
            self.write(index, value // 10 << 4 | value % 10)
        self.write(Cmos.REG_B, self.read(Cmos.REG_B) & ~cmos.REG_B_SET)


@pytest.fixture
def rig() -> Rig:
    return Rig()


DATES = st.datetimes(datetime(1900, 1, 1), datetime(9000, 12, 31))


@given(DATES, st.integers(0, 400 * 86400))
def test_dates_agree_with_the_calendar(start: datetime, later: int) -> None:
    start = start.replace(microsecond=0, tzinfo=UTC)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    rig = Rig(int((start - epoch).total_seconds()))
    assert rig.date() == start
    rig.host.advance(later * SECOND)
    now = start + timedelta(seconds=later)
    assert rig.date() == now
    assert rig.bcd(Cmos.DAY_OF_WEEK) == now.isoweekday() % 7 + 1


@given(DATES, st.integers(0, 86400 * 3))
def test_a_date_that_the_guest_sets_runs_on(date: datetime, later: int) -> None:
    date = date.replace(microsecond=0, tzinfo=UTC)
    rig = Rig()
    rig.set_date(date)
    assert rig.date() == date
    rig.host.advance(later * SECOND)
    assert rig.date() == date + timedelta(seconds=later)


def test_registers_hold_still_while_set(rig: Rig) -> None:
    rig.write(Cmos.REG_B, cmos.REG_B_SET | cmos.REG_B_24H)
    before = rig.date()
    rig.host.advance(5 * SECOND)
    assert rig.date() == before
    rig.write(Cmos.REG_B, cmos.REG_B_24H)
    assert rig.date() == before


def test_divider_reset_delays_the_next_update_by_half_a_second(rig: Rig) -> None:
    rig.write(Cmos.REG_A, 0x70)
    before = rig.read(Cmos.SECONDS)
    rig.host.advance(10 * SECOND)
    rig.write(Cmos.REG_A, 0x26)
    rig.host.advance(SECOND // 2 - 1)
    assert rig.read(Cmos.SECONDS) == before
    rig.host.advance(1)
    assert rig.read(Cmos.SECONDS) != before


@pytest.mark.parametrize(
    ("mode", "hour", "expected"),
    [
        (cmos.REG_B_24H, 15, 0x15),
        (cmos.REG_B_24H | cmos.REG_B_DM, 15, 15),
        (0, 15, 0x83),
        (0, 0, 0x12),
        (cmos.REG_B_DM, 12, 0x8C),
        (cmos.REG_B_DM, 23, 0x8B),
    ],
)
def test_hour_formats_round_trip(mode: int, hour: int, expected: int) -> None:
    rig = Rig(hour * 3600)
    rig.write(Cmos.REG_B, mode)
    assert rig.read(Cmos.HOURS) == expected
    rig.write(Cmos.HOURS, expected)
    rig.write(Cmos.REG_B, cmos.REG_B_24H | cmos.REG_B_DM)
    assert rig.read(Cmos.HOURS) == hour


def test_update_in_progress_lasts_244_microseconds_before_the_second(rig: Rig) -> None:
    rig.host.advance(SECOND - 244_140 - 1)
    assert not rig.read(Cmos.REG_A) & cmos.REG_A_UIP
    rig.host.advance(1)
    assert rig.read(Cmos.REG_A) & cmos.REG_A_UIP
    rig.host.advance(244_140)
    assert not rig.read(Cmos.REG_A) & cmos.REG_A_UIP


def test_periodic_interrupt_rate_and_edges(rig: Rig) -> None:
    rig.write(Cmos.REG_B, cmos.REG_B_24H | cmos.REG_B_PIE)
    count = 0
    for _ in range(3000):
        rig.host.advance(SECOND // 3000)
        if rig.line.level:
            assert rig.read(Cmos.REG_C) & (cmos.REG_C_IRQF | cmos.REG_C_PF) == cmos.REG_C_IRQF | cmos.REG_C_PF
            assert rig.line.level == 0
            count += 1
    assert count in (1023, 1024)
    assert rig.line.edges == count


def test_an_unread_interrupt_raises_no_second_edge(rig: Rig) -> None:
    rig.write(Cmos.REG_B, cmos.REG_B_24H | cmos.REG_B_PIE)
    rig.host.advance(SECOND)
    assert rig.line.edges == 1
    rig.read(Cmos.REG_C)
    rig.host.advance(SECOND)
    assert rig.line.edges == 2


def test_flags_are_set_without_interrupts_and_cleared_by_reading(rig: Rig) -> None:
    rig.host.advance(SECOND)
    assert rig.read(Cmos.REG_C) == cmos.REG_C_PF | cmos.REG_C_UF
    assert rig.read(Cmos.REG_C) == 0
    assert rig.line.edges == 0


def test_update_ended_interrupt(rig: Rig) -> None:
    rig.write(Cmos.REG_B, cmos.REG_B_24H | cmos.REG_B_UIE)
    rig.host.advance(SECOND - 1)
    assert rig.line.level == 0
    rig.host.advance(1)
    assert rig.line.level == 1
    assert rig.read(Cmos.REG_C) & cmos.REG_C_UF


def test_alarm_of_the_s3_test_goes_off_on_the_next_second(rig: Rig) -> None:
    for register in (Cmos.SECONDS_ALARM, Cmos.MINUTES_ALARM, Cmos.HOURS_ALARM):
        rig.write(register, 0xC0)
    rig.write(Cmos.REG_B, rig.read(Cmos.REG_B) | cmos.REG_B_AIE)
    rig.host.advance(SECOND)
    assert (rig.alarms, rig.line.level) == (1, 1)
    assert rig.read(Cmos.REG_C) & cmos.REG_C_AF


_FIELD = st.one_of(st.just(0xC0), st.integers(0, 255))


@given(st.integers(0, 86399), _FIELD, _FIELD, _FIELD)
def test_alarm_time_agrees_with_a_search(start: int, hour: int, minute: int, second: int) -> None:
    rig = Rig(start)
    rig.write(Cmos.REG_B, cmos.REG_B_24H | cmos.REG_B_DM | cmos.REG_B_AIE)
    for register, value in ((Cmos.HOURS_ALARM, hour), (Cmos.MINUTES_ALARM, minute), (Cmos.SECONDS_ALARM, second)):
        rig.write(register, value)

    def candidates(after: int) -> range:
        """A day's seconds, thinned to those whose second can match."""
        return (
            range(after + 1, after + 86401)
            if second >= 0xC0
            else range(after + 1 + (second - after - 1) % 60, after + 86401, 60)
        )

    def matches(moment: int) -> bool:
        fields = ((hour, moment // 3600 % 24), (minute, moment // 60 % 60), (second, moment % 60))
        return all(register >= 0xC0 or register == value for register, value in fields)

    rig.read(Cmos.REG_C)
    before = rig.alarms
    expected = next((moment for moment in candidates(start) if matches(moment)), None)
    if expected is None:
        rig.host.advance(2 * 86400 * SECOND)
        assert rig.alarms == before
    else:
        rig.host.advance((expected - start) * SECOND - 1)
        assert rig.alarms == before
        rig.host.advance(1)
        assert rig.alarms == before + 1


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (256 << 20, {0x15: 0x80, 0x16: 0x02, 0x30: 0xFF, 0x31: 0xFF, 0x34: 0x00, 0x35: 0x0F, 0x5B: 0}),
        (8 << 20, {0x15: 0x80, 0x16: 0x02, 0x17: 0x00, 0x18: 0x1C, 0x34: 0, 0x35: 0}),
        (5 << 30, {0x34: 0x00, 0x35: 0xBF, 0x5B: 0, 0x5C: 0x80, 0x5D: 0}),
    ],
)
def test_memory_size_registers(memory: int, expected: dict[int, int]) -> None:
    rig = Rig(memory=memory)
    assert {index: rig.read(index) for index in expected} == expected


def test_ram_nmi_mask_and_reset(rig: Rig) -> None:
    rig.write(0x80 | Cmos.SHUTDOWN_STATUS, 0x0A)
    assert rig.rtc.nmi_masked
    rig.write(Cmos.REG_B, cmos.REG_B_24H | cmos.REG_B_UIE)
    rig.host.advance(SECOND)
    date = rig.date()
    rig.rtc.reset()
    assert (rig.line.level, rig.date()) == (0, date)
    assert rig.read(Cmos.SHUTDOWN_STATUS) == 0x0A
    assert rig.read(Cmos.REG_D) == 0x80
    rig.host.advance(2 * SECOND)
    assert rig.line.edges == 1


@given(st.lists(st.tuples(st.integers(0, 0x3F), st.integers(0, 255), st.integers(0, 3 * SECOND)), max_size=40))
def test_hostile_writes_never_fail_and_the_line_follows_irqf(ops: list[tuple[int, int, int]]) -> None:
    rig = Rig()
    for index, value, wait in ops:
        rig.write(index, value)
        rig.host.advance(wait)
        for register in Cmos:
            if register != Cmos.REG_C:
                assert 0 <= rig.read(register) <= 0xFF
        level = rig.line.level
        assert bool(rig.read(Cmos.REG_C) & cmos.REG_C_IRQF) == bool(level)
        assert rig.line.level == 0
