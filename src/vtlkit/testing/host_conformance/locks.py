"""Locks: they exclude, in order, and a waiting writer goes first."""

from __future__ import annotations

from collections.abc import Callable

from vtlkit.host.api import LockRank, RunnableHost
from vtlkit.host.ranks import LockOrderError
from vtlkit.testing.host_conformance.running import (
    ROUNDS,
    SETTLE_NS,
    TASKS,
    run_raises,
    run_to_end,
    sleep,
    spawn_all,
)


def check_lock_excludes(host: RunnableHost) -> None:
    """At most one task is between acquire and release, also if it loses control there."""
    lock = host.lock("lock")
    inside = 0
    count = 0

    def worker(_: int) -> None:
        nonlocal inside, count
        for _ in range(ROUNDS):
            with lock:
                assert lock.held()
                inside += 1
                assert inside == 1, "two tasks hold the lock"
                before = count
                host.relax()
                count = before + 1
                inside -= 1
            assert not lock.held()

    run_to_end(host, *spawn_all(host, worker))
    assert count == TASKS * ROUNDS


def check_try_acquire(host: RunnableHost) -> None:
    """`try_acquire` takes a free lock, never waits for a held one, and is not bound by the order."""
    outer, inner = host.lock("outer", LockRank.MEMORY_CHANGE), host.lock("inner", LockRank.VCPU)
    tried = host.cell(False, "tried")
    held = host.cell(False, "held")

    def holder() -> None:
        with inner:
            assert outer.try_acquire()
            held.store_release(True)
            while not tried.load_acquire():
                host.relax()
            outer.release()

    def trier() -> None:
        while not held.load_acquire():
            host.relax()
        assert not outer.try_acquire()
        assert not outer.held()
        tried.store_release(True)

    run_to_end(host, host.spawn(holder, "holder"), host.spawn(trier, "trier"))


def check_lock_order(host: RunnableHost) -> None:
    """A lock of no higher rank than one held is refused with both names; a second take and a foreign release too."""
    low, high = host.lock("low", LockRank.MEMORY_CHANGE), host.lock("high", LockRank.VCPU)
    leaf, other_leaf = host.lock("leaf"), host.rwsem("other_leaf")

    def orders() -> None:
        with low, high, leaf:
            pass
        with high:
            _refused(low.acquire, "low", "high")
        with leaf:
            _refused(other_leaf.down_read, "other_leaf", "leaf")
            _refused(other_leaf.down_write, "other_leaf", "leaf")
            _refused(leaf.acquire, "leaf")
        with other_leaf.reading():
            _refused(other_leaf.down_read, "other_leaf")
        for release in (low.release, other_leaf.up_read, other_leaf.up_write):
            _refused(release)
        with low, high:
            pass

    run_to_end(host, host.spawn(orders, "orders"))


def _refused(call: Callable[[], None], *names: str) -> None:
    text = None
    try:
        call()
    except AssertionError as error:
        text = str(error)
    assert text is not None, f"{call} was not refused"
    assert all(f"'{name}'" in text for name in names), f"{text} does not name {names}"


def check_ending_with_lock(host: RunnableHost) -> None:
    """A task that ends with a lock held fails the run."""
    lock = host.lock("kept")
    host.spawn(lock.acquire, "keeper")
    error = run_raises(host, LockOrderError)
    assert "'keeper'" in str(error)
    assert "'kept'" in str(error)


def check_rwsem_readers_share(host: RunnableHost) -> None:
    """All readers can be inside together."""
    sem = host.rwsem("sem")
    queue = host.wait_queue("all_inside")
    inside = host.cell(0, "inside")

    def reader(_: int) -> None:
        with sem.reading():
            inside.fetch_add(1)
            queue.wake()
            host.wait_event(queue, lambda: inside.load() == TASKS)

    run_to_end(host, *spawn_all(host, reader))


def check_rwsem_writer_excludes(host: RunnableHost) -> None:
    """While a writer is inside, nobody else is."""
    sem = host.rwsem("sem")
    readers = host.cell(0, "readers")
    writers = host.cell(0, "writers")

    def worker(index: int) -> None:
        for turn in range(ROUNDS):
            if (turn + index) % 3 == 0:
                with sem.writing():
                    assert writers.fetch_add(1) == 0
                    host.relax()
                    assert readers.load() == 0
                    writers.fetch_add(-1)
            else:
                with sem.reading():
                    readers.fetch_add(1)
                    host.relax()
                    assert writers.load() == 0
                    readers.fetch_add(-1)

    run_to_end(host, *spawn_all(host, worker))


def check_rwsem_writer_goes_first(host: RunnableHost) -> None:
    """A reader that comes while a writer waits gets in after the writer."""
    for attempt in range(1 if host.deterministic else 5):
        if _writer_went_first(host, attempt):
            return
    raise AssertionError("a reader overtook a waiting writer")


def _writer_went_first(host: RunnableHost, attempt: int) -> bool:
    sem = host.rwsem(f"sem{attempt}")
    order: list[str] = []

    def write() -> None:
        with sem.writing():
            order.append("writer")

    def read() -> None:
        with sem.reading():
            order.append("reader")

    def director() -> None:
        with sem.reading():
            host.spawn(write, "writer")
            sleep(host, SETTLE_NS)
            host.spawn(read, "reader")
            sleep(host, SETTLE_NS)
            assert "writer" not in order, "a writer got in beside a reader"

    run_to_end(host, host.spawn(director, "director"))
    return order == ["writer", "reader"]
