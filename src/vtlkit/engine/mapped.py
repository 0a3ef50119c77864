"""The calls by which an engine's memory changes, where its map is a `MemoryMap`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.engine.api import Access, Engine, MmioRead8, MmioWrite8, RamBlock
from vtlkit.engine.memory_map import Kind, MemoryMap


class MappedMemory(Engine):
    """Part of an engine; see `vtlkit.engine.api.Engine` for the contract."""

    if TYPE_CHECKING:
        # An attribute of the engine, which knows more of it.
        @property
        def _map(self) -> MemoryMap: ...

    def map_ram(self, gpa: int, size: int, block: RamBlock, offset: int, access: Access) -> None:
        self._map_may_change()
        self._map.map_ram(gpa, size, block, offset, access)

    def map_exit(self, gpa: int, size: int) -> None:
        self._map_may_change()
        self._map.insert(gpa, size, Kind.EXIT, ())

    def map_device(self, gpa: int, size: int, read: MmioRead8, write: MmioWrite8) -> None:
        self._map_may_change()
        self._map.map_io(gpa, size, Kind.DEVICE, read, write)

    def unmap(self, gpa: int, size: int) -> None:
        self._map_may_change()
        self._map.unmap(gpa, size)

    def protect(self, gpa: int, size: int, access: Access) -> None:
        self._map_may_change()
        self._map.protect(gpa, size, access)

    def _map_may_change(self) -> None:
        assert self.at_boundary, "the map cannot change in an unfinished I/O instruction"
