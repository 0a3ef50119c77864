"""What a search found: counts, a verdict and, for a broken promise, one execution as a sequence of steps."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from vtlkit.checker.graphs.graph import UNWRITTEN, Graph, members
from vtlkit.checker.graphs.unfolding import BLOCKED, DONE, FENCE, READ, RMW_WRITE, Node
from vtlkit.checker.ops import Await, Done, Location, Rmw, Value


class Verdict(enum.Enum):
    """How a search ended."""

    HOLDS = "holds"
    FAILS = "fails"
    RACES = "races"
    DEADLOCKS = "deadlocks"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class Step:
    """One event of a counterexample."""

    thread: int
    text: str

    def __str__(self) -> str:
        return f"thread {self.thread}: {self.text}"


@dataclass(slots=True)
class Exploration:
    """The result of a search. While it lasts, what was found so far."""

    model: str
    executions: int = 0
    """Complete executions."""
    blocked: int = 0
    """Executions in which some thread waits or gave up, deadlocks among them."""
    deadlocks: int = 0
    """Those in which everyone who waits has seen the last value that there will be, and somebody may not be left so."""
    duplicates: int = 0
    """Executions that were met before, where that was asked for: always 0, or the search is wrong."""
    verdict: Verdict = Verdict.HOLDS
    text: str = ""
    counterexample: list[Step] = field(default_factory=list)
    failing: Failing | None = None
    """The counterexample as a graph."""
    frontier: int = 0
    """Graphs that wait for their turn."""
    all_visited: bool = False


@dataclass(frozen=True, slots=True)
class Failing:
    """An execution that breaks a promise, what broke it (nothing: it is a deadlock), and how many events show that."""

    execution: Execution
    culprits: tuple[Node, ...]
    events: int


class Execution:
    """One graph, for those who look at it, at its end or where the search broke off."""

    __slots__ = ("_graph",)

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    @property
    def graph(self) -> Graph:
        """The graph itself."""
        return self._graph

    @property
    def blocked(self) -> bool:
        """Whether some thread waits, or gave up by `Assume`."""
        return any(node.kind != DONE for node in self._graph.current)

    @property
    def waiting(self) -> list[Node]:
        """The reads on which threads wait: an `Await` is not in the graph, an RMW that waits is."""
        graph = self._graph
        stopped = [node for node in graph.current if isinstance(node.op, Await | Rmw)]
        return [graph.node[node.previous] if node.kind == BLOCKED else node for node in stopped]

    @property
    def deadlocked(self) -> bool:
        """Whether all who do not end wait with the last value of their location, and not all of them may sleep."""
        return self._at_rest and not all(map(_may_sleep, self.waiting))

    @property
    def asleep(self) -> bool:
        """The same, and all of them may sleep."""
        return self._at_rest and all(map(_may_sleep, self.waiting))

    @property
    def _at_rest(self) -> bool:
        graph = self._graph
        waiting = self.waiting
        if not waiting or len(waiting) != sum(node.kind != DONE for node in graph.current):
            return False
        return not any(graph.alive & node.bit and graph.rf[node.number] != self._last_write(node) for node in waiting)

    @property
    def results(self) -> tuple[object, ...]:
        """What each thread returned; None for one that has not ended."""
        return tuple([node.op.result if isinstance(node.op, Done) else None for node in self._graph.current])

    @property
    def memory(self) -> dict[Location, Value]:
        """Last value of every location that was written."""
        graph = self._graph
        locations = graph.unfolding.locations
        return {locations[loc]: graph.node[co[-1]].value for loc, co in graph.co.items() if len(co) > 1}

    def _last_write(self, node: Node) -> int:
        return self._graph.co.get(node.loc, UNWRITTEN)[-1]

    def key(self) -> tuple[object, ...]:
        """Equal for graphs that are the same execution, however they were built."""
        graph = self._graph
        numbers = members(graph.alive, graph.threads)
        reads = tuple([(number, graph.rf[number]) for number in numbers if graph.node[number].kind == READ])
        return graph.alive, reads, tuple(sorted((loc, co) for loc, co in graph.co.items() if len(co) > 1))

    def deadlock_text(self) -> str:
        """Who waits, and for what."""
        graph = self._graph
        parts = []
        for node in self.waiting:
            location = graph.unfolding.locations[node.loc]
            value = self.memory.get(location, node.initial)
            parts.append(f"thread {node.thread} waits on {location}, which is {value!r} and stays so")
        return "; ".join(parts)

    def steps(self, *culprits: Node) -> list[Step]:
        """The events in an order that agrees with the model, and with program order and reads-from.

        With `culprits`, only what these depend on, and they themselves; they need not be in the graph yet.
        """
        graph = self._graph
        needed = 0
        for node in culprits:
            needed |= graph.porf[node.number if graph.alive & node.bit else node.previous]
        numbers = members(graph.alive & needed if culprits else graph.alive, graph.threads)
        numbers.sort(key=lambda number: (graph.rank(number), number))
        nodes = [graph.node[number] for number in numbers]
        nodes += [node for node in culprits if not graph.alive & node.bit]
        return [Step(node.thread, self._text(node)) for node in nodes]

    def _text(self, node: Node) -> str:
        graph = self._graph
        if node.kind > FENCE:
            return f"fails: {getattr(node.op, 'text', node.op)}"
        order = node.order.name.lower()
        if node.kind == FENCE:
            return f"fence ({order})"
        location = graph.unfolding.locations[node.loc]
        if node.kind != READ:
            verb = "atomically writes" if node.kind == RMW_WRITE else "writes"
            return f"{verb} {location} = {node.value!r} ({order})"
        source = graph.rf[node.number]
        value = graph.node[source].value if source else node.initial
        origin = f"of thread {graph.node[source].thread}" if source else "initial value"
        late = source != graph.co.get(node.loc, UNWRITTEN)[-1]
        return f"reads {location} = {value!r} ({order}), {origin}{', overwritten later' if late else ''}"


def _may_sleep(node: Node) -> bool:
    return isinstance(node.op, Await) and node.op.may_sleep
