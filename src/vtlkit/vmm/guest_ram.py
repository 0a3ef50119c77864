"""Guest RAM as loaders write it, whatever protects it from guests."""

from __future__ import annotations

from typing import Protocol


class _Memory(Protocol):
    def read(self, gpa: int, size: int) -> bytes: ...

    def write(self, gpa: int, data: bytes) -> None: ...


class GuestRam:
    """`size` bytes."""

    def __init__(self, memory: _Memory, size: int) -> None:
        self._memory = memory
        self.size = size

    def read(self, gpa: int, size: int) -> bytes:
        return self._memory.read(gpa, size)

    def write(self, gpa: int, data: bytes) -> None:
        self._memory.write(gpa, data)
