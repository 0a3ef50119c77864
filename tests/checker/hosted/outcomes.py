"""What a program of tasks can end in, by each search and by the simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vtlkit.checker.check import check
from vtlkit.checker.graphs.report import Execution, Verdict
from vtlkit.checker.graphs.search import explore as explore_graphs
from vtlkit.checker.hosted import HostedProgram
from vtlkit.checker.ops import Location, Value
from vtlkit.checker.program import Again
from vtlkit.checker.result import ProblemKind, Result
from vtlkit.checker.states.search import explore as explore_states
from vtlkit.host.api import Host, Task
from vtlkit.host.sim.report import Deadlock
from vtlkit.host.sim.simulator import Simulator

Build = Callable[[Host], object]
Outcomes = set[tuple[object, ...]]
ASSERTION: Final = ("assertion",)
STUCK: Final = ("deadlock",)
_NAMES: Final = {Verdict.FAILS: "assertion", Verdict.DEADLOCKS: "deadlock"}


def by_states(build: Build, model: str = "sc") -> Outcomes:
    """What the tasks returned, in the order of their creation, at every end that the search over states meets."""

    def search(program: HostedProgram, found: Outcomes) -> str:
        def visit(results: tuple[object, ...], _memory: Mapping[Location, Value]) -> None:
            found.add(_of_tasks(program, results))

        result = explore_states(program, model, visit=visit)
        if result.counterexample is None:
            return ""
        lost = result.counterexample.kind is ProblemKind.LOST_WAKE_UP
        return "deadlock" if lost else result.counterexample.kind.value

    return _searched(build, model, "states", search)


def by_graphs(build: Build, model: str = "sc") -> Outcomes:
    """The same by the search over graphs."""

    def search(program: HostedProgram, found: Outcomes) -> str:
        def visit(execution: Execution) -> None:
            found.add(_of_tasks(program, execution.results))

        result = explore_graphs(program, model, visit=visit, deadlock_is_failure=True)
        return "" if result.failing is None else _NAMES[result.verdict]

    return _searched(build, model, "graphs", search)


def _of_tasks(program: HostedProgram, results: tuple[object, ...]) -> tuple[object, ...]:
    """Without timers."""
    named = zip(program.names, results, strict=True)
    return tuple([result for name, result in named if not name.startswith("timer ")])


def _searched(build: Build, model: str, engine: str, search: Callable[[HostedProgram, Outcomes], str]) -> Outcomes:
    """What was found; with what was forbidden, as an outcome of one string."""
    program = HostedProgram(build, model)
    while True:
        found: Outcomes = set()
        program.prepare(engine)
        try:
            wrong = search(program, found)
            program.finish()
        except Again:
            program.again()
            continue
        return {(wrong,)} if wrong else found


def outcomes(build: Build) -> Outcomes:
    """What all searches agree on."""
    found = by_graphs(build)
    assert by_states(build) == found
    assert by_graphs(build, "tso") == by_states(build, "tso")
    return found


def checked(build: Build, model: str = "sc", engine: str | None = None) -> Result:
    """What a check says."""
    return check(HostedProgram(build, model), model, engine=engine)


def failing(build: Build, model: str = "sc") -> str:
    """What the assertion says that fails."""
    result = checked(build, model)
    assert result.counterexample is not None
    assert result.counterexample.kind is ProblemKind.ASSERTION
    return result.counterexample.text


def by_chance(build: Build, seed: int) -> tuple[object, ...]:
    """What one run of the simulator ends in, with every access a point where another task may go on."""
    simulator = Simulator(seed=seed, instrument=True)
    results: dict[str, object] = {}

    class Recording:
        """The simulator, as the tasks' host; what tasks return is kept."""

        def __getattr__(self, name: str) -> object:
            return getattr(simulator, name)

        def spawn(self, function: Callable[[], object], name: str, *, daemon: bool = False) -> Task:
            results[name] = None

            def body() -> None:
                results[name] = function()

            return simulator.spawn(body, name, daemon=daemon)

    build(Recording())  # type: ignore[arg-type]
    try:
        simulator.run()
    except Deadlock:
        return STUCK
    return tuple(results.values())
