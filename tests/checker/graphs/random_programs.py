"""Small random programs of everything that a thread can do but fail."""

from __future__ import annotations

import random

from vtlkit.checker.ops import (
    Await,
    Fence,
    Op,
    Order,
    Read,
    Rmw,
    Value,
    Write,
    compare_and_swap,
    increment,
    lock,
    unlock,
)
from vtlkit.checker.program import Thread, Threads
from vtlkit.checker.programs.threads import Script

READ_ORDERS = (Order.RELAXED, Order.ACQUIRE, Order.SEQ_CST)
WRITE_ORDERS = (Order.RELAXED, Order.RELEASE, Order.SEQ_CST)
RMW_ORDERS = (*READ_ORDERS, Order.RELEASE, Order.ACQ_REL)
FENCE_ORDERS = (Order.ACQUIRE, Order.RELEASE, Order.ACQ_REL, Order.SEQ_CST)
KINDS = ("read", "write", "write", "increment", "cas", "await", "fence", "copy", "lock", "locks")


def random_program(seed: int, events: int = 7, kinds: tuple[str, ...] = KINDS) -> Threads:
    """2 to 4 threads with about so many events; the same seed gives the same program."""
    choice = random.Random(seed)
    threads = choice.randint(2, 4)
    chosen = [choice.choice(kinds) for _ in range(choice.randint(threads, events - 1))]
    parts = [chosen[thread::threads] for thread in range(threads)]
    return Threads(*[_thread(part, choice.randint(0, 1 << 30)) for part in parts])


def _thread(kinds: list[str], seed: int) -> Thread:
    def thread() -> Script:
        choice = random.Random(seed)
        last: Value = 0
        for kind in kinds:
            location = choice.choice("xy")
            if kind == "lock":
                yield lock("l")
                yield Write(location, choice.randint(1, 2))
                yield unlock("l")
            elif kind == "trylock":
                if (yield compare_and_swap("l", 0, 1, Order.ACQUIRE)) == 0:
                    yield Write(location, choice.randint(1, 2))
                    yield unlock("l")
            elif kind == "stray":
                yield choice.choice((unlock("l"), Write("l", 1), Read("l"), increment("l", -1), _down("l")))
            elif kind == "locks":
                first, second = choice.sample(("l", "m"), 2)
                yield lock(first)
                yield lock(second)
                yield Write(location, choice.randint(1, 2))
                yield unlock(second)
                yield unlock(first)
            elif kind == "copy":
                yield Write(location, last, choice.choice(WRITE_ORDERS))
            else:
                result = yield _op(kind, location, choice)
                last = result if result is not None else last

    return thread


def _down(location: str) -> Op:
    """Wait until a semaphore is above 0 and take one."""

    def take(old: Value) -> Value:
        assert isinstance(old, int)
        return old - 1

    return Rmw(location, take, Order.ACQUIRE, until=lambda old: isinstance(old, int) and old > 0)


def _op(kind: str, location: str, choice: random.Random) -> Op:
    value = choice.randint(0, 2)
    match kind:
        case "read":
            return Read(location, choice.choice(READ_ORDERS))
        case "write":
            return Write(location, value, choice.choice(WRITE_ORDERS))
        case "increment":
            return increment(location, 1, choice.choice(RMW_ORDERS))
        case "cas":
            return compare_and_swap(location, value, choice.randint(0, 2), choice.choice(RMW_ORDERS))
        case "await":
            return Await(location, lambda found: found == value, choice.choice(READ_ORDERS))
    return Fence(choice.choice(FENCE_ORDERS))
