"""`CheckHost`: the third host. What it makes are words of a world; what blocks hands control to the search."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vtlkit.checker.hosted.sync import CheckLock, CheckQueue, CheckRwSem, CheckTask
from vtlkit.checker.hosted.timers import CheckTimer
from vtlkit.checker.hosted.words import CheckBitmap, CheckCell, Word
from vtlkit.checker.hosted.world import World
from vtlkit.checker.ops import Order
from vtlkit.host.api import Bitmap, Cell, Host, Lock, LockRank, RwSem, Task, Timer, WaitQueue
from vtlkit.host.taskstate import TaskState

T = TypeVar("T")
_LONG_NS = 1 << 60
"""A guest runs until something ends that: the host never takes the processor away."""


class CheckHost(Host):
    """One world's host. Tasks are spawned by the function that builds the world, before any of them runs."""

    deterministic = True

    def __init__(self, world: World) -> None:
        self._world = world
        self._tasks: dict[str, CheckTask] = {}
        self._boot = CheckTask(world, "boot")
        self._clock = Word(world, "time", 0)
        self._alarms: dict[str, CheckTimer] = {}

    def cell(self, value: T, name: str) -> Cell[T]:
        return CheckCell(self._world, value, name)

    def bitmap(self, name: str) -> Bitmap:
        return CheckBitmap(self._world, name)

    def lock(self, name: str, rank: LockRank = LockRank.LEAF) -> Lock:
        return CheckLock(self._world, name, rank)

    def rwsem(self, name: str, rank: LockRank = LockRank.LEAF) -> RwSem:
        return CheckRwSem(self._world, name, rank)

    def wait_queue(self, name: str) -> WaitQueue:
        return CheckQueue(self._world, name, self._tasks)

    def timer(self, callback: Callable[[], None], name: str) -> Timer:
        return CheckTimer(self._world, callback, name, self._clock)

    def spawn(self, function: Callable[[], None], name: str, *, daemon: bool = False) -> Task:
        world = self._world
        if world.running is not None:
            raise AssertionError(
                f"task '{world.running.name}' starts a task: checked tasks are all there from the start"
            )
        if name in self._tasks:
            raise AssertionError(f"two tasks are named '{name}'")
        task = self._tasks[name] = CheckTask(world, name)
        alarm = CheckTimer(world, lambda: _wake(task), f"{name} alarm", self._clock)
        self._alarms[name] = alarm

        def body() -> object:
            result: object = function()  # type: ignore[func-returns-value]
            task.ended()
            return result

        runner = task.runner = world.add(name, body, daemon=daemon)
        runner.private = lambda: (task.sleeps, task.queues)
        return task

    def current(self) -> Task:
        running = self._world.running
        return self._boot if running is None else self._tasks.get(running.name, self._boot)

    def context(self) -> str:
        return self._boot.name if self._world.running is None else self._world.running.name

    def now_ns(self) -> int:
        now = self._clock.read()
        assert isinstance(now, int)
        return now

    def schedule(self, deadline_ns: int | None = None) -> None:
        running = self._world.running
        assert running is not None, "a blocking call outside of a task"
        self._world.may_block()
        task = self._tasks[running.name]
        if task.sleeps is TaskState.RUNNING:
            return
        if task.sleeps is TaskState.INTERRUPTIBLE and task.signal_pending():
            task.set_state(TaskState.RUNNING)
            return
        if deadline_ns is not None:
            self._alarms[task.name].start(deadline_ns)
        self._world.wait(task.state, _is_running, running.daemon, 0)
        task.sleeps = TaskState.RUNNING
        if deadline_ns is not None:
            self._alarms[task.name].cancel()

    def relax(self) -> bool:
        self._world.relax()
        return True

    def guest_budget_ns(self) -> int:
        return _LONG_NS

    def consume_ns(self, duration_ns: int) -> None:
        """Nothing: time moves when a timer expires, at any moment."""

    def choose(self, count: int, label: str) -> int:
        if count != 1:
            raise AssertionError(f"choice '{label}': a checked task chooses nothing; make it a size of the protocol")
        return 0

    def random_bytes(self, size: int) -> bytes:
        raise AssertionError("random data: a checked task is a function of what it reads")

    def smp_mb(self) -> None:
        self._world.full_barrier()

    def smp_rmb(self) -> None:
        self._world.fence(Order.ACQUIRE)

    def smp_wmb(self) -> None:
        self._world.fence(Order.RELEASE)


def _wake(task: CheckTask) -> None:
    task.state.update(lambda _old: 0, Order.ACQ_REL, label="time-out")


def _is_running(value: object) -> bool:
    return value == 0
