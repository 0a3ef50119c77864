"""The isa-debug-exit device (QEMU's hw/misc/debugexit.c): a guest ends the run and says with which value.

Promise: every write, of any size, reports its value once. The run's exit status is `exit_status(value)`. Reads give 0,
so a guest can tell that the device is there. Called under the bus's lock.
"""

from __future__ import annotations

from typing import Final

from vtlkit.vmm.devices.events import MachineEvents

DEBUG_EXIT_PORT: Final = 0xF4
DEBUG_EXIT_PORTS: Final = 4


def exit_status(value: int) -> int:
    """The process exit status for a written value: (value << 1) | 1, of which a POSIX parent sees 8 bits."""
    return ((value << 1) | 1) & 0xFF


class DebugExit:
    """Register at DEBUG_EXIT_PORT for DEBUG_EXIT_PORTS ports."""

    __slots__ = ("_events",)

    def __init__(self, events: MachineEvents) -> None:
        self._events = events

    def read(self, port: int, size: int) -> int:
        return 0

    def write(self, port: int, size: int, value: int) -> None:
        self._events.debug_exit(value)
