"""Memory attributes: what guest accesses a page permits (KVM_SET_MEMORY_ATTRIBUTES with read, write and execute bits).

Everything is permitted until said otherwise. Kept as maximal runs of equal attributes, sorted by address.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from vtlkit.engine.api import Access


class MemoryAttributes:
    """A total map from page-aligned addresses to `Access`. Written under the VM's slots lock."""

    __slots__ = ("_starts", "_values")

    def __init__(self) -> None:
        self._starts: list[int] = [0]
        self._values: list[Access] = [Access.ALL]

    def at(self, gpa: int) -> Access:
        return self._values[bisect_right(self._starts, gpa) - 1]

    def set(self, gpa: int, size: int, access: Access) -> None:
        """Give [gpa, gpa + size) these permissions."""
        end = gpa + size
        after = self.at(end)
        first = bisect_left(self._starts, gpa)
        last = bisect_right(self._starts, end)
        before = self._values[first - 1] if first else None
        starts, values = [], []
        if before != access:
            starts.append(gpa)
            values.append(access)
        if after != access:
            starts.append(end)
            values.append(after)
        self._starts[first:last] = starts
        self._values[first:last] = values
        # The run that follows may equal the one just put before it.
        index = first + len(starts)
        if index and index < len(self._starts) and self._values[index] == self._values[index - 1]:
            del self._starts[index]
            del self._values[index]

    def runs(self, gpa: int, end: int) -> Iterator[tuple[int, int, Access]]:
        """(start, end, access) of the runs within [gpa, end)."""
        index = bisect_right(self._starts, gpa) - 1
        while gpa < end:
            stop = self._starts[index + 1] if index + 1 < len(self._starts) else end
            yield gpa, min(stop, end), self._values[index]
            gpa = stop
            index += 1

    def __len__(self) -> int:
        return len(self._starts)
