"""One trace for each thread, as sets and relations that do not depend on rf and co.

Events are numbered: first the initial writes, one for each location that is accessed, then thread by thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property

from vtlkit.checker.litmus.lkmm.events import READS, WRITES, Event, Kind, Trace
from vtlkit.checker.litmus.lkmm.relations import Relation, bits, compose, empty, from_set, to_set
from vtlkit.checker.litmus.primitives import Mark
from vtlkit.checker.litmus.syntax import Address, Scalar

_OF_LOCKS = frozenset((Kind.LOCK_READ, Kind.LOCK_WRITE, Kind.UNLOCK, Kind.LOCK_SEEN, Kind.FREE_SEEN))


class Skeleton:
    """Sets have the published model's names, in lower case: `m` accesses, `r` reads, `w` writes, `iw` initial ones."""

    def __init__(self, traces: Sequence[Trace], initial: Mapping[Address, Scalar]) -> None:
        used = {event.at for trace in traces for event in trace.events if event.kind is not Kind.FENCE}
        self.traces = traces
        self.locations = sorted(at for at in used if at is not None)
        self.initial = {at: initial.get(at, 0) for at in self.locations}
        self.init = {at: number for number, at in enumerate(self.locations)}
        self.events: list[Event | None] = [None] * len(self.locations)
        """None for an initial write."""
        self.thread: list[int] = [-1] * len(self.locations)
        """-1 for an initial write, which is external to everything."""
        self.starts: list[int] = []
        """Number of each thread's first event."""
        for trace in traces:
            self.starts.append(len(self.events))
            self.events += trace.events
            self.thread += [trace.thread] * len(trace.events)
        self.size = len(self.events)
        self.all = (1 << self.size) - 1
        self.iw = (1 << len(self.locations)) - 1
        self._fencerels: dict[tuple[str, ...], Relation] = {}
        self._sets()
        self._dependencies()

    def like(self, traces: Sequence[Trace]) -> Skeleton:
        """The same for traces that differ in values alone. What this one has worked out need not be again."""
        other = copy(self)
        other.traces = traces
        other.events = self.events[: len(self.locations)] + [event for trace in traces for event in trace.events]
        return other

    def numbered(self) -> Iterator[tuple[int, Event]]:
        """Number and event, initial writes left out."""
        for number in range(len(self.locations), self.size):
            event = self.events[number]
            assert event is not None
            yield number, event

    def _sets(self) -> None:
        self.kinds = dict.fromkeys(Kind, 0)
        marks = dict.fromkeys(Mark, 0)
        self.fences: dict[str, int] = {}
        """Kind of a fence -> the set of those."""
        self.atomic = 0
        """Events of atomic operations; a failed one is a read among them, and locks are none."""
        for number, event in self.numbered():
            bit = 1 << number
            self.kinds[event.kind] |= bit
            if event.kind is Kind.FENCE:
                self.fences[event.fence] = self.fences.get(event.fence, 0) | bit
                continue
            marks[event.mark] |= bit
            if event.atomic:
                self.atomic |= bit
        self.r = sum(self.kinds[kind] for kind in READS)
        self.w = self.iw | sum(self.kinds[kind] for kind in WRITES)
        self.m = self.r | self.w
        self.acquire = marks[Mark.ACQUIRE] & self.r
        self.release = marks[Mark.RELEASE] & self.w
        self.noreturn = marks[Mark.NORETURN] & self.r
        self.plain = marks[Mark.PLAIN]
        self.marked = self.all & ~self.plain
        self.lkr, self.lkw, self.ul = (self.kinds[kind] for kind in (Kind.LOCK_READ, Kind.LOCK_WRITE, Kind.UNLOCK))

    def _dependencies(self) -> None:
        self.addr, self.data, self.ctrl, self.rmw = (empty(self.size) for _ in range(4))
        for number, event in self.numbered():
            start, bit = self.starts[self.thread[number]], 1 << number
            for relation, reads in (
                (self.addr, event.reads.address),
                (self.data, event.reads.data),
                (self.ctrl, event.reads.control),
            ):
                for read in bits(reads):
                    relation[start + read] |= bit
            if event.rmw >= 0:
                self.rmw[start + event.rmw] |= bit

    @cached_property
    def internal(self) -> Relation:
        """Pairs of one thread's events, each with itself among them."""
        rows = [1 << number for number in range(len(self.locations))]
        for start, trace in zip(self.starts, self.traces, strict=True):
            rows += [((1 << len(trace.events)) - 1) << start] * len(trace.events)
        return rows

    @cached_property
    def external(self) -> Relation:
        """All other pairs."""
        return [self.all & ~row for row in self.internal]

    @cached_property
    def po(self) -> Relation:
        """Program order."""
        return [row & ~((2 << number) - 1) for number, row in enumerate(self.internal)]

    @cached_property
    def loc(self) -> Relation:
        """Pairs at one location: accesses, and what is done to one SRCU domain."""
        there: dict[Address, int] = {at: 1 << number for at, number in self.init.items()}
        for number, event in self.numbered():
            if event.at is not None:
                there[event.at] = there.get(event.at, 0) | 1 << number
        rows = [1 << number | there[at] for number, at in enumerate(self.locations)]
        rows += [0 if event.at is None else there[event.at] for _, event in self.numbered()]
        return rows

    def fence_set(self, *kinds: str) -> int:
        """The fences of these kinds."""
        found = 0
        for kind in kinds:
            found |= self.fences.get(kind, 0)
        return found

    def fencerel(self, *kinds: str) -> Relation:
        """Pairs with such a fence between them."""
        found = self._fencerels.get(kinds)
        if found is None:
            found = self._fencerels[kinds] = self.around(self.fence_set(*kinds))
        return found

    def around(self, events: int) -> Relation:
        """Pairs with one of these events between them."""
        return compose(to_set(self.po, events), self.po) if events else empty(self.size)

    @cached_property
    def acq_po(self) -> Relation:
        """From an acquire to what follows."""
        return to_set(from_set(self.acquire, self.po), self.m)

    @cached_property
    def po_rel(self) -> Relation:
        """From what goes before a release to it."""
        return to_set(from_set(self.m, self.po), self.release)

    @cached_property
    def lock_flags(self) -> set[str]:
        """What is wrong with the use of locks: released while not held, or accessed as no lock is."""
        found: set[str] = set()
        held: set[tuple[int, Address | None]] = set()
        locks = {event.at for _, event in self.numbered() if event.kind in _OF_LOCKS}
        for number, event in self.numbered():
            key = self.thread[number], event.at
            if event.kind is Kind.LOCK_WRITE:
                held.add(key)
            elif event.kind is Kind.UNLOCK:
                if key not in held:
                    found.add("unmatched-unlock")
                held.discard(key)
            elif event.kind in (Kind.READ, Kind.WRITE) and event.at in locks:
                found.add("mixed-lock-accesses")
        return found

    @cached_property
    def sections(self) -> Sections:
        """Read-side critical sections."""
        return Sections(self)


class Sections:
    """Read-side critical sections of RCU and SRCU: from each lock to the unlock that matches it, and what is wrong."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.rcu, self.srcu = empty(skeleton.size), empty(skeleton.size)
        self.flags: set[str] = set()
        opened: dict[tuple[int, Address | None], list[int]] = {}
        for number, event in skeleton.numbered():
            key = (skeleton.thread[number], event.at)
            if event.fence in ("rcu-lock", "srcu-lock"):
                opened.setdefault(key, []).append(number)
            elif event.fence in ("rcu-unlock", "srcu-unlock"):
                self._close(skeleton, opened.get(key, []), number, event)
            elif event.fence == "sync-srcu" and opened.get((key[0], None)):
                self.flags.add("invalid-sleep")
        for (_, at), left in opened.items():
            if left:
                self.flags.add("unbalanced-rcu-locking" if at is None else "unbalanced-srcu-locking")

    def _close(self, skeleton: Skeleton, opened: list[int], number: int, event: Event) -> None:
        of_srcu = event.at is not None
        if not opened:
            self.flags.add("unbalanced-srcu-locking" if of_srcu else "unbalanced-rcu-locking")
            return
        first = opened.pop()
        (self.srcu if of_srcu else self.rcu)[first] |= 1 << number
        begin = skeleton.events[first]
        assert begin is not None
        if of_srcu and begin.value != event.value:
            self.flags.add("srcu-bad-nesting")
