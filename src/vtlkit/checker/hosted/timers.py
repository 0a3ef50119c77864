"""Timers of the checking host (docs/design/checker.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vtlkit.checker.hosted.words import Word
from vtlkit.checker.hosted.world import Runner, World
from vtlkit.checker.ops import NO_WRITE, Order, Value
from vtlkit.host.api import Timer

_IDLE: Final = (None, False)


class CheckTimer(Timer):
    """A word, (the deadline or None, whether the callback is running), and a thread that may fire at any time. Time is
    moved to the deadline then. `cancel` waits for a callback that has begun, unless it is the one that cancels."""

    __slots__ = ("_armed", "_callback", "_clock", "_runner", "_world", "name")

    def __init__(self, world: World, callback: Callable[[], None], name: str, clock: Word) -> None:
        self._world = world
        self._callback = callback
        self._clock = clock
        self._armed = Word(world, f"{name} armed", _IDLE)
        self.name = self._armed.name.removesuffix(" armed")
        self._runner: Runner | None = None
        if self.name in world.book.timers:
            self._runner = world.add(f"timer '{self.name}'", self._run, daemon=True)

    def start(self, deadline_ns: int) -> None:
        self._world.book.use_timer(self.name)
        self._armed.update(_start(deadline_ns), Order.ACQ_REL, label="start")

    def cancel(self) -> bool:
        own = self._runner is not None and self._world.running is self._runner
        old = self._armed.update(disarmed, Order.ACQ_REL, until=None if own else _is_quiet, label="cancel")
        return _timer(old)[0] is not None

    def armed(self) -> bool:
        armed = self._armed.read()
        return _timer(armed)[0] is not None

    def deadline_ns(self) -> int | None:
        armed = self._armed.read()
        return _timer(armed)[0]

    def _run(self) -> None:
        world = self._world
        while True:
            world.wait(self._armed, _is_armed, True)
            old = self._armed.update(_expire, Order.ACQ_REL, label="expire")
            deadline = _timer(old)[0]
            if deadline is not None:
                self._clock.update(_later(deadline), label="time passes")
                assert world.running is not None
                world.running.in_callback = True
                self._callback()
                world.running.in_callback = False
                self._armed.update(_fired, Order.ACQ_REL, label="callback ends")


def _timer(value: Value) -> tuple[int | None, bool]:
    assert isinstance(value, tuple)
    deadline, firing = value
    return deadline, firing


def _is_armed(value: Value) -> bool:
    return _timer(value)[0] is not None


def _is_quiet(value: Value) -> bool:
    return not _timer(value)[1]


def _start(deadline_ns: int) -> Callable[[Value], Value]:
    return lambda old: (deadline_ns, _timer(old)[1])


def disarmed(old: Value) -> Value:
    """The word of a timer behind a cancellation."""
    deadline, firing = _timer(old)
    return NO_WRITE if deadline is None else (None, firing)


def _expire(old: Value) -> Value:
    return NO_WRITE if _timer(old)[0] is None else (None, True)


def _fired(old: Value) -> Value:
    return _timer(old)[0], False


def _later(deadline: Value) -> Callable[[Value], Value]:
    def change(now: Value) -> Value:
        assert isinstance(now, int)
        assert isinstance(deadline, int)
        return deadline if deadline > now else NO_WRITE

    return change
