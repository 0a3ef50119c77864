"""Programs as Hypothesis makes them: everything a thread can do, endless loops included."""

from __future__ import annotations

from collections.abc import Generator

from hypothesis import strategies as st

from vtlkit.checker.ops import (
    Assume,
    Await,
    Failure,
    Fence,
    Op,
    Order,
    Read,
    Rmw,
    Value,
    Write,
    compare_and_swap,
    increment,
)
from vtlkit.checker.program import Thread, Threads

Instruction = tuple[str, str, int, Order]

SIMPLE = ("read", "write", "write", "increment", "cas", "await", "down", "fence", "keep")
ENDLESS = (*SIMPLE, "spin", "spin", "sleep")
FAILING = (*SIMPLE, "expect", "assume")
RACING = ("plain read", "plain write", "read", "write", "await", "cas", "release")


def script(instructions: tuple[Instruction, ...], again: bool = False) -> Thread:
    """A thread of these; `again`: for ever."""

    def run() -> Generator[Op, Value, Value]:
        seen: Value = 0
        while True:
            for kind, location, value, order in instructions:
                if kind == "spin":
                    while (yield Read(location)) == value:
                        pass
                elif kind == "expect":
                    if (yield Read(location)) == value:
                        yield Failure("unexpected")
                elif kind == "assume":
                    yield Assume((yield Read(location)) != value)
                elif kind == "keep":
                    seen = yield Read(location, order)
                elif kind == "copy":
                    yield Write(location, seen)
                else:
                    yield operation(kind, location, value, order)
            if not again:
                return seen

    return run


def _take(old: object) -> object:
    assert isinstance(old, int)
    return old - 1


def operation(kind: str, location: str, value: int, order: Order) -> Op:
    """One operation whose result does not matter."""
    match kind:
        case "read":
            return Read(location, order)
        case "write":
            return Write(location, value, order)
        case "release":
            return Write(location, value, Order.RELEASE)
        case "plain read":
            return Read(location, Order.PLAIN)
        case "plain write":
            return Write(location, value, Order.PLAIN)
        case "increment":
            return Rmw(location, lambda old: (old + 1) % 3 if isinstance(old, int) else 0)
        case "cas":
            return compare_and_swap(location, value, (value + 1) % 3)
        case "await":
            return Await(location, lambda found: found == value)
        case "sleep":
            return Await(location, lambda found: found == value, may_sleep=True)
        case "down":
            return Rmw(location, _take, until=lambda old: isinstance(old, int) and old > 0)
        case "add":
            return increment(location)
    return Fence(Order.SEQ_CST if order is Order.SEQ_CST else Order.ACQ_REL)


def programs(kinds: tuple[str, ...], loops: bool = False) -> st.SearchStrategy[Threads]:
    """2 or 3 threads of a few instructions on two words; some threads are given by the same function."""
    instruction = st.tuples(
        st.sampled_from(kinds),
        st.sampled_from("xy"),
        st.integers(0, 2),
        st.sampled_from((Order.RELAXED, Order.RELAXED, Order.SEQ_CST)),
    )
    body = st.lists(instruction, min_size=1, max_size=3).map(tuple)
    thread = st.builds(script, body, st.booleans() if loops else st.just(False))
    own = st.lists(thread, min_size=1, max_size=2)
    return st.builds(lambda first, copies, others: Threads(*[first] * copies, *others), thread, st.integers(1, 2), own)
