"""The search over states finds what running the program one operation at a time finds, and its runs are real ones."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checker.graphs.random_programs import random_program
from tests.checker.states.made_programs import ENDLESS, FAILING, RACING, SIMPLE, programs
from tests.checker.states.naive import Found, Naive
from vtlkit.checker.graphs import search as graphs
from vtlkit.checker.graphs.report import Execution
from vtlkit.checker.ops import Location, Value
from vtlkit.checker.program import Program, Threads
from vtlkit.checker.programs import counted, litmus
from vtlkit.checker.result import ProblemKind, Result, Verdict
from vtlkit.checker.states.search import explore

MODELS = ("sc", "tso")
Ends = set[tuple[tuple[object, ...], tuple[tuple[Location, Value], ...]]]


def search(
    program: Program, model: str, *, arrays: bool, symmetry: bool = False, buffer_limit: int = 8
) -> tuple[Result, Ends]:
    ends: Ends = set()

    def visit(results: tuple[object, ...], memory: Mapping[Location, Value]) -> None:
        kept = [(location, value) for location, value in memory.items() if value != 0]
        ends.add((results, tuple(sorted(kept, key=repr))))

    result = explore(program, model, visit=visit, arrays=arrays, symmetry=symmetry, buffer_limit=buffer_limit)
    return result, ends


def visible(result: Result) -> int:
    """Steps of the counterexample that others can see or wait for."""
    assert result.counterexample is not None
    hidden = [
        step.what.startswith(("fence", "fails")) or step.what.endswith(("into its store buffer", " next"))
        for step in result.counterexample.steps
    ]
    return hidden.count(False)


def check_run(naive: Naive, result: Result) -> None:
    """The counterexample is a run of the program, and ends where it says."""
    found = result.counterexample
    assert found is not None
    steps = found.steps[:-2] if found.kind is ProblemKind.DATA_RACE else found.steps
    point = naive.replay(steps)
    if found.kind is ProblemKind.DEADLOCK:
        assert naive.is_stuck(point)
        assert found.waiting
    elif found.kind is ProblemKind.ASSERTION:
        assert found.steps[-1].what == "fails: unexpected"
    for index, step in enumerate(found.steps):
        if step.source is not None:
            assert step.source < index
            source = found.steps[step.source]
            assert (source.location, source.written) == (step.location, step.read)


def check(program: Program, model: str, buffer_limit: int = 8) -> Found:
    naive = Naive(program, model == "tso", buffer_limit)
    found = naive.run()
    counts = {ProblemKind.DEADLOCK: found.deadlock, ProblemKind.ASSERTION: found.failure}
    least = min([count for count in counts.values() if count is not None], default=None)
    for symmetry in (False, True):
        pair = []
        for arrays in (True, False):
            result, ends = search(program, model, arrays=arrays, symmetry=symmetry, buffer_limit=buffer_limit)
            pair.append(result)
            if result.counterexample is not None:
                check_run(naive, result)
                kind = result.counterexample.kind
                assert kind is ProblemKind.LIVELOCK or counts[kind] == least == visible(result)
                assert (kind is ProblemKind.LIVELOCK) == (least is None)
            else:
                assert least is None
                assert result.verdict is Verdict.PROVED
                assert symmetry or ends == found.ends
            if least is None:
                assert (result.counterexample is not None) == found.livelock
        one, other = pair
        if one.verdict is Verdict.PROVED:
            assert (one.states, one.transitions, one.depth) == (other.states, other.transitions, other.depth)
        elif found.livelock and least is None:
            assert visible(one) == visible(other)
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kinds", [SIMPLE, FAILING], ids=["simple", "failing"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_programs_that_end_are_searched_as_by_hand(model: str, kinds: tuple[str, ...], data: st.DataObject) -> None:
    check(data.draw(programs(kinds)), model)


@pytest.mark.parametrize("model", MODELS)
@given(program=programs(ENDLESS, loops=True))
@settings(max_examples=60, deadline=None)
def test_programs_without_an_end_are_searched_as_by_hand(model: str, program: Threads) -> None:
    check(program, model, buffer_limit=2)


@pytest.mark.parametrize("model", MODELS)
@given(program=programs(RACING))
@settings(max_examples=60, deadline=None)
def test_plain_accesses_that_can_meet_are_a_race(model: str, program: Threads) -> None:
    check_race(program, model)


def check_race(program: Program, model: str) -> None:
    under_sc = Naive(program, False)
    found = under_sc.run()
    for arrays in (True, False):
        result, _ = search(program, model, arrays=arrays)
        kind = result.counterexample.kind if result.counterexample is not None else None
        first = found.race is not None and (found.deadlock is None or found.race < found.deadlock)
        if kind is ProblemKind.DATA_RACE:
            assert visible(result) == found.race
            check_run(under_sc, result)
        else:
            assert not first
        assert result.verdict is not Verdict.BOUND


@pytest.mark.parametrize("model", MODELS)
def test_the_search_over_graphs_finds_the_same_ends(model: str) -> None:
    small = [item for item in (*litmus.catalogue(), *counted.catalogue()) if item.program.threads < 5 and not item.big]
    others = [(f"random {seed}", random_program(seed, 7)) for seed in range(40)]
    compared = 0
    for name, program in [*[(item.name, item.program) for item in small], *others]:
        known: Ends = set()

        def visit(execution: Execution, known: Ends = known) -> None:
            kept = [(location, value) for location, value in execution.memory.items() if value != 0]
            known.add((execution.results, tuple(sorted(kept, key=repr))))

        graphs.explore(program, model, visit=visit)
        result, ends = search(program, model, arrays=True)
        if result.verdict is Verdict.PROVED:
            compared += 1
            assert ends == known, name
    assert compared > 40
