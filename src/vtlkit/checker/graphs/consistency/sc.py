"""Sequential consistency: program order, reads-from, coherence and from-reads together have no cycle.

`before` is that relation's transitive closure, kept as events are added. A new event has at most one successor, the
write that follows it or its source; so a choice is consistent if and only if that write is not already before the
thread.
"""

from __future__ import annotations

from typing import Self

from vtlkit.checker.graphs.graph import UNWRITTEN, Graph
from vtlkit.checker.graphs.program import Node, Unfolding


class ScGraph(Graph):
    """A graph under sequential consistency."""

    __slots__ = ("before",)

    name = "sc"

    def __init__(self, unfolding: Unfolding) -> None:
        super().__init__(unfolding)
        self.before = [0] * self.threads
        """Event -> itself and everything before it."""

    def copy(self) -> Self:
        new = super().copy()
        new.before = self.before[:]
        return new

    def _grow(self, number: int) -> None:
        super()._grow(number)
        self.before += [0] * (len(self.rf) - len(self.before))

    def floor(self, node: Node) -> int:
        co = self.co.get(node.loc, UNWRITTEN)
        before = self.before[node.previous]
        bits = self.bits
        index = len(co) - 1
        while index and not before & bits[co[index]]:
            index -= 1
        return index

    def rank(self, number: int) -> int:
        return self.before[number].bit_count()

    def _placed_read(self, node: Node, source: int, following: int) -> None:
        before = self.before
        mask = before[node.number] = before[node.previous] | before[source] | node.bit
        if following:
            self._precede(mask, following)

    def _placed_write(self, node: Node, index: int) -> None:
        before = self.before
        co = self.co[node.loc]
        source = co[index - 1]
        mask = before[node.previous] | before[source] | node.bit
        readers = self.readers[source] if source else self.fresh.get(node.loc, 0)
        while readers:
            low = readers & -readers
            mask |= before[low.bit_length() - 1 + self.threads]
            readers ^= low
        before[node.number] = mask
        if index + 1 < len(co):
            self._precede(mask, co[index + 1])

    def _placed_fence(self, node: Node) -> None:
        self.before[node.number] = self.before[node.previous] | node.bit

    def _precede(self, mask: int, following: int) -> None:
        """Put the events of `mask` before `following` and everything behind it."""
        bit = self.bits[following]
        self.before = [other | mask if other & bit else other for other in self.before]
