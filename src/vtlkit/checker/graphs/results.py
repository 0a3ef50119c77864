"""The search over graphs as one of the checker's searches: what it finds, told in the words that both share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vtlkit.checker.graphs.report import Exploration, Failing
from vtlkit.checker.graphs.report import Verdict as Found
from vtlkit.checker.graphs.runs import Run
from vtlkit.checker.graphs.search import explore
from vtlkit.checker.graphs.unfolding import EVENTS_LIMIT, READ, Node, Unbounded
from vtlkit.checker.ops import Location, Value
from vtlkit.checker.program import Again, Program
from vtlkit.checker.result import Counterexample, ProblemKind, Result, Verdict, Waiting

ENGINE: Final = "graphs"
KEEP_LOOKING: Final = 2000
"""Graphs that are looked at after the first failure, for a shorter one."""
TELL_EVERY: Final = 100
"""Complete executions between two calls of `progress`."""


class _Memory(dict[Location, Value]):
    """Location -> last value; a location that nobody wrote has its initial one."""

    def __init__(self, program: Program, written: Mapping[Location, Value]) -> None:
        super().__init__(written)
        self._program = program

    def __missing__(self, location: Location) -> Value:
        return self._program.initial(location)


def search_graphs(
    program: Program,
    model: str,
    *,
    progress: Callable[[Result], object] | None = None,
    limit: int | None = None,
    events_limit: int = EVENTS_LIMIT,
) -> Result:
    """Search all executions of a program; `limit` is a number of them.

    `progress` is called once before the search, then now and then, always with the result itself: who interrupts the
    search has in it what was known. Raises ValueError for an unknown model.
    """
    result = Result(model, ENGINE, tuple(program.names))
    found = Exploration(model)

    def tell(_found: object) -> None:
        _count(result, found)
        if progress is not None:
            progress(result)

    def visit(_execution: object) -> None:
        if not found.executions % TELL_EVERY:
            tell(found)

    tell(found)
    try:
        explore(
            program,
            model,
            visit=visit if progress is not None else None,
            progress=tell,
            deadlock_is_failure=True,
            limit=limit,
            events_limit=events_limit,
            keep_looking=KEEP_LOOKING,
            into=found,
        )
        if found.verdict is Found.HOLDS:
            result.verdict = Verdict.PROVED
        elif found.verdict is Found.INCOMPLETE:
            result.notes.append(f"stopped after {limit} executions")
    except Again:
        # The program is another one now, and what was found is not of that.
        found.failing = None
        raise
    except Unbounded as error:
        result.notes.append(_named(str(error), result.names))
    finally:
        _count(result, found)
        if found.failing is not None:
            result.verdict = Verdict.COUNTEREXAMPLE
            result.counterexample = _tell(program, found, found.failing)
    return result


def _count(result: Result, found: Exploration) -> None:
    result.executions, result.blocked, result.frontier = found.executions, found.blocked, found.frontier


def _named(text: str, names: tuple[str, ...]) -> str:
    """`Unbounded` knows threads by their numbers."""
    words = text.split(" ", 2)
    return f"{names[int(words[1])]} {words[2]}"


def _tell(program: Program, found: Exploration, failing: Failing) -> Counterexample:
    graph, culprits = failing.execution.graph, failing.culprits
    run = Run(graph, culprits)
    steps = tuple(run.steps)
    if found.verdict is Found.FAILS:
        return Counterexample(ProblemKind.ASSERTION, found.text, steps, shortest=found.all_visited)
    if found.verdict is Found.RACES:
        text = _race_text(program, culprits)
        return Counterexample(ProblemKind.DATA_RACE, text, steps, shortest=found.all_visited)
    memory = _Memory(program, failing.execution.memory)
    sleepers = failing.execution.waiting
    lost = any(_holds(program, node, memory) for node in sleepers)
    waiting = tuple(
        [
            Waiting(node.thread, location, memory[location], program.place(node.thread, node.results))
            for node in sleepers
            for location in (graph.unfolding.locations[node.loc],)
        ]
    )
    kind = ProblemKind.LOST_WAKE_UP if lost else ProblemKind.DEADLOCK
    return Counterexample(kind, found.text, steps, waiting, found.all_visited)


def _holds(program: Program, node: Node, memory: _Memory) -> bool:
    """Whether the program says that this sleeper sleeps although its condition holds."""
    judge = getattr(program, "sleeper_condition_holds", None)
    return judge is not None and judge(node.thread, node.results, memory) is True


def _race_text(program: Program, culprits: tuple[Node, ...]) -> str:
    one, other = (
        f"{program.names[node.thread]} {'reads' if node.kind == READ else 'writes'} at "
        f"{program.place(node.thread, node.results) or 'an unknown place'}"
        for node in culprits
    )
    location = culprits[0].unfolding.locations[culprits[0].loc]
    return f"{location}: {one} and {other}, and nothing orders them"
