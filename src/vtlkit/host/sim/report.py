"""What a deadlock looks like: one line per task that is left, with what it waits for, where, and since when."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtlkit.host.sim.task import SimTask

_HOST_DIRECTORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Deadlock(Exception):
    """No task can run, no timer is armed, and a task that is not a daemon is not done. The text: who waits for what."""


def describe_deadlock(tasks: Iterable[SimTask], now_ns: int) -> str:
    lines = [f"deadlock at {now_ns} ns: no task can run and no timer is armed"]
    lines += [f"  {describe_task(task, now_ns)}" for task in tasks]
    return "\n".join(lines)


def describe_task(task: SimTask, now_ns: int) -> str:
    """One line: name, what it waits for, where in the code above the host, for how long, what it holds."""
    kind = "daemon task" if task.daemon else "task"
    if task.blocked_on is None:
        return f"{kind} '{task.name}' can run"
    line = f"{kind} '{task.name}' waits for {task.blocked_on.describe_wait()}"
    line += f" at {_blocking_call(task.resume.gr_frame)} for {now_ns - task.blocked_since} ns"
    if task.held:
        line += " holding " + ", ".join(f"'{lock.name}'" for lock in task.held)
    return line


def _blocking_call(frame: FrameType | None) -> str:
    """file:line of the innermost frame that is not the host's own."""
    while frame is not None and os.path.abspath(frame.f_code.co_filename).startswith(_HOST_DIRECTORY):
        frame = frame.f_back
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
