"""What a thread does in one run, as events with their dependencies: a trace."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vtlkit.checker.litmus.interpreter import Run
from vtlkit.checker.litmus.primitives import Does, Mark
from vtlkit.checker.litmus.requests import Barrier, Ended, Fault, Load, Locking, Modify, Reads, Request, Store, Tagged
from vtlkit.checker.litmus.syntax import Address, LitmusError, LitmusTest, Scalar

EVENTS_LIMIT: Final = 64
"""Of one thread."""


class Kind(enum.Enum):
    """Of an event. LF is a look that finds a lock held, RU one that finds it free."""

    READ = "R"
    WRITE = "W"
    FENCE = "F"
    LOCK_READ = "LKR"
    LOCK_WRITE = "LKW"
    UNLOCK = "UL"
    LOCK_SEEN = "LF"
    FREE_SEEN = "RU"


READS: Final = frozenset((Kind.READ, Kind.LOCK_READ, Kind.LOCK_SEEN, Kind.FREE_SEEN))
WRITES: Final = frozenset((Kind.WRITE, Kind.LOCK_WRITE, Kind.UNLOCK))


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a thread. Sets of reads have bit i for the thread's event i.

    `rmw` is the index of the read whose other half this write is, or -1; `fence` a fence's kind; `atomic` whether it is
    of an atomic operation, also of one that does not write.
    """

    kind: Kind
    at: Address | None
    value: Scalar
    mark: Mark
    reads: Reads
    line: int
    rmw: int = -1
    fence: str = ""
    atomic: bool = False

    def __str__(self) -> str:
        if self.kind is Kind.FENCE:
            return f"{self.fence}({self.at})" if self.at is not None else self.fence
        names = {Kind.READ: "read", Kind.WRITE: "write", Kind.LOCK_SEEN: "found held:", Kind.FREE_SEEN: "found free:"}
        if self.kind in (Kind.READ, Kind.WRITE):
            return f"{names[self.kind]} {self.at} = {self.value} ({self.mark.value})"
        return f"{names[self.kind]} {self.at}" if self.kind in names else f"{self.kind.value} {self.at}"


@dataclass(frozen=True, slots=True)
class Trace:
    """One run of one thread: its events in program order, its registers at the end, what it did wrong, if it did."""

    thread: int
    events: tuple[Event, ...]
    registers: dict[str, Scalar]
    fault: Fault | None = None


def pattern(trace: Trace) -> tuple[object, ...]:
    """Equal for traces that differ in the values of accesses alone."""
    return tuple([_pattern(event) for event in trace.events])


def _pattern(event: Event) -> tuple[object, ...]:
    index = event.value if event.kind is Kind.FENCE else None
    return event.kind, event.at, event.mark, event.reads, event.rmw, event.atomic, event.fence, index


class NeedsValue(Exception):
    """A run has come to a read for which no value was given: the location, and whether it is a lock's word."""

    def __init__(self, at: Address, is_lock: Does | None = None) -> None:
        super().__init__(str(at))
        self.at = at
        self.lock = is_lock


class Recorder:
    """Runs a thread with given values for its reads, in program order, and writes down its events."""

    def __init__(self, test: LitmusTest, thread: int) -> None:
        self._test = test
        self._thread = thread
        self._events: list[Event] = []
        self._values: Sequence[Scalar] = ()
        self._next = 0

    def trace(self, values: Sequence[Scalar]) -> Trace:
        """The run in which the reads find these. Raises NeedsValue where there are too few."""
        run = Run(self._test, self._thread)
        steps = run.steps()
        self._events, self._values, self._next = [], values, 0
        try:
            request = next(steps)
            while not isinstance(request, Fault):
                try:
                    answer = self._answer(request)
                except Ended as end:
                    request = steps.throw(end)
                    continue
                if len(self._events) > EVENTS_LIMIT:
                    raise LitmusError(request.line, f"P{self._thread} has more than {EVENTS_LIMIT} events")
                request = steps.send(answer)
        except StopIteration:
            pass
        registers = {name: tagged.value for name, tagged in run.registers.items()}
        return Trace(self._thread, tuple(self._events), registers, run.fault)

    def _answer(self, request: Request) -> Tagged:
        match request:
            case Load(at, mark, reads, line):
                value = self._take(at)
                return Tagged(value, self._add(Kind.READ, at, value, mark, reads, line))
            case Store(at, value, mark, reads, line):
                self._add(Kind.WRITE, at, value, mark, reads, line)
            case Modify():
                return self._modify(request)
            case Locking():
                return self._lock(request)
            case Barrier(fence, at, index, line):
                self._fence(fence, line, at, index)
        return Tagged(0)

    def _take(self, at: Address, lock: Does | None = None) -> Scalar:
        if self._next == len(self._values):
            raise NeedsValue(at, lock)
        self._next += 1
        return self._values[self._next - 1]

    def _add(
        self,
        kind: Kind,
        at: Address,
        value: Scalar,
        mark: Mark,
        reads: Reads,
        line: int,
        rmw: int = -1,
        atomic: bool = False,
    ) -> int:
        """A set of this event alone."""
        self._events.append(Event(kind, at, value, mark, reads, line, rmw, atomic=atomic))
        return 1 << (len(self._events) - 1)

    def _fence(self, fence: str, line: int, at: Address | None = None, index: Scalar = 0) -> None:
        self._events.append(Event(Kind.FENCE, at, index, Mark.ONCE, Reads(), line, fence=fence))

    def _modify(self, request: Modify) -> Tagged:
        at, line, mark = request.at, request.line, request.mark
        old = self._take(at)
        new = request.update(old)
        looked = Reads(request.reads.address, 0, request.reads.control)
        if new is None:
            return Tagged(old, self._add(Kind.READ, at, old, Mark.ONCE, looked, line, atomic=True))
        if request.full:
            self._fence("mb", line)
        on_read = mark if mark in (Mark.ACQUIRE, Mark.NORETURN) else Mark.ONCE
        on_write = Mark.RELEASE if mark is Mark.RELEASE else Mark.ONCE
        read = self._add(Kind.READ, at, old, on_read, looked, line, atomic=True)
        reads = Reads(request.reads.address, request.reads.data | (read if request.carries else 0), looked.control)
        self._add(Kind.WRITE, at, new, on_write, reads, line, len(self._events) - 1, True)
        if request.full:
            self._fence("mb", line)
        return Tagged(old, read)

    def _lock(self, request: Locking) -> Tagged:
        at, reads, line = request.at, request.reads, request.line
        if request.does is Does.UNLOCK:
            self._add(Kind.UNLOCK, at, 0, Mark.RELEASE, reads, line)
            return Tagged(0)
        held = self._take(at, request.does)
        if request.does is Does.IS_LOCKED:
            kind = Kind.LOCK_SEEN if held else Kind.FREE_SEEN
            return Tagged(int(held != 0), self._add(kind, at, held, Mark.ONCE, reads, line))
        if held:
            return Tagged(0, self._add(Kind.LOCK_SEEN, at, held, Mark.ONCE, reads, line))
        read = self._add(Kind.LOCK_READ, at, 0, Mark.ACQUIRE, reads, line)
        self._add(Kind.LOCK_WRITE, at, 1, Mark.ONCE, reads, line, len(self._events) - 1)
        return Tagged(1, read)


def possible(lock: Does | None, values: Sequence[Scalar]) -> Sequence[Scalar]:
    """What a read may find: anything that is written there, or what a lock's word can be for who goes on."""
    if lock is None:
        return values
    return (0,) if lock is Does.LOCK else (0, 1)
