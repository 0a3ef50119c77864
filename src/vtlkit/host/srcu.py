"""Sleepable RCU out of cells: the same on every host. Counterpart: kernel/rcu/srcutree.c, without its per-CPU counters.

Two counters of readers, and `_active`, the one that new readers take. A grace period waits for each of the two to be 0
once. That is enough: a section that has begun has counted itself in one of them.

A reader loads `_active`, then counts itself, and may be overtaken between the two: it then sits in the counter that a
writer has done with. It is no section that the writer had to wait for, since it began after the writer's barrier; but
the next writer must, so each waits for both counters, the idle one first. The change of `_active` is for progress only:
the counter that is waited for gets no new readers but the overtaken ones.

| reader | writer |
| --- | --- |
| count itself: full barrier | store the new state |
| load the state | full barrier |
| | load the count; not 0? sleep |

Either the writer sees the count or the reader sees the new state. `read_unlock` wakes the queue after it has counted
down to 0, and the writer looks after `prepare`.
"""

from __future__ import annotations

from functools import partial

from vtlkit.host.api import Cell, Host, Srcu


class CellSrcu(Srcu):
    """See the module."""

    __slots__ = ("_active", "_host", "_queue", "_readers", "_writers")

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self._active: Cell[int] = host.cell(0, f"{name}-active")
        self._readers = (host.cell(0, f"{name}-readers0"), host.cell(0, f"{name}-readers1"))
        self._queue = host.wait_queue(f"{name}-writers")
        self._writers = host.lock(f"{name}-lock")

    def read_lock(self) -> int:
        index = self._active.load()
        self._readers[index].fetch_add(1)
        return index

    def read_unlock(self, index: int) -> None:
        left = self._readers[index].fetch_add(-1) - 1
        assert left >= 0, "a read section is ended twice"
        if not left:
            self._queue.wake()

    def synchronize(self) -> None:
        with self._writers:
            self._host.smp_mb()
            active = self._active.load()
            self._wait_for_readers(1 - active)
            self._active.store(1 - active)
            # New readers leave the counter alone that is waited for now.
            self._host.smp_mb()
            self._wait_for_readers(active)
            self._host.smp_mb()

    def _wait_for_readers(self, index: int) -> None:
        self._host.wait_event(self._queue, partial(_is_zero, self._readers[index]), interruptible=False)


def _is_zero(count: Cell[int]) -> bool:
    return count.load() == 0
