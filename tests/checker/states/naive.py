"""What the search over states must find, found the slow way: nothing is folded, packed or sorted."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from vtlkit.checker.ops import NO_WRITE, Assume, Await, Done, Failure, Fence, Location, Order, Read, Rmw, Value, Write
from vtlkit.checker.program import Program
from vtlkit.checker.result import Step

T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """A state. `key` is what states are told apart by."""

    results: tuple[tuple[Value, ...], ...]
    buffers: tuple[tuple[tuple[Location, Value], ...], ...]
    draining: tuple[bool, ...]
    memory: tuple[tuple[Location, Value], ...]


@dataclass
class Found:
    """What there is, with the fewest steps to it; steps that nobody else sees count nothing."""

    ends: set[tuple[tuple[object, ...], tuple[tuple[Location, Value], ...]]] = field(default_factory=set)
    deadlock: int | None = None
    failure: int | None = None
    race: int | None = None
    livelock: bool = False
    resting: bool = False


class Naive:
    """All states of a program."""

    def __init__(self, program: Program, buffered: bool, buffer_limit: int = 8) -> None:
        self.program, self.buffered, self.buffer_limit = program, buffered, buffer_limit
        self.found = Found()
        self._places: dict[tuple[int, tuple[Value, ...]], int] = {}
        self._numbers: dict[tuple[int, Hashable], int] = {}

    def key(self, point: Point) -> Hashable:
        places = []
        for thread, results in enumerate(point.results):
            if (thread, results) not in self._places:
                op = self.program.next_op(thread, results)
                identity = self.program.identity(thread, results)
                place = repr(op) if isinstance(op, Done) else results if identity is None else identity
                number = self._numbers.setdefault((thread, place), len(self._numbers))
                self._places[thread, results] = number
            places.append(self._places[thread, results])
        return tuple(places), point.buffers, point.draining, point.memory

    def start(self) -> Point:
        """Where it begins."""
        threads = self.program.threads
        return Point(((),) * threads, ((),) * threads, (False,) * threads, ())

    def replay(self, steps: Sequence[Step]) -> Point:
        """Take a counterexample's steps, one after the other: each must be open, and read and write what it says."""
        point = self.start()
        for step in steps:
            point = self._assumed(point)
            thread = step.thread
            if step.buffered:
                entry, *rest = point.buffers[thread]
                assert entry == (step.location, step.written)
                point = _written(replace(point, buffers=_put(point.buffers, thread, tuple(rest))), *entry)
                continue
            op = self.program.next_op(thread, point.results[thread])
            if isinstance(op, Failure):
                assert step.what == f"fails: {op.text}"
                continue
            assert not (point.draining[thread] and point.buffers[thread])
            assert getattr(op, "location", None) == step.location
            before = point
            ((_, point),) = self._op(replace(point, draining=_put(point.draining, thread, False)), thread, op)
            if isinstance(op, Read | Await | Rmw):
                assert point.results[thread][-1] == step.read
            if isinstance(op, Write):
                assert op.value == step.written
            if isinstance(op, Rmw):
                changed = [item for item in point.memory if item not in before.memory]
                assert [value for _, value in changed] in ([], [step.written])
        return self._assumed(point)

    def _assumed(self, point: Point) -> Point:
        for thread, results in enumerate(point.results):
            while isinstance(op := self.program.next_op(thread, results), Assume) and op.holds:
                results = (*results, None)
            point = replace(point, results=_put(point.results, thread, results))
        return point

    def is_stuck(self, point: Point) -> bool:
        """Whether nothing is open."""
        return not list(self._steps(point))

    def run(self) -> Found:
        start = self.start()
        cost = {self.key(start): 0}
        after: dict[Hashable, set[Hashable]] = {}
        resting: set[Hashable] = set()
        todo = deque([start])
        done: set[Hashable] = set()
        while todo:
            point = todo.popleft()
            key = self.key(point)
            if key in done:
                continue
            done.add(key)
            steps = list(self._steps(point))
            after[key] = {self.key(new) for _, new in steps}
            self._judge(point, cost[key], bool(steps))
            if not steps:
                resting.add(key)
            for price, new in steps:
                reached = cost[key] + price
                other = self.key(new)
                if reached < cost.get(other, reached + 1):
                    cost[other] = reached
                    (todo.append if price else todo.appendleft)(new)
        self._livelock(after, resting)
        return self.found

    def _livelock(self, after: dict[Hashable, set[Hashable]], resting: set[Hashable]) -> None:
        good = set(resting)
        while True:
            more = {key for key, reached in after.items() if key not in good and reached & good}
            if not more:
                break
            good |= more
        self.found.livelock = self.found.resting and len(good) < len(after)

    def _judge(self, point: Point, cost: int, moves: bool) -> None:
        found = self.found
        ops = [self.program.next_op(thread, results) for thread, results in enumerate(point.results)]
        if any(isinstance(op, Failure) for op in ops):
            found.failure = _least(found.failure, cost)
        if not self.buffered and self._races(point, ops):
            found.race = _least(found.race, cost)
        if moves or any(isinstance(op, Assume) and not op.holds for op in ops):
            return
        if all(isinstance(op, Done) or (isinstance(op, Await) and op.may_sleep) for op in ops):
            found.resting = True
            found.ends.add((tuple([op.result if isinstance(op, Done) else None for op in ops]), self._nonzero(point)))
        elif not any(isinstance(op, Failure) for op in ops):
            found.deadlock = _least(found.deadlock, cost)

    def _nonzero(self, point: Point) -> tuple[tuple[Location, Value], ...]:
        return tuple([(location, value) for location, value in point.memory if value != 0])

    def _races(self, point: Point, ops: Sequence[object]) -> bool:
        accesses = []
        for op in ops:
            if isinstance(op, Read | Await | Write | Rmw):
                writes = isinstance(op, Write) or (isinstance(op, Rmw) and self._rmw(op, dict(point.memory)))
                accesses.append((op.location, writes, op.order is Order.PLAIN))
        return any(
            one[0] == other[0] and (one[1] or other[1]) and (one[2] or other[2])
            for index, one in enumerate(accesses)
            for other in accesses[:index]
        )

    def _rmw(self, op: Rmw, memory: dict[Location, Value]) -> bool:
        old = memory.get(op.location, self.program.initial(op.location))
        return (op.until is None or op.until(old)) and op.update(old) is not NO_WRITE

    def _steps(self, point: Point) -> Iterator[tuple[int, Point]]:
        for thread, results in enumerate(point.results):
            buffer = point.buffers[thread]
            if buffer:
                yield 1, _written(replace(point, buffers=_put(point.buffers, thread, buffer[1:])), *buffer[0])
            if buffer and point.draining[thread]:
                continue
            clean = replace(point, draining=_put(point.draining, thread, False))
            yield from self._op(clean, thread, self.program.next_op(thread, results))

    def _op(self, point: Point, thread: int, op: object) -> Iterator[tuple[int, Point]]:
        def told(result: Value, base: Point = point) -> Point:
            return replace(base, results=_put(base.results, thread, (*base.results[thread], result)))

        buffer = point.buffers[thread]
        memory = dict(point.memory)
        if isinstance(op, Read | Await):
            value = memory.get(op.location, self.program.initial(op.location))
            for location, held in buffer:
                value = held if location == op.location else value
            if isinstance(op, Read) or op.until(value):
                yield 1, told(value)
        elif isinstance(op, Rmw) and not buffer:
            old = memory.get(op.location, self.program.initial(op.location))
            if op.until is None or op.until(old):
                new = op.update(old)
                yield 1, told(old, point if new is NO_WRITE else _written(point, op.location, new))
        elif isinstance(op, Write):
            if not self.buffered:
                yield 1, told(None, _written(point, op.location, op.value))
            elif len(buffer) < self.buffer_limit:
                buffers = _put(point.buffers, thread, (*buffer, (op.location, op.value)))
                draining = _put(point.draining, thread, op.order is Order.SEQ_CST)
                yield 0, told(None, replace(point, buffers=buffers, draining=draining))
        elif isinstance(op, Fence):
            if not (buffer and op.order is Order.SEQ_CST):
                yield 0, told(None)
        elif isinstance(op, Assume) and op.holds:
            yield 0, told(None)


def _least(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def _put(items: tuple[T, ...], index: int, item: T) -> tuple[T, ...]:
    return (*items[:index], item, *items[index + 1 :])


def _written(point: Point, location: Location, value: Value) -> Point:
    memory = {**dict(point.memory), location: value}
    return replace(point, memory=tuple(sorted(memory.items(), key=repr)))
