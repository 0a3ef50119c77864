"""Data races of plain accesses: two at one location, one a write and one plain, with no happens-before between them.

What happens before what is as in RC11 under every model: a race is a property of the source, whatever the machine does.
"""

from __future__ import annotations

from vtlkit.checker.graphs.graph import UNWRITTEN, Graph, members
from vtlkit.checker.graphs.program import FENCE, READ, RMW_WRITE, Node


def race_of(graph: Graph, node: Node) -> str | None:
    """Whom the event that was just added races with, in words."""
    if node.kind == FENCE:
        return None
    writes = [write for write in graph.co.get(node.loc, UNWRITTEN) if write]
    others = writes + (members(graph.reads.get(node.loc, 0), graph.threads) if node.kind != READ else [])
    hb = happens_before(graph)
    for number in others:
        other = graph.node[number]
        if not (node.plain or other.plain) or hb[node.number] & other.bit or hb[number] & node.bit:
            continue
        location = graph.unfolding.locations[node.loc]
        what = "writes" if other.kind != READ else "reads"
        mine = "writes" if node.kind != READ else "reads"
        return f"data race: thread {node.thread} {mine} {location} while thread {other.thread} {what} it"
    return None


def happens_before(graph: Graph) -> dict[int, int]:
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
            mask |= _awaiting_acquire(graph, node, message) if node.acquires else 0
        else:
            message[number] = mask if node.releases else hb.get(node.fenced_at, 0)
            if node.kind == RMW_WRITE:
                message[number] |= message[graph.rf[node.previous]]
        hb[number] = mask
    return hb


def _awaiting_acquire(graph: Graph, fence: Node, message: dict[int, int]) -> int:
    found = 0
    number = fence.previous
    while graph.bits[number]:
        node = graph.node[number]
        if node.kind == READ:
            found |= message[graph.rf[number]]
        number = node.previous
    return found
