"""Interrupt lines that may be driven from interrupt context.

The interrupt controllers are behind a lock, which a timer callback may not take. A deferred line only stores its level
and wakes a worker task, which drives the controllers (as KVM's own PIT does with a kthread).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

from vtlkit.host.api import Host
from vtlkit.kvm.uapi import HvSintRoute, Route, Vm, default_routing

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


class SintLines:
    """Interrupt lines behind those of the chips, routed to synthetic interrupt sources. Called under the bus's lock."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._gsis: dict[tuple[int, int], int] = {}

    def create(self, vp_index: int, sint: int) -> None:
        """Route a free line to the SINT, unless one is."""
        if (vp_index, sint) in self._gsis:
            return
        used = set(self._gsis.values())
        self._gsis[vp_index, sint] = next(gsi for gsi in itertools.count(_LINES) if gsi not in used)
        self._set()

    def destroy(self, vp_index: int, sint: int) -> None:
        """Take the SINT's route away."""
        if self._gsis.pop((vp_index, sint), None) is not None:
            self._set()

    def pulse(self, vp_index: int, sint: int) -> None:
        """Raise and lower the SINT's line."""
        gsi = self._gsis.get((vp_index, sint))
        if gsi is not None:
            self._vm.irq_line(gsi, 1)
            self._vm.irq_line(gsi, 0)

    def reset(self) -> None:
        """A machine reset: no routes to SINTs."""
        self._gsis.clear()
        self._set()

    def _set(self) -> None:
        routes: tuple[Route, ...] = default_routing()
        self._vm.set_gsi_routing(
            (*routes, *(HvSintRoute(gsi, vp_index, sint) for (vp_index, sint), gsi in self._gsis.items()))
        )
