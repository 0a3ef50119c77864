"""Why a thread waits for ever: what it looked at before, what was written there since, who looked for it too early."""

from __future__ import annotations

from collections.abc import Mapping

from vtlkit.checker.graphs.graph import UNWRITTEN, Graph, members
from vtlkit.checker.graphs.runs import Run
from vtlkit.checker.graphs.unfolding import FENCE, READ, WRITE, Node
from vtlkit.checker.ops import Location, Value
from vtlkit.checker.program import Program
from vtlkit.checker.result import Waiting
from vtlkit.checker.telling import location_name


class Memory(dict[Location, Value]):
    """Location -> last value; a location that nobody wrote has its initial one."""

    def __init__(self, program: Program, written: Mapping[Location, Value]) -> None:
        super().__init__(written)
        self._program = program

    def __missing__(self, location: Location) -> Value:
        return self._program.initial(location)


def waiting_for(run: Run, graph: Graph, node: Node, memory: Memory) -> Waiting:
    """What there is to say of a read on which a thread waits."""
    location = graph.unfolding.locations[node.loc]
    place = graph.unfolding.program.place(node.thread, node.results)
    if node.takes:
        reasons, missed = _held(run, graph, node), list[int]()
    else:
        missed, reasons = _missed(run, graph, node)
        reasons += _looked_early(run, graph, node)
    return Waiting(node.thread, location, memory[location], place, "; ".join(reasons), tuple(missed))


def _held(run: Run, graph: Graph, node: Node) -> list[str]:
    """Who wrote last what the thread cannot take."""
    last = graph.co.get(node.loc, UNWRITTEN)[-1]
    if last not in run.at:
        return ["nobody has ever written it"]
    owner = graph.unfolding.program.names[last % graph.threads]
    return [f"{owner} wrote it in step {run.at[last] + 1}, and nobody after that"]


def _own(graph: Graph, node: Node) -> list[Node]:
    """The thread's events before this one, the latest first."""
    events, number = [], node.previous
    while graph.bits[number]:
        events.append(graph.node[number])
        number -= graph.threads
    return events


def _missed(run: Run, graph: Graph, waiter: Node) -> tuple[list[int], list[str]]:
    """Steps that wrote, after the waiter's last look, to a word that it had looked at; and a sentence for each word."""
    steps: list[int] = []
    reasons = []
    seen = {waiter.loc}
    for node in _own(graph, waiter):
        if node.kind == FENCE or node.loc in seen:
            continue
        seen.add(node.loc)
        co = graph.co.get(node.loc, UNWRITTEN)
        known = graph.rf[node.number] if node.kind == READ else node.number
        later = [run.at[write] for write in co[co.index(known) + 1 :] if write % graph.threads != node.thread]
        if later and node.number in run.at and not node.takes:
            steps += later
            name = location_name(graph.unfolding.locations[node.loc])
            verb = "wrote" if node.kind == WRITE else "looked at"
            numbers = ", ".join(str(step + 1) for step in sorted(later))
            reasons.append(f"{verb} {name} in step {run.at[node.number] + 1}, without what step {numbers} wrote")
    return sorted(steps), reasons


def _looked_early(run: Run, graph: Graph, waiter: Node) -> list[str]:
    """Each other thread's last look at what the waiter has stored to say that it waits, where it did not see that."""
    stores = [node for node in _own(graph, waiter) if node.kind not in (READ, FENCE)]
    stores.sort(key=lambda node: node.loc != waiter.loc)
    if not stores:
        return []
    store = stores[0]
    co = graph.co[store.loc]
    unaware = set(co[: co.index(store.number)])
    last: dict[int, int] = {}
    for number in members(graph.reads.get(store.loc, 0), graph.threads):
        if number % graph.threads != store.thread and number in run.at:
            last[number % graph.threads] = number
    reasons = []
    for number in last.values():
        if graph.rf[number] not in unaware or _changes(graph, number):
            continue
        step, stored = run.at[number] + 1, run.at[store.number] + 1
        how = f"before step {stored} stored it" if step < stored else f"and did not see step {stored}"
        reasons.append(f"step {step} looked at {location_name(graph.unfolding.locations[store.loc])} {how}")
    return reasons


def _changes(graph: Graph, number: int) -> bool:
    """Whether this read belongs to a read-modify-write that changes the value: then it is no look."""
    half = number + graph.threads
    if half >= len(graph.node) or not graph.alive & graph.bits[half]:
        return False
    return graph.node[half].parent is graph.node[number] and graph.node[half].value != graph.node[half].old
