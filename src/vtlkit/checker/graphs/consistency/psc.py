"""The axiom of SEQ_CST events: their partial order (RC11's psc) has no cycle.

    eco = (rf | co | fr)+        scb = po | po;hb;po | hb on one location | co | fr
    psc = ([E] | [F];hb?) ; scb ; ([E] | hb?;[F])   |   [F] ; (hb | hb;eco;hb) ; [F]

with E the SEQ_CST events and F the fences among them. The middle of scb is as in C++20; the RC11 paper asks for other
locations on both sides of its hb, which allows a few outcomes more.
"""

from __future__ import annotations

from typing import Protocol

from vtlkit.checker.graphs.graph import UNWRITTEN, members
from vtlkit.checker.graphs.program import FENCE, READ, Node


class Ordered(Protocol):
    """What this module needs of a graph; see `Graph` and `Rc11Graph`."""

    threads: int
    node: list[Node]
    rf: list[int]
    bits: list[int]
    readers: list[int]
    fresh: dict[int, int]
    reads: dict[int, int]
    co: dict[int, tuple[int, ...]]
    hb: list[int]
    sequential: int


def acyclic(graph: Ordered) -> bool:
    """Whether psc has no cycle."""
    predecessors = {number: _predecessors(graph, number) for number in members(graph.sequential, graph.threads)}
    left = graph.sequential
    while left:
        ready = [number for number in predecessors if not predecessors[number] & left & ~graph.bits[number]]
        if not ready:
            return False
        for number in ready:
            left &= ~graph.bits[number]
            del predecessors[number]
    return True


def _predecessors(graph: Ordered, number: int) -> int:
    """SEQ_CST events with a psc edge to this one, itself possibly among them."""
    node = graph.node[number]
    if node.kind != FENCE:
        return _origins(graph, _before_in_scb(graph, number))
    hb = graph.hb[number]
    scb = eco = 0
    for event in members(hb, graph.threads):
        scb |= _before_in_scb(graph, event)
        eco |= _before_in_eco(graph, event)
    fences = _fences(graph, hb | _happens_before(graph, eco))
    return _origins(graph, scb) | fences


def _origins(graph: Ordered, events: int) -> int:
    """SEQ_CST events among these, and SEQ_CST fences that happen before one of them."""
    return events & graph.sequential | _fences(graph, _happens_before(graph, events))


def _happens_before(graph: Ordered, events: int) -> int:
    """All that happens before these, themselves included."""
    found = 0
    for event in members(events, graph.threads):
        found |= graph.hb[event]
    return found


def _fences(graph: Ordered, events: int) -> int:
    found = 0
    for event in members(events & graph.sequential, graph.threads):
        if graph.node[event].kind == FENCE:
            found |= graph.bits[event]
    return found


def _before_in_scb(graph: Ordered, number: int) -> int:
    node = graph.node[number]
    found = 0
    previous = node.previous
    if graph.bits[previous]:
        # po;hb;po. What happens before `previous` is closed under program order: take each thread's last event away.
        earlier = graph.hb[previous] & ~graph.bits[previous]
        last: dict[int, int] = {}
        for event in members(earlier, graph.threads):
            last[event % graph.threads] = graph.bits[event]
        found = earlier & ~sum(last.values())
        while graph.bits[previous]:
            found |= graph.bits[previous]
            previous = graph.node[previous].previous
    if node.kind != FENCE:
        co = graph.co.get(node.loc, UNWRITTEN)
        here = graph.reads.get(node.loc, 0) | sum(graph.bits[write] for write in co)
        found |= graph.hb[number] & ~node.bit & here
        if node.kind != READ:
            found |= _before_in_co_and_fr(graph, number)
    return found


def _before_in_co_and_fr(graph: Ordered, write: int) -> int:
    """Writes before this one in coherence order, and their readers."""
    loc = graph.node[write].loc
    found = graph.fresh.get(loc, 0)
    for other in graph.co[loc]:
        if other == write:
            break
        found |= graph.bits[other]
        if other:
            found |= graph.readers[other]
    return found


def _before_in_eco(graph: Ordered, number: int) -> int:
    node = graph.node[number]
    if node.kind == FENCE:
        return 0
    if node.kind != READ:
        return _before_in_co_and_fr(graph, number)
    source = graph.rf[number]
    return graph.bits[source] | _before_in_co_and_fr(graph, source) if source else 0
