"""The search finds exactly the executions that other ways of finding them find, each once."""

from __future__ import annotations

import pytest

from tests.checker.graphs.axioms import forwards
from tests.checker.graphs.oracle import Key, Machine
from tests.checker.graphs.random_programs import random_program
from vtlkit.checker.graphs.consistency import MODELS
from vtlkit.checker.graphs.graph import Graph, members
from vtlkit.checker.graphs.program import BLOCKED, READ, Program, Unfolding
from vtlkit.checker.graphs.report import Execution, Verdict
from vtlkit.checker.graphs.search import _Search


def key_of(graph: Graph) -> Key:
    """Reads on which threads wait left out: the other ways to search do not have them."""
    waiting = {node.previous for node in graph.current if node.kind == BLOCKED}
    reads = [n for n in members(graph.alive, graph.threads) if graph.node[n].kind == READ and n not in waiting]
    orders = [(loc, co[1:]) for loc, co in graph.co.items() if len(co) > 1]
    return frozenset((number, graph.rf[number]) for number in reads), frozenset(orders)


def found_by_search(unfolding: Unfolding, model: str) -> tuple[list[Key], list[Key]]:
    complete: list[Key] = []
    stuck: list[Key] = []

    class Recording(_Search):
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


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("first", range(0, 300, 100))
def test_random_programs_have_the_executions_that_they_have(model: str, first: int) -> None:
    for seed in range(first, first + 100):
        compare(random_program(seed, events=6 if model == "rc11" else 8), model)
