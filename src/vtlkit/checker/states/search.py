"""Search over all states of a program, breadth first: counterexamples are shortest runs, loops need no end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from vtlkit.checker.program import Program
from vtlkit.checker.result import ProblemKind, Result, Verdict
from vtlkit.checker.states.automaton import BUFFER_LIMIT, Automaton
from vtlkit.checker.states.layout import TooWide
from vtlkit.checker.states.outcome import End, PlainAccess, Problem, Request
from vtlkit.checker.states.trace import counterexample

MODELS: Final = ("sc", "tso")
ENGINE: Final = "states"
FEW_STATES: Final = 3000
"""So many are searched without arrays, if nobody says how."""


def explore(
    program: Program,
    model: str = "sc",
    *,
    progress: Callable[[Result], object] | None = None,
    visit: End | None = None,
    limit: int | None = None,
    memory_limit: int | None = None,
    symmetry: bool = True,
    livelock: bool | None = None,
    arrays: bool | None = None,
    buffer_limit: int = BUFFER_LIMIT,
) -> Result:
    """Explore all states of a program under a model of `MODELS`.

    `progress` sees the result as it grows, at the start and level by level. `visit` sees each end: what the threads
    returned (None for one that may be left asleep), and memory; where a search begins anew, once more. The search
    stops at the first thing that is forbidden, and with BOUND at `limit` states or when its tables come to
    `memory_limit` bytes. `symmetry`: threads that nobody tells apart count once. `livelock`: None looks for livelocks
    unless there are more than a million states. `arrays`: with numpy, or in plain Python; None leaves that to the
    search. `buffer_limit`: entries of a store buffer.

    Raises ValueError for an unknown model, or a bound that is not positive.
    """
    if model not in MODELS:
        raise ValueError(f"no memory model '{model}' for the search over states: there are {', '.join(MODELS)}")
    for name, bound in (("limit", limit), ("memory_limit", memory_limit), ("buffer_limit", buffer_limit)):
        if bound is not None and bound < 1:
            raise ValueError(f"{name} is {bound}: it must be at least 1")
    if program.threads < 1:
        raise ValueError("a program has at least one thread")
    request = Request(progress, visit, limit, memory_limit, symmetry, livelock, arrays, buffer_limit)
    result = Result(model, ENGINE, tuple(program.names), states=1, transitions=0, frontier=1)
    if progress is not None:
        progress(result)
    try:
        _search(program, model, request, result)
    except PlainAccess:
        # Stores into a buffer are no steps, so a race is looked for without buffers: there it must show, too.
        under_sc = Result("sc", ENGINE, tuple(program.names))
        _search(program, "sc", replace(request, visit=None, livelock=False), under_sc)
        found = under_sc.counterexample
        if found is not None and found.kind is ProblemKind.DATA_RACE:
            under_sc.model = model
            under_sc.notes.append("the race was found without store buffers")
            return under_sc
        bounded = under_sc.verdict is Verdict.BOUND
        request.races = False
        _search(program, model, request, result)
        if bounded and result.verdict is Verdict.PROVED:
            result.verdict = Verdict.BOUND
            result.notes.append("races are not judged: the search for them reached its bound")
    return result


def _search(program: Program, model: str, request: Request, result: Result) -> None:
    """One search, with arrays if states are narrow enough."""
    arrays = request.arrays
    while True:
        automaton = Automaton(program, model == "tso", request.symmetry, request.buffer_limit)
        _reset(result)
        try:
            problem = _begin(automaton, request, result, arrays)
            break
        except TooWide:
            arrays = False
            result.notes.append("a state has too many bits for arrays: searched in plain Python")
    if problem is not None:
        result.verdict = Verdict.COUNTEREXAMPLE
        result.counterexample = counterexample(automaton, problem)
    result.plain = automaton.plain or not request.races
    result.notes += _notes(automaton)


def _reset(result: Result) -> None:
    result.verdict, result.states, result.transitions = Verdict.BOUND, 1, 0
    result.depth, result.frontier, result.memory_bytes = 0, 1, 0


def _begin(automaton: Automaton, request: Request, result: Result, arrays: bool | None) -> Problem | None:
    from vtlkit.checker.states.dictionary import DictionarySearch

    if arrays is None and request.visit is None and (request.limit is None or request.limit > FEW_STATES):
        # numpy takes longer to load than a small search takes. What the automaton has learnt is kept.
        first = replace(request, limit=FEW_STATES)
        problem = DictionarySearch(automaton, first, result).run()
        if problem is not None or result.verdict is Verdict.PROVED or request.is_full(result):
            return problem
        _reset(result)
    if arrays is False:
        return DictionarySearch(automaton, request, result).run()
    from vtlkit.checker.states.arrays import ArraySearch

    return ArraySearch(automaton, request, result).run()


def _notes(automaton: Automaton) -> list[str]:
    """What a reader of the result has to know."""
    notes = []
    for members in automaton.groups:
        if len(members) > 1:
            names = ", ".join(str(automaton.program.names[thread]) for thread in members)
            notes.append(f"states that differ only in the order of these threads count as one: {names}")
    if automaton.unmerged:
        notes.append("some places in the code have no identity but the results so far: states there do not merge")
    if automaton.full:
        notes.append(f"a store buffer was full: runs that need more than {automaton.buffer_limit} entries are left out")
    return notes
