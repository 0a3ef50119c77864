"""Locks and wait queues of the threads host. Counterpart: kernel/locking/mutex.c, rwsem.c; rcuwait and swait.

Promise: a lock is handed to the task that has waited longest. Each object's `_guard` protects its fields, is held for a
few instructions and never while a task sleeps; a task's own condition is the only lock taken inside it.

No wake-up is lost: `prepare` enters the queue and marks the task under `_guard`, and `wake` looks under `_guard`. If
`wake` comes first, what the waker stored before it is seen by the check that follows `prepare`; if it comes second, it
finds the task marked.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from vtlkit.host.api import Lock, LockRank, RwSem, WaitQueue
from vtlkit.host.guards import ReadGuard, WriteGuard
from vtlkit.host.ranks import LockOrderError, RankedLock, add_held, check_order
from vtlkit.host.taskstate import TaskState

if TYPE_CHECKING:
    from vtlkit.host.threads.host import ThreadHost
    from vtlkit.host.threads.task import ThreadTask

_RUNNING = TaskState.RUNNING
_INTERRUPTIBLE = TaskState.INTERRUPTIBLE
_UNINTERRUPTIBLE = TaskState.UNINTERRUPTIBLE


def _check_taking(task: ThreadTask, lock: RankedLock, *, waits: bool = True) -> None:
    """Whether `task`, which holds locks or is no task, may take `lock`."""
    if task.in_interrupt:
        raise LockOrderError(f"'{lock.name}' is taken in interrupt context")
    if waits and task.held:
        check_order(task.name, task.held, lock)


class ThreadLock(Lock):
    """A mutex."""

    __slots__ = ("_guard", "_host", "_owner", "_waiters", "name", "rank")

    def __init__(self, host: ThreadHost, name: str, rank: LockRank) -> None:
        self._host = host
        self._guard = threading.Lock()
        self._owner: ThreadTask | None = None
        self._waiters: deque[ThreadTask] = deque()
        self.name = name
        self.rank = rank

    def acquire(self) -> None:
        task = self._host.running()
        if task.held or task.in_interrupt:
            _check_taking(task, self)
        with self._guard:
            if self._owner is None:
                self._owner = task
                task.held.append(self)
                return
            self._waiters.append(task)
        try:
            task.block()
        except BaseException:
            with self._guard:
                if task in self._waiters:
                    self._waiters.remove(task)
                elif task.take_grant():
                    self._pass_on()
            raise
        task.held.append(self)

    def try_acquire(self) -> bool:
        task = self._host.running()
        _check_taking(task, self, waits=False)
        with self._guard:
            if self._owner is not None:
                return False
            self._owner = task
        add_held(task.held, self)
        return True

    def release(self) -> None:
        task = self._host.running()
        assert self._owner is task, f"task '{task.name}' releases '{self.name}', which it does not hold"
        task.held.remove(self)
        with self._guard:
            self._pass_on()

    def _pass_on(self) -> None:
        """Give the lock to the first waiter. Under `_guard`."""
        if self._waiters:
            self._owner = self._waiters.popleft()
            self._owner.grant()
        else:
            self._owner = None

    def held(self) -> bool:
        return self._owner is self._host.running()

    __enter__ = acquire


class ThreadRwSem(RwSem):
    """A reader/writer semaphore: first come, first served, so a waiting writer holds off new readers."""

    __slots__ = ("_guard", "_host", "_read_guard", "_readers", "_waiters", "_write_guard", "_writer", "name", "rank")

    def __init__(self, host: ThreadHost, name: str, rank: LockRank) -> None:
        self._host = host
        self._guard = threading.Lock()
        self._readers: list[ThreadTask] = []
        self._writer: ThreadTask | None = None
        self._waiters: deque[tuple[ThreadTask, bool]] = deque()
        """(task, whether it wants to write)"""
        self._read_guard = ReadGuard(self)
        self._write_guard = WriteGuard(self)
        self.name = name
        self.rank = rank

    def down_read(self) -> None:
        task = self._host.running()
        if task.held or task.in_interrupt:
            _check_taking(task, self)
        with self._guard:
            if self._writer is None and not self._waiters:
                self._readers.append(task)
                task.held.append(self)
                return
        self._down(task, writes=False)

    def down_write(self) -> None:
        task = self._host.running()
        _check_taking(task, self)
        self._down(task, writes=True)

    def up_read(self) -> None:
        task = self._host.running()
        assert task in self._readers, f"task '{task.name}' ends reading '{self.name}', which it does not read"
        task.held.remove(self)
        with self._guard:
            self._readers.remove(task)
            if self._waiters:
                self._grant()

    def up_write(self) -> None:
        task = self._host.running()
        assert self._writer is task, f"task '{task.name}' ends writing '{self.name}', which it does not write"
        task.held.remove(self)
        with self._guard:
            self._writer = None
            self._grant()

    def _down(self, task: ThreadTask, *, writes: bool) -> None:
        with self._guard:
            self._waiters.append((task, writes))
            self._grant()
        try:
            task.block()
        except BaseException:
            with self._guard:
                if (task, writes) in self._waiters:
                    self._waiters.remove((task, writes))
                elif task.take_grant():
                    if writes:
                        self._writer = None
                    else:
                        self._readers.remove(task)
                self._grant()
            raise
        task.held.append(self)

    def _grant(self) -> None:
        """Let in the first waiters: one writer once all readers have left, or all readers up to the next writer."""
        waiters = self._waiters
        while waiters and self._writer is None:
            task, writes = waiters[0]
            if writes and self._readers:
                return
            waiters.popleft()
            if writes:
                self._writer = task
            else:
                self._readers.append(task)
            task.grant()

    def reading(self) -> AbstractContextManager[None]:
        return self._read_guard

    def writing(self) -> AbstractContextManager[None]:
        return self._write_guard


class ThreadWaitQueue(WaitQueue):
    """Tasks that sleep, or are about to, in the order in which they came."""

    __slots__ = ("_guard", "_host", "_tasks", "name")

    def __init__(self, host: ThreadHost, name: str) -> None:
        self._host = host
        self._guard = threading.Lock()
        self._tasks: list[ThreadTask] = []
        self.name = name

    def prepare(self, *, interruptible: bool = True) -> None:
        task = self._host.running()
        with self._guard:
            if task not in self._tasks:
                self._tasks.append(task)
            task.mark(_INTERRUPTIBLE if interruptible else _UNINTERRUPTIBLE)

    def finish(self) -> None:
        task = self._host.running()
        task.mark(_RUNNING)
        with self._guard:
            if task in self._tasks:
                self._tasks.remove(task)

    def wake(self) -> bool:
        woken = False
        with self._guard:
            for task in self._tasks:
                if task.wake_up():
                    woken = True
        return woken

    def waiters(self) -> int:
        return len(self._tasks)
