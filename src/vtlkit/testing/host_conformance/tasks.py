"""Tasks: joining, failing, ending; and the choice sequence."""

from __future__ import annotations

from vtlkit.host.api import Cell, RunnableHost, WaitQueue
from vtlkit.testing.host_conformance.running import (
    LIMIT_NS,
    MS,
    SETTLE_NS,
    TASKS,
    run_raises,
    run_to_end,
    sleep,
    spawn_all,
)


class _Mishap(Exception):
    pass


def check_join(host: RunnableHost) -> None:
    """`join` returns when the task is done, at once if it is; `current` is the calling task; tasks spawn tasks."""
    results: list[str] = []

    def child() -> None:
        sleep(host, MS)
        results.append(host.current().name)

    def parent() -> None:
        task = host.spawn(child, "child")
        task.join()
        assert task.done()
        assert results == ["child"]
        task.join()
        results.append(host.current().name)

    run_to_end(host, host.spawn(parent, "parent"))
    assert results == ["child", "parent"]


def check_exception(host: RunnableHost) -> None:
    """What a task raises ends the others (their `finally` blocks run) and leaves `run` and `join`."""
    ended: list[str] = []
    queue = host.wait_queue("for_ever")

    def sleeper() -> None:
        try:
            host.wait_event(queue, lambda: False)
            ended.append("went on")
        finally:
            ended.append("finally")

    def raiser() -> None:
        sleep(host, SETTLE_NS)
        raise _Mishap

    host.spawn(sleeper, "sleeper")
    task = host.spawn(raiser, "raiser")
    error = run_raises(host, _Mishap)
    assert any("'raiser'" in note for note in error.__notes__), "the task is not named"
    assert ended == ["finally"]
    assert task.done()
    try:
        task.join()
    except _Mishap:
        return
    raise AssertionError("join() did not raise")


def check_daemon(host: RunnableHost) -> None:
    """A daemon that sleeps for ever does not keep the run alive."""
    queue = host.wait_queue("for_ever")
    host.spawn(lambda: host.schedule() if host.wait_event(queue, lambda: False) else None, "daemon", daemon=True)
    run_to_end(host, host.spawn(lambda: sleep(host, MS), "worker"))
    host.stop()


def check_stop(host: RunnableHost) -> None:
    """`stop` from a task ends the run and the tasks, locks released on the way, without an error."""
    lock = host.lock("lock")
    ended: list[int] = []

    def sleeper(index: int) -> None:
        try:
            with lock:
                sleep(host, LIMIT_NS)
        finally:
            ended.append(index)

    tasks = spawn_all(host, sleeper)

    def stopper() -> None:
        sleep(host, SETTLE_NS)
        host.stop()

    run_to_end(host, *tasks, host.spawn(stopper, "stopper"))
    assert sorted(ended) == list(range(TASKS))
    assert host.now_ns() < LIMIT_NS


def check_run_until(host: RunnableHost) -> None:
    """`run(until=t)` returns at t with the tasks where they are; a later `run` goes on with them."""
    queue, told = host.wait_queue("sleeper"), host.cell(False, "told")
    task = host.spawn(lambda: _wait_until(host, queue, told), "sleeper")
    until = host.now_ns() + SETTLE_NS
    host.run(until=until)
    assert host.now_ns() >= until
    # However late the run came back: nobody has told it yet.
    assert not task.done()

    def tell() -> None:
        told.store(True)
        queue.wake()

    run_to_end(host, task, host.spawn(tell, "teller"))


def _wait_until(host: RunnableHost, queue: WaitQueue, told: Cell[bool]) -> None:
    assert host.wait_event(queue, told.load, interruptible=False)


def check_choices(host: RunnableHost) -> None:
    """`choose` covers its range and no more; `random_bytes` has the size asked for."""

    def chooser() -> None:
        assert {host.choose(3, "test") for _ in range(200)} == {0, 1, 2}
        assert host.choose(1, "test") == 0
        assert [len(host.random_bytes(size)) for size in (0, 1, 8, 33)] == [0, 1, 8, 33]
        assert len({host.random_bytes(16) for _ in range(20)}) == 20

    run_to_end(host, host.spawn(chooser, "chooser"))
