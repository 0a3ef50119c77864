"""Sequential consistency: program order, reads-from, coherence and from-reads together have no cycle."""

from __future__ import annotations

from vtlkit.checker.graphs.consistency.order import OrderedGraph
from vtlkit.checker.graphs.graph import UNWRITTEN
from vtlkit.checker.graphs.unfolding import Node


class ScGraph(OrderedGraph):
    """A graph under sequential consistency."""

    __slots__ = ()

    name = "sc"

    def rank(self, number: int) -> int:
        return self.before[number].bit_count()

    def floor(self, node: Node) -> int:
        co = self.co.get(node.loc, UNWRITTEN)
        before = self.before[node.previous]
        bits = self.bits
        index = len(co) - 1
        while index and not before & bits[co[index]]:
            index -= 1
        return index

    def _ordered(self, node: Node) -> int:
        return self.before[node.previous]

    def _placed_read(self, node: Node, source: int, following: int) -> None:
        before = self.before
        mask = before[node.number] = before[node.previous] | before[source] | node.bit
        if following:
            self._precede(mask, following)
