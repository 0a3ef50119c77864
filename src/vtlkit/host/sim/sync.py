"""Locks and wait queues of the simulator. Counterpart: kernel/locking/mutex.c, rwsem.c; kernel/sched/swait.c, rcuwait.

Promise: a lock is handed to the task that has waited longest, never raced for. That loses no behaviour: a task that
waits for a lock cannot be told from one that is about to ask for it, and arrival is a scheduling point of its own.
Nothing here is locked: a task loses control only in `RunLoop.block` and at access points.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from vtlkit.host.api import Lock, LockRank, RwSem, WaitQueue
from vtlkit.host.guards import ReadGuard, WriteGuard
from vtlkit.host.ranks import LockOrderError, RankedLock, add_held, check_order
from vtlkit.host.taskstate import TaskState

if TYPE_CHECKING:
    from vtlkit.host.sim.run import RunLoop
    from vtlkit.host.sim.task import SimTask

_RUNNING = TaskState.RUNNING
_INTERRUPTIBLE = TaskState.INTERRUPTIBLE
_UNINTERRUPTIBLE = TaskState.UNINTERRUPTIBLE


def _taking(loop: RunLoop, lock: RankedLock) -> SimTask:
    """The task that is about to wait for `lock`, which it may."""
    if loop.clock.in_interrupt:
        raise LockOrderError(f"'{lock.name}' is taken in interrupt context")
    if loop.instrument:
        loop.access_point()
    task = loop.running
    if task.held:
        check_order(task.name, task.held, lock)
    return task


class SimLock(Lock):
    """A mutex."""

    __slots__ = ("_loop", "_owner", "_waiters", "name", "rank")

    def __init__(self, loop: RunLoop, name: str, rank: LockRank) -> None:
        self._loop = loop
        self._owner: SimTask | None = None
        self._waiters: deque[SimTask] = deque()
        self.name = name
        self.rank = rank

    def acquire(self) -> None:
        task = _taking(self._loop, self)
        if self._owner is None:
            self._owner = task
        else:
            self._waiters.append(task)
            self._loop.block(self)
        task.held.append(self)

    def try_acquire(self) -> bool:
        loop = self._loop
        if loop.clock.in_interrupt:
            raise LockOrderError(f"'{self.name}' is taken in interrupt context")
        if loop.instrument:
            loop.access_point()
        if self._owner is not None:
            return False
        self._owner = loop.running
        add_held(self._owner.held, self)
        return True

    def release(self) -> None:
        loop = self._loop
        task = loop.running
        assert self._owner is task, f"task '{task.name}' releases '{self.name}', which it does not hold"
        if loop.instrument:
            loop.access_point()
        task.held.remove(self)
        if self._waiters:
            self._owner = self._waiters.popleft()
            loop.ready.append(self._owner)
        else:
            self._owner = None

    def held(self) -> bool:
        return self._owner is self._loop.running

    def describe_wait(self) -> str:
        holder = f"held by '{self._owner.name}'" if self._owner is not None else "free"
        return f"lock '{self.name}' ({holder})"


class SimRwSem(RwSem):
    """A reader/writer semaphore: first come, first served, so a waiting writer holds off new readers."""

    __slots__ = ("_loop", "_read_guard", "_readers", "_waiters", "_write_guard", "_writer", "name", "rank")

    def __init__(self, loop: RunLoop, name: str, rank: LockRank) -> None:
        self._loop = loop
        self._readers: list[SimTask] = []
        self._writer: SimTask | None = None
        self._waiters: deque[tuple[SimTask, bool]] = deque()
        """(task, whether it wants to write)"""
        self._read_guard = ReadGuard(self)
        self._write_guard = WriteGuard(self)
        self.name = name
        self.rank = rank

    def down_read(self) -> None:
        task = _taking(self._loop, self)
        if self._writer is None and not self._waiters:
            self._readers.append(task)
        else:
            self._waiters.append((task, False))
            self._loop.block(self)
        task.held.append(self)

    def up_read(self) -> None:
        task = self._loop.running
        assert task in self._readers, f"task '{task.name}' ends reading '{self.name}', which it does not read"
        if self._loop.instrument:
            self._loop.access_point()
        self._readers.remove(task)
        task.held.remove(self)
        self._grant()

    def down_write(self) -> None:
        task = _taking(self._loop, self)
        if self._writer is None and not self._readers:
            self._writer = task
        else:
            self._waiters.append((task, True))
            self._loop.block(self)
        task.held.append(self)

    def up_write(self) -> None:
        task = self._loop.running
        assert self._writer is task, f"task '{task.name}' ends writing '{self.name}', which it does not write"
        if self._loop.instrument:
            self._loop.access_point()
        self._writer = None
        task.held.remove(self)
        self._grant()

    def reading(self) -> AbstractContextManager[None]:
        return self._read_guard

    def writing(self) -> AbstractContextManager[None]:
        return self._write_guard

    def _grant(self) -> None:
        """Let in the first waiter: one writer once all readers have left, or all readers up to the next writer."""
        waiters = self._waiters
        while waiters and self._writer is None:
            task, writes = waiters[0]
            if writes and self._readers:
                return
            waiters.popleft()
            self._loop.ready.append(task)
            if writes:
                self._writer = task
            else:
                self._readers.append(task)

    def describe_wait(self) -> str:
        if self._writer is not None:
            return f"rwsem '{self.name}' (written by '{self._writer.name}')"
        readers = ", ".join(f"'{task.name}'" for task in self._readers)
        return f"rwsem '{self.name}' (read by {readers or 'nobody'})"


class SimWaitQueue(WaitQueue):
    """Tasks that sleep, or are about to, in the order in which they came."""

    __slots__ = ("_loop", "_tasks", "name")

    def __init__(self, loop: RunLoop, name: str) -> None:
        self._loop = loop
        self._tasks: list[SimTask] = []
        self.name = name

    def prepare(self, *, interruptible: bool = True) -> None:
        loop = self._loop
        if loop.instrument:
            loop.access_point()
        task = loop.running
        if task not in self._tasks:
            self._tasks.append(task)
            task.queues.append(self)
        task.state = _INTERRUPTIBLE if interruptible else _UNINTERRUPTIBLE

    def finish(self) -> None:
        loop = self._loop
        if loop.instrument:
            loop.access_point()
        task = loop.running
        task.state = _RUNNING
        if task in self._tasks:
            self._tasks.remove(task)
            task.queues.remove(self)

    def wake(self) -> bool:
        loop = self._loop
        if loop.instrument:
            loop.access_point()
        woken = False
        for task in self._tasks:
            if task.wake_up():
                woken = True
        return woken

    def waiters(self) -> int:
        return len(self._tasks)

    def describe_wait(self) -> str:
        return f"wait queue '{self.name}'"
