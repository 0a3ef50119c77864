"""Virtual time and the timers on it. Counterpart: kernel/time/hrtimer.c.

Promise: time is integer nanoseconds and never goes back. Whatever is due fires in the order of deadlines, ties in the
order in which they were started, and sees `now` at its own deadline unless that was past when it was started.
Callbacks run in interrupt context: `in_interrupt` is set, and nothing may block.
"""

from __future__ import annotations

from collections.abc import Callable

from vtlkit.host.alarms import Alarm, AlarmQueue
from vtlkit.host.api import Timer


class Clock(AlarmQueue):
    """Hot paths read `now` and `next` (the earliest deadline, or NEVER) and may move `now` on, short of `next`."""

    __slots__ = ("_on_error", "expiring", "in_interrupt", "now")

    def __init__(self, on_error: Callable[[BaseException, str], None]) -> None:
        super().__init__()
        self.now = 0
        self.in_interrupt = False
        self.expiring: Alarm | None = None
        """What expires now, or did last."""
        self._on_error = on_error

    def advance(self, target: int) -> None:
        """Move time to `target` (no earlier than `now`) and expire all that is due on the way."""
        assert not self.in_interrupt, "time may not be consumed in interrupt context"
        while self.next <= target:
            if self.next > self.now:
                self.now = self.next
            alarm = self.take()
            self.in_interrupt = True
            self.expiring = alarm
            try:
                alarm.expire()
            except BaseException as error:  # noqa: BLE001 - ends the run: re-raised by run()
                self._on_error(error, alarm.alarm_name())
                return
            finally:
                self.in_interrupt = False
        if target > self.now:
            self.now = target


class SimTimer(Alarm, Timer):
    """A one-shot timer on virtual time. A deadline in the past fires when the host next gets control."""

    __slots__ = ("_callback", "_clock", "name")

    def __init__(self, clock: Clock, callback: Callable[[], None], name: str) -> None:
        super().__init__()
        self._clock = clock
        self._callback = callback
        self.name = name

    def start(self, deadline_ns: int) -> None:
        self._clock.arm(self, deadline_ns)

    def cancel(self) -> bool:
        if not self.ticket:
            return False
        self._clock.disarm(self)
        return True

    def armed(self) -> bool:
        return self.ticket != 0

    def deadline_ns(self) -> int | None:
        return self.deadline if self.ticket else None

    def expire(self) -> None:
        self._callback()

    def alarm_name(self) -> str:
        return f"timer '{self.name}'"
