"""Interrupt lines that may be driven from interrupt context.

The interrupt controllers are behind a lock, which a timer callback may not take. A deferred line only stores its level and
wakes a worker task, which drives the controllers (as KVM's own PIT does with a kthread).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vtlkit.host.api import Host

_LINES: Final = 24


class IrqLines:
    """The GSIs of one machine. `drive(gsi, level)` may block for the controllers' lock; shared: `_levels`, `_dirty`."""

    def __init__(self, host: Host, drive: Callable[[int, int], object]) -> None:
        self._drive = drive
        self._host = host
        self._levels = host.bitmap("irq-levels")
        self._dirty = host.bitmap("irq-dirty")
        self._queue = host.wait_queue("irq-worker")
        host.spawn(self._work, "irq-worker", daemon=True)

    def direct(self, gsi: int) -> Callable[[int], None]:
        """A line for devices that run in a vCPU's task only."""

        def line(level: int) -> None:
            self._drive(gsi, level)

        return line

    def deferred(self, gsi: int) -> Callable[[int], None]:
        """A line that may be driven from interrupt context."""
        assert 0 <= gsi < _LINES

        def line(level: int) -> None:
            if level:
                self._levels.set(gsi)
            else:
                self._levels.clear(gsi)
            # The level before the mark: the worker clears the mark, then reads the level.
            self._host.smp_wmb()
            self._dirty.set(gsi)
            self._queue.wake()

        return line

    def _work(self) -> None:
        while True:
            self._host.wait_event(self._queue, lambda: bool(self._dirty.load()), interruptible=False)
            dirty = self._dirty.load()
            for gsi in range(_LINES):
                if dirty >> gsi & 1 and self._dirty.test_and_clear(gsi):
                    self._drive(gsi, 1 if self._levels.test(gsi) else 0)
