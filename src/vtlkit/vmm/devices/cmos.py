"""The PC's real-time clock and CMOS RAM (Motorola MC146818A data sheet; QEMU's hw/rtc/mc146818rtc.c).

Promise: the clock is a function of the host's clock: it starts at the epoch given at construction and runs with
`host.now_ns()`, so a deterministic host gives the same dates in every run. Registers are derived when they are read;
the flags of register C say what has happened since it was last read. Timers exist only to raise IRQ 8 and the alarm.

Locking: everything but the two timer callbacks runs under the bus's lock. The callbacks change nothing here: they look
at the flags and drive the line, and `LevelLine` makes a look that races with a register access harmless.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import date
from typing import Final

from vtlkit.host.api import Host
from vtlkit.vmm.devices.bus import BytePortDevice
from vtlkit.vmm.devices.line import Irq, LevelLine

CMOS_PORT: Final = 0x70
CMOS_PORTS: Final = 2
RTC_IRQ: Final = 8

_SECOND: Final = 1_000_000_000
_DAY_SECONDS: Final = 86400
_CRYSTAL_HZ: Final = 32768
_UPDATE_NS: Final = 8 * _SECOND // _CRYSTAL_HZ
"""How long before an update register A says UIP: 244 us."""


class Cmos(enum.IntEnum):
    """CMOS addresses."""

    SECONDS = 0x00
    SECONDS_ALARM = 0x01
    MINUTES = 0x02
    MINUTES_ALARM = 0x03
    HOURS = 0x04
    HOURS_ALARM = 0x05
    DAY_OF_WEEK = 0x06
    DAY_OF_MONTH = 0x07
    MONTH = 0x08
    YEAR = 0x09
    REG_A = 0x0A
    REG_B = 0x0B
    REG_C = 0x0C
    REG_D = 0x0D
    SHUTDOWN_STATUS = 0x0F
    EQUIPMENT = 0x14
    BASE_MEMORY_LOW = 0x15
    EXTENDED_MEMORY_LOW = 0x17
    EXTENDED_MEMORY_2_LOW = 0x30
    CENTURY = 0x32
    MEMORY_ABOVE_16M_LOW = 0x34
    MEMORY_ABOVE_4G_LOW = 0x5B


REG_A_UIP: Final = 0x80
_REG_A_DIVIDER: Final = 0x70
_REG_A_DIVIDER_RUNS: Final = 0x20
_REG_A_RATE: Final = 0x0F
_REG_A_RESET: Final = 0x26
"""Divider running, periodic rate 1024 Hz: what firmware leaves."""

REG_B_SET: Final = 0x80
REG_B_PIE: Final = 0x40
REG_B_AIE: Final = 0x20
REG_B_UIE: Final = 0x10
REG_B_DM: Final = 0x04
REG_B_24H: Final = 0x02

REG_C_IRQF: Final = 0x80
REG_C_PF: Final = 0x40
REG_C_AF: Final = 0x20
REG_C_UF: Final = 0x10
_FLAGS: Final = REG_C_PF | REG_C_AF | REG_C_UF

_REG_D_VRT: Final = 0x80
_ALARM_DONT_CARE: Final = 0xC0
_HOUR_PM: Final = 0x80
_INDEX_MASK: Final = 0x7F
_NMI_DISABLE: Final = 0x80
_EQUIPMENT_FPU_MOUSE: Final = 0x06

_CALENDAR: Final = (
    Cmos.SECONDS,
    Cmos.MINUTES,
    Cmos.HOURS,
    Cmos.DAY_OF_WEEK,
    Cmos.DAY_OF_MONTH,
    Cmos.MONTH,
    Cmos.YEAR,
    Cmos.CENTURY,
)
_TIME_REGISTERS: Final = frozenset(_CALENDAR)
_ALARM_REGISTERS: Final = (Cmos.HOURS_ALARM, Cmos.MINUTES_ALARM, Cmos.SECONDS_ALARM)

_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_LAST_ORDINAL: Final = date.max.toordinal()
_EPOCH_WEEKDAY: Final = 4
"""1 January 1970 was a Thursday; Sunday is 0."""


def _period_ticks(register_a: int) -> int:
    """The periodic interrupt's period in ticks of the 32768 Hz crystal; 0 if it is off."""
    rate = register_a & _REG_A_RATE
    if rate == 0:
        return 0
    if rate < 3:
        rate += 7
    return 1 << (rate - 1)


class CmosRtc(BytePortDevice):
    """Register at CMOS_PORT for CMOS_PORTS ports.

    `epoch_s` is the date at host time 0, in seconds since 1970 (UTC). `memory_size` is RAM in bytes, `low_memory` the
    part of it below 4 GiB. `on_alarm` is called in interrupt context when an enabled alarm goes off (it wakes S3).
    """

    def __init__(
        self,
        host: Host,
        irq: Irq,
        *,
        epoch_s: int,
        memory_size: int,
        low_memory: int,
        on_alarm: Callable[[], None] | None = None,
    ) -> None:
        self._host = host
        self._offset_ns = epoch_s * _SECOND
        self._weekday_shift = 0
        self._ram = bytearray(128)
        self._index = 0
        self.nmi_masked = False
        self._on_alarm = on_alarm
        self._line = LevelLine(irq, self._interrupt)
        self._periodic = host.timer(self._line.update, "rtc-periodic")
        self._alarm = host.timer(self._alarm_fired, "rtc-alarm")
        self._ram[Cmos.REG_A] = _REG_A_RESET
        self._ram[Cmos.REG_B] = REG_B_24H
        self._latched = 0
        self._seen_ns = self._divider_ns()
        self._fill_memory_size(memory_size, low_memory)

    def reset(self) -> None:
        """Machine reset: interrupts off and flags clear; the battery keeps time and RAM."""
        self._ram[Cmos.REG_B] &= ~(REG_B_PIE | REG_B_AIE | REG_B_UIE)
        self._latched = 0
        self._seen_ns = self._divider_ns()
        self._settle()

    def _fill_memory_size(self, total: int, low: int) -> None:
        self._ram[Cmos.EQUIPMENT] = _EQUIPMENT_FPU_MOUSE
        base_kib = min(total >> 10, 640)
        extended_kib = min(max(low - (1 << 20), 0) >> 10, 0xFFFF)
        above_16m = min(max(low - (16 << 20), 0) >> 16, 0xFFFF)
        above_4g = (total - low) >> 16
        for address, value, size in (
            (Cmos.BASE_MEMORY_LOW, base_kib, 2),
            (Cmos.EXTENDED_MEMORY_LOW, extended_kib, 2),
            (Cmos.EXTENDED_MEMORY_2_LOW, extended_kib, 2),
            (Cmos.MEMORY_ABOVE_16M_LOW, above_16m, 2),
            (Cmos.MEMORY_ABOVE_4G_LOW, above_4g, 3),
        ):
            self._ram[address : address + size] = value.to_bytes(size, "little")

    # Ports

    def read_byte(self, port: int) -> int:
        if port == CMOS_PORT:
            return 0xFF
        index = self._index
        if index in _TIME_REGISTERS:
            return self._ram[index] if self._stopped() else self._calendar()[index]
        if index == Cmos.REG_A:
            return self._ram[index] | (REG_A_UIP if self._update_in_progress() else 0)
        if index == Cmos.REG_C:
            return self._read_flags()
        if index == Cmos.REG_D:
            return _REG_D_VRT
        return self._ram[index]

    def write_byte(self, port: int, value: int) -> None:
        if port == CMOS_PORT:
            self._index = value & _INDEX_MASK
            self.nmi_masked = bool(value & _NMI_DISABLE)
            return
        index = self._index
        if index in _TIME_REGISTERS:
            self._write_time(index, value)
        elif index in _ALARM_REGISTERS:
            self._latch()
            self._ram[index] = value
            self._settle()
        elif index == Cmos.REG_A:
            self._write_control(index, value & ~REG_A_UIP)
        elif index == Cmos.REG_B:
            self._write_control(index, value)
        elif index not in (Cmos.REG_C, Cmos.REG_D):
            self._ram[index] = value

    # Time

    def _divider_ns(self) -> int:
        """Nanoseconds since 1970 as the clock counts them, whether or not the registers follow."""
        return self._host.now_ns() + self._offset_ns

    def _divider_stopped(self) -> bool:
        return self._ram[Cmos.REG_A] & _REG_A_DIVIDER != _REG_A_DIVIDER_RUNS

    def _stopped(self) -> bool:
        """Whether the time registers hold still: the guest is setting them."""
        return bool(self._ram[Cmos.REG_B] & REG_B_SET) or self._divider_stopped()

    def _update_in_progress(self) -> bool:
        return not self._stopped() and self._divider_ns() % _SECOND >= _SECOND - _UPDATE_NS

    def _encode(self, value: int) -> int:
        return value if self._ram[Cmos.REG_B] & REG_B_DM else (value // 10) << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._ram[Cmos.REG_B] & REG_B_DM else (value >> 4) * 10 + (value & 0xF)

    def _encode_hour(self, hour: int) -> int:
        if self._ram[Cmos.REG_B] & REG_B_24H:
            return self._encode(hour)
        return self._encode(hour % 12 or 12) | (_HOUR_PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._ram[Cmos.REG_B] & REG_B_24H:
            return self._decode(value)
        return self._decode(value & ~_HOUR_PM) % 12 + (12 if value & _HOUR_PM else 0)

    def _calendar(self) -> dict[int, int]:
        """The time registers as they read now."""
        days, seconds = divmod(self._divider_ns() // _SECOND, _DAY_SECONDS)
        today = date.fromordinal((days + _EPOCH_ORDINAL - 1) % _LAST_ORDINAL + 1)
        weekday = (days + _EPOCH_WEEKDAY + self._weekday_shift) % 7
        return {
            Cmos.SECONDS: self._encode(seconds % 60),
            Cmos.MINUTES: self._encode(seconds // 60 % 60),
            Cmos.HOURS: self._encode_hour(seconds // 3600),
            Cmos.DAY_OF_WEEK: self._encode(weekday + 1),
            Cmos.DAY_OF_MONTH: self._encode(today.day),
            Cmos.MONTH: self._encode(today.month),
            Cmos.YEAR: self._encode(today.year % 100),
            Cmos.CENTURY: self._encode(today.year // 100),
        }

    def _hold_registers(self) -> None:
        for index, value in self._calendar().items():
            self._ram[index] = value

    def _start_from_registers(self, phase_ns: int) -> None:
        """Set the clock from the held registers, `phase_ns` into the second. A field out of range carries over."""
        ram = self._ram
        year = self._decode(ram[Cmos.CENTURY]) * 100 + self._decode(ram[Cmos.YEAR])
        month = self._decode(ram[Cmos.MONTH])
        first = date(min(max(year, date.min.year), date.max.year), min(max(month, 1), 12), 1)
        days = first.toordinal() - _EPOCH_ORDINAL + self._decode(ram[Cmos.DAY_OF_MONTH]) - 1
        seconds = self._decode_hour(ram[Cmos.HOURS]) * 3600
        seconds += self._decode(ram[Cmos.MINUTES]) * 60 + self._decode(ram[Cmos.SECONDS])
        target = (days * _DAY_SECONDS + seconds) * _SECOND + phase_ns
        self._offset_ns = target - self._host.now_ns()
        weekday = self._decode(ram[Cmos.DAY_OF_WEEK]) - 1
        self._weekday_shift = (weekday - (target // _SECOND // _DAY_SECONDS + _EPOCH_WEEKDAY)) % 7
        self._seen_ns = self._divider_ns()

    def _write_time(self, index: int, value: int) -> None:
        if self._stopped():
            self._ram[index] = value
            return
        self._latch()
        self._hold_registers()
        self._ram[index] = value
        self._start_from_registers(self._divider_ns() % _SECOND)
        self._settle()

    def _write_control(self, index: int, value: int) -> None:
        self._latch()
        was_stopped, divider_was_stopped = self._stopped(), self._divider_stopped()
        if not was_stopped:
            self._hold_registers()
        self._ram[index] = value
        if self._ram[Cmos.REG_B] & REG_B_SET:
            self._ram[Cmos.REG_B] &= ~REG_B_UIE
        if was_stopped and not self._stopped():
            # Out of divider reset the first update comes half a second later; SET alone leaves the divider running.
            phase = _SECOND // 2 if divider_was_stopped else self._divider_ns() % _SECOND
            self._start_from_registers(phase)
        self._settle()

    # Flags and interrupts

    def _flags(self) -> int:
        """PF, AF and UF: what has happened since register C was read."""
        flags = self._latched
        now, seen = self._divider_ns(), self._seen_ns
        if self._divider_stopped() or now <= seen:
            return flags
        period = _period_ticks(self._ram[Cmos.REG_A])
        if period and now * _CRYSTAL_HZ // _SECOND // period > seen * _CRYSTAL_HZ // _SECOND // period:
            flags |= REG_C_PF
        if not self._ram[Cmos.REG_B] & REG_B_SET:
            if now // _SECOND > seen // _SECOND:
                flags |= REG_C_UF
            alarm = self._next_alarm_ns(seen)
            if alarm is not None and alarm <= now:
                flags |= REG_C_AF
        return flags

    def _interrupt(self) -> bool:
        return bool(self._flags() & self._ram[Cmos.REG_B] & _FLAGS)

    def _latch(self) -> None:
        """Keep the flags earned under the present settings before the settings change."""
        self._latched = self._flags()
        self._seen_ns = self._divider_ns()

    def _read_flags(self) -> int:
        flags = self._flags()
        if flags & self._ram[Cmos.REG_B] & _FLAGS:
            flags |= REG_C_IRQF
        self._latched = 0
        self._seen_ns = self._divider_ns()
        self._settle()
        return flags

    def _next_alarm_ns(self, after_ns: int) -> int | None:
        """The first second after `after_ns` whose time of day matches the alarm registers; None if none can."""
        hour_register, minute_register, second_register = (self._ram[index] for index in _ALARM_REGISTERS)
        hours = self._alarm_choices(hour_register, self._decode_hour, 24)
        minutes = self._alarm_choices(minute_register, self._decode, 60)
        seconds = self._alarm_choices(second_register, self._decode, 60)
        if not (hours and minutes and seconds):
            return None
        day, second_of_day = divmod(after_ns // _SECOND, _DAY_SECONDS)
        for hour in hours:
            if hour * 3600 + 3599 <= second_of_day:
                continue
            for minute in minutes:
                start = hour * 3600 + minute * 60
                if start + seconds[-1] <= second_of_day:
                    continue
                second = next(second for second in seconds if start + second > second_of_day)
                return (day * _DAY_SECONDS + start + second) * _SECOND
        return ((day + 1) * _DAY_SECONDS + hours[0] * 3600 + minutes[0] * 60 + seconds[0]) * _SECOND

    @staticmethod
    def _alarm_choices(register: int, decode: Callable[[int], int], count: int) -> range:
        """The values that an alarm register matches: all, one, or none if it is out of range."""
        if register & _ALARM_DONT_CARE == _ALARM_DONT_CARE:
            return range(count)
        value = decode(register)
        return range(value, value + 1) if value < count else range(0)

    def _settle(self) -> None:
        """After a change: drive the line and arm the timers for the next interrupt and the next alarm."""
        self._line.update()
        enabled = self._ram[Cmos.REG_B]
        now = self._divider_ns()
        deadlines = []
        period = _period_ticks(self._ram[Cmos.REG_A])
        if enabled & REG_B_PIE and period and not self._divider_stopped():
            ticks = (now * _CRYSTAL_HZ // _SECOND // period + 1) * period
            deadlines.append(-(-ticks * _SECOND // _CRYSTAL_HZ))
        if enabled & REG_B_UIE and not self._stopped():
            deadlines.append((now // _SECOND + 1) * _SECOND)
        # While the line is high nothing more can be signalled; reading register C comes back here.
        if deadlines and not self._interrupt():
            self._periodic.start(min(deadlines) - self._offset_ns)
        else:
            self._periodic.cancel()
        alarm = self._next_alarm_ns(now) if enabled & REG_B_AIE and not self._stopped() else None
        if alarm is None:
            self._alarm.cancel()
        else:
            self._alarm.start(alarm - self._offset_ns)

    def _alarm_fired(self) -> None:
        self._line.update()
        if self._on_alarm is not None:
            self._on_alarm()
