"""Who runs next: the policies of the simulator. Every decision is drawn from the one choice sequence.

`FifoScheduler` decides nothing by chance: a task runs until it blocks or its slice is used up, then the one that has
waited longest. `RandomScheduler` draws at every point where another task could run. A replay is the scheduler of the
recorded run with a `ReplaySource` behind its choices; a checker is `RandomScheduler` with a source of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from vtlkit.host.sim.choices import Choices

if TYPE_CHECKING:
    from vtlkit.host.sim.task import SimTask

ALONE_SLICE_NS = 5_000_000
"""Longest guest slice of a task that has no competitor: only timers bound its latency."""
RUN = "run"
SLICE = "slice"


class Scheduler(ABC):
    """`runnable` holds the tasks that could run, the longest waiting first, the running task not among them."""

    __slots__ = ("choices", "slice_ns")
    name: ClassVar[str]

    def __init__(self, choices: Choices, slice_ns: int) -> None:
        self.choices = choices
        self.slice_ns = slice_ns

    @abstractmethod
    def next(self, runnable: list[SimTask], /) -> int:
        """Index of the task to run: the running one blocks, or has asked others to go first."""

    @abstractmethod
    def after_slice(self, running: SimTask, runnable: list[SimTask], duration_ns: int, /) -> int:
        """`running` has executed guest code for `duration_ns`: the index of the task to run instead, or -1 to go on."""

    @abstractmethod
    def at_access(self, runnable: list[SimTask], /) -> int:
        """The running task is about to touch shared state: the index of the task to run instead, or -1 to go on."""

    @abstractmethod
    def guest_slice(self, running: SimTask, /) -> int:
        """Nanoseconds of guest code that `running` may execute in one go while others wait."""


class FifoScheduler(Scheduler):
    """Round robin with a fixed slice."""

    __slots__ = ()
    name = "fifo"

    def next(self, _runnable: list[SimTask], /) -> int:
        return 0

    def after_slice(self, running: SimTask, _runnable: list[SimTask], duration_ns: int, /) -> int:
        running.slice_left -= duration_ns
        if running.slice_left > 0:
            return -1
        running.slice_left = self.slice_ns
        return 0

    def at_access(self, _runnable: list[SimTask], /) -> int:
        return -1

    def guest_slice(self, running: SimTask, /) -> int:
        return running.slice_left


class RandomScheduler(Scheduler):
    """Uniform among all tasks that could run, at every point; guest slices uniform from 1 ns to twice `slice_ns`."""

    __slots__ = ()
    name = "seed"

    def next(self, runnable: list[SimTask], /) -> int:
        return self.choices.draw(len(runnable), RUN)

    def after_slice(self, _running: SimTask, runnable: list[SimTask], _duration_ns: int, /) -> int:
        return self.choices.draw(len(runnable) + 1, RUN) - 1

    def at_access(self, runnable: list[SimTask], /) -> int:
        return self.choices.draw(len(runnable) + 1, RUN) - 1

    def guest_slice(self, _running: SimTask, /) -> int:
        return 1 + self.choices.draw(2 * self.slice_ns, SLICE)


SCHEDULERS: dict[str, type[Scheduler]] = {scheduler.name: scheduler for scheduler in (FifoScheduler, RandomScheduler)}
