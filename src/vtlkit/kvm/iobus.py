"""Buses of the devices that live in the hypervisor: ports and memory-mapped pages (`kvm_io_bus_*`).

What no device here claims exits to user space. Registered before the vCPUs run, then only read.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeAlias

from vtlkit.engine.api import PAGE_SIZE
from vtlkit.kvm.errors import KvmError

PortRead: TypeAlias = Callable[[int, int], int]
"""(port, size in bytes) -> value"""
PortWrite: TypeAlias = Callable[[int, int, int], None]
"""(port, size in bytes, value)"""
MmioRead: TypeAlias = Callable[[int, int], int]
"""(offset into the device, size) -> value"""
MmioWrite: TypeAlias = Callable[[int, int, int], None]


class PortBus:
    """KVM_PIO_BUS."""

    def __init__(self) -> None:
        self.ports: dict[int, tuple[PortRead, PortWrite]] = {}
        self.others: tuple[PortRead, PortWrite] | None = None
        """User space's, for all other ports: called from inside `run` where the engine can, which saves an exit."""

    def register(self, ports: range, read: PortRead, write: PortWrite) -> None:
        """Claim ports for a device.

        Raises:
            KvmError: EEXIST if one is claimed.
        """
        for port in ports:
            if port in self.ports:
                raise KvmError(errno.EEXIST, f"port {port:#x} has a device")
        for port in ports:
            self.ports[port] = (read, write)


class MmioBus:
    """KVM_MMIO_BUS, at page granularity: one device a page; what of the page it does not use reads as ones."""

    def __init__(self) -> None:
        self._pages: dict[int, tuple[MmioRead, MmioWrite]] = {}

    def register(self, gpa: int, size: int, read: MmioRead, write: MmioWrite) -> None:
        """Claim [gpa, gpa + size), which must lie within one page.

        Raises:
            KvmError: EINVAL if it does not, EEXIST if the page is claimed.
        """
        page = gpa & ~(PAGE_SIZE - 1)
        start = gpa - page
        if start + size > PAGE_SIZE:
            raise KvmError(errno.EINVAL, f"device at {gpa:#x}+{size:#x} crosses a page")
        if page in self._pages:
            raise KvmError(errno.EEXIST, f"page {page:#x} has a device")

        def page_read(offset: int, length: int) -> int:
            if start <= offset and offset + length <= start + size:
                return read(offset - start, length)
            return (1 << 8 * length) - 1

        def page_write(offset: int, length: int, value: int) -> None:
            if start <= offset and offset + length <= start + size:
                write(offset - start, length, value)

        self._pages[page] = (page_read, page_write)

    def at(self, page: int) -> tuple[MmioRead, MmioWrite] | None:
        return self._pages.get(page)

    def pages(self) -> tuple[int, ...]:
        return tuple(self._pages)
