"""Sleeping and waking: no wake-up is lost, deadlines and signals end a sleep."""

from __future__ import annotations

from functools import partial

from vtlkit.host.api import Cell, RunnableHost
from vtlkit.testing.host_conformance.running import (
    LIMIT_NS,
    MS,
    ROUNDS,
    SETTLE_NS,
    TASKS,
    run_to_end,
    sleep,
    spawn_all,
)


def check_no_lost_wake(host: RunnableHost) -> None:
    """A waiter of prepare / check / sleep gets everything that many wakers produce, who wait for that in part."""
    queue = host.wait_queue("work")
    drained = host.wait_queue("drained")
    pending = host.cell(0, "pending")
    total = (TASKS - 1) * ROUNDS

    def waiter() -> None:
        handled = 0
        while handled < total:
            queue.prepare()
            if pending.load() == 0:
                host.schedule()
            handled += pending.xchg(0)
            drained.wake()
        queue.finish()

    def waker(index: int) -> None:
        for turn in range(ROUNDS):
            if turn >= index * ROUNDS // TASKS:
                assert host.wait_event(drained, partial(_holds, pending, 0))
            pending.fetch_add(1)
            queue.wake()

    run_to_end(host, host.spawn(waiter, "waiter"), *spawn_all(host, waker, TASKS - 1))


def check_ping_pong(host: RunnableHost) -> None:
    """Two tasks that wake each other by turns never both sleep."""
    queue = host.wait_queue("turn")
    turn = host.cell(0, "turn")

    def player(index: int) -> None:
        for round_ in range(ROUNDS):
            expected = 2 * round_ + index
            assert host.wait_event(queue, partial(_holds, turn, expected))
            turn.fetch_add(1)
            queue.wake()

    run_to_end(host, *spawn_all(host, player, 2))
    assert turn.load() == 2 * ROUNDS


def _holds(cell: Cell[int], value: int) -> bool:
    return cell.load() == value


def check_wake_all(host: RunnableHost) -> None:
    """One wake reaches every sleeper; a condition may take locks."""
    queue = host.wait_queue("gate")
    lock = host.lock("gate_lock")
    is_open = False
    asleep = host.cell(0, "asleep")

    def gate() -> bool:
        with lock:
            host.relax()
            return is_open

    def waiter(_: int) -> None:
        asleep.fetch_add(1)
        assert host.wait_event(queue, gate)

    def opener() -> None:
        nonlocal is_open
        while asleep.load() < TASKS:
            host.relax()
        with lock:
            is_open = True
        queue.wake()

    run_to_end(host, *spawn_all(host, waiter), host.spawn(opener, "opener"))
    assert queue.waiters() == 0


def check_wake_result(host: RunnableHost) -> None:
    """`wake` says whether it ended a sleep or the preparation for one; `schedule` after it does not block."""
    queue = host.wait_queue("queue")

    def one() -> None:
        assert not queue.wake()
        queue.prepare()
        queue.prepare()
        assert queue.waiters() == 1
        assert queue.wake()
        assert not queue.wake()
        host.schedule()
        queue.finish()
        assert queue.waiters() == 0
        assert not queue.wake()
        host.schedule()

    run_to_end(host, host.spawn(one, "one"))


def check_deadline(host: RunnableHost) -> None:
    """A sleep ends at its deadline, not before; a past deadline does not block; a wake-up in time comes first."""
    queue = host.wait_queue("queue")
    flag = host.cell(False, "flag")

    def sleeper() -> None:
        sleep(host, 3 * MS)
        assert not host.wait_event(queue, lambda: False, deadline_ns=host.now_ns())
        assert host.wait_event(queue, flag.load, deadline_ns=host.now_ns() + LIMIT_NS)

    def waker() -> None:
        sleep(host, SETTLE_NS)
        flag.store(True)
        queue.wake()

    before = host.now_ns()
    run_to_end(host, host.spawn(sleeper, "sleeper"), host.spawn(waker, "waker"))
    assert host.now_ns() - before < LIMIT_NS


def check_signals(host: RunnableHost) -> None:
    """A signal ends an interruptible sleep, whenever it comes, stays pending until taken, and ends no other sleep."""
    queue = host.wait_queue("queue")
    ready = host.cell(False, "ready")
    phase = host.cell(0, "phase")

    def sleeper() -> None:
        task = host.current()
        phase.store(1)
        assert not host.wait_event(queue, lambda: False)
        assert task.signal_pending()
        assert not host.wait_event(queue, lambda: False), "a pending signal did not end the sleep"
        assert task.clear_signal()
        assert not task.clear_signal()
        phase.store(2)
        assert host.wait_event(queue, ready.load, interruptible=False)
        assert ready.load()
        assert task.clear_signal()

    target = host.spawn(sleeper, "sleeper")

    def sender() -> None:
        while phase.load() != 1:
            host.relax()
        target.signal()
        while phase.load() != 2:
            host.relax()
        sleep(host, SETTLE_NS)
        target.signal()
        sleep(host, SETTLE_NS)
        assert not target.done(), "a signal ended an uninterruptible sleep"
        ready.store(True)
        queue.wake()

    run_to_end(host, target, host.spawn(sender, "sender"))
