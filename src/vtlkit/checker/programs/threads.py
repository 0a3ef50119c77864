"""Threads that need no generator function of their own."""

from __future__ import annotations

from collections.abc import Generator

from vtlkit.checker.ops import Fence, Op, Order, Read, Value
from vtlkit.checker.program import Thread

Script = Generator[Op, Value, None]


def steps(*ops: Op) -> Thread:
    """A thread that performs these, and returns the values of its reads as a tuple."""

    def thread() -> Generator[Op, Value, tuple[Value, ...]]:
        seen = []
        for op in ops:
            result = yield op
            if isinstance(op, Read):
                seen.append(result)
        return tuple(seen)

    return thread


def fenced(*ops: Op) -> Thread:
    """`steps` with a full fence between any two."""
    return steps(*[item for op in ops for item in (op, Fence(Order.SEQ_CST))][:-1])
