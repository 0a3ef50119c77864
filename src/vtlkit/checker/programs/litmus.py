"""The shapes that tell memory models apart, under their usual names, with how many executions each model allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vtlkit.checker.ops import Order, Read, Write, increment
from vtlkit.checker.program import Thread, Threads
from vtlkit.checker.programs.counted import Counted
from vtlkit.checker.programs.threads import fenced, steps

RELAXED: Final = Order.RELAXED
ACQUIRE: Final = Order.ACQUIRE
RELEASE: Final = Order.RELEASE
SEQ_CST: Final = Order.SEQ_CST


def catalogue() -> Iterator[Counted]:
    """All of them."""
    yield from _two_threads()
    yield from _more_threads()
    yield from _release_sequences()


def _litmus(name: str, counts: tuple[int, int, int], *threads: Thread) -> Counted:
    return Counted(name, Threads(*threads), dict(zip(("sc", "tso", "rc11"), counts, strict=True)))


def _two_threads() -> Iterator[Counted]:
    def stores(order: Order) -> tuple[Thread, Thread]:
        first = steps(Write("x", 1, order), Write("y", 2, order))
        return first, steps(Write("y", 1, order), Write("x", 2, order))

    def buffering(order: Order) -> tuple[Thread, Thread]:
        return steps(Write("x", 1, order), Read("y", order)), steps(Write("y", 1, order), Read("x", order))

    yield _litmus("SB", (3, 4, 4), *buffering(RELAXED))
    yield _litmus("SB+4sc", (3, 3, 3), *buffering(SEQ_CST))
    yield _litmus("SB+scfs", (3, 3, 3), fenced(Write("x", 1), Read("y")), fenced(Write("y", 1), Read("x")))
    first, second = (steps(Write(own, 1), Read(own), Read(other)) for own, other in ("xy", "yx"))
    yield _litmus("SB+rfis", (3, 4, 4), first, second)
    yield _litmus("2+2W", (3, 3, 4), *stores(RELAXED))
    yield _litmus("2+2W+4sc", (3, 3, 3), *stores(SEQ_CST))
    sender = steps(Write("x", 1, RELEASE), Write("y", 1, RELEASE))
    yield _litmus("MP", (3, 3, 3), sender, steps(Read("y", ACQUIRE), Read("x", ACQUIRE)))
    yield _litmus("MP+rlx", (3, 3, 4), steps(Write("x", 1), Write("y", 1)), steps(Read("y"), Read("x")))
    yield _litmus("LB", (3, 3, 3), steps(Read("x"), Write("y", 1)), steps(Read("y"), Write("x", 1)))
    yield _litmus("S", (3, 3, 4), steps(Write("x", 2), Write("y", 1)), steps(Read("y"), Write("x", 1)))
    yield _litmus("R", (3, 4, 4), steps(Write("x", 1), Write("y", 1)), steps(Write("y", 2), Read("x")))
    yield _litmus("atomicpo", (3, 3, 4), steps(Write("x", 1), increment("y")), steps(increment("y"), Write("x", 2)))


def _more_threads() -> Iterator[Counted]:
    def independent(name: str, rc11: int, first: Order, second: Order, write: Order) -> Counted:
        readers = [steps(Read(one, first), Read(other, second)) for one, other in ("xy", "yx")]
        writers = [steps(Write(location, 1, write)) for location in "xy"]
        return _litmus(name, (15, 15, rc11), *writers, *readers)

    yield independent("IRIW", 16, RELAXED, RELAXED, RELAXED)
    yield independent("IRIW-acq-sc", 16, ACQUIRE, SEQ_CST, SEQ_CST)
    yield independent("IRIW+sc", 15, SEQ_CST, SEQ_CST, SEQ_CST)
    middle = steps(increment("y", 1, SEQ_CST), Read("y"))
    last = steps(Write("y", 3, SEQ_CST), Read("x", SEQ_CST))
    yield _litmus("Z6.U", (18, 18, 22), steps(Write("x", 1, SEQ_CST), Write("y", 1, RELEASE)), middle, last)
    reader = steps(Read("x", ACQUIRE), Read("y", SEQ_CST))
    other = steps(Write("y", 1, SEQ_CST), Read("x", SEQ_CST))
    two = steps(Write("x", 1, SEQ_CST), Write("x", 2, RELEASE))
    yield _litmus("WWmerge1", (15, 15, 17), two, reader, other)
    yield _litmus("WWmerge2", (7, 7, 8), steps(Write("x", 2, SEQ_CST)), reader, other)


def _release_sequences() -> Iterator[Counted]:
    """A release sequence is the write and RMWs, as in C++20: the later store of its own thread does not carry it on."""
    writer = steps(Write("y", 1), Write("x", 1, RELEASE), Write("x", 2))
    reader = steps(Read("x", ACQUIRE), Read("y"))
    yield _litmus("relseq", (16, 16, 20), writer, steps(increment("x")), reader)
