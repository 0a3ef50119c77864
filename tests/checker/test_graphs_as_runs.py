"""Graphs told as runs: each run is one that the program and the machine can do; the shortest failure is kept."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checker.graphs.random_programs import random_program
from tests.checker.graphs.test_verdicts import block
from tests.checker.run_reader import Reader
from vtlkit.checker.check import MODELS
from vtlkit.checker.graphs.report import Execution, Verdict
from vtlkit.checker.graphs.runs import Run
from vtlkit.checker.graphs.search import explore
from vtlkit.checker.ops import Done, Failure, Op, Read, Value, Write, increment
from vtlkit.checker.program import Threads
from vtlkit.checker.programs.threads import Script, steps


@pytest.mark.parametrize("model", MODELS)
@given(seed=st.integers(0, 1 << 20))
def test_every_execution_is_told_as_a_run_that_can_be_done(model: str, seed: int) -> None:
    program = random_program(seed)

    def visit(execution: Execution) -> None:
        reader = Reader(program, model)
        reader.read(Run(execution.graph).steps)
        assert reader.ended()
        if model != "rc11":
            assert reader.memory == execution.memory

    explore(program, model, visit=visit, limit=200)


@pytest.mark.parametrize("model", MODELS)
def test_a_reader_of_runs_finds_what_cannot_be(model: str) -> None:
    program = Threads(steps(Write("x", 1), Read("y")), steps(Write("y", 1), Read("x")))
    runs: list[Run] = []
    explore(program, model, visit=lambda execution: runs.append(Run(execution.graph)))
    told = runs[0].steps
    with pytest.raises((AssertionError, IndexError)):
        Reader(program, model).read([*told[1:], told[0]])


def test_a_store_that_is_seen_late_is_two_steps() -> None:
    program = Threads(steps(Write("x", 1), Read("y")), steps(Write("y", 1), Read("x")))
    weak: list[Run] = []

    def visit(execution: Execution) -> None:
        if execution.results == ((0,), (0,)):
            weak.append(Run(execution.graph))

    explore(program, "tso", visit=visit)
    assert [step.what for step in weak[0].steps] == [
        "stores x = 1 into its store buffer",
        "reads y = 0",
        "writes y = 1",
        "reads x = 0",
        "hands on x = 1 to memory",
    ]


class _Failing:
    """A program, one thread of which fails when it has been told what `seed` chooses; or ends there."""

    def __init__(self, program: Threads, seed: int, ends: bool) -> None:
        choice = random.Random(seed)
        self.threads, self.names = program.threads, program.names
        self._program = program
        self._ends = ends
        self._thread = choice.randrange(program.threads)
        self._after = choice.randint(1, 3)
        self._value = choice.choice((0, 1, 2, None))

    def initial(self, location: object) -> Value:
        return self._program.initial(location)

    def next_op(self, thread: int, results: tuple[Value, ...]) -> Op | Done:
        if thread == self._thread and len(results) >= self._after and results[self._after - 1] == self._value:
            return Done() if self._ends else Failure("chosen")
        return self._program.next_op(thread, results)

    def identity(self, thread: int, results: tuple[Value, ...]) -> None:
        return None

    def place(self, thread: int, results: tuple[Value, ...]) -> str:
        return ""


@pytest.mark.parametrize("model", MODELS)
@given(seed=st.integers(0, 1 << 20))
def test_behind_a_failure_all_the_rest_is_visited(model: str, seed: int) -> None:
    """As many executions as of the program that ends in that place."""
    program = random_program(seed, 6)
    quiet = explore(_Failing(program, seed, True), model, check_duplicates=True)
    loud = explore(_Failing(program, seed, False), model, check_duplicates=True, keep_looking=1 << 30)
    assert loud.executions + loud.blocked == quiet.executions + quiet.blocked
    assert (loud.duplicates, loud.all_visited) == (0, True)
    first = explore(_Failing(program, seed, False), model)
    assert first.verdict is loud.verdict
    assert len(loud.counterexample) <= len(first.counterexample)


def test_the_shortest_of_several_failures_is_kept() -> None:
    def reader() -> Script:
        value = yield Read("x")
        assert value != 2
        yield Read("y")
        assert value != 1

    program = Threads(steps(increment("x"), Write("y", 1), increment("x")), reader)
    first, best = explore(program), explore(program, keep_looking=100)
    assert first.verdict is best.verdict is Verdict.FAILS
    assert best.all_visited
    assert len(best.counterexample) == 5
    assert [step.text for step in best.counterexample][-1].startswith("fails")


def test_keeping_looking_ends() -> None:
    result = explore(block(3, look_again=False), "sc", deadlock_is_failure=True, keep_looking=10)
    assert result.verdict is Verdict.DEADLOCKS
    assert not result.all_visited
    assert result.frontier > 0
