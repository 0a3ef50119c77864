"""How a check runs its tasks on a host, and how long it waits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vtlkit.host.api import Host, RunnableHost, Task

HostCheck = Callable[[RunnableHost], None]

MS = 1_000_000
SETTLE_NS = 20 * MS
"""Long enough for every other task to have blocked: exact where time is virtual, ample where it is not."""
LIMIT_NS = 30_000 * MS
"""A check on real time that takes longer hangs."""
TASKS = 4
ROUNDS = 25


def run_to_end(host: RunnableHost, *tasks: Task) -> None:
    """Run, and fail if a task is left (a deterministic host says so itself)."""
    host.run(None if host.deterministic else host.now_ns() + LIMIT_NS)
    left = [task.name for task in tasks if not task.done()]
    assert not left, f"tasks that hang: {left}"


def sleep(host: Host, duration_ns: int) -> None:
    """Sleep for a time, woken by nothing else."""
    deadline = host.now_ns() + duration_ns
    queue = host.wait_queue("sleep")
    assert not host.wait_event(queue, lambda: False, interruptible=False, deadline_ns=deadline)
    assert host.now_ns() >= deadline, "a sleep ended before its deadline"


def spawn_all(host: Host, function: Callable[[int], None], count: int = TASKS) -> list[Task]:
    return [host.spawn(partial(function, index), f"task{index}") for index in range(count)]


def run_raises(host: RunnableHost, kind: type[BaseException]) -> BaseException:
    try:
        host.run(None if host.deterministic else host.now_ns() + LIMIT_NS)
    except kind as error:
        return error
    raise AssertionError(f"run() did not raise {kind.__name__}")
