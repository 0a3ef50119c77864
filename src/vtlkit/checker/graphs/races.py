"""Data races of plain accesses: two at one location, one a write and one plain, with no happens-before between them.

What happens before what is as in RC11 under every model: a race is a property of the source, whatever the machine does.
Two events that race in a part of an execution race in the whole, so only finished graphs are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from vtlkit.checker.graphs.consistency.psc import SequentialOrder
from vtlkit.checker.graphs.graph import UNWRITTEN, Graph, members
from vtlkit.checker.graphs.unfolding import FENCE, READ, RMW_WRITE, Node


@dataclass(frozen=True, slots=True)
class Race:
    """Two events that race."""

    first: Node
    second: Node
    location: object

    def __str__(self) -> str:
        one, other = (f"thread {node.thread} {_verb(node)} {self.location}" for node in (self.first, self.second))
        return f"data race: {one}, {other}"


def _verb(node: Node) -> str:
    return "reads" if node.kind == READ else "writes"


def find_race(graph: Graph) -> Race | None:
    """A race of this graph, if there is one."""
    hb = graph.hb if isinstance(graph, SequentialOrder) else _happens_before(graph)
    for loc in sorted(graph.unfolding.plain):
        writes = [write for write in graph.co.get(loc, UNWRITTEN) if write]
        here = writes + members(graph.reads.get(loc, 0), graph.threads)
        for first, second in combinations([graph.node[number] for number in here], 2):
            if (first.kind == READ and second.kind == READ) or not (first.plain or second.plain):
                continue
            if not (hb[first.number] & second.bit or hb[second.number] & first.bit):
                return Race(first, second, graph.unfolding.locations[loc])
    return None


def _happens_before(graph: Graph) -> dict[int, int]:
    """Event -> itself and what happens before it."""
    hb: dict[int, int] = {0: 0}
    message: dict[int, int] = {0: 0}
    order = sorted(members(graph.alive, graph.threads), key=lambda number: (graph.porf[number].bit_count(), number))
    for number in order:
        node = graph.node[number]
        mask = hb.get(node.previous, 0) | node.bit
        if node.kind == READ:
            mask |= message[graph.rf[number]] if node.acquires else 0
        elif node.kind == FENCE:
            mask |= _read_before(graph, node, message) if node.acquires else 0
        else:
            message[number] = mask if node.releases else hb.get(node.fenced_at, 0)
            if node.kind == RMW_WRITE:
                message[number] |= message[graph.rf[node.previous]]
        hb[number] = mask
    return hb


def _read_before(graph: Graph, fence: Node, message: dict[int, int]) -> int:
    """What an acquiring fence gets to know by the reads before it."""
    found = 0
    number = fence.previous
    while graph.bits[number]:
        node = graph.node[number]
        if node.kind == READ:
            found |= message[graph.rf[number]]
        number = node.previous
    return found
