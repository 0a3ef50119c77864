"""A protocol file as a user writes one: what `vtlkit check FILE.py` and `vtlkit.testing.checking` are tested with."""

from __future__ import annotations

from vtlkit.checker import protocol
from vtlkit.checker.ops import Await, Fence, Read, Value, Write, exchange, increment
from vtlkit.checker.program import Thread, Threads
from vtlkit.checker.programs.threads import Script


class Sleepers(Threads):
    """A sleeper was forgotten if something is pending."""

    def sleeper_condition_holds(
        self, thread: int, _results: tuple[Value, ...], memory: dict[object, Value]
    ) -> bool | None:
        return bool(memory["pending"]) if thread == 0 else None


def scripts(wakers: int, barrier: bool = True, look_again: bool = True) -> list[Thread]:
    """A vCPU that blocks until all wakers' events are handled, and the wakers: kvm_vcpu_block() in small."""

    def vcpu() -> Script:
        handled = 0
        while handled < wakers:
            found = yield exchange("pending", 0)
            assert isinstance(found, int)
            handled += found
            if not found:
                yield Write("blocking", 1)
                if barrier:
                    yield Fence()
                if look_again and (yield Read("pending")):
                    yield Write("blocking", 0)
                else:
                    yield Await("blocking", lambda value: value == 0)

    def waker() -> Script:
        yield increment("pending")
        if barrier:
            yield Fence()
        if (yield Read("blocking")):
            yield Write("blocking", 0)

    return [vcpu, *[waker] * wakers]


@protocol
def handover(*, wakers: int = 1, barrier: int = 1, look_again: int = 1) -> Threads:
    """The vCPU sleeps through no event."""
    names = ["vcpu", *[f"waker {number}" for number in range(wakers)]]
    return Sleepers(*scripts(wakers, bool(barrier), bool(look_again)), names=names)


@protocol
def counter(*, n: int = 2) -> Threads:
    """Nothing is counted twice."""
    if n < 1:
        raise ValueError("n is at least 1")

    def adder() -> Script:
        old = yield increment("x")
        assert old != 2, "three is too many"

    return Threads(*[adder] * n)
