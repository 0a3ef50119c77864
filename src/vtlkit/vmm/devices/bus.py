"""The machine's port and MMIO address decoders: user space's half of KVM_EXIT_IO and KVM_EXIT_MMIO.

Promise: an access goes whole, with its size, to the device that claims its first address; the device answers for all of
its bytes. Nothing claimed means a floating bus: reads give all ones, writes are dropped, and both are counted.

Locking: a bus takes `lock` (if it was given one) around every device call, so a device needs no lock of its own. This
is QEMU's big lock. The machine calls a device's other entry points (`push_input`, `reset`, ...) under the same lock.
Only timer callbacks run without it, and those devices say how they stand that. A device calls its interrupt line with
the lock held, so the lock's rank must come before the ranks of the interrupt controllers. The counters are statistics:
they are not under the lock, and two vCPUs may lose a count.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

PORT_COUNT: Final = 0x10000
ALL_ONES: Final = tuple((1 << (8 * size)) - 1 for size in range(9))
"""What a floating bus reads as, indexed by access size in bytes (0 to 8)."""


class PortDevice(Protocol):
    """A device in the I/O port space. `size` is 1, 2 or 4 bytes; values are unsigned and fit in it."""

    def read(self, port: int, size: int) -> int: ...

    def write(self, port: int, size: int, value: int) -> None: ...


class MmioDevice(Protocol):
    """A device in guest-physical memory. `offset` counts from the range's base; `size` is 1 to 8 bytes."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class BytePortDevice:
    """A device on the 8-bit ISA bus: a wider access is that many byte accesses to consecutive ports, lowest first."""

    __slots__ = ()

    def read_byte(self, port: int) -> int:
        raise NotImplementedError

    def write_byte(self, port: int, value: int) -> None:
        raise NotImplementedError

    def read(self, port: int, size: int) -> int:
        if size == 1:
            return self.read_byte(port)
        value = 0
        for index in range(size):
            value |= self.read_byte(port + index) << (8 * index)
        return value

    def write(self, port: int, size: int, value: int) -> None:
        if size == 1:
            self.write_byte(port, value)
            return
        for index in range(size):
            self.write_byte(port + index, (value >> (8 * index)) & 0xFF)


class PortBus:
    """The 64 KiB port space. `unclaimed_reads` and `unclaimed_writes` count what nothing answered."""

    __slots__ = ("_devices", "_lock", "unclaimed_reads", "unclaimed_writes")

    def __init__(self, lock: AbstractContextManager[None] | None = None) -> None:
        self._devices: dict[int, PortDevice] = {}
        self._lock: AbstractContextManager[None] = nullcontext() if lock is None else lock
        self.unclaimed_reads = 0
        self.unclaimed_writes = 0

    def register(self, first: int, count: int, device: PortDevice) -> None:
        """Claim ports [first, first + count). ValueError if they leave the port space or another device has one."""
        if count < 1 or first < 0 or first + count > PORT_COUNT:
            raise ValueError(f"ports {first:#x}+{count} are not in the 64 KiB port space")
        for port in range(first, first + count):
            if port in self._devices:
                owner = type(self._devices[port]).__name__
                raise ValueError(f"port {port:#x} of {type(device).__name__} already belongs to {owner}")
        for port in range(first, first + count):
            self._devices[port] = device

    def read(self, port: int, size: int) -> int:
        """IN of `size` bytes (1, 2 or 4)."""
        device = self._devices.get(port)
        if device is None:
            self.unclaimed_reads += 1
            return ALL_ONES[size]
        with self._lock:
            return device.read(port, size)

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of `size` bytes (1, 2 or 4)."""
        device = self._devices.get(port)
        if device is None:
            self.unclaimed_writes += 1
            return
        with self._lock:
            device.write(port, size, value)


class MmioBus:
    """Device ranges in guest-physical memory, sorted by base. Counters as in `PortBus`."""

    __slots__ = ("_bases", "_lock", "_ranges", "unclaimed_reads", "unclaimed_writes")

    def __init__(self, lock: AbstractContextManager[None] | None = None) -> None:
        self._bases: list[int] = []
        self._ranges: list[tuple[int, int, MmioDevice]] = []
        self._lock: AbstractContextManager[None] = nullcontext() if lock is None else lock
        self.unclaimed_reads = 0
        self.unclaimed_writes = 0

    def register(self, base: int, size: int, device: MmioDevice) -> None:
        """Claim [base, base + size). ValueError if the range is empty or overlaps another one."""
        if size < 1 or base < 0:
            raise ValueError(f"MMIO range {base:#x}+{size:#x} of {type(device).__name__} is empty or negative")
        index = bisect_right(self._bases, base)
        for start, end, other in self._ranges[max(index - 1, 0) : index + 1]:
            if base < end and start < base + size:
                raise ValueError(
                    f"MMIO range {base:#x}+{size:#x} of {type(device).__name__} overlaps "
                    f"{start:#x}+{end - start:#x} of {type(other).__name__}"
                )
        self._bases.insert(index, base)
        self._ranges.insert(index, (base, base + size, device))

    def _find(self, gpa: int) -> tuple[int, MmioDevice] | None:
        index = bisect_right(self._bases, gpa) - 1
        if index < 0:
            return None
        base, end, device = self._ranges[index]
        return (base, device) if gpa < end else None

    def read(self, gpa: int, size: int) -> int:
        """A load of `size` bytes (1 to 8)."""
        found = self._find(gpa)
        if found is None:
            self.unclaimed_reads += 1
            return ALL_ONES[size]
        with self._lock:
            return found[1].read(gpa - found[0], size)

    def write(self, gpa: int, size: int, value: int) -> None:
        """A store of `size` bytes (1 to 8)."""
        found = self._find(gpa)
        if found is None:
            self.unclaimed_writes += 1
            return
        with self._lock:
            found[1].write(gpa - found[0], size, value)
