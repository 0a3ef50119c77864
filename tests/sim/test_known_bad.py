"""The instrumented simulator finds known bugs, and the conformance checks reject broken hosts: tests of the testers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from tests.sim.known_bad import fails
from vtlkit.host.api import Cell, Host, LockRank
from vtlkit.host.sim import Deadlock, Simulator
from vtlkit.host.sim.cells import SimCell
from vtlkit.host.sim.sync import SimLock, SimWaitQueue
from vtlkit.host.srcu import CellSrcu
from vtlkit.testing.host_conformance import HostCheck
from vtlkit.testing.host_conformance.cells import check_fetch_add
from vtlkit.testing.host_conformance.locks import check_lock_excludes
from vtlkit.testing.host_conformance.sleeping import check_no_lost_wake, check_ping_pong
from vtlkit.testing.host_conformance.srcu import (
    check_srcu_ignores_later_readers,
    check_srcu_nests,
    check_srcu_waits_for_overtaken_readers,
    check_srcu_waits_for_readers,
)

T = TypeVar("T")
SEEDS = 200


def wait_well(host: Host, queue: SimWaitQueue, pending: Cell[int]) -> None:
    queue.prepare()
    if pending.load() == 0:
        host.schedule()
    queue.finish()


def wait_badly(host: Host, queue: SimWaitQueue, pending: Cell[int]) -> None:
    """Checks before it prepares: a waker that comes between the two finds nobody to wake."""
    if pending.load() == 0:
        queue.prepare()
        host.schedule()
        queue.finish()


def sleeper_and_waker(sim: Simulator, wait: Callable[[Host, SimWaitQueue, Cell[int]], None]) -> None:
    queue = SimWaitQueue(sim, "queue")
    pending = sim.cell(0, "pending")

    def sleeper() -> None:
        while pending.load() == 0:
            wait(sim, queue, pending)

    def waker() -> None:
        pending.store(1)
        queue.wake()

    sim.spawn(sleeper, "sleeper")
    sim.spawn(waker, "waker")
    sim.run()


def lost_wakes(instrument: bool, wait: Callable[[Host, SimWaitQueue, Cell[int]], None]) -> list[int]:
    lost = []
    for seed in range(SEEDS):
        try:
            sleeper_and_waker(Simulator(seed=seed, instrument=instrument), wait)
        except Deadlock:
            lost.append(seed)
    return lost


def test_the_bad_sleeper_is_caught_within_20_seeds() -> None:
    lost = lost_wakes(True, wait_badly)
    assert lost
    assert lost[0] < 20
    with pytest.raises(Deadlock, match="'sleeper' waits for wait queue 'queue'"):
        sleeper_and_waker(Simulator(replay=f"seed:{lost[0]},instrument"), wait_badly)


def test_the_good_sleeper_is_never_caught() -> None:
    assert lost_wakes(True, wait_well) == []


def test_without_instrumentation_tasks_are_not_interleaved_there() -> None:
    assert lost_wakes(False, wait_badly) == []


class TornCell(SimCell[T]):
    """fetch_add as a load and a store."""

    __slots__ = ("_sim",)

    def __init__(self, sim: Simulator, value: T, name: str) -> None:
        super().__init__(value, name)
        self._sim = sim

    def fetch_add(self, delta: T) -> T:
        before = self.load()
        self._sim.access_point()
        self.store(before + delta)  # type: ignore[operator]
        return before


class TornCells(Simulator):
    def cell(self, value: T, name: str) -> Cell[T]:
        return TornCell(self, value, name)


class OpenLock(SimLock):
    """Lets everybody in."""

    __slots__ = ()

    def acquire(self) -> None:
        if self._owner is None:
            super().acquire()
        else:
            self._owner = self._loop.running
            self._owner.held.append(self)

    def release(self) -> None:
        self._owner = None
        self._loop.running.held.clear()

    def held(self) -> bool:
        return self in self._loop.running.held


class OpenLocks(Simulator):
    def lock(self, name: str, rank: LockRank = LockRank.LEAF) -> OpenLock:
        return OpenLock(self, name, rank)


class DeafQueue(SimWaitQueue):
    """Wakes only tasks that are already asleep: one that is about to sleep misses it."""

    __slots__ = ()

    def wake(self) -> bool:
        self._loop.access_point()
        return sum(task.wake_up() for task in self._tasks if task.asleep) > 0


class DeafQueues(Simulator):
    def wait_queue(self, name: str) -> DeafQueue:
        return DeafQueue(self, name)


class HastySrcu(CellSrcu):
    """Waits for nobody."""

    __slots__ = ()

    def synchronize(self) -> None:
        self._active.store(1 - self._active.load())


class OneCounterSrcu(CellSrcu):
    """Waits for the counter that was in use: a reader that was overtaken sits in the other one."""

    __slots__ = ()

    def synchronize(self) -> None:
        with self._writers:
            active = self._active.load()
            self._active.store(1 - active)
            self._wait_for_readers(active)


class StubbornSrcu(CellSrcu):
    """Does not change counters: sections that overlap hold a writer up for ever."""

    __slots__ = ()

    def synchronize(self) -> None:
        with self._writers:
            for index in (0, 1):
                self._wait_for_readers(index)


class HastySrcus(Simulator):
    def srcu(self, name: str) -> HastySrcu:
        return HastySrcu(self, name)


class OneCounterSrcus(Simulator):
    def srcu(self, name: str) -> OneCounterSrcu:
        return OneCounterSrcu(self, name)


class StubbornSrcus(Simulator):
    def srcu(self, name: str) -> StubbornSrcu:
        return StubbornSrcu(self, name)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (TornCells, check_fetch_add),
        (OpenLocks, check_lock_excludes),
        (DeafQueues, check_no_lost_wake),
        (DeafQueues, check_ping_pong),
        (HastySrcus, check_srcu_waits_for_readers),
        (HastySrcus, check_srcu_nests),
        (OneCounterSrcus, check_srcu_waits_for_overtaken_readers),
        (DeafQueues, check_srcu_waits_for_readers),
    ],
)
def test_conformance_rejects_broken_hosts(broken: type[Simulator], check: HostCheck) -> None:
    assert fails(lambda seed: check(broken(seed=seed, instrument=True)), range(SEEDS))


def test_conformance_rejects_a_grace_period_that_sections_after_it_can_hold_up() -> None:
    host = StubbornSrcus()
    host.timer(host.stop, "limit").start(1_000_000_000)
    with pytest.raises(AssertionError):
        check_srcu_ignores_later_readers(host)
