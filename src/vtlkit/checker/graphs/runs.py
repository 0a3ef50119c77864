"""A graph as a run: its events one after the other, as somebody who watched could have seen them.

Under SC every read sees the last write before it. Under TSO a store that others see late is two steps: into the store
buffer, and out of it. Under RC11 there need be no such order: what is sought has few reads of what was overwritten
before, and they are marked.
"""

from __future__ import annotations

from dataclasses import dataclass

from vtlkit.checker import phrases
from vtlkit.checker.graphs.consistency.order import OrderedGraph
from vtlkit.checker.graphs.consistency.tso import TsoGraph
from vtlkit.checker.graphs.graph import UNWRITTEN, Graph, members
from vtlkit.checker.graphs.unfolding import BLOCKED, FENCE, READ, RMW_WRITE, WRITE, Node
from vtlkit.checker.ops import Location, Rmw
from vtlkit.checker.result import Step


@dataclass(slots=True)
class _Unit:
    """An event, or both halves of a read-modify-write; `hard` must come before it, `soft` should."""

    node: Node
    writes: Node | None
    bits: int
    hard: int
    soft: int = 0

    @property
    def write(self) -> Node | None:
        """The event that writes, if one does."""
        return self.writes or (self.node if self.node.kind == WRITE else None)


class Run:
    """The steps of a graph, or of what `culprits` depend on, with these at the end."""

    def __init__(self, graph: Graph, culprits: tuple[Node, ...] = ()) -> None:
        self._graph = graph
        self._program = graph.unfolding.program
        self.steps: list[Step] = []
        self.at: dict[int, int] = {}
        """Event number -> its step; of a write, the one by which others see it."""
        self._put: dict[int, int] = {}
        """Write -> the step that puts it into the store buffer."""
        units = self._units(culprits)
        last = [self._extra(node) for node in culprits if not graph.alive & node.bit]
        for unit in _sorted(units, graph.threads):
            self._add(unit, units)
        self.steps += last

    def _units(self, culprits: tuple[Node, ...]) -> list[_Unit]:
        graph = self._graph
        chosen = graph.alive
        if culprits:
            chosen = 0
            for node in culprits:
                chosen |= graph.porf[node.number if graph.alive & node.bit else node.previous]
        waits = {node.previous for node in graph.current if node.kind == BLOCKED and isinstance(node.op, Rmw)}
        before = graph.before if isinstance(graph, OrderedGraph) else graph.porf
        units = []
        for number in members(chosen & graph.alive, graph.threads):
            node = graph.node[number]
            if node.kind == RMW_WRITE:
                continue
            if number in waits:
                # It waits for a lock: that is no step.
                continue
            half = graph.node[number + graph.threads] if number + graph.threads < len(graph.node) else None
            if half is not None and half.kind == RMW_WRITE and half.bit & chosen & graph.alive and half.parent is node:
                bits = node.bit | half.bit
                units.append(_Unit(node, half, bits, (before[number] | before[half.number]) & ~bits))
            else:
                units.append(_Unit(node, None, node.bit, before[number] & ~node.bit))
        self._wish(units)
        return units

    def _wish(self, units: list[_Unit]) -> None:
        """What should come before what, for a reader's sake: writes in coherence order, reads before what they miss."""
        graph = self._graph
        shown = 0
        for unit in units:
            shown |= unit.bits
        for unit in units:
            unit.hard &= shown
        readers: dict[int, int] = {}
        for unit in units:
            if unit.node.kind == READ:
                key = graph.rf[unit.node.number] or -unit.node.loc - 1
                readers[key] = readers.get(key, 0) | unit.bits
        for unit in units:
            write = unit.write
            if write is not None:
                earlier = 0
                co = graph.co[write.loc]
                for other in co[: co.index(write.number)]:
                    earlier |= graph.bits[other] | readers.get(other or -write.loc - 1, 0)
                unit.soft = earlier & shown & ~unit.bits

    def _add(self, unit: _Unit, units: list[_Unit]) -> None:
        node = unit.node
        buffers = isinstance(self._graph, TsoGraph)
        if buffers:
            # What the thread stored before has left its instructions, if not its buffer.
            for other in units:
                if other.node.thread == node.thread and other.node.kind == WRITE and other.node.number < node.number:
                    self._buffer(other.node)
        self.at[node.number] = len(self.steps)
        if unit.writes is not None:
            self.at[unit.writes.number] = len(self.steps)
        if buffers and node.number in self._put:
            location = self._at(node)
            text = phrases.hands_on(location, node.value)
            self.steps.append(Step(node.thread, text, self._place(node), location, None, node.value, buffered=True))
        else:
            self.steps.append(self._step(unit))

    def _buffer(self, node: Node) -> None:
        if node.number in self.at or node.number in self._put:
            return
        self._put[node.number] = len(self.steps)
        location = self._at(node)
        text = phrases.buffers(location, node.value, node.order)
        self.steps.append(Step(node.thread, text, self._place(node), location, None, node.value))

    def _step(self, unit: _Unit) -> Step:
        node, place = unit.node, self._place(unit.node)
        if node.kind == FENCE:
            return Step(node.thread, phrases.fence(node.order), place)
        location = self._at(node)
        if node.kind == WRITE:
            text = phrases.writes(location, node.value, node.order)
            return Step(node.thread, text, place, location, None, node.value)
        graph = self._graph
        source = graph.rf[node.number]
        value = graph.node[source].value if source else node.initial
        co = graph.co.get(node.loc, UNWRITTEN)
        stale = any(other in self.at for other in co[co.index(source) + 1 :] if other != node.number + graph.threads)
        own = source in self._put and source % graph.threads == node.thread and source not in self.at
        origin = self._put[source] if own else self.at.get(source)
        if unit.writes is not None:
            assert isinstance(node.op, Rmw)
            text = phrases.changes(node.op, value, unit.writes.value)
            return Step(node.thread, text, place, location, value, unit.writes.value, origin, stale)
        text = (phrases.finds if node.waits else phrases.reads)(location, value, node.order)
        return Step(node.thread, text, place, location, value, None, origin, stale)

    def _extra(self, node: Node) -> Step:
        """A culprit that is not in the graph: a failure."""
        return Step(node.thread, f"fails: {getattr(node.op, 'text', node.op)}", self._place(node))

    def _at(self, node: Node) -> Location:
        return self._graph.unfolding.locations[node.loc]

    def _place(self, node: Node) -> str:
        return self._program.place(node.thread, node.results)


def _sorted(units: list[_Unit], threads: int) -> list[_Unit]:
    """In an order that keeps all that is hard and, where it can be, all that is soft; threads change seldom."""
    left = sorted(units, key=lambda unit: unit.node.number)
    done, last, order = 0, 0, []
    while left:
        ready = [unit for unit in left if not unit.hard & ~done]
        ready.sort(
            key=lambda unit: (
                (unit.soft & ~done).bit_count(),
                (unit.node.thread - last) % threads,
                unit.node.number,
            )
        )
        unit = ready[0]
        left.remove(unit)
        order.append(unit)
        done |= unit.bits
        last = unit.node.thread
    return order
