"""What a device may ask of the machine that it is in.

Counterpart: QEMU's `qemu_system_{shutdown,reset,suspend,wakeup}_request`. A device states the event and goes on; the
machine acts on it when the vCPU that caused it comes back to its run loop. `wakeup` may come from a timer callback, so
an implementation of it must not block.
"""

from __future__ import annotations

from typing import Protocol


class MachineEvents(Protocol):
    """Events that end, restart or suspend the run."""

    def power_off(self) -> None:
        """The guest asked for ACPI S5."""

    def reset(self) -> None:
        """The guest asked for a hard reset of the whole machine."""

    def init(self) -> None:
        """The guest asked for INIT of all processors: they go to the reset vector, everything else stays."""

    def post(self) -> None:
        """Firmware starts over: devices and processors are set up anew and the image is booted again.

        What only a hard reset clears (port 0x92, the reset control register) stays.
        """

    def debug_exit(self, value: int) -> None:
        """The guest wrote `value` (unsigned, of the access's width) to isa-debug-exit."""

    def guest_panic(self) -> None:
        """The guest says that it has crashed."""

    def suspend(self) -> None:
        """The guest asked for ACPI S3: all vCPUs stop; RAM and the devices' wake logic stay."""

    def wakeup(self) -> None:
        """An enabled wake event ended S3. May be called from interrupt context: must not block."""
