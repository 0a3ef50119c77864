"""Three protocols of KVM as models, in steps of one access: the sizes by which the search over states is measured.

Each is a program for a number of threads, and for its known-bad variants. Variables that a thread needs no more are
cleared: what it still holds tells its states apart.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from vtlkit.checker.ops import (
    Await,
    Failure,
    Fence,
    Location,
    Order,
    Read,
    Rmw,
    Value,
    Write,
    exchange,
    increment,
)
from vtlkit.checker.program import Thread, Threads
from vtlkit.checker.programs.threads import Script

ACQUIRE: Final = Order.ACQUIRE
RELEASE: Final = Order.RELEASE
SEQ_CST: Final = Order.SEQ_CST


class BlockBug(Enum):
    """What is wrong with `kvm_block`."""

    NONE = "nothing"
    NO_RECHECK = "the vCPU sleeps without a second look at what is pending"
    NO_BARRIER = "no full barrier between a thread's store and its look at the other's"


def kvm_block(wakers: int, bug: BlockBug = BlockBug.NONE) -> Threads:
    """A vCPU that blocks (kvm_vcpu_block) until each waker's event has been handled (rcuwait_wake_up)."""
    barrier = bug is not BlockBug.NO_BARRIER

    def vcpu() -> Script:
        handled = 0
        while handled < wakers:
            if (yield Read("pending", ACQUIRE)):
                handled += _number((yield exchange("pending", 0, SEQ_CST)))
                continue
            yield Write("blocking", 1)
            if barrier:
                yield Fence()
            if bug is not BlockBug.NO_RECHECK and (yield Read("pending")):
                yield Write("blocking", 0)
            else:
                yield Await("blocking", _is_zero)
        if (yield Read("pending")):
            yield Failure("an event is left")

    def waker() -> Script:
        yield increment("pending", 1, RELEASE)
        if barrier:
            yield Fence()
        if (yield Read("blocking")):
            yield Write("blocking", 0, RELEASE)

    return Threads(vcpu, *[waker] * wakers, names=["vcpu", *[f"waker {number}" for number in range(wakers)]])


class InhibitBug(Enum):
    """What is wrong with `tlb_inhibit`."""

    NONE = "nothing"
    CLEAR_NOT_SYNCHRONIZED = "no synchronize_srcu() between the end of the inhibition and the scan"
    SET_NOT_SYNCHRONIZED = "no synchronize_srcu() after the beginning of the inhibition"
    SUSPENDED_FIRST = "no SRCU at all, and a flusher says that it is suspended before it says on whom"


NOBODY: Final = -1
INHIBITOR: Final = 0


def tlb_inhibit(flushers: int, cycles: int = 1, bug: InhibitBug = InhibitBug.NONE) -> Threads:
    """A vCPU inhibits Hyper-V's TLB flushes and allows them again; the others flush, or suspend until they may."""
    grace = bug is not InhibitBug.SUSPENDED_FIRST

    def synchronize() -> Script:
        for index in (1, 0):
            yield Write("index", index, SEQ_CST)
            yield Await(("readers", 1 - index), _is_zero)

    def inhibitor() -> Script:
        for _ in range(cycles):
            yield Write("inhibit", 1, SEQ_CST)
            if grace and bug is not InhibitBug.SET_NOT_SYNCHRONIZED:
                yield from synchronize()
            yield Write("closed", 1, SEQ_CST)
            if grace and (yield Read("flushing")):
                yield Failure("a flush goes on though flushes are inhibited")
            yield Write("closed", 0, SEQ_CST)
            yield Write("inhibit", 0, SEQ_CST)
            if grace and bug is not InhibitBug.CLEAR_NOT_SYNCHRONIZED:
                yield from synchronize()
            for flusher in range(flushers):
                if (yield Read(("suspended", flusher), ACQUIRE)):
                    waits_on = yield Read(("waiting on", flusher), ACQUIRE)
                    if waits_on == INHIBITOR:
                        waits_on = None
                        yield Write(("waiting on", flusher), NOBODY)
                        yield Write(("suspended", flusher), 0, RELEASE)
                    waits_on = None

    names = ["inhibitor", *[f"flusher {number}" for number in range(flushers)]]
    initial: dict[Location, Value] = {("waiting on", number): NOBODY for number in range(flushers)}
    return Threads(inhibitor, *[_flusher(number, bug) for number in range(flushers)], initial=initial, names=names)


def _flusher(number: int, bug: InhibitBug) -> Thread:
    suspended, waiting_on = ("suspended", number), ("waiting on", number)
    grace = bug is not InhibitBug.SUSPENDED_FIRST

    def flusher() -> Script:
        done = False
        while not done:
            index = yield Read("index")
            yield increment(("readers", index), 1, SEQ_CST)
            if (yield Read("inhibit")):
                if not grace:
                    yield Write(suspended, 1, RELEASE)
                yield Write(waiting_on, INHIBITOR, RELEASE)
                if grace:
                    yield Write(suspended, 1, RELEASE)
            else:
                yield increment("flushing", 1, SEQ_CST)
                if (yield Read("closed")) and grace:
                    yield Failure("a flush begins though flushes are inhibited")
                yield increment("flushing", -1, SEQ_CST)
                done = True
            yield increment(("readers", index), -1, SEQ_CST)
            index = None
            yield Await(suspended, _is_zero)

    return flusher


class KickBug(Enum):
    """What is wrong with `kick_all`."""

    NONE = "nothing"
    TESTED_EARLY = "a vCPU looks for a request before it says that it is in the guest"
    CONSUMED = "a vCPU takes the request away, and may be in the guest again before the updater has queued"


def kick_all(vcpus: int, updates: int = 1, bug: KickBug = KickBug.NONE) -> Threads:
    """vCPUs run guests that do not exit by themselves, under a semaphore; an updater kicks all to have it alone."""

    def updater() -> Script:
        for update in range(1, updates + 1):
            for vcpu in range(vcpus):
                yield Write(("request", vcpu), 1, SEQ_CST)
                if (yield Read(("in guest", vcpu))):
                    yield Write(("kick", vcpu), 1, RELEASE)
            yield Rmw("semaphore", _queue, SEQ_CST, label="queue for writing")
            yield Rmw(
                "semaphore", lambda _: WRITER, SEQ_CST, until=lambda word: word == (0, "waits"), label="down_write"
            )
            yield Write("generation", update)
            yield Write("semaphore", FREE, RELEASE)
            for vcpu in range(vcpus):
                yield Write(("request", vcpu), 0, RELEASE)

    names = [*[f"vcpu {number}" for number in range(vcpus)], "updater"]
    return Threads(*[_vcpu(number, bug) for number in range(vcpus)], updater, initial={"semaphore": FREE}, names=names)


FREE: Final = (0, "")
WRITER: Final = (0, "writes")


def _vcpu(number: int, bug: KickBug) -> Thread:
    request, in_guest, kick = ("request", number), ("in guest", number), ("kick", number)

    def guest() -> Script:
        yield Await(kick, bool, may_sleep=True)
        yield Write(kick, 0)
        yield Write(in_guest, 0, RELEASE)

    def vcpu() -> Script:
        while True:
            yield Rmw("semaphore", _add(1), ACQUIRE, until=_no_writer, label="down_read")
            before = yield Read("generation")
            if bug is KickBug.TESTED_EARLY:
                if not (yield Read(request)):
                    yield Write(in_guest, 1, SEQ_CST)
                    yield from guest()
            else:
                yield Write(in_guest, 1, SEQ_CST)
                if not (yield Read(request)):
                    yield from guest()
                    if bug is KickBug.CONSUMED:
                        yield Write(request, 0)
                else:
                    if bug is KickBug.CONSUMED:
                        yield Write(request, 0)
                    yield Write(in_guest, 0, RELEASE)
            if (yield Read("generation")) != before:
                yield Failure("the slots changed under a vCPU")
            before = None
            yield Rmw("semaphore", _add(-1), RELEASE, label="up_read")

    return vcpu


def _number(value: Value) -> int:
    assert isinstance(value, int)
    return value


def _is_zero(value: Value) -> bool:
    return value == 0


def _semaphore(word: Value) -> tuple[int, str]:
    assert isinstance(word, tuple)
    readers, writer = word
    return readers, writer


def _queue(word: Value) -> Value:
    return _semaphore(word)[0], "waits"


def _no_writer(word: Value) -> bool:
    return not _semaphore(word)[1]


def _add(amount: int) -> Callable[[Value], Value]:
    def add(word: Value) -> Value:
        readers, writer = _semaphore(word)
        return readers + amount, writer

    return add
