"""`ThreadHost`: the host on real threads and real time.

Promise: the host contract under true preemption. `_tasks`, `_live` and `_failure` are protected by `_changed`, on which
only `run()` waits; `_stopping` is set once, under it, and read without it at every blocking call.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from vtlkit.host.api import Bitmap, Cell, Lock, LockRank, RunnableHost, RwSem, Task, Timer, WaitQueue
from vtlkit.host.splitmix import SplitMix64
from vtlkit.host.threads.cells import ThreadBitmap, ThreadCell
from vtlkit.host.threads.sync import ThreadLock, ThreadRwSem, ThreadWaitQueue
from vtlkit.host.threads.task import TaskKilled, ThreadTask
from vtlkit.host.threads.timers import MonotonicClock, ThreadTimer, TimerThread, yield_processor

T = TypeVar("T")

STOP_GRACE_NS = 5_000_000_000
"""How long `run()` and `shutdown()` wait for tasks that have been told to end."""


class ThreadHost(RunnableHost):
    """Tasks start when they are spawned; `run()` waits for them. A context manager: `shutdown()` at the end.

    `seed` is for `choose` and `random_bytes`; without one they start from the operating system's randomness.
    """

    deterministic = False

    def __init__(self, *, seed: int | None = None) -> None:
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            raise RuntimeError("ThreadHost orders accesses by the interpreter lock; this Python runs without it")
        self._clock = MonotonicClock()
        self._generator = SplitMix64(int.from_bytes(os.urandom(8), "little") if seed is None else seed)
        self._generator_lock = threading.Lock()
        self._local = threading.local()
        self._changed = threading.Condition(threading.Lock())
        self._tasks: list[ThreadTask] = []
        """Every spawned task that has not finished."""
        self._live = 0
        self._failure: BaseException | None = None
        self._stopping = False
        self._stop_hooks: list[Callable[[], None]] = []
        self._timers = TimerThread(self._clock, self._enter_interrupt, self.fail)
        self.seconds_until = self._clock.seconds_until

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self, until: int | None = None) -> None:
        """Wait until every task but daemons is done, `stop()`, or host time `until` (ns); may be called again.

        Raises the first exception that a task or a timer callback raised, once the other tasks have been ended.
        """
        with self._changed:
            while self._live and not self._stopping:
                timeout = self.seconds_until(until)
                if timeout is not None and timeout <= 0:
                    return
                self._changed.wait(timeout)
        if self._stopping:
            self._wait_for_end()
        with self._changed:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """End every task at its next blocking call with `TaskKilled`. Calls the stop hooks. Never blocks."""
        with self._changed:
            if self._stopping:
                return
            self._stopping = True
            tasks = list(self._tasks)
            self._changed.notify_all()
        for hook in self._stop_hooks:
            hook()
        for task in tasks:
            task.nudge()

    def on_stop(self, hook: Callable[[], None]) -> None:
        """Have `hook` called by `stop()`, from any thread: to kick what runs guest code, which does not block."""
        self._stop_hooks.append(hook)

    def shutdown(self) -> None:
        """Stop, wait for the tasks, end the timer thread. The host cannot be used after."""
        self.stop()
        self._wait_for_end()
        self._timers.end()

    def __enter__(self) -> ThreadHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def _wait_for_end(self) -> None:
        deadline = self.now_ns() + STOP_GRACE_NS
        caller = self.running()
        with self._changed:
            while others := [task.name for task in self._tasks if task is not caller]:
                timeout = self.seconds_until(deadline)
                if timeout is None or timeout <= 0:
                    error = RuntimeError(f"tasks that do not end: {', '.join(others)}")
                    raise error from self._failure
                self._changed.wait(timeout)

    # --- for the parts of this host -----------------------------------------------------------------------------------

    def running(self) -> ThreadTask:
        """The calling thread's task; a thread that the host did not start gets one."""
        try:
            task: ThreadTask = self._local.task
        except AttributeError:
            task = ThreadTask(self, None, threading.current_thread().name, True)
            self._local.task = task
        return task

    def adopt(self, task: ThreadTask) -> None:
        """Make `task` the calling thread's."""
        self._local.task = task

    def _enter_interrupt(self) -> None:
        self.running().in_interrupt = True

    def check_may_block(self, task: ThreadTask) -> None:
        """Called by `task` before it waits."""
        if task.in_interrupt:
            raise AssertionError("blocking call in interrupt context")
        if self._stopping and not task.adopted:
            raise TaskKilled

    def fail(self, error: BaseException, where: str) -> None:
        """End the run with an error that `run()` raises."""
        error.add_note(f"in {where} at {self.now_ns()} ns")
        with self._changed:
            if self._failure is None:
                self._failure = error
            elif self._failure is not error:
                self._failure.add_note(f"then in {where}: {error!r}")
        self.stop()

    def task_finished(self, task: ThreadTask) -> None:
        with self._changed:
            self._tasks.remove(task)
            if not task.daemon:
                self._live -= 1
            self._changed.notify_all()

    # --- Host ---------------------------------------------------------------------------------------------------------

    def cell(self, value: T, name: str) -> Cell[T]:
        return ThreadCell(value, name)

    def bitmap(self, name: str) -> Bitmap:
        return ThreadBitmap(name)

    def lock(self, name: str, rank: LockRank = LockRank.LEAF) -> Lock:
        return ThreadLock(self, name, rank)

    def rwsem(self, name: str, rank: LockRank = LockRank.LEAF) -> RwSem:
        return ThreadRwSem(self, name, rank)

    def wait_queue(self, name: str) -> WaitQueue:
        return ThreadWaitQueue(self, name)

    def timer(self, callback: Callable[[], None], name: str) -> Timer:
        return ThreadTimer(self._timers, callback, name)

    def spawn(self, function: Callable[[], None], name: str, *, daemon: bool = False) -> Task:
        task = ThreadTask(self, function, name, daemon)
        with self._changed:
            self._tasks.append(task)
            if not daemon:
                self._live += 1
        task.thread.start()
        return task

    def current(self) -> Task:
        return self.running()

    def context(self) -> str:
        task = self.running()
        alarm = self._timers.firing() if task.in_interrupt else None
        return task.name if alarm is None else alarm.alarm_name()

    def now_ns(self) -> int:
        return self._clock.now_ns()

    def schedule(self, deadline_ns: int | None = None) -> None:
        self.running().sleep(deadline_ns)

    def relax(self) -> bool:
        if self._stopping:
            self.check_may_block(self.running())
        yield_processor()
        return True

    def guest_budget_ns(self) -> None:
        return None

    def consume_ns(self, duration_ns: int) -> None:
        if self._stopping:
            self.check_may_block(self.running())

    def choose(self, count: int, label: str) -> int:
        if count < 1:
            raise ValueError(f"choice '{label}' among {count}")
        with self._generator_lock:
            return self._generator.below(count)

    def random_bytes(self, size: int) -> bytes:
        with self._generator_lock:
            return self._generator.below(1 << 8 * size).to_bytes(size, "little")

    def smp_mb(self) -> None:
        """Nothing to order: the interpreter lock orders all accesses."""

    def smp_rmb(self) -> None:
        """As `smp_mb`."""

    def smp_wmb(self) -> None:
        """As `smp_mb`."""
