"""x86-TSO: coherence at each location, and an acyclic global order.

The global order holds preserved program order (all but a store before a later load), reads-from between threads,
coherence and from-reads. SEQ_CST fences and read-modify-writes (one that fails, too: LOCK CMPXCHG) keep everything in
order, a SEQ_CST store is followed by a fence; other orders and fences cost x86 nothing and do nothing here.

`before` is the global order's transitive closure. A new event has one successor at most, as in `sc`; beside that a
thread must not go back behind what it read or wrote last at the location.
"""

from __future__ import annotations

from typing import Self

from vtlkit.checker.graphs.graph import UNWRITTEN, Graph, members
from vtlkit.checker.graphs.program import READ, Node, Unfolding


class TsoGraph(Graph):
    """A graph under total store order."""

    __slots__ = ("before",)

    name = "tso"

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
        """What of its own thread and before is globally before the next event."""
        mask = self.before[node.ordered_at]
        if node.kind != READ or node.locked:
            mask |= self.before[node.written_at]
        return mask

    def floor(self, node: Node) -> int:
        co = self.co.get(node.loc, UNWRITTEN)
        before = self._ordered(node)
        bits = self.bits
        same = node.same_at
        if same and self.node[same].kind == READ:
            same = self.rf[same]
        index = len(co) - 1
        while index and co[index] != same and not before & bits[co[index]]:
            index -= 1
        return index

    def _placed_read(self, node: Node, source: int, following: int) -> None:
        mask = self._ordered(node) | node.bit
        if source % self.threads != node.thread:
            mask |= self.before[source]
        self.before[node.number] = mask
        if following:
            self._precede(mask, following)

    def _placed_write(self, node: Node, index: int) -> None:
        co = self.co[node.loc]
        mask = self._ordered(node) | self._before_in_co(node, co[index - 1])
        self.before[node.number] = mask
        if index + 1 < len(co):
            self._precede(mask, co[index + 1])

    def _before_in_co(self, node: Node, source: int) -> int:
        """What a write inherits from the one before it and from that one's readers, and itself."""
        mask = self.before[source] | node.bit
        readers = self.readers[source] if source else self.fresh.get(node.loc, 0)
        for reader in members(readers, self.threads):
            mask |= self.before[reader]
        return mask

    def _placed_fence(self, node: Node) -> None:
        self.before[node.number] = self._ordered(node) | node.bit

    def _precede(self, mask: int, following: int) -> None:
        """Put the events of `mask` before `following` and everything behind it."""
        bit = self.bits[following]
        self.before = [other | mask if other & bit else other for other in self.before]
