"""What SC and TSO have in common: one global order of events, with no cycle, whose closure is kept as events are added.

A new event has at most one successor, the write that follows it or its source. So a choice is consistent if and only if
that write is not already before the thread.
"""

from __future__ import annotations

from typing import Self

from vtlkit.checker.graphs.graph import Graph
from vtlkit.checker.graphs.unfolding import Node, Unfolding


class OrderedGraph(Graph):
    """A graph with a global order that holds coherence, from-reads and, between threads, reads-from."""

    __slots__ = ("before",)

    def __init__(self, unfolding: Unfolding) -> None:
        super().__init__(unfolding)
        self.before = [0] * self.threads
        """Event -> itself and everything before it in the global order."""

    def copy(self) -> Self:
        new = super().copy()
        new.before = self.before[:]
        return new

    def _grow(self, number: int) -> None:
        super()._grow(number)
        self.before += [0] * (len(self.rf) - len(self.before))

    def _ordered(self, node: Node) -> int:
        """What of its own thread, and before that, is before a thread's next event."""
        raise NotImplementedError

    def _placed_write(self, node: Node, index: int) -> None:
        before = self.before
        co = self.co[node.loc]
        source = co[index - 1]
        mask = self._ordered(node) | before[source] | node.bit
        readers = self.readers[source] if source else self.fresh.get(node.loc, 0)
        while readers:
            low = readers & -readers
            mask |= before[low.bit_length() - 1 + self.threads]
            readers ^= low
        before[node.number] = mask
        if index + 1 < len(co):
            self._precede(mask, co[index + 1])

    def _placed_fence(self, node: Node) -> None:
        self.before[node.number] = self._ordered(node) | node.bit

    def _precede(self, mask: int, following: int) -> None:
        """Put the events of `mask` before `following` and everything behind it."""
        bit = self.bits[following]
        self.before = [other | mask if other & bit else other for other in self.before]
