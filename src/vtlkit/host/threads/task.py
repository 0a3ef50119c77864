"""A task of the threads host: a thread, its state and the condition variable it sleeps on. Counterpart: `task_struct`.

Promise: no wake-up is lost. `state`, `signalled` and `granted` change only under `condition`, on which only the task
itself sleeps, and it looks at them after every wait. `held` belongs to the task alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from vtlkit.host.api import Task
from vtlkit.host.ranks import RankedLock, check_none_held
from vtlkit.host.taskstate import TaskState

if TYPE_CHECKING:
    from vtlkit.host.threads.host import ThreadHost

_RUNNING = TaskState.RUNNING
_INTERRUPTIBLE = TaskState.INTERRUPTIBLE


class TaskKilled(BaseException):
    """Raised at a blocking call of a task that `stop()` or another task's failure ends: let it pass."""


class ThreadTask(Task):
    """Made by `ThreadHost.spawn`, or for a thread that the host did not start and that called it (`adopted`)."""

    __slots__ = (
        "_function",
        "_host",
        "adopted",
        "condition",
        "daemon",
        "finished",
        "granted",
        "held",
        "in_interrupt",
        "joiners",
        "name",
        "raised",
        "signalled",
        "state",
        "thread",
    )

    def __init__(self, host: ThreadHost, function: Callable[[], None] | None, name: str, daemon: bool) -> None:
        self._host = host
        self._function = function
        self.name = name
        self.daemon = daemon
        self.adopted = function is None
        self.in_interrupt = False
        self.condition = threading.Condition(threading.Lock())
        self.state = TaskState.RUNNING
        self.signalled = False
        self.granted = False
        """What the task blocked for (a lock, a task's end) has come."""
        self.finished = False
        self.raised: BaseException | None = None
        self.held: list[RankedLock] = []
        self.joiners: list[ThreadTask] = []
        self.thread = threading.current_thread() if function is None else threading.Thread(target=self._main, name=name)
        if function is not None:
            self.thread.daemon = True

    def _main(self) -> None:
        assert self._function is not None
        host = self._host
        host.adopt(self)
        try:
            self._function()
            check_none_held(self.name, self.held)
        except TaskKilled:
            pass
        except BaseException as error:  # noqa: BLE001 - re-raised by run() and join()
            self.raised = error
            host.fail(error, f"task '{self.name}'")
        with self.condition:
            self.finished = True
            joiners, self.joiners = self.joiners, []
        for joiner in joiners:
            joiner.grant()
        host.task_finished(self)

    # --- sleeping and waking ------------------------------------------------------------------------------------------

    def sleep(self, deadline_ns: int | None) -> None:
        """Sleep while marked as asleep, not signalled (if that counts), and before the deadline."""
        host = self._host
        with self.condition:
            while self.state is not _RUNNING:
                if self.signalled and self.state is _INTERRUPTIBLE:
                    self.state = _RUNNING
                    return
                host.check_may_block(self)
                timeout = host.seconds_until(deadline_ns)
                if timeout is not None and timeout <= 0:
                    self.state = _RUNNING
                    return
                self.condition.wait(timeout)

    def wake_up(self) -> bool:
        """End the sleep, or the preparation for one; whether there was one (`wake_up_process`)."""
        with self.condition:
            if self.state is _RUNNING:
                return False
            self.state = _RUNNING
            self.condition.notify()
            return True

    def mark(self, state: TaskState) -> None:
        """set_current_state."""
        with self.condition:
            self.state = state

    def block(self) -> None:
        """Wait for `grant`; signals do not end this. Raises `TaskKilled` with the grant not taken."""
        with self.condition:
            while not self.granted:
                self._host.check_may_block(self)
                self.condition.wait()
            self.granted = False

    def grant(self) -> None:
        """Give the task what it blocked for."""
        with self.condition:
            self.granted = True
            self.condition.notify()

    def take_grant(self) -> bool:
        """After `TaskKilled`: whether the grant had come all the same."""
        with self.condition:
            granted, self.granted = self.granted, False
            return granted

    def nudge(self) -> None:
        """Have the task look at whether it may go on."""
        with self.condition:
            self.condition.notify()

    def signal(self) -> None:
        with self.condition:
            self.signalled = True
            if self.state is _INTERRUPTIBLE:
                self.state = _RUNNING
                self.condition.notify()

    def signal_pending(self) -> bool:
        return self.signalled

    def clear_signal(self) -> bool:
        with self.condition:
            pending, self.signalled = self.signalled, False
            return pending

    # --- ending -------------------------------------------------------------------------------------------------------

    def done(self) -> bool:
        return self.finished

    def join(self) -> None:
        caller = self._host.running()
        assert caller is not self, f"task '{self.name}' joins itself"
        with self.condition:
            waiting = not self.finished
            if waiting:
                self.joiners.append(caller)
        if waiting:
            self._wait_for_end(caller)
        if self.raised is not None:
            raise self.raised

    def _wait_for_end(self, caller: ThreadTask) -> None:
        try:
            caller.block()
        except BaseException:
            with self.condition:
                if caller in self.joiners:
                    self.joiners.remove(caller)
            caller.take_grant()
            raise
