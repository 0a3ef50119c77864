"""What is due and when: a heap of deadlines, for both hosts. Counterpart: lib/timerqueue.c.

Promise: what is taken first has the earliest deadline, of equal ones that which was armed first. Arming leaves no more
cancelled entries behind than there are armed ones, and a constant.
Not locked: whoever owns the queue sees to that.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

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
        """What reports call it."""
        raise NotImplementedError


class AlarmQueue:
    """Armed alarms by deadline. `next` is the earliest deadline, or NEVER."""

    __slots__ = ("_armed", "_heap", "_tickets", "next")

    def __init__(self) -> None:
        self.next = NEVER
        self._heap: list[tuple[int, int, Alarm]] = []
        self._tickets = 0
        self._armed = 0

    def __len__(self) -> int:
        """Entries held, cancelled ones included."""
        return len(self._heap)

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

    def take(self) -> Alarm:
        """The alarm of deadline `next`, which is not NEVER; it is no longer armed."""
        alarm = heappop(self._heap)[2]
        alarm.ticket = 0
        self._armed -= 1
        self._settle()
        return alarm

    def clear(self) -> None:
        """Forget every alarm."""
        for _, ticket, alarm in self._heap:
            if alarm.ticket == ticket:
                alarm.ticket = 0
        self._heap.clear()
        self._armed = 0
        self.next = NEVER

    def _settle(self) -> None:
        """Drop cancelled entries from the top of the heap, so that `next` is the deadline of a live one."""
        heap = self._heap
        while heap and heap[0][2].ticket != heap[0][1]:
            heappop(heap)
        self.next = heap[0][0] if heap else NEVER
