"""What a thread of a checked program does next, as values.

A thread is a generator that yields these and is sent each result: a read's value, an RMW's old value, None for the
rest. It must be a function of these results: no clock, no chance, nothing shared but locations. Locations and values
are any hashable values; what no initial value is given for starts as 0.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from dataclasses import dataclass

Location = Hashable
Value = Hashable


class Order(enum.IntEnum):
    """Memory order of an access or a fence, with C11's meaning. PLAIN accesses may race, which is an error."""

    PLAIN = 0
    RELAXED = 1
    ACQUIRE = 2
    RELEASE = 3
    ACQ_REL = 4
    SEQ_CST = 5

    @property
    def acquires(self) -> bool:
        """Whether a read or fence of this order acquires."""
        return self in (Order.ACQUIRE, Order.ACQ_REL, Order.SEQ_CST)

    @property
    def releases(self) -> bool:
        """Whether a write or fence of this order releases."""
        return self in (Order.RELEASE, Order.ACQ_REL, Order.SEQ_CST)


def _refuse(what: str, order: Order, *forbidden: Order) -> None:
    if order in forbidden:
        raise ValueError(f"{what} cannot have order {order.name}")


@dataclass(frozen=True, slots=True)
class Read:
    """Load; the result is the value."""

    location: Location
    order: Order = Order.RELAXED

    def __post_init__(self) -> None:
        _refuse("a read", self.order, Order.RELEASE, Order.ACQ_REL)


@dataclass(frozen=True, slots=True)
class Write:
    """Store."""

    location: Location
    value: Value
    order: Order = Order.RELAXED

    def __post_init__(self) -> None:
        _refuse("a write", self.order, Order.ACQUIRE, Order.ACQ_REL)


@dataclass(frozen=True, slots=True)
class Rmw:
    """Atomic read-modify-write; the result is the old value.

    `update` maps the old value to the new one, or to `NO_WRITE`: then it is only a read, with the order's reading half.
    Where `until` is given and the old value does not satisfy it, the thread waits; see `Await`.
    """

    location: Location
    update: Callable[[Value], Value]
    order: Order = Order.RELAXED
    until: Callable[[Value], bool] | None = None
    label: str = "rmw"

    def __post_init__(self) -> None:
        _refuse("a read-modify-write", self.order, Order.PLAIN)


@dataclass(frozen=True, slots=True)
class Fence:
    """Memory barrier: `smp_mb` is SEQ_CST, `smp_wmb` RELEASE and `smp_rmb` ACQUIRE, as near as C11 comes."""

    order: Order = Order.SEQ_CST

    def __post_init__(self) -> None:
        _refuse("a fence", self.order, Order.PLAIN, Order.RELAXED)


@dataclass(frozen=True, slots=True)
class Await:
    """Load until the value satisfies `until`; the result is that value.

    A thread that waits when nobody runs any more, with the last value that its location ever gets, waits for ever: that
    is a deadlock, or a lost wake-up. `may_sleep` says that this one may be left waiting.
    """

    location: Location
    until: Callable[[Value], bool]
    order: Order = Order.ACQUIRE
    may_sleep: bool = False
    woken: Value = None
    """Of a sleep: the value that a spurious wake-up would show. A sleeper that would then go on has lost a wake-up."""

    def __post_init__(self) -> None:
        _refuse("a read that waits", self.order, Order.PLAIN, Order.RELEASE, Order.ACQ_REL)


@dataclass(frozen=True, slots=True)
class Assume:
    """Go on only if `holds`; otherwise this execution is of no interest, and counts as blocked."""

    holds: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A broken promise: the search ends and shows how it came to this. `assert` in a thread yields one, too."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """A thread has ended. `result` is what its generator returned: the registers of a litmus test."""

    result: object = None


class _NoWrite(enum.Enum):
    NO_WRITE = enum.auto()


NO_WRITE = _NoWrite.NO_WRITE

Op = Read | Write | Rmw | Fence | Await | Assume | Failure


def increment(location: Location, amount: int = 1, order: Order = Order.RELAXED) -> Rmw:
    """Fetch and add."""

    def add(old: Value) -> Value:
        assert isinstance(old, int)
        return old + amount

    return Rmw(location, add, order, label=f"+={amount}")


def compare_and_swap(location: Location, expected: Value, new: Value, order: Order = Order.RELAXED) -> Rmw:
    """CAS: succeeded if the result equals `expected`. One that fails is only a read."""

    def swap(old: Value) -> Value:
        return new if old == expected else NO_WRITE

    return Rmw(location, swap, order, label=f"cas {expected}->{new}")


def exchange(location: Location, new: Value, order: Order = Order.RELAXED) -> Rmw:
    """Atomic exchange."""
    return Rmw(location, lambda _old: new, order, label=f"xchg {new}")


def lock(location: Location) -> Rmw:
    """Wait until the word is 0 and set it to 1, with acquire order."""
    return Rmw(location, lambda _old: 1, Order.ACQUIRE, until=lambda old: old == 0, label="lock")


def unlock(location: Location) -> Write:
    """Set a lock's word to 0, with release order."""
    return Write(location, 0, Order.RELEASE)
