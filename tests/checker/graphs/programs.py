"""Programs whose number of executions is known, as the checker's threads."""

from __future__ import annotations

from collections.abc import Generator

from vtlkit.checker.graphs.ops import (
    Assume,
    Await,
    Fence,
    Op,
    Order,
    Read,
    Value,
    Write,
    compare_and_swap,
    increment,
    lock,
    unlock,
)
from vtlkit.checker.graphs.program import Thread, Threads

Script = Generator[Op, Value, object]
Quiet = Generator[Op, Value, None]
RELAXED, ACQUIRE, RELEASE, SEQ_CST = Order.RELAXED, Order.ACQUIRE, Order.RELEASE, Order.SEQ_CST


def steps(*ops: Op) -> Thread:
    """A thread that performs these, and returns the results of its reads."""

    def thread() -> Script:
        seen = []
        for op in ops:
            result = yield op
            if isinstance(op, Read):
                seen.append(result)
        return tuple(seen)

    return thread


def incrementers(count: int, *locations: str) -> Threads:
    """ainc, binc, cinc: every thread increments each location once."""
    return Threads(*[steps(*map(increment, locations))] * count)


def inc(count: int) -> Threads:
    """Thread i adds 2**i, not atomically."""

    def adder(amount: int) -> Thread:
        def thread() -> Quiet:
            value = yield Read("x")
            assert isinstance(value, int)
            yield Write("x", value + amount)

        return thread

    return Threads(*[adder(1 << number) for number in range(count)])


def casrot(count: int) -> Threads:
    return Threads(*[steps(compare_and_swap("x", number - 1, number)) for number in range(1, count + 1)])


def casw(count: int) -> Threads:
    return Threads(*[steps(compare_and_swap("x", 0, 1), Write("x", number + 3)) for number in range(count)])


def wcas(count: int) -> Threads:
    return Threads(steps(Write("x", 2)), *[steps(compare_and_swap("x", 2, 3))] * count)


def wainc(count: int) -> Threads:
    return Threads(steps(Write("x", 42)), *[steps(increment("x"))] * count)


def readers(count: int) -> Threads:
    return Threads(steps(Write("x", 42)), *[steps(Read("x"))] * count)


def writers(count: int) -> Threads:
    return Threads(*[steps(Write("x", number)) for number in range(count + 1)], steps(Read("x")))


def lastzero(count: int) -> Threads:
    def reader() -> Quiet:
        index = count
        while (yield Read(("a", index), ACQUIRE)) != 0:
            index -= 1

    def writer(index: int) -> Thread:
        def thread() -> Quiet:
            value = yield Read(("a", index - 1), ACQUIRE)
            assert isinstance(value, int)
            yield Write(("a", index), value + 1, RELEASE)

        return thread

    return Threads(reader, *[writer(index) for index in range(1, count + 1)])


def indexer(count: int) -> Threads:
    def worker(number: int) -> Thread:
        def thread() -> Quiet:
            for index in range(4):
                word = 11 * index + number
                slot = 7 * word % 128
                while (yield compare_and_swap(("t", slot), 0, word)) != 0:
                    slot = (slot + 1) % 128

        return thread

    return Threads(*[worker(number) for number in range(count)])


def filesystem(count: int) -> Threads:
    def worker(number: int) -> Thread:
        inode = number % 32

        def thread() -> Quiet:
            yield lock(("li", inode))
            if (yield Read(("inode", inode))) == 0:
                block = 2 * inode % 26
                while True:
                    yield lock(("lb", block))
                    if not (yield Read(("busy", block))):
                        yield Write(("busy", block), 1)
                        yield Write(("inode", inode), block + 1)
                        yield unlock(("lb", block))
                        break
                    yield unlock(("lb", block))
                    block = (block + 1) % 26
            yield unlock(("li", inode))

        return thread

    return Threads(*[worker(number) for number in range(count)])


def big0() -> Threads:
    def read(names: str) -> Thread:
        return steps(*[Read(name, ACQUIRE) for name in names])

    def write(first: str, second: str) -> Thread:
        return steps(*[Write(name, value, RELEASE) for value in (1, 2, 3) for name in (first, second)])

    return Threads(read("xyzwxyz"), read("xyz"), write("x", "y"), write("z", "w"))


def fibonacci(count: int) -> Threads:
    def adder(own: str, other: str) -> Thread:
        def thread() -> Quiet:
            for _ in range(count):
                left = yield Read(own, ACQUIRE)
                right = yield Read(other, ACQUIRE)
                assert isinstance(left, int)
                assert isinstance(right, int)
                yield Write(own, left + right, RELEASE)

        return thread

    both = steps(Read("x", ACQUIRE), Read("y", ACQUIRE))
    return Threads(adder("x", "y"), adder("y", "x"), both, initial={"x": 1, "y": 1})


def peterson() -> Threads:
    def side(own: str, other: str, turn: int) -> Thread:
        def thread() -> Quiet:
            yield Write(own, 1, RELEASE)
            yield Write("turn", turn, RELEASE)
            free = (yield Read(other, ACQUIRE)) != 1 or (yield Read("turn", ACQUIRE)) != turn
            yield Assume(free)
            yield Write("x", 1 - turn, RELEASE)
            yield Read("x", ACQUIRE)
            yield Write(own, 0, RELEASE)

        return thread

    return Threads(side("f1", "f2", 1), side("f2", "f1", 0))


def locks(count: int) -> Threads:
    """Threads that take one lock each once."""
    return Threads(*[steps(lock("l"), unlock("l"))] * count)


def waiters(count: int) -> Threads:
    """One flag, and threads that wait for it."""
    return Threads(steps(Write("x", 1, RELEASE)), *[steps(Await("x", lambda value: value == 1))] * count)


def fenced(*ops: Op) -> Thread:
    """`steps` with a full fence between any two."""
    return steps(*[item for op in ops for item in (op, Fence(SEQ_CST))][:-1])
