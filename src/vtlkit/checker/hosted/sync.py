"""Locks, wait queues and tasks of the checking host, made of words (docs/design/checker.md)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from vtlkit.checker.hosted.lockword import LockWord
from vtlkit.checker.hosted.words import Word
from vtlkit.checker.hosted.world import Runner, World
from vtlkit.checker.ops import NO_WRITE, Order, Value
from vtlkit.host.api import Lock, LockRank, RwSem, Task, WaitQueue
from vtlkit.host.guards import ReadGuard, WriteGuard
from vtlkit.host.ranks import RankedLock, add_held, check_order
from vtlkit.host.taskstate import TaskState

if TYPE_CHECKING:
    from vtlkit.checker.hosted.trie import Point

RUNNING: Final = 0


def _running(world: World, lock: RankedLock) -> Runner:
    runner = world.running
    assert runner is not None, f"'{lock.name}' is taken outside of a task"
    return runner


def _took(value: Value) -> LockWord:
    assert isinstance(value, LockWord)
    return value


class CheckLock(Lock):
    """A word: (number of the holder or None, after)."""

    __slots__ = ("_word", "_world", "name", "rank")

    def __init__(self, world: World, name: str, rank: LockRank) -> None:
        self._world = world
        self._word = Word(world, name, LockWord((None, ())))
        self.name = name
        self.rank = rank

    def acquire(self) -> None:
        world = self._world
        if world.running is None:
            # While the world is being built nobody else is there.
            return
        runner = world.running
        world.may_block()
        if runner.held:
            check_order(runner.name, runner.held, self)
        self._word.update(_take(runner.number), Order.ACQUIRE, until=_is_free, label="lock")
        runner.held.append(self)

    def try_acquire(self) -> bool:
        runner = _running(self._world, self)
        old = self._word.update(_try(runner.number), Order.ACQUIRE, label="try_lock")
        if not _is_free(old):
            return False
        add_held(runner.held, self)
        return True

    def release(self) -> None:
        world = self._world
        if world.running is None:
            return
        runner = world.running
        assert self in runner.held, f"task '{runner.name}' releases '{self.name}', which it does not hold"
        after = (runner.point,) if world.causal else ()
        self._word.write(LockWord((None, after)), Order.RELEASE)
        runner.held.remove(self)

    def held(self) -> bool:
        runner = self._world.running
        return runner is not None and self in runner.held


def _is_free(value: Value) -> bool:
    return _took(value)[0] is None


def _take(number: int) -> Callable[[Value], Value]:
    return lambda old: LockWord((number, _took(old).after))


def _try(number: int) -> Callable[[Value], Value]:
    return lambda old: NO_WRITE if _took(old)[0] is not None else LockWord((number, _took(old).after))


class CheckRwSem(RwSem):
    """A word: (number of the writer or None, how many readers, how many writers that wait, after)."""

    __slots__ = ("_read_guard", "_word", "_world", "_write_guard", "name", "rank")

    def __init__(self, world: World, name: str, rank: LockRank) -> None:
        self._world = world
        self._word = Word(world, name, LockWord((None, 0, 0, ())))
        self._read_guard = ReadGuard(self)
        self._write_guard = WriteGuard(self)
        self.name = name
        self.rank = rank

    def down_read(self) -> None:
        runner = self._taking()
        if runner is not None:
            self._word.update(_read_in, Order.ACQUIRE, until=_may_read, label="down_read")
            runner.held.append(self)

    def up_read(self) -> None:
        runner = self._letting_go()
        if runner is not None:
            # Readers, too, may change what is under other locks.
            point = runner.point if self._world.causal else None
            self._word.update(_read_out(point), Order.RELEASE, label="up_read")

    def down_write(self) -> None:
        runner = self._taking()
        if runner is None:
            return
        number = runner.number
        old = self._word.update(_write_in(number), Order.ACQUIRE, label="down_write")
        if not _may_write(old):
            self._word.update(_write_waited(number), Order.ACQUIRE, until=_may_write, label="down_write waits")
        runner.held.append(self)

    def up_write(self) -> None:
        runner = self._letting_go()
        if runner is not None:
            after = (runner.point,) if self._world.causal else ()
            self._word.update(_write_out(after), Order.RELEASE, label="up_write")

    def reading(self) -> AbstractContextManager[None]:
        return self._read_guard

    def writing(self) -> AbstractContextManager[None]:
        return self._write_guard

    def _taking(self) -> Runner | None:
        runner = self._world.running
        self._world.may_block()
        if runner is not None and runner.held:
            check_order(runner.name, runner.held, self)
        return runner

    def _letting_go(self) -> Runner | None:
        runner = self._world.running
        if runner is not None:
            assert self in runner.held, f"task '{runner.name}' lets go of '{self.name}', which it does not hold"
            runner.held.remove(self)
        return runner


def _state(value: Value) -> tuple[object, int, int, tuple[Point, ...]]:
    writer, readers, waiting, after = _took(value)
    return writer, readers, waiting, after  # type: ignore[return-value]


def _may_read(value: Value) -> bool:
    writer, _, waiting, _ = _state(value)
    return writer is None and not waiting


def _may_write(value: Value) -> bool:
    writer, readers, _, _ = _state(value)
    return writer is None and not readers


def _read_in(value: Value) -> Value:
    writer, readers, waiting, after = _state(value)
    return LockWord((writer, readers + 1, waiting, after))


def _read_out(point: Point | None) -> Callable[[Value], Value]:
    def change(value: Value) -> Value:
        writer, readers, waiting, after = _state(value)
        if point is not None:
            after = (*[other for other in after if other.number != point.number], point)
        return LockWord((writer, readers - 1, waiting, tuple(sorted(after, key=lambda other: other.number))))

    return change


def _write_in(number: int) -> Callable[[Value], Value]:
    def change(value: Value) -> Value:
        writer, readers, waiting, after = _state(value)
        if writer is None and not readers:
            return LockWord((number, 0, waiting, after))
        return LockWord((writer, readers, waiting + 1, after))

    return change


def _write_waited(number: int) -> Callable[[Value], Value]:
    def change(value: Value) -> Value:
        _, _, waiting, after = _state(value)
        return LockWord((number, 0, waiting - 1, after))

    return change


def _write_out(after: tuple[Point, ...]) -> Callable[[Value], Value]:
    def change(value: Value) -> Value:
        _, readers, waiting, _ = _state(value)
        return LockWord((None, readers, waiting, after))

    return change


class CheckTask(Task):
    """A task: two words beside its code, its state (0, or how it sleeps and where) and its pending signal."""

    __slots__ = ("_done", "_world", "name", "queues", "runner", "signalled", "sleeps", "state")

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self.name = name
        self.runner: Runner | None = None
        self.state = Word(world, f"{name} state", RUNNING)
        self.signalled = Word(world, f"{name} signal", False)
        self._done = Word(world, f"{name} done", False)
        self.queues: tuple[str, ...] = ()
        self.sleeps = TaskState.RUNNING
        """What it has last set itself; RUNNING too if it has seen that it was woken."""

    def set_state(self, state: TaskState) -> None:
        """set_current_state: without the barrier."""
        if state is TaskState.RUNNING and self.sleeps is TaskState.RUNNING:
            return
        self.sleeps = state
        self.state.write(RUNNING if state is TaskState.RUNNING else (int(state), *self.queues))

    def wake_up(self, queue: str | None) -> bool:
        """try_to_wake_up: whoever sleeps on `queue`, or interruptibly if None."""
        old = self.state.update(_waking(queue), Order.ACQ_REL, label="wake_up")
        return _waking(queue)(old) is not NO_WRITE

    def signal(self) -> None:
        self.signalled.write(True)
        self._world.full_barrier()
        self.wake_up(None)

    def signal_pending(self) -> bool:
        pending = self.signalled.read()
        return bool(pending)

    def clear_signal(self) -> bool:
        pending = self.signalled.read()
        if pending:
            pending = self.signalled.update(_nothing_pending, Order.ACQ_REL, label="xchg")
        return bool(pending)

    def done(self) -> bool:
        done = self._done.read(Order.ACQUIRE)
        return bool(done)

    def join(self) -> None:
        self._world.wait(self._done, bool, False)

    def ended(self) -> None:
        """Its function has returned."""
        self._done.write(True, Order.RELEASE)


def _nothing_pending(_old: Value) -> Value:
    return False


def _waking(queue: str | None) -> Callable[[Value], Value]:
    def change(old: Value) -> Value:
        if not isinstance(old, tuple):
            return NO_WRITE
        state, *queues = old
        wanted = state == TaskState.INTERRUPTIBLE if queue is None else queue in queues
        return RUNNING if wanted else NO_WRITE

    return change


class CheckQueue(WaitQueue):
    """Who is in it stands in the tasks' states; who may ever be is known by running."""

    __slots__ = ("_tasks", "_world", "name")

    def __init__(self, world: World, name: str, tasks: dict[str, CheckTask]) -> None:
        self._world = world
        self._tasks = tasks
        self.name = name

    def prepare(self, *, interruptible: bool = True) -> None:
        self.enter(interruptible=interruptible)
        self._world.full_barrier()

    def enter(self, *, interruptible: bool) -> None:
        """`prepare` without its barrier: for known-bad variants."""
        world = self._world
        assert world.running is not None, f"a wait on '{self.name}' outside of a task"
        world.may_block()
        task = self._tasks[world.running.name]
        world.book.enter_queue(self.name, task.name)
        if self.name not in task.queues:
            task.queues = (*task.queues, self.name)
        task.set_state(TaskState.INTERRUPTIBLE if interruptible else TaskState.UNINTERRUPTIBLE)

    def finish(self) -> None:
        world = self._world
        assert world.running is not None
        task = self._tasks.get(world.running.name)
        if task is None:
            # A timer's callback, which was told in `prepare` that it must not.
            return
        if self.name in task.queues:
            task.queues = tuple([other for other in task.queues if other != self.name])
        task.set_state(TaskState.RUNNING)

    def wake(self) -> bool:
        self._world.full_barrier()
        names = self._world.book.queues.get(self.name, ())
        woken, count = False, len(names)
        # Counted, so that a task that waits in here is seen to be where it is (`stacks`).
        for number in range(count):
            task = self._tasks[names[number]]
            found = task.wake_up(self.name)
            woken = woken or found
        return woken

    def waiters(self) -> int:
        states = [self._tasks[name].state.read() for name in self._world.book.queues.get(self.name, ())]
        return sum(isinstance(state, tuple) and self.name in state for state in states)
