"""RC11: coherence, atomicity, no cycle through program order and reads-from, and an acyclic order of SEQ_CST events.

The happens-before predecessors of an event depend on its porf-prefix alone, and a new event has no successors. So they
are computed once, when the event is added, and stay valid through every deletion. Coherence then says: a thread may not
read from, nor write before, anything that precedes the last write that it knows of.
"""

from __future__ import annotations

from typing import Self

from vtlkit.checker.graphs.consistency.psc import SequentialOrder
from vtlkit.checker.graphs.graph import UNWRITTEN
from vtlkit.checker.graphs.unfolding import FENCE, READ, RMW_WRITE, Node, Unfolding


class Rc11Graph(SequentialOrder):
    """A graph under RC11, with the SEQ_CST axiom as C++20 has it."""

    __slots__ = ("message",)

    name = "rc11"

    def __init__(self, unfolding: Unfolding) -> None:
        super().__init__(unfolding)
        self.message = [0] * self.threads
        """Write -> what happens before an acquiring read of it."""

    def copy(self) -> Self:
        new = super().copy()
        new.hb = self.hb[:]
        new.message = self.message[:]
        new.psc = self.psc[:]
        new.sequential = self.sequential
        new.sc_fences = self.sc_fences
        new.consistent = self.consistent
        return new

    def _grow(self, number: int) -> None:
        super()._grow(number)
        more = [0] * (len(self.rf) - len(self.hb))
        self.hb += more
        self.message += more
        self.psc += more

    def floor(self, node: Node) -> int:
        co = self.co.get(node.loc, UNWRITTEN)
        known = self.hb[node.previous]
        bits = self.bits
        readers = self.readers
        index = len(co) - 1
        while index and not known & (bits[co[index]] | readers[co[index]]):
            index -= 1
        return index

    def _placed_read(self, node: Node, source: int, following: int) -> None:
        hb = self.hb[node.previous] | node.bit
        self.hb[node.number] = hb | self.message[source] if node.acquires else hb
        if self.sequential or node.sequential:
            co = self.co.get(node.loc, UNWRITTEN)
            self._order(node, co.index(following) if following else len(co))

    def _placed_write(self, node: Node, index: int) -> None:
        number = node.number
        hb = self.hb[number] = self.hb[node.previous] | node.bit
        message = hb if node.releases else self.hb[node.fenced_at]
        if node.kind == RMW_WRITE:
            message |= self.message[self.rf[node.previous]]
        self.message[number] = message
        if self.sequential or node.sequential:
            self._order(node, index + 1)

    def _placed_fence(self, node: Node) -> None:
        hb = self.hb[node.previous] | node.bit
        if node.acquires:
            number = node.previous
            while self.bits[number]:
                earlier = self.node[number]
                if earlier.kind == READ:
                    hb |= self.message[self.rf[number]]
                elif earlier.kind == FENCE and earlier.acquires:
                    break
                number = earlier.previous
        self.hb[node.number] = hb
        if node.sequential:
            self._order(node, 0)

    def _forget(self, gone: int) -> None:
        self.sequential &= ~gone
        self.sc_fences &= ~gone
