"""`check`: one program, one memory model, one of the two searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from vtlkit.checker.program import Again, Program
from vtlkit.checker.reasons import explained
from vtlkit.checker.result import Result, Verdict

if TYPE_CHECKING:
    Build = Callable[[str], Program]

MODELS: Final = ("sc", "tso", "rc11")
"""Memory models, from the strongest to the weakest."""
ENGINES: Final = ("states", "graphs")
SMALL: Final = 3000
"""States up to which plain Python is faster than loading numpy."""
_OF_STATES: Final = ("sc", "tso")


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a search stops without an answer: behind so many states or executions, or so many bytes of states."""

    count: int | None = None
    memory_bytes: int | None = None


def engine_for(model: str, wanted: str | None = None) -> str:
    """The search for a model: the wanted one, or that which is best for it.

    Raises ValueError: no such model or search, or the search does not know the model.
    """
    if model not in MODELS:
        raise ValueError(f"no memory model '{model}': there are {', '.join(MODELS)}")
    if wanted is None or wanted == "auto":
        return "states" if model in _OF_STATES else "graphs"
    if wanted not in ENGINES:
        raise ValueError(f"no engine '{wanted}': there are {', '.join(ENGINES)}")
    if wanted == "states" and model not in _OF_STATES:
        raise ValueError(f"the engine 'states' knows {' and '.join(_OF_STATES)}, not {model}; take 'graphs'")
    return wanted


def check(
    program: Program | Build,
    model: str,
    *,
    engine: str | None = None,
    limits: Limits | None = None,
    progress: Callable[[Result], object] | None = None,
) -> Result:
    """Look at all that a program can do under a model: "sc", "tso" or "rc11".

    `program` may be a function from the model to the program. `engine` is "states", "graphs", or None (or "auto") for
    the one that suits the model. `progress` is given the result while it grows, for the first time before the search.
    Raises ValueError as `engine_for`, and what the program itself raises.
    """
    chosen, limits = engine_for(model, engine), limits or Limits()
    made = program(model) if not hasattr(program, "next_op") else cast(Program, program)
    result = _searched(made, model, _suited(made, chosen, engine), limits, progress)
    if result.counterexample is not None:
        result.counterexample = explained(result.counterexample, result.names)
    return result


def _suited(program: Program, chosen: str, wanted: str | None) -> str:
    """States that have no identity but the results so far are too many to prove anything by."""
    if wanted in (None, "auto") and getattr(program, "causal", False):
        return "graphs"
    return chosen


def _searched(
    program: Program, model: str, engine: str, limits: Limits, progress: Callable[[Result], object] | None
) -> Result:
    """The search, as often as the program learns something about itself."""
    while True:
        _hook(program, "prepare", engine)
        try:
            result = _search(program, model, engine, limits, progress)
            _hook(program, "finish")
        except Again:
            _hook(program, "again")
            continue
        if given_up := getattr(program, "given_up", 0):
            times = f"{given_up} time{'s' if given_up > 1 else ''}"
            result.notes.append(f"{times} a task went round without news, and was followed no further")
            if result.verdict is Verdict.PROVED and result.executions == 0:
                # All that would have come after is unknown.
                result.verdict = Verdict.BOUND
                result.notes.append("no execution came to its end")
        return result


def _search(
    program: Program, model: str, engine: str, limits: Limits, progress: Callable[[Result], object] | None
) -> Result:
    if engine == "graphs":
        from vtlkit.checker.graphs.results import search_graphs

        return search_graphs(program, model, progress=progress, limit=limits.count)
    return _search_states(program, model, limits, progress)


def _hook(program: Program, name: str, *arguments: object) -> None:
    hook = getattr(program, name, None)
    if hook is not None:
        hook(*arguments)


def _search_states(program: Program, model: str, limits: Limits, progress: Callable[[Result], object] | None) -> Result:
    """A small program is done in plain Python before the library for arrays would even be loaded."""
    from vtlkit.checker.states.search import explore

    if limits.count is None or limits.count > SMALL:
        result = explore(program, model, progress=progress, limit=SMALL, arrays=False)
        if result.verdict is not Verdict.BOUND:
            return result
    result = explore(program, model, progress=progress, limit=limits.count, memory_limit=limits.memory_bytes)
    if result.verdict is Verdict.BOUND:
        by_count = limits.count is not None and (result.states or 0) >= limits.count
        bound = f"after {limits.count} states" if by_count else f"at {limits.memory_bytes} bytes"
        result.notes.append(f"stopped {bound}")
    return result
