"""RC11's axioms as its authors write them, with relations as sets of pairs, and a search that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.checker.graphs.oracle import Event, Key
from vtlkit.checker.graphs.unfolding import BLOCKED, DONE, FENCE, READ, RMW_WRITE, Node, Unfolding

Pairs = set[tuple[Event, Event]]


def compose(first: Pairs, second: Pairs) -> Pairs:
    ends: dict[Event, set[Event]] = {}
    for start, end in second:
        ends.setdefault(start, set()).add(end)
    return {(start, end) for start, middle in first for end in ends.get(middle, ())}


def closure(pairs: Pairs) -> Pairs:
    found = set(pairs)
    while more := compose(found, pairs) - found:
        found |= more
    return found


def irreflexive(pairs: Pairs) -> bool:
    return all(start != end for start, end in pairs)


@dataclass(frozen=True)
class Candidate:
    """A graph: the events of each thread lead to `nodes`, which are not part of it."""

    nodes: tuple[Node, ...]
    rf: frozenset[tuple[Event, Event]]
    co: frozenset[tuple[int, tuple[Event, ...]]]

    def events(self) -> dict[Event, Node]:
        found = {}
        for node in self.nodes:
            event = node.parent
            while event is not None:
                found[event.number] = event
                event = event.parent
        return found


def rc11_consistent(graph: Candidate, threads: int) -> bool:
    """All of RC11 but the ban of cycles in po and rf, which cannot arise when events are added in such an order."""
    events = graph.events()
    po = {(a, b) for a in events for b in events if a % threads == b % threads and a < b}
    initial = {node.loc: -1 - node.loc for node in events.values() if node.loc >= 0}
    loc = {number: node.loc for number, node in events.items()} | {number: loc for loc, number in initial.items()}
    po |= {(start, end) for start in initial.values() for end in events}
    writes = {number for number, node in events.items() if node.kind not in (READ, FENCE)} | set(initial.values())
    rf = {(source or initial[events[read].loc], read) for read, source in graph.rf}
    orders = {**dict.fromkeys(initial, ()), **dict(graph.co)}
    chains = {place: (initial[place], *order) for place, order in orders.items()}
    co = {(a, b) for chain in chains.values() for index, a in enumerate(chain) for b in chain[index + 1 :]}
    fr = {pair for pair in compose({(b, a) for a, b in rf}, co) if irreflexive({pair})}
    rmw = {(number - threads, number) for number, node in events.items() if node.kind == RMW_WRITE}

    def only(chosen: set[Event]) -> Pairs:
        return {(number, number) for number in chosen}

    def chosen(kind: str) -> Pairs:
        return only({number for number, node in events.items() if getattr(node, kind)})

    everything = only(set(events) | writes)
    fences = only({number for number, node in events.items() if node.kind == FENCE})
    release_sequence = everything | closure(compose(rf, rmw))
    before = compose(chosen("releases"), everything | compose(fences, po))
    before = compose(compose(before, only(writes)), compose(release_sequence, rf))
    synchronises = compose(compose(before, everything | compose(po, fences)), chosen("acquires"))
    hb = closure(po | synchronises)
    eco = closure(rf | co | fr)
    if not irreflexive(hb) or not irreflexive(compose(hb, eco)) or rmw & compose(fr, co):
        return False
    here = {(a, b) for a, b in hb if loc.get(a, -1) == loc.get(b, -2)}
    scb = po | compose(compose(po, hb), po) | here | co | fr
    sc = {number for number, node in events.items() if node.sequential}
    sc_fences = only({number for number in sc if events[number].kind == FENCE})
    maybe = everything | hb
    left = only(sc) | compose(sc_fences, maybe)
    right = only(sc) | compose(maybe, sc_fences)
    psc = compose(compose(left, scb), right)
    psc |= compose(compose(sc_fences, hb | compose(compose(hb, eco), hb)), sc_fences)
    return irreflexive(closure(psc))


def forwards(unfolding: Unfolding) -> tuple[set[Key], set[Key]]:
    """Every RC11 execution, complete ones and deadlocks, by adding events in every order and remembering graphs."""
    complete: set[Key] = set()
    stuck: set[Key] = set()
    start = Candidate(tuple(unfolding.roots), frozenset(), frozenset())
    todo, seen = [start], {start}
    while todo:
        graph = todo.pop()
        if all(node.kind == DONE for node in graph.nodes):
            complete.add((graph.rf, graph.co))
        elif all(node.kind == DONE or _waits(graph, node) for node in graph.nodes):
            stuck.add((graph.rf, graph.co))
        for new in _grown(graph, unfolding.threads):
            if new not in seen and rc11_consistent(new, unfolding.threads):
                seen.add(new)
                todo.append(new)
    return complete, stuck


def _waits(graph: Candidate, node: Node) -> bool:
    order = dict(graph.co).get(node.loc, ())
    value = graph.events()[order[-1]].value if order else node.initial
    return node.kind == READ and node.children[value].kind == BLOCKED


def _grown(graph: Candidate, threads: int) -> Iterator[Candidate]:
    orders = dict(graph.co)
    events = graph.events()
    for node in graph.nodes:
        order = orders.get(node.loc, ())
        nodes = list(graph.nodes)
        if node.kind == READ:
            for source in (0, *order):
                child = node.children[events[source].value if source else node.initial]
                if child.kind == BLOCKED:
                    continue
                rf = graph.rf | {(node.number, source)}
                if child.kind == RMW_WRITE:
                    nodes[node.thread] = child.children[None]
                    index = order.index(source) + 1 if source else 0
                    yield Candidate(tuple(nodes), rf, _inserted(orders, child, index))
                else:
                    nodes[node.thread] = child
                    yield Candidate(tuple(nodes), rf, graph.co)
        elif node.kind < DONE:
            nodes[node.thread] = node.children[None]
            if node.kind == FENCE:
                yield Candidate(tuple(nodes), graph.rf, graph.co)
            else:
                for index in range(len(order) + 1):
                    yield Candidate(tuple(nodes), graph.rf, _inserted(orders, node, index))


def _inserted(orders: dict[int, tuple[Event, ...]], node: Node, index: int) -> frozenset[tuple[int, tuple[Event, ...]]]:
    order = orders.get(node.loc, ())
    return frozenset({**orders, node.loc: (*order[:index], node.number, *order[index:])}.items())
