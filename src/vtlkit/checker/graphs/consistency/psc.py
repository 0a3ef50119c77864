"""The axiom of SEQ_CST events: their partial order (RC11's psc) has no cycle.

    eco = (rf | co | fr)+        scb = po | po;hb;po | hb on one location | co | fr
    psc = ([E] | [F];hb?) ; scb ; ([E] | hb?;[F])   |   [F] ; (hb | hb;eco;hb) ; [F]

with E the SEQ_CST events and F the fences among them. The middle of scb is as in C++20; the RC11 paper asks for other
locations on both sides of its hb, which allows a few outcomes more.

psc's transitive closure is kept. A new event happens before nothing, so its new edges are those to it, if it is
SEQ_CST, and those from it or the fences behind it, through the writes that follow it or its source in coherence order.
"""

from __future__ import annotations

from vtlkit.checker.graphs.graph import UNWRITTEN, Graph, members
from vtlkit.checker.graphs.unfolding import FENCE, READ, Node, Unfolding


class SequentialOrder(Graph):
    """What a graph under RC11 knows of its SEQ_CST events."""

    __slots__ = ("consistent", "hb", "psc", "sc_fences", "sequential")

    def __init__(self, unfolding: Unfolding) -> None:
        super().__init__(unfolding)
        self.hb = [0] * self.threads
        """Event -> itself and what happens before it."""
        self.psc = [0] * self.threads
        """SEQ_CST event -> those before it in psc's closure."""
        self.sequential = 0
        self.sc_fences = 0
        self.consistent = True

    def admit(self, node: Node) -> bool:
        return self.consistent

    def _order(self, node: Node, index: int) -> None:
        """Add the edges of a new event; the writes from `index` on follow it or its source."""
        fences = self.hb[node.number] & self.sc_fences
        if node.sequential:
            self.sequential |= node.bit
            if node.kind == FENCE:
                self.sc_fences |= node.bit
            self.psc[node.number] = self._closed(self._predecessors(node) & ~node.bit)
        elif not fences:
            return
        if node.kind == FENCE:
            return
        writes, reads = self._following(node.loc, index)
        if not writes:
            return
        targets = writes & self.sequential | self._fences_behind(writes)
        if node.sequential and targets:
            self._precede(node.bit, targets)
        if fences and (targets := targets | self._fences_behind(reads)):
            self._precede(fences, targets)

    def _following(self, loc: int, index: int) -> tuple[int, int]:
        """The writes from `index` on, and their readers."""
        writes = reads = 0
        for write in self.co.get(loc, UNWRITTEN)[index:]:
            writes |= self.bits[write]
            reads |= self.readers[write]
        return writes, reads

    def _fences_behind(self, events: int) -> int:
        """SEQ_CST fences before which one of these happens."""
        found = 0
        for fence in members(self.sc_fences, self.threads):
            if self.hb[fence] & events:
                found |= self.bits[fence]
        return found

    def _closed(self, events: int) -> int:
        """These SEQ_CST events and those before them."""
        found = events
        for event in members(events, self.threads):
            found |= self.psc[event]
        return found

    def _precede(self, events: int, targets: int) -> None:
        """Put `events` before `targets`, or find that this is a cycle."""
        earlier = self._closed(events)
        if earlier & targets:
            self.consistent = False
            return
        for event in members(self.sequential, self.threads):
            if (self.psc[event] | self.bits[event]) & targets:
                self.psc[event] |= earlier

    def _predecessors(self, node: Node) -> int:
        """SEQ_CST events with a psc edge to this new one, itself possibly among them."""
        known = self.hb[node.number]
        if node.kind != FENCE:
            return self._origins(self._before_in_scb(node))
        accesses = through_rf = 0
        for loc, co in self.co.items():
            index, read_index = self._last_known(co, known)
            accesses |= self._preceding(loc, co, index)
            if read_index > index:
                through_rf |= self._preceding(loc, co, read_index) | self.bits[co[read_index]]
        return known & self.sequential | self._origins(accesses) | self._fences_before(through_rf)

    def _last_known(self, co: tuple[int, ...], known: int) -> tuple[int, int]:
        """The last place in a coherence order whose write, and whose write or one of its reads, is in `known`."""
        read_index = 0
        for index in range(len(co) - 1, 0, -1):
            if known & self.bits[co[index]]:
                return index, max(index, read_index)
            if not read_index and known & self.readers[co[index]]:
                read_index = index
        return 0, read_index

    def _preceding(self, loc: int, co: tuple[int, ...], index: int) -> int:
        """The writes before this place, and their readers."""
        if not index:
            return 0
        found = self.fresh.get(loc, 0)
        for write in co[1:index]:
            found |= self.bits[write] | self.readers[write]
        return found

    def _origins(self, events: int) -> int:
        """SEQ_CST events among these, and SEQ_CST fences that happen before one of them."""
        return events & self.sequential | self._fences_before(events)

    def _fences_before(self, events: int) -> int:
        """SEQ_CST fences that happen before one of these."""
        if not self.sc_fences:
            return 0
        found = 0
        for event in members(events, self.threads):
            found |= self.hb[event]
        return found & self.sc_fences

    def _before_in_scb(self, node: Node) -> int:
        """Events before an access in scb."""
        found = 0
        previous = node.previous
        if self.bits[previous]:
            # po;hb;po. What happens before `previous` is closed under program order: take each thread's last one away.
            earlier = self.hb[previous] & ~self.bits[previous]
            last: dict[int, int] = {}
            for event in members(earlier, self.threads):
                last[event % self.threads] = self.bits[event]
            found = earlier & ~sum(last.values())
            while self.bits[previous]:
                found |= self.bits[previous]
                previous -= self.threads
        co = self.co.get(node.loc, UNWRITTEN)
        here = self.reads.get(node.loc, 0) | sum(self.bits[write] for write in co)
        found |= self.hb[node.number] & ~node.bit & here
        if node.kind != READ:
            found |= self._preceding(node.loc, co, co.index(node.number))
        return found
