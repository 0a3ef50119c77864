"""Keeps one vCPU's engine in step with its VM's guest-physical address space.

Counterpart: the part of arch/x86/kvm/mmu that turns memslots into mappings. RAM is mapped when slots change; I/O pages
are mapped when the guest first touches them. Belongs to the vCPU's task, which calls `sync` before it enters the guest.
"""

from __future__ import annotations

from typing import Protocol

from vtlkit.engine.api import PAGE_SIZE, Access, Engine, MmioRead8, MmioWrite8
from vtlkit.kvm.address_space import Change
from vtlkit.kvm.memory import GuestMemory
from vtlkit.kvm.memslots import MAX_GPA

_PAGE_MASK = PAGE_SIZE - 1


class DevicePages(Protocol):
    """Pages that are devices of the hypervisor for this vCPU: they hide RAM at the same address."""

    def device_at(self, page: int) -> tuple[MmioRead8, MmioWrite8] | None:
        """Callbacks (offset in the page) of the device at a page address."""

    def device_pages(self) -> tuple[int, ...]:
        """Addresses of all such pages."""


class EngineMap:
    """The guest-physical map of one engine."""

    def __init__(self, engine: Engine, memory: GuestMemory, devices: DevicePages) -> None:
        self._engine = engine
        self._memory = memory
        self._devices = devices
        self._io_pages: set[int] = set()
        self._position = 0
        with memory.lock:
            self._map(0, MAX_GPA)
            self._position = memory.follow(self)
            self._version = memory.marker()

    @property
    def position(self) -> int:
        """How many changes of the log have been applied."""
        return self._position

    def restart_log(self, dropped: int) -> None:
        """The first `dropped` changes have left the log; every follower has applied them."""
        self._position -= dropped

    def sync(self) -> None:
        """Apply what has changed since the last call. The engine must be at an instruction boundary."""
        memory = self._memory
        with memory.lock:
            log = memory.log
            while self._position < len(log):
                change = log[self._position]
                self._position += 1
                self._apply(change)
            memory.trim()
            self._version.store(memory.version.load())

    def behind(self) -> bool:
        """Whether there is a change that has not been applied. From any task."""
        return self._version.load() != self._memory.version.load()

    def _apply(self, change: Change) -> None:
        if change.backing:
            self.refresh(change.gpa, change.size)
            return
        for gpa, size, _, _, access in self._memory.pieces(change.gpa, change.size):
            self._engine.protect(gpa, size, access)

    def refresh(self, gpa: int, size: int) -> None:
        """Map whole pages [gpa, gpa + size) anew."""
        self._io_pages = {page for page in self._io_pages if not gpa <= page < gpa + size}
        self._engine.unmap(gpa, size)
        self._map(gpa, size)

    def _map(self, gpa: int, size: int) -> None:
        hidden = [page for page in self._devices.device_pages() if gpa <= page < gpa + size]
        for start, length, block, offset, access in self._memory.pieces(gpa, size):
            at = start
            for page in sorted(page for page in hidden if start <= page < start + length):
                if page > at:
                    self._engine.map_ram(at, page - at, block, offset + (at - start), access)
                at = page + PAGE_SIZE
            if at < start + length:
                self._engine.map_ram(at, start + length - at, block, offset + (at - start), access)

    def map_io(self, gpa: int) -> bool:
        """Map the I/O page that the guest has just touched; False if RAM is there and the engine is behind."""
        page = gpa & ~_PAGE_MASK
        if page in self._io_pages:
            return False
        device = self._devices.device_at(page)
        if device is not None:
            self._engine.map_device(page, PAGE_SIZE, *device)
        elif self._memory.find(page) is not None:
            return False
        else:
            self._engine.map_exit(page, PAGE_SIZE)
        self._io_pages.add(page)
        return True


def forbids(memory: GuestMemory, gpa: int, access: Access) -> bool:
    """Whether attributes (not the slot) forbid the access."""
    return bool(access & ~memory.attributes.at(gpa))
