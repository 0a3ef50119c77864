"""Writes to code, across instances: what each has translated, and whether it still reads the same.

Unicorn notices an instance's own writes to code it has translated, but not those of another instance or of the host.
Architecturally a processor must serialise before it runs code that another one wrote, and here one instance runs at a
time; so it is enough to look when an instance is entered after somebody else has run. Each instance remembers the bytes
it translated, as intervals of the RAM block; entering compares them with RAM and drops the translations that differ.

Comparing bytes has no false alarms for data that shares a page with code (small guests do that everywhere) and needs no
page protection. Its cost is one comparison of memory per interval, on entry after a switch only.
"""

from __future__ import annotations

from bisect import bisect_right

from vtlkit.engine.api import RamBlock

_JOIN = 64
"""Intervals closer than this are kept as one: fewer comparisons, at the risk of translating a little again."""


class TranslatedCode:
    """The code bytes of one RAM block that one instance has translated. Belongs to that instance's task."""

    def __init__(self, block: RamBlock) -> None:
        self.block = block
        self._starts: list[int] = []
        self._bytes: list[bytes] = []
        self._slices: list[tuple[int, slice, bytes]] | None = None
        """The same, as `changed` goes through it; None if it has to be made anew."""

    def add(self, start: int, size: int) -> None:
        """Remember the bytes at [start, start + size) of the block as they are now."""
        end = start + size
        index = bisect_right(self._starts, start)
        if index and self._starts[index - 1] + len(self._bytes[index - 1]) >= end:
            return
        first = index
        while first and self._starts[first - 1] + len(self._bytes[first - 1]) + _JOIN >= start:
            first -= 1
            start = min(start, self._starts[first])
            end = max(end, self._starts[first] + len(self._bytes[first]))
        last = index
        while last < len(self._starts) and self._starts[last] <= end + _JOIN:
            end = max(end, self._starts[last] + len(self._bytes[last]))
            last += 1
        self._slices = None
        self._starts[first:last] = [start]
        self._bytes[first:last] = [self.block.mapping[start:end]]

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any of [start, end) has been translated, or may have been."""
        index = bisect_right(self._starts, end - 1)
        return index > 0 and self._starts[index - 1] + len(self._bytes[index - 1]) > start

    def changed(self) -> list[tuple[int, bytes]]:
        """Forget and return the intervals whose bytes differ now: (offset in the block, present bytes)."""
        # Slices of the mapping are bytes: compared by memcmp, where a memoryview compares element by element.
        memory = self.block.mapping
        if self._slices is None:
            self._slices = [
                (index, slice(start, start + len(data)), data)
                for index, (start, data) in enumerate(zip(self._starts, self._bytes, strict=True))
            ]
        stale = []
        for index, where, data in self._slices:
            if memory[where] != data:
                stale.append(index)
        if not stale:
            return []
        found = []
        self._slices = None
        for index in reversed(stale):
            start, data = self._starts.pop(index), self._bytes.pop(index)
            found.append((start, memory[start : start + len(data)]))
        return found

    def __len__(self) -> int:
        return len(self._starts)
