"""Programs whose number of executions is known, by which the search over graphs is measured and tested.

They are the synthetic benchmarks that stateless model checkers are compared by. The counts are of complete executions:
graphs of program order, reads-from and coherence order, with initial values 0, relaxed read-modify-writes, a failed
compare-and-swap that is only a read, no reads at the end, and no reduction by symmetry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import factorial
from typing import Final

from vtlkit.checker.ops import Assume, Order, Read, Write, compare_and_swap, increment, lock, unlock
from vtlkit.checker.program import Thread, Threads
from vtlkit.checker.programs.threads import Script, steps

ACQUIRE: Final = Order.ACQUIRE
RELEASE: Final = Order.RELEASE


@dataclass(frozen=True)
class Counted:
    """A program, and how many complete executions it has under the models for which that is known."""

    name: str
    program: Threads
    counts: Mapping[str, int]
    big: bool = False
    """Takes seconds: not for every run of the tests."""


def incrementers(count: int, *locations: str) -> Threads:
    """ainc, binc, cinc: every thread increments each location once."""
    return Threads(*[steps(*map(increment, locations))] * count)


def inc(count: int) -> Threads:
    """Thread i adds 2**i, not atomically."""

    def adder(amount: int) -> Thread:
        def thread() -> Script:
            value = yield Read("x")
            assert isinstance(value, int)
            yield Write("x", value + amount)

        return thread

    return Threads(*[adder(1 << number) for number in range(count)])


def casrot(count: int) -> Threads:
    """Thread i replaces i - 1 by i."""
    return Threads(*[steps(compare_and_swap("x", number - 1, number)) for number in range(1, count + 1)])


def casw(count: int) -> Threads:
    """Each thread tries to replace 0 by 1, and then writes a value of its own."""
    return Threads(*[steps(compare_and_swap("x", 0, 1), Write("x", number + 3)) for number in range(count)])


def wcas(count: int) -> Threads:
    """One writes 2, the others try to replace it by 3."""
    return Threads(steps(Write("x", 2)), *[steps(compare_and_swap("x", 2, 3))] * count)


def wainc(count: int) -> Threads:
    """One writes 42, the others increment."""
    return Threads(steps(Write("x", 42)), *[steps(increment("x"))] * count)


def readers(count: int) -> Threads:
    """One writer, and readers."""
    return Threads(steps(Write("x", 42)), *[steps(Read("x"))] * count)


def writers(count: int) -> Threads:
    """Writers of different values, and one reader."""
    return Threads(*[steps(Write("x", number)) for number in range(count + 1)], steps(Read("x")))


def lastzero(count: int) -> Threads:
    """A reader looks backwards for the last zero of an array, whose elements are filled from their predecessors."""

    def reader() -> Script:
        index = count
        while (yield Read(("a", index), ACQUIRE)) != 0:
            index -= 1

    def writer(index: int) -> Thread:
        def thread() -> Script:
            value = yield Read(("a", index - 1), ACQUIRE)
            assert isinstance(value, int)
            yield Write(("a", index), value + 1, RELEASE)

        return thread

    return Threads(reader, *[writer(index) for index in range(1, count + 1)])


def indexer(count: int) -> Threads:
    """Threads that insert four words each into a hash table; the first collision is that of thread 12."""

    def worker(number: int) -> Thread:
        def thread() -> Script:
            for index in range(4):
                word = 11 * index + number
                slot = 7 * word % 128
                while (yield compare_and_swap(("t", slot), 0, word)) != 0:
                    slot = (slot + 1) % 128

        return thread

    return Threads(*[worker(number) for number in range(count)])


def filesystem(count: int) -> Threads:
    """Threads that allocate blocks for inodes under locks; thread 13 is the first with a rival."""

    def worker(number: int) -> Thread:
        inode = number % 32

        def thread() -> Script:
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
    """Two readers of four locations, and two writers of two each."""

    def read(names: str) -> Thread:
        return steps(*[Read(name, ACQUIRE) for name in names])

    def write(first: str, second: str) -> Thread:
        return steps(*[Write(name, value, RELEASE) for value in (1, 2, 3) for name in (first, second)])

    return Threads(read("xyzwxyz"), read("xyz"), write("x", "y"), write("z", "w"))


def fibonacci(count: int) -> Threads:
    """Two threads add each variable to the other, without synchronising."""

    def adder(own: str, other: str) -> Thread:
        def thread() -> Script:
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
    """Peterson's mutual exclusion, with acquire and release: only right under SC."""

    def side(own: str, other: str, turn: int) -> Thread:
        def thread() -> Script:
            yield Write(own, 1, RELEASE)
            yield Write("turn", turn, RELEASE)
            free = (yield Read(other, ACQUIRE)) != 1 or (yield Read("turn", ACQUIRE)) != turn
            yield Assume(free)
            yield Write("x", 1 - turn, RELEASE)
            yield Read("x", ACQUIRE)
            yield Write(own, 0, RELEASE)

        return thread

    return Threads(side("f1", "f2", 1), side("f2", "f1", 0))


def _same(count: int) -> dict[str, int]:
    return {"sc": count, "tso": count, "rc11": count}


def catalogue() -> Iterator[Counted]:
    """All of them."""
    for number in range(2, 8):
        yield Counted(f"ainc({number})", incrementers(number, "x"), _same(factorial(number)))
    for number in range(2, 5):
        yield Counted(f"binc({number})", incrementers(number, "x", "y"), _same(factorial(number) ** 2))
        yield Counted(f"cinc({number})", incrementers(number, "x", "y", "z"), _same(factorial(number) ** 3))
    for number, count in zip(range(2, 5), (4, 36, 576), strict=True):
        yield Counted(f"inc({number})", inc(number), _same(count))
    for number, count in zip(range(2, 10), (2, 5, 14, 43, 144, 523, 2048, 8597), strict=True):
        yield Counted(f"casrot({number})", casrot(number), _same(count))
    for number, count in zip(range(2, 6), (6, 66, 1200, 32880), strict=True):
        yield Counted(f"casw({number})", casw(number), _same(count), big=number > 4)
    for number in (2, 3, 4, 9):
        yield Counted(f"wcas({number})", wcas(number), _same(1 + number * 2 ** (number - 1)))
    for number in range(2, 6):
        yield Counted(f"wainc({number})", wainc(number), _same(factorial(number + 1)))
    for number in (2, 8, 13):
        yield Counted(f"readers({number})", readers(number), _same(2**number))
    yield Counted("writers(4)", writers(4), _same(720))
    for number in (5, 10, 15):
        yield Counted(f"lastzero({number})", lastzero(number), _same((number + 3) * 2 ** (number - 2)), number > 10)
    for number, count in ((12, 8), (15, 4096)):
        yield Counted(f"indexer({number})", indexer(number), _same(count), big=number > 12)
    for number in (14, 16, 18, 19):
        yield Counted(f"filesystem({number})", filesystem(number), _same(2 ** (number - 13)))
    yield Counted("peterson", peterson(), {"sc": 4, "tso": 22, "rc11": 22})
    yield Counted("fib_bench(2)", fibonacci(2), {"sc": 140, "tso": 153})
    yield Counted("big0", big0(), {"sc": 69112, "rc11": 82472}, big=True)
    yield Counted("fib_bench(5)", fibonacci(5), {"sc": 218243, "rc11": 525630}, big=True)
