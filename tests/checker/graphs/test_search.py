"""The search finds exactly the executions that other ways of finding them find, each once."""

from __future__ import annotations

import pytest

from tests.checker.graphs.axioms import Candidate, forwards, rc11_consistent
from tests.checker.graphs.oracle import Key, Machine
from tests.checker.graphs.random_programs import KINDS, random_program
from tests.checker.graphs.test_verdicts import block
from tests.sim.known_bad import fails
from vtlkit.checker.graphs.consistency import MODELS
from vtlkit.checker.graphs.consistency.psc import SequentialOrder
from vtlkit.checker.graphs.consistency.rc11 import Rc11Graph
from vtlkit.checker.graphs.consistency.sc import ScGraph
from vtlkit.checker.graphs.deferral import Deferral
from vtlkit.checker.graphs.graph import UNWRITTEN, Graph, members
from vtlkit.checker.graphs.report import Execution, Verdict
from vtlkit.checker.graphs.search import Search
from vtlkit.checker.graphs.unfolding import BLOCKED, READ, Node, Unfolding
from vtlkit.checker.program import Program

WAITING = ("await", "await", "write", "write", "read", "increment", "fence")
LOCKING = ("lock", "locks", "lock", "read", "write", "await")
MISUSED = ("lock", "stray", "lock", "trylock", "stray", "write", "read")
FENCED = ("read", "write", "fence", "read", "write", "copy")


def _newest(graph: Graph, node: Node) -> list[int]:
    """`Graph.sources`, but an `Await` reads the newest write or waits."""
    co = graph.co.get(node.loc, UNWRITTEN)
    found = list(range(graph.floor(node), len(co)))
    if not node.waits:
        return found
    last = len(co) - 1
    return [last] if graph._satisfies(node, co[last]) else []


def key_of(graph: Graph) -> Key:
    """Reads on which threads wait left out: the other ways to search do not have them."""
    waiting = {node.previous for node in graph.current if node.kind == BLOCKED}
    reads = [n for n in members(graph.alive, graph.threads) if graph.node[n].kind == READ and n not in waiting]
    orders = [(loc, co[1:]) for loc, co in graph.co.items() if len(co) > 1]
    return frozenset((number, graph.rf[number]) for number in reads), frozenset(orders)


def found_by_search(unfolding: Unfolding, model: str) -> tuple[list[Key], list[Key]]:
    complete: list[Key] = []
    stuck: list[Key] = []

    class Recording(Search):
        def _complete(self, graph: Graph) -> None:
            execution = Execution(graph)
            if not execution.blocked:
                complete.append(key_of(graph))
            elif execution.deadlocked:
                stuck.append(key_of(graph))
            super()._complete(graph)

    search = Recording(unfolding, MODELS[model])
    search.keys = set()
    search.run()
    assert search.result.verdict is Verdict.HOLDS
    assert search.result.duplicates == 0
    return complete, stuck


KNOWN_BAD: dict[str, tuple[type, str, object, tuple[str, ...]]] = {
    "every deletion is maximal": (Graph, "maximal", lambda *_: True, KINDS),
    "nothing goes back": (Search, "_gone_back", lambda *_: [], KINDS),
    "a new order is not handed on": (ScGraph, "_precede", lambda *_: None, KINDS),
    "an Await sees the newest write only": (Graph, "sources", _newest, WAITING),
    "nothing that is put off matters": (Deferral, "matters", lambda *_: False, LOCKING),
    "everything is put off at a release": (Deferral, "_excludes_holder", lambda *_: True, LOCKING),
    "atomicity is forgotten": (Graph, "_continues", lambda *_: False, KINDS),
}
"""What is wrong -> where, which function, what is there instead, and the operations that show it."""


def compare(program: Program, model: str) -> None:
    unfolding = Unfolding(program)
    if model == "rc11":
        complete, stuck = forwards(unfolding)
    else:
        machine = Machine(unfolding, buffered=model == "tso")
        machine.run()
        complete, stuck = machine.complete, machine.stuck
    found, deadlocks = found_by_search(unfolding, model)
    assert len(found) == len(set(found))
    assert set(found) == complete
    assert len(deadlocks) == len(set(deadlocks))
    assert set(deadlocks) == stuck


@pytest.mark.parametrize("model", ["sc", "tso"])
@pytest.mark.parametrize("kinds", [KINDS, WAITING, LOCKING, MISUSED], ids=["all", "waiting", "locking", "misused"])
def test_random_programs_run_as_on_the_machine(model: str, kinds: tuple[str, ...]) -> None:
    for seed in range(100):
        compare(random_program(seed, 8 if kinds is KINDS else 7, kinds), model)


@pytest.mark.parametrize("kinds", [KINDS, WAITING, FENCED], ids=["all", "waiting", "fenced"])
def test_random_programs_have_the_executions_that_the_axioms_allow(kinds: tuple[str, ...]) -> None:
    for seed in range(50):
        compare(random_program(seed, 6, kinds), "rc11")


class Unordered(Rc11Graph):
    """RC11 without its order of SEQ_CST events."""

    def admit(self, node: Node) -> bool:
        return True


def compare_order(program: Program, limit: int) -> bool:
    """Larger programs: keep what the axioms allow of the executions without that order. False if there are too many."""
    unfolding = Unfolding(program)
    wide: list[Candidate] = []

    class Wide(Search):
        def _complete(self, graph: Graph) -> None:
            if not Execution(graph).blocked:
                wide.append(Candidate(tuple(graph.current), *key_of(graph)))
            super()._complete(graph)

    search = Wide(unfolding, Unordered)
    search.limit = limit
    search.run()
    if search.result.verdict is not Verdict.HOLDS:
        return False
    allowed = {(graph.rf, graph.co) for graph in wide if rc11_consistent(graph, unfolding.threads)}
    assert set(found_by_search(unfolding, "rc11")[0]) == allowed
    return True


def test_the_order_of_fences_survives_deletions() -> None:
    assert compare_order(block(2), 1000)


def test_the_order_of_larger_random_programs_is_that_of_the_axioms() -> None:
    assert sum(compare_order(random_program(seed, 11, FENCED), 100) for seed in range(100)) > 30


def test_an_order_that_is_not_transitive_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequentialOrder, "_closed", lambda _graph, events: events)

    def attempt(seed: int) -> None:
        compare_order(random_program(seed, 11, FENCED), 100)

    assert fails(attempt, range(1000), (AssertionError,))


@pytest.mark.parametrize("bad", list(KNOWN_BAD))
def test_a_search_with_a_part_missing_is_caught(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, replacement, kinds = KNOWN_BAD[bad]
    monkeypatch.setattr(owner, name, replacement)
    assert fails(lambda seed: compare(random_program(seed, 7, kinds), "sc"), errors=(AssertionError, ValueError))
