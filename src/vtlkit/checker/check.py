"""`check`: one program, one memory model, one of the two searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, cast

from vtlkit.checker.program import Again, Program
from vtlkit.checker.reasons import explained
from vtlkit.checker.result import Result

if TYPE_CHECKING:
    from vtlkit.checker.graphs.parallel import Slots

    Build = Callable[[str], Program]

MODELS: Final = ("sc", "tso", "rc11")
"""Memory models, from the strongest to the weakest."""
ENGINES: Final = ("states", "graphs")
_OF_STATES: Final = ("sc", "tso")
_STATES: Final = "vtlkit.checker.states.search"


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
        return "states" if model in _OF_STATES and _has_states() else "graphs"
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
    slots: Slots | None = None,
) -> Result:
    """Look at all that a program can do under a model: "sc", "tso" or "rc11".

    `program` may be a function from the model to the program. `engine` is "states", "graphs", or None (or "auto") for
    the one that suits the model. `progress` is given the result while it grows, for the first time before the search.
    `slots`: processors to use beside this one, by a search over graphs that takes long.
    Raises ValueError as `engine_for`, and what the program itself raises.
    """
    chosen, limits = engine_for(model, engine), limits or Limits()
    made = program(model) if not hasattr(program, "next_op") else cast(Program, program)
    result = _searched(made, model, _suited(made, chosen, engine), limits, progress, slots)
    if result.counterexample is not None:
        result.counterexample = explained(result.counterexample, result.names)
    return result


def _suited(program: Program, chosen: str, wanted: str | None) -> str:
    """States that have no identity but the results so far are too many to prove anything by."""
    if wanted in (None, "auto") and getattr(program, "causal", False):
        return "graphs"
    return chosen


def _searched(
    program: Program,
    model: str,
    engine: str,
    limits: Limits,
    progress: Callable[[Result], object] | None,
    slots: Slots | None,
) -> Result:
    """The search, as often as the program learns something about itself."""
    while True:
        _hook(program, "prepare", engine)
        try:
            result = _search(program, model, engine, limits, progress, slots)
            _hook(program, "finish")
        except Again:
            _hook(program, "again")
            continue
        if given_up := getattr(program, "given_up", 0):
            result.notes.append(f"{given_up} times a task went round without news, and was followed no further")
        return result


def _search(
    program: Program,
    model: str,
    engine: str,
    limits: Limits,
    progress: Callable[[Result], object] | None,
    slots: Slots | None,
) -> Result:
    if engine == "graphs":
        from vtlkit.checker.graphs.results import search_graphs

        return search_graphs(program, model, progress=progress, limit=limits.count, slots=slots)
    explore = import_module(_STATES).explore
    result: Result = explore(program, model, progress=progress, limit=limits.count, memory_limit=limits.memory_bytes)
    return result


def _hook(program: Program, name: str, *arguments: object) -> None:
    hook = getattr(program, name, None)
    if hook is not None:
        hook(*arguments)


def _has_states() -> bool:
    return find_spec(_STATES.rpartition(".")[0]) is not None
