"""Virtual time and the timers on it. Counterpart: kernel/time/hrtimer.c.

Promise: time is integer nanoseconds and never goes back. Whatever is due fires in the order of deadlines, ties in the
order in which they were started, and sees `now` at its own deadline unless that was past when it was started.
Callbacks run in interrupt context: `in_interrupt` is set, and nothing may block.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from vtlkit.host.api import Timer

NEVER = 1 << 100
"""A deadline later than every deadline."""
_COMPACT_ABOVE = 64
"""Heaps shorter than this are not worth ridding of cancelled entries."""


class Alarm:
    """What can be due: a timer, or a task asleep with a deadline. `ticket` names its live heap entry; 0 is none."""

    __slots__ = ("deadline", "ticket")

    def __init__(self) -> None:
        self.deadline = NEVER
        self.ticket = 0

    def expire(self) -> None:
        """Called in interrupt context when the deadline has come."""
        raise NotImplementedError

    def alarm_name(self) -> str:
        raise NotImplementedError


class Clock:
    """Hot paths read `now` and `next` (the earliest deadline, or NEVER) and may move `now` on, short of `next`."""

    __slots__ = ("_armed", "_heap", "_on_error", "_tickets", "in_interrupt", "next", "now")

    def __init__(self, on_error: Callable[[BaseException, str], None]) -> None:
        self.now = 0
        self.next = NEVER
        self.in_interrupt = False
        self._on_error = on_error
        self._heap: list[tuple[int, int, Alarm]] = []
        self._tickets = 0
        self._armed = 0

    def arm(self, alarm: Alarm, deadline: int) -> None:
        """Have `alarm` expire at `deadline`, in place of any earlier deadline of it."""
        if alarm.ticket:
            self.disarm(alarm)
        self._tickets = ticket = self._tickets + 1
        alarm.ticket = ticket
        alarm.deadline = deadline
        self._armed += 1
        heappush(self._heap, (deadline, ticket, alarm))
        if deadline < self.next:
            self.next = deadline
        if len(self._heap) > _COMPACT_ABOVE and len(self._heap) > 2 * self._armed:
            self._heap = [entry for entry in self._heap if entry[2].ticket == entry[1]]
            heapify(self._heap)

    def disarm(self, alarm: Alarm) -> None:
        """Forget an armed alarm."""
        alarm.ticket = 0
        self._armed -= 1
        if alarm.deadline == self.next:
            self._settle()

    def advance(self, target: int) -> None:
        """Move time to `target` (no earlier than `now`) and expire all that is due on the way."""
        assert not self.in_interrupt, "time may not be consumed in interrupt context"
        while self.next <= target:
            deadline, _, alarm = heappop(self._heap)
            if deadline > self.now:
                self.now = deadline
            alarm.ticket = 0
            self._armed -= 1
            self._settle()
            self.in_interrupt = True
            try:
                alarm.expire()
            except BaseException as error:  # noqa: BLE001 - ends the run: re-raised by run()
                self._on_error(error, alarm.alarm_name())
                return
            finally:
                self.in_interrupt = False
        if target > self.now:
            self.now = target

    def _settle(self) -> None:
        """Drop cancelled entries from the top of the heap, so that `next` is the deadline of a live one."""
        heap = self._heap
        while heap and heap[0][2].ticket != heap[0][1]:
            heappop(heap)
        self.next = heap[0][0] if heap else NEVER


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
