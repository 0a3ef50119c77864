"""Interrupt lines that may be driven from interrupt context.

The interrupt controllers are behind a lock, which a timer callback may not take. A deferred line only stores its level
and wakes a worker task, which drives the controllers (as KVM's own PIT does with a kthread).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vtlkit.host.api import Host
from vtlkit.kvm.uapi import KVM_MAX_IRQ_ROUTES, HvSintRoute, Route, Vm, default_routing

_LINES: Final = 24
_CHIPS: Final[tuple[Route, ...]] = default_routing()
_SINT_LINES: Final = KVM_MAX_IRQ_ROUTES - len(_CHIPS)


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
    """Interrupt lines behind those of the chips, routed to synthetic interrupt sources. Called under the bus's lock.

    The routing table is published as a whole, so it is made when a line is used, not whenever one comes or goes.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._gsis: dict[tuple[int, int], int] = {}
        self._free: list[int] = []
        self._published = True

    def create(self, vp_index: int, sint: int) -> None:
        """Route a free line to the SINT, unless one is, there is no such processor, or the table is full."""
        key = vp_index, sint
        if key in self._gsis or self._vm.hv.vp(vp_index) is None or len(self._gsis) == _SINT_LINES:
            return
        self._gsis[key] = self._free.pop() if self._free else _LINES + len(self._gsis)
        self._published = False

    def destroy(self, vp_index: int, sint: int) -> None:
        """Take the SINT's route away."""
        gsi = self._gsis.pop((vp_index, sint), None)
        if gsi is not None:
            self._free.append(gsi)
            self._published = False

    def pulse(self, vp_index: int, sint: int) -> None:
        """Raise and lower the SINT's line."""
        gsi = self._gsis.get((vp_index, sint))
        if gsi is not None:
            self._publish()
            self._vm.irq_line(gsi, 1)
            self._vm.irq_line(gsi, 0)

    def reset(self) -> None:
        """A machine reset: no routes to SINTs."""
        self._gsis.clear()
        self._free.clear()
        self._published = False
        self._publish()

    def _publish(self) -> None:
        if not self._published:
            sints = (HvSintRoute(gsi, vp_index, sint) for (vp_index, sint), gsi in self._gsis.items())
            self._vm.set_gsi_routing((*_CHIPS, *sints))
            self._published = True
