"""Candidate executions: one trace for each thread, and for these every rf and co that is coherent and atomic.

Coherence and atomicity speak of one location at a time, so each location is solved by itself. Given co, they speak of
one thread at a time: the places in co that a thread reads from or writes to never go back, a write's lies behind all
before it, and that of an atomic write is next to what its read has found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Final

from vtlkit.checker.litmus.lkmm.events import READS, WRITES, Kind, Trace, pattern
from vtlkit.checker.litmus.lkmm.skeleton import Skeleton
from vtlkit.checker.litmus.syntax import Address, LitmusError, LitmusTest, Scalar

CANDIDATES_LIMIT: Final = 200_000
"""Of one combination: beyond that a test is not small."""

Wants = frozenset[tuple[Address, Scalar]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A skeleton with rf (read -> write) and co (for each location the writes in order, the initial one first)."""

    skeleton: Skeleton
    rf: dict[int, int]
    co: dict[Address, tuple[int, ...]]

    def value(self, write: int) -> Scalar:
        """What a write writes."""
        event = self.skeleton.events[write]
        return self.skeleton.initial[self.skeleton.locations[write]] if event is None else event.value


def combinations(test: LitmusTest, traces: Sequence[Sequence[Trace]]) -> Iterator[Skeleton]:
    """One trace for each thread, where every value that is read is written by somebody."""
    wants = [[_wants(trace, test) for trace in choices] for choices in traces]
    gives = [[_gives(trace) for trace in choices] for choices in traces]
    later: list[Wants] = [frozenset()] * (len(traces) + 1)
    for thread in range(len(traces) - 1, -1, -1):
        later[thread] = later[thread + 1].union(*gives[thread])
    patterns = [[pattern(trace) for trace in choices] for choices in traces]
    known: dict[tuple[object, ...], int] = {}
    numbers = [[known.setdefault(each, len(known)) for each in choices] for choices in patterns]
    made: dict[tuple[int, ...], Skeleton] = {}
    chosen: list[Trace] = []
    shape: list[int] = []

    def extend(thread: int, wanted: Wants, given: Wants) -> Iterator[Skeleton]:
        if thread == len(traces):
            first = made.get(tuple(shape))
            if first is None:
                first = made[tuple(shape)] = Skeleton(tuple(chosen), test.initial)
                yield first
            else:
                yield first.like(tuple(chosen))
            return
        choices = zip(traces[thread], numbers[thread], wants[thread], gives[thread], strict=True)
        for trace, number, wants_too, gives_too in choices:
            now = given | gives_too
            left = (wanted | wants_too) - now
            if left <= later[thread + 1]:
                chosen.append(trace)
                shape.append(number)
                yield from extend(thread + 1, left, now)
                chosen.pop()
                shape.pop()

    yield from extend(0, frozenset(), frozenset())


def _wants(trace: Trace, test: LitmusTest) -> Wants:
    found = {(event.at, event.value) for event in trace.events if event.kind in READS and event.at is not None}
    return frozenset(pair for pair in found if test.initial.get(pair[0], 0) != pair[1])


def _gives(trace: Trace) -> Wants:
    return frozenset((event.at, event.value) for event in trace.events if event.kind in WRITES and event.at is not None)


def candidates(skeleton: Skeleton) -> Iterator[Candidate]:
    """Every coherent and atomic choice of rf and co. Raises LitmusError for more than CANDIDATES_LIMIT."""
    solutions = []
    total = 1
    for at in skeleton.locations:
        solutions.append(list(islice(_at_location(skeleton, at), CANDIDATES_LIMIT + 1)))
        total *= len(solutions[-1])
    if total > CANDIDATES_LIMIT:
        raise LitmusError(
            0, f"some run has more than {CANDIDATES_LIMIT} candidate executions: too many for --model lkmm"
        )
    if not total:
        return
    for choice in product(*solutions):
        rf: dict[int, int] = {}
        for _, sources in choice:
            rf.update(sources)
        yield Candidate(skeleton, rf, {at: co for at, (co, _) in zip(skeleton.locations, choice, strict=True)})


_Solution = tuple[tuple[int, ...], dict[int, int]]


def _at_location(skeleton: Skeleton, at: Address) -> Iterator[_Solution]:
    """Every co of one location, with every rf of its reads that fits."""
    accesses: list[list[int]] = [[] for _ in skeleton.traces]
    for number, event in skeleton.numbered():
        if event.at == at and event.kind is not Kind.FENCE:
            accesses[skeleton.thread[number]].append(number)
    accesses = [numbers for numbers in accesses if numbers]
    writes = [[number for number in numbers if skeleton.w >> number & 1] for numbers in accesses]
    for order in _interleavings(skeleton, [numbers for numbers in writes if numbers], skeleton.init[at]):
        co = (skeleton.init[at], *order)
        place = {number: index for index, number in enumerate(co)}
        sources = [list(_sources(skeleton, numbers, co, place)) for numbers in accesses]
        for choice in product(*sources):
            rf: dict[int, int] = {}
            for part in choice:
                rf.update(part)
            yield co, rf


def _interleavings(skeleton: Skeleton, sequences: Sequence[Sequence[int]], last: int) -> Iterator[tuple[int, ...]]:
    """Orders in which what an atomic write stands behind has the value that its read found."""
    if not any(sequences):
        yield ()
        return
    for index, sequence in enumerate(sequences):
        if sequence and _fits(skeleton, sequence[0], last):
            rest = [*sequences[:index], sequence[1:], *sequences[index + 1 :]]
            for order in _interleavings(skeleton, rest, sequence[0]):
                yield (sequence[0], *order)


def _fits(skeleton: Skeleton, write: int, last: int) -> bool:
    event = skeleton.events[write]
    if event is None or event.rmw < 0:
        return True
    found = skeleton.events[skeleton.starts[skeleton.thread[write]] + event.rmw]
    return found is not None and found.value == _value(skeleton, last)


def _sources(
    skeleton: Skeleton, numbers: Sequence[int], co: Sequence[int], place: dict[int, int]
) -> Iterator[dict[int, int]]:
    """What one thread's reads of a location can read from, given co."""
    written = [_value(skeleton, write) for write in co]

    def extend(index: int, last: int) -> Iterator[dict[int, int]]:
        if index == len(numbers):
            yield {}
            return
        number = numbers[index]
        event = skeleton.events[number]
        assert event is not None
        if event.kind in WRITES:
            if place[number] > last:
                yield from extend(index + 1, place[number])
            return
        atomic = skeleton.rmw[number]
        for source in range(last, len(co)):
            if written[source] == event.value and (not atomic or place[atomic.bit_length() - 1] == source + 1):
                for rest in extend(index + 1, source):
                    yield {number: co[source], **rest}

    return extend(0, 0)


def _value(skeleton: Skeleton, write: int) -> Scalar:
    event = skeleton.events[write]
    return skeleton.initial[skeleton.locations[write]] if event is None else event.value
