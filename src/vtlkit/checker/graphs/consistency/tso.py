"""x86-TSO: coherence at each location, and an acyclic global order.

The global order holds preserved program order (all but a store before a later load), reads-from between threads,
coherence and from-reads. SEQ_CST fences and read-modify-writes (one that fails, too: LOCK CMPXCHG) keep everything in
order, a SEQ_CST store is followed by a fence; other orders and fences cost x86 nothing and do nothing here.
"""

from __future__ import annotations

from vtlkit.checker.graphs.consistency.order import OrderedGraph
from vtlkit.checker.graphs.graph import UNWRITTEN
from vtlkit.checker.graphs.unfolding import READ, Node


class TsoGraph(OrderedGraph):
    """A graph under total store order."""

    __slots__ = ()

    name = "tso"

    def floor(self, node: Node) -> int:
        """Not before what the thread itself has read or written last, whatever the global order says."""
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

    def _ordered(self, node: Node) -> int:
        mask = self.before[node.ordered_at]
        if node.kind != READ or node.locked:
            mask |= self.before[node.written_at]
        return mask

    def _placed_read(self, node: Node, source: int, following: int) -> None:
        mask = self._ordered(node) | node.bit
        if source % self.threads != node.thread:
            mask |= self.before[source]
        self.before[node.number] = mask
        if following:
            self._precede(mask, following)
