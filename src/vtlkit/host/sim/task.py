"""A task of the simulator: a greenlet, its state, and what a report says of it. Counterpart: `struct task_struct`.

A task may run in several greenlets (a CPU engine runs the guest in one of its own and calls back from it): `resume` is
the one that was running when the task was suspended, and is the one that is resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from greenlet import GreenletExit, greenlet

from vtlkit.host.alarms import Alarm
from vtlkit.host.api import Task
from vtlkit.host.ranks import RankedLock, check_none_held
from vtlkit.host.taskstate import TaskState

if TYPE_CHECKING:
    from vtlkit.host.sim.run import RunLoop

_RUNNING = TaskState.RUNNING


class Obstacle(Protocol):
    """What a task can be blocked on."""

    def describe_wait(self) -> str:
        """For the report: "lock 'x' held by 'y'"."""


class SimTask(Alarm, Task):
    """Fields are written by the task and by whoever wakes it; one greenlet runs at a time, so no lock is needed."""

    __slots__ = (
        "_function",
        "_loop",
        "asleep",
        "blocked_on",
        "blocked_since",
        "daemon",
        "finished",
        "greenlet",
        "held",
        "joiners",
        "name",
        "queues",
        "raised",
        "resume",
        "signalled",
        "slice_left",
        "state",
    )

    def __init__(self, loop: RunLoop, function: Callable[[], None], name: str, daemon: bool, slice_ns: int) -> None:
        super().__init__()
        self._loop = loop
        self._function = function
        self.name = name
        self.daemon = daemon
        self.state = TaskState.RUNNING
        self.asleep = False
        """In `schedule()`: `wake_up` makes it runnable. False while blocked on a lock, which only its holder ends."""
        self.signalled = False
        self.finished = False
        self.raised: BaseException | None = None
        self.held: list[RankedLock] = []
        self.queues: list[Obstacle] = []
        self.joiners: list[SimTask] = []
        self.blocked_on: Obstacle | None = None
        self.blocked_since = 0
        self.slice_left = slice_ns
        self.greenlet = greenlet(self._main)
        self.resume = self.greenlet

    def _main(self) -> None:
        """The task's life. GreenletExit is how a task is ended early; it passes without a trace."""
        loop = self._loop
        try:
            self._function()
            check_none_held(self.name, self.held)
        except GreenletExit:
            raise
        except BaseException as error:  # noqa: BLE001 - re-raised by run()
            self.raised = error
            loop.fail(error, f"task '{self.name}'")
        finally:
            self.finished = True
            loop.task_finished(self)

    # --- sleeping and waking ------------------------------------------------------------------------------------------

    def wake_up(self) -> bool:
        """Make the task runnable if it sleeps or is about to; whether it did (`wake_up_process`)."""
        if self.state is _RUNNING:
            return False
        self.state = _RUNNING
        if self.asleep:
            self.asleep = False
            self._loop.ready.append(self)
        return True

    def expire(self) -> None:
        self.wake_up()

    def alarm_name(self) -> str:
        return f"sleep of '{self.name}'"

    def signal(self) -> None:
        if self._loop.instrument:
            self._loop.access_point()
        self.signalled = True
        if self.state is TaskState.INTERRUPTIBLE:
            self.wake_up()

    def signal_pending(self) -> bool:
        if self._loop.instrument:
            self._loop.access_point()
        return self.signalled

    def clear_signal(self) -> bool:
        if self._loop.instrument:
            self._loop.access_point()
        pending, self.signalled = self.signalled, False
        return pending

    # --- ending -------------------------------------------------------------------------------------------------------

    def done(self) -> bool:
        if self._loop.instrument:
            self._loop.access_point()
        return self.finished

    def join(self) -> None:
        loop = self._loop
        loop.access_point()
        if not self.finished:
            self.joiners.append(loop.running)
            loop.block(self)
        if self.raised is not None:
            raise self.raised

    def describe_wait(self) -> str:
        return f"task '{self.name}' to end"
