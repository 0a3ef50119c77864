"""`check`: one program, one memory model, one of the two searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from vtlkit.checker.program import Again, Program
from vtlkit.checker.reasons import explained
from vtlkit.checker.result import Result, Verdict

if TYPE_CHECKING:
    from vtlkit.checker.graphs.parallel import Slots

    Build = Callable[[str], Program]

MODELS: Final = ("sc", "tso", "rc11")
"""Memory models, from the strongest to the weakest."""
ENGINES: Final = ("states", "graphs")
_OF_STATES: Final = ("sc", "tso")


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a search stops without an answer: behind so many states or executions, or so many bytes of states."""

    count: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Search:
    """How a program is searched; the fields are as for `check`, `engine` is decided."""

    model: str
    engine: str
    limits: Limits
    progress: Callable[[Result], object] | None
    slots: Slots | None

    def run(self, program: Program) -> Result:
        """Once, and raises Again where the program has learnt something about itself."""
        if self.engine == "graphs":
            from vtlkit.checker.graphs.results import search_graphs

            return search_graphs(program, self.model, progress=self.progress, limit=self.limits.count, slots=self.slots)
        from vtlkit.checker.states.search import explore

        count, memory_bytes = self.limits.count, self.limits.memory_bytes
        result = explore(program, self.model, progress=self.progress, limit=count, memory_limit=memory_bytes)
        if result.verdict is Verdict.BOUND:
            by_count = count is not None and (result.states or 0) >= count
            result.notes.append(f"stopped {f'after {count} states' if by_count else f'at {memory_bytes} bytes'}")
        return result


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
    slots: Slots | None = None,
) -> Result:
    """Look at all that a program can do under a model: "sc", "tso" or "rc11".

    `program` may be a function from the model to the program. `engine` is "states", "graphs", or None (or "auto") for
    the one that suits the model. `progress` is given the result while it grows, for the first time before the search.
    `slots`: processors to use beside this one, by a search over graphs that takes long.
    Raises ValueError as `engine_for`, and what the program itself raises.
    """
    chosen = engine_for(model, engine)
    made = program(model) if not hasattr(program, "next_op") else cast(Program, program)
    result = _searched(made, _Search(model, _suited(made, chosen, engine), limits or Limits(), progress, slots))
    if result.counterexample is not None:
        result.counterexample = explained(result.counterexample, result.names)
    return result


def _suited(program: Program, chosen: str, wanted: str | None) -> str:
    """States that have no identity but the results so far are too many to prove anything by."""
    if wanted in (None, "auto") and getattr(program, "causal", False):
        return "graphs"
    return chosen


def _searched(program: Program, search: _Search) -> Result:
    """The search, as often as the program learns something about itself."""
    while True:
        _hook(program, "prepare", search.engine)
        try:
            result = search.run(program)
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
        if search.engine == "states" and result.verdict is Verdict.PROVED and getattr(program, "spun", False):
            # Only a graph says whether who spins has seen the last value; the others may wait for it in vain.
            result.verdict = Verdict.BOUND
            result.notes.append("a task that spins was followed no further: take the engine 'graphs'")
        return result


def _hook(program: Program, name: str, *arguments: object) -> None:
    hook = getattr(program, name, None)
    if hook is not None:
        hook(*arguments)
