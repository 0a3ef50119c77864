"""What only the threads host has: real preemption, the timer thread, ending tasks, adopted threads."""

from __future__ import annotations

import threading

import pytest

from vtlkit.host.threads import ThreadHost
from vtlkit.testing.host_conformance.running import MS, sleep


def test_cancel_waits_for_a_callback_that_has_begun() -> None:
    with ThreadHost() as host:
        begun, go = threading.Event(), threading.Event()
        log: list[str] = []

        def callback() -> None:
            begun.set()
            assert go.wait(5)
            log.append("callback")

        timer = host.timer(callback, "timer")

        def canceller() -> None:
            timer.start(host.now_ns())
            assert begun.wait(5)
            threading.Timer(0.02, go.set).start()
            assert not timer.cancel()
            log.append("cancelled")

        host.spawn(canceller, "canceller")
        host.run()
        assert log == ["callback", "cancelled"]


def test_a_callback_may_cancel_its_own_timer() -> None:
    with ThreadHost() as host:
        done = threading.Event()

        def callback() -> None:
            timer.start(host.now_ns() + MS)
            assert timer.cancel()
            done.set()

        timer = host.timer(callback, "timer")
        timer.start(0)
        assert done.wait(5)


def test_restarted_timers_do_not_pile_up() -> None:
    with ThreadHost() as host:
        timer = host.timer(lambda: None, "tsc_deadline")
        later = host.now_ns() + 3_600_000 * MS
        for tick in range(10_000):
            timer.start(later + tick)
        assert len(host._timers._alarms) < 200
        assert timer.deadline_ns() == later + 9_999
        assert timer.cancel()


def test_a_timer_moved_forward_fires_early_and_one_moved_back_does_not() -> None:
    with ThreadHost() as host:
        fired: list[str] = []
        done = threading.Event()

        def expire() -> None:
            fired.append("forward")
            done.set()

        backward = host.timer(lambda: fired.append("backward"), "backward")
        forward = host.timer(expire, "forward")
        forward.start(host.now_ns() + 3_600_000 * MS)
        backward.start(host.now_ns() + 50 * MS)
        backward.start(host.now_ns() + 3_600_000 * MS)
        forward.start(host.now_ns() + 60 * MS)
        assert done.wait(5)
        assert fired == ["forward"]


def test_main_thread_is_adopted() -> None:
    with ThreadHost() as host:
        task = host.current()
        assert task is host.current()
        assert task.name == threading.current_thread().name
        queue = host.wait_queue("queue")
        flag = host.cell(False, "flag")

        def waker() -> None:
            sleep(host, MS)
            flag.store(True)
            queue.wake()

        host.spawn(waker, "waker")
        assert host.wait_event(queue, flag.load)


def test_a_killed_waiter_leaves_the_lock_usable() -> None:
    host = ThreadHost()
    lock = host.lock("lock")
    sem = host.rwsem("sem")
    lock.acquire()
    host.spawn(lock.acquire, "waits_for_lock")
    sleep(host, 5 * MS)
    host.shutdown()
    lock.release()
    assert lock.try_acquire()
    lock.release()
    with sem.writing():
        pass


def test_stop_hooks_end_guests_that_do_not_block() -> None:
    with ThreadHost() as host:
        kicked = threading.Event()
        host.on_stop(kicked.set)

        def guest() -> None:
            while not kicked.wait(0.001):
                pass
            host.consume_ns(1)
            raise AssertionError("the task went on")

        def raiser() -> None:
            raise KeyError("boom")

        host.spawn(guest, "guest")
        host.spawn(raiser, "raiser")
        with pytest.raises(KeyError):
            host.run()


def test_seeded_choices() -> None:
    def sequence(seed: int) -> list[object]:
        with ThreadHost(seed=seed) as host:
            return [*[host.choose(1000, "test") for _ in range(8)], host.random_bytes(16)]

    assert sequence(5) == sequence(5) != sequence(6)


def test_timer_after_shutdown_is_refused() -> None:
    host = ThreadHost()
    timer = host.timer(lambda: None, "late")
    host.shutdown()
    with pytest.raises(AssertionError, match="'late'"):
        timer.start(0)
