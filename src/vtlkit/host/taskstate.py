"""The three states of a task that the prepare / check / sleep protocol uses (`TASK_*` in include/linux/sched.h)."""

from __future__ import annotations

import enum


class TaskState(enum.IntEnum):
    """What `Host.schedule` goes by. Set by the task before it sleeps, and back to RUNNING by whoever wakes it."""

    RUNNING = 0
    INTERRUPTIBLE = 1
    UNINTERRUPTIBLE = 2
