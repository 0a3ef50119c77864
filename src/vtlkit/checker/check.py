"""`check`: one program, one memory model, one of the two searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, cast

from vtlkit.checker.program import Program
from vtlkit.checker.reasons import explained
from vtlkit.checker.result import Result

if TYPE_CHECKING:
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
) -> Result:
    """Look at all that a program can do under a model: "sc", "tso" or "rc11".

    `program` may be a function from the model to the program. `engine` is "states", "graphs", or None (or "auto") for
    the one that suits the model. `progress` is given the result while it grows, for the first time before the search.
    Raises ValueError as `engine_for`, and what the program itself raises.
    """
    chosen, limits = engine_for(model, engine), limits or Limits()
    made = program(model) if not hasattr(program, "next_op") else cast(Program, program)
    if chosen == "graphs":
        from vtlkit.checker.graphs.results import search_graphs

        result = search_graphs(made, model, progress=progress, limit=limits.count)
    else:
        explore = import_module(_STATES).explore
        result = explore(made, model, progress=progress, limit=limits.count, memory_limit=limits.memory_bytes)
    if result.counterexample is not None:
        result.counterexample = explained(result.counterexample, result.names)
    return result


def _has_states() -> bool:
    return find_spec(_STATES.rpartition(".")[0]) is not None
