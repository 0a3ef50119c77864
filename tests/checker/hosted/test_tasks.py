"""What ends a task or lets it sleep, what nobody may do, and objects that tasks hand on: the same by both searches."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.checker.hosted.outcomes import by_graphs, by_states, checked, failing, outcomes
from vtlkit.checker.check import MODELS
from vtlkit.checker.result import ProblemKind
from vtlkit.host.api import Host, LockRank


def test_a_callback_of_a_timer_must_not_block() -> None:
    def with_lock(host: Host) -> None:
        lock = host.lock("lock")

        def callback() -> None:
            with lock:
                pass

        timer = host.timer(callback, "alarm")
        host.spawn(lambda: timer.start(5), "starter")

    def asleep(host: Host) -> None:
        queue = host.wait_queue("queue")

        def callback() -> None:
            host.wait_event(queue, lambda: False)

        timer = host.timer(callback, "alarm")
        host.spawn(lambda: timer.start(5), "starter")

    def for_writing(host: Host) -> None:
        sem = host.rwsem("sem")
        timer = host.timer(sem.down_read, "alarm")
        host.spawn(lambda: timer.start(5), "starter")

    for build in (with_lock, asleep, for_writing):
        assert "blocking call in interrupt context" in failing(build)


def test_a_timer_has_fired_or_is_cancelled_and_time_goes_on() -> None:
    def build(host: Host) -> None:
        fired = host.cell(0, "fired")
        timer = host.timer(lambda: fired.store(1), "alarm")

        def user() -> tuple[bool, int]:
            timer.start(50)
            cancelled = timer.cancel()
            now = host.now_ns()
            assert cancelled or now in (0, 50)
            return cancelled, fired.load()

        host.spawn(user, "user")  # type: ignore[arg-type]

    found = {results[0] for results in outcomes(build)}
    # Who cancels waits for a callback that has begun.
    assert found == {(True, 0), (False, 1)}


def test_a_sleep_ends_by_its_deadline_by_a_signal_or_by_a_wake_up() -> None:
    def build(host: Host) -> None:
        queue, flag = host.wait_queue("queue"), host.cell(0, "flag")

        def sleeper() -> tuple[bool, bool]:
            held = host.wait_event(queue, lambda: flag.load() == 1, deadline_ns=100)
            return held, host.now_ns() >= 100

        def waker() -> None:
            flag.store(1)
            queue.wake()

        host.spawn(sleeper, "sleeper")  # type: ignore[arg-type]
        host.spawn(waker, "waker")

    assert {results[0] for results in by_states(build)} >= {(True, False), (False, True)}
    assert by_graphs(build) == by_states(build)


@pytest.mark.parametrize("signals", [True, False])
def test_a_sleeper_that_only_a_signal_may_end(signals: bool) -> None:
    def build(host: Host) -> None:
        queue = host.wait_queue("queue")
        task = host.spawn(lambda: host.wait_event(queue, lambda: False, interruptible=signals), "sleeper")  # type: ignore[arg-type]
        host.spawn(task.signal, "sender")

    result = checked(build)
    kind = result.counterexample and result.counterexample.kind
    assert kind is (None if signals else ProblemKind.DEADLOCK)


def test_a_task_that_is_joined_has_done_all() -> None:
    def build(host: Host) -> None:
        cell = host.cell(0, "cell")
        task = host.spawn(lambda: cell.store(1), "worker")

        def joiner() -> int:
            task.join()
            return cell.load()

        host.spawn(joiner, "joiner")  # type: ignore[arg-type]

    for model in MODELS:
        assert by_graphs(build, model) == {(None, 1)}


def test_a_task_that_raises_is_a_finding_and_lets_its_lock_go() -> None:
    def build(host: Host) -> None:
        lock, cell = host.lock("lock"), host.cell(0, "cell")

        def raiser() -> None:
            with lock:
                if cell.load():
                    raise ValueError("too late")

        def writer() -> None:
            with lock:
                cell.store(1)

        host.spawn(raiser, "raiser")
        host.spawn(writer, "writer")

    for model in MODELS:
        assert failing(build, model) == "ValueError: too late"


def test_a_task_that_ends_with_a_lock_or_takes_one_twice_or_out_of_order() -> None:
    def keeps(host: Host) -> None:
        lock = host.lock("lock")
        host.spawn(lock.acquire, "keeper")
        host.spawn(lambda: None, "other")

    def twice(host: Host) -> None:
        lock = host.lock("lock")

        def task() -> None:
            with lock, lock:
                pass

        host.spawn(task, "greedy")

    def backwards(host: Host) -> None:
        outer, inner = host.lock("outer", LockRank.MEMORY_CHANGE), host.lock("inner", LockRank.VCPU)

        def task() -> None:
            with inner, outer:
                pass

        host.spawn(task, "backwards")

    assert "ended while it held 'lock'" in failing(keeps)
    assert "already holds" in failing(twice)
    assert "while it holds 'inner'" in failing(backwards)


@pytest.mark.parametrize("model", MODELS)
def test_two_tasks_that_hand_each_other_objects(model: str) -> None:
    class Message:
        def __init__(self, text: str) -> None:
            self.text = text

    def build(host: Host) -> None:
        box = host.cell(None, "box")

        def sender(text: str) -> Callable[[], bool]:
            def send() -> bool:
                return box.cmpxchg(None, Message(text)) is None  # type: ignore[arg-type]

            return send

        def reader() -> str:
            message = box.load_acquire()
            return message.text if isinstance(message, Message) else ""

        host.spawn(sender("a"), "a")  # type: ignore[arg-type]
        host.spawn(sender("b"), "b")  # type: ignore[arg-type]
        host.spawn(reader, "reader")  # type: ignore[arg-type]

    expected = {(True, False, "a"), (True, False, ""), (False, True, "b"), (False, True, "")}
    assert by_graphs(build, model) == expected
    if model != "rc11":
        assert by_states(build, model) == expected


def test_one_object_that_two_tasks_store() -> None:
    class Thing:
        pass

    def build(host: Host) -> None:
        one, other = Thing(), Thing()
        box = host.cell(one, "box")

        def swapper() -> bool:
            return box.cmpxchg(one, other) is one

        host.spawn(swapper, "first")  # type: ignore[arg-type]
        host.spawn(swapper, "second")  # type: ignore[arg-type]
        host.spawn(lambda: box.store(one), "back")

    assert outcomes(build) == {(True, False, None), (False, True, None), (True, True, None)}


def test_a_deadlock_of_two_locks_is_found_by_both() -> None:
    def build(host: Host) -> None:
        one, other = host.cell(0, "one"), host.cell(0, "other")
        queue = host.wait_queue("queue")

        def wants(mine: object, yours: object) -> Callable[[], None]:
            def task() -> None:
                mine.store(1)  # type: ignore[attr-defined]
                host.wait_event(queue, lambda: yours.load() == 0)  # type: ignore[attr-defined]
                mine.store(0)  # type: ignore[attr-defined]
                queue.wake()

            return task

        host.spawn(wants(one, other), "first")
        host.spawn(wants(other, one), "second")

    for engine in ("states", "graphs"):
        counterexample = checked(build, "sc", engine).counterexample
        assert counterexample is not None
        assert counterexample.kind is ProblemKind.DEADLOCK
