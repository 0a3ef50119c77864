"""Timers and interrupt context."""

from __future__ import annotations

from collections.abc import Callable

from vtlkit.host.api import RunnableHost
from vtlkit.host.ranks import LockOrderError
from vtlkit.testing.host_conformance.running import (
    MS,
    SETTLE_NS,
    run_raises,
    run_to_end,
    sleep,
)


def check_timers(host: RunnableHost) -> None:
    """Timers fire once, in the order of their deadlines, not early; cancelled ones do not; a restart replaces."""
    fired: list[tuple[str, int]] = []
    base = host.now_ns() + SETTLE_NS

    def record(name: str) -> Callable[[], None]:
        return lambda: fired.append((name, host.now_ns()))

    def user() -> None:
        deadlines = {"third": base + 3 * MS, "first": base + MS, "second": base + 2 * MS, "gone": base + MS}
        timers = {name: host.timer(record(name), name) for name in deadlines}
        timers["third"].start(base)
        for name, deadline in deadlines.items():
            timers[name].start(deadline)
            assert timers[name].armed()
            assert timers[name].deadline_ns() == deadline
        assert timers["gone"].cancel()
        assert not timers["gone"].cancel()
        assert timers["gone"].deadline_ns() is None
        sleep(host, 3 * SETTLE_NS)
        assert [name for name, _ in fired] == ["first", "second", "third"]
        assert all(when >= deadlines[name] for name, when in fired), "a timer fired early"
        assert not any(timer.armed() for timer in timers.values())
        timers["gone"].start(host.now_ns() - 1)
        sleep(host, SETTLE_NS)
        assert fired[-1][0] == "gone", "a past deadline does not fire"

    run_to_end(host, host.spawn(user, "user"))


def check_periodic_timer(host: RunnableHost) -> None:
    """A callback may restart its timer and wake tasks; `cancel` from outside ends it for good."""
    queue = host.wait_queue("ticks")
    ticks = host.cell(0, "ticks")

    def tick() -> None:
        ticks.fetch_add(1)
        queue.wake()
        timer.start(host.now_ns() + MS)

    timer = host.timer(tick, "periodic")

    def user() -> None:
        timer.start(host.now_ns() + MS)
        assert host.wait_event(queue, lambda: ticks.load() >= 3)
        assert timer.cancel()
        after = ticks.load()
        sleep(host, SETTLE_NS)
        assert ticks.load() == after

    run_to_end(host, host.spawn(user, "user"))


def check_context(host: RunnableHost) -> None:
    """`context` names the task that runs, and in a timer's callback the timer."""
    found: list[str] = []
    timer = host.timer(lambda: found.append(host.context()), "alarm")

    def user() -> None:
        found.append(host.context())
        timer.start(host.now_ns() + MS)
        sleep(host, SETTLE_NS)
        found.append(host.context())

    run_to_end(host, host.spawn(user, "user"))
    assert found == ["user", "timer 'alarm'", "user"], found


def check_interrupt_context(host: RunnableHost) -> None:
    """A callback that takes a lock fails the run."""
    lock = host.lock("lock")
    timer = host.timer(lock.acquire, "taker")

    def user() -> None:
        timer.start(host.now_ns())
        # The failure ends this sleep; a busy machine may take a while to get there.
        sleep(host, 100 * SETTLE_NS)

    host.spawn(user, "user")
    error = run_raises(host, LockOrderError)
    assert "'lock'" in str(error)
    assert any("'taker'" in note for note in error.__notes__)
