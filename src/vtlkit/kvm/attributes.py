"""Memory attributes: what guest accesses a page permits (KVM_SET_MEMORY_ATTRIBUTES with read, write and execute bits).

Everything is permitted until said otherwise. Kept as maximal runs of equal attributes, sorted by address; a value is
immutable, so that a reader on another task sees all of a change or none of it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from vtlkit.engine.api import Access


class MemoryAttributes:
    """A total map from page-aligned addresses to `Access`. Immutable."""

    __slots__ = ("_starts", "_values")

    def __init__(self, starts: tuple[int, ...] = (0,), values: tuple[Access, ...] = (Access.ALL,)) -> None:
        """Everything permitted; the arguments are for `changed`."""
        self._starts = starts
        self._values = values

    def at(self, gpa: int) -> Access:
        return self._values[bisect_right(self._starts, gpa) - 1]

    def changed(self, gpa: int, size: int, access: Access) -> MemoryAttributes:
        """The map in which [gpa, gpa + size) has these permissions."""
        end = gpa + size
        after = self.at(end)
        first = bisect_left(self._starts, gpa)
        last = bisect_right(self._starts, end)
        before = self._values[first - 1] if first else None
        starts: list[int] = []
        values: list[Access] = []
        if before != access:
            starts.append(gpa)
            values.append(access)
        # The run behind begins at `end`, unless it carries on what comes before it.
        if after != access:
            starts.append(end)
            values.append(after)
        return MemoryAttributes(
            self._starts[:first] + tuple(starts) + self._starts[last:],
            self._values[:first] + tuple(values) + self._values[last:],
        )

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
