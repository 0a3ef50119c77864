"""What both implementations of the search share: what they are asked for, and what stops them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from vtlkit.checker.ops import Done, Location, Value
from vtlkit.checker.result import ProblemKind, Result
from vtlkit.checker.states.automaton import BUFFER_LIMIT, Automaton
from vtlkit.checker.states.machine import State, memory

End = Callable[[tuple[object, ...], Mapping[Location, Value]], object]


@dataclass(slots=True)
class Request:
    """What is asked for: the fields are as for `search.explore`."""

    progress: Callable[[Result], object] | None = None
    visit: End | None = None
    limit: int | None = None
    memory_limit: int | None = None
    symmetry: bool = True
    livelock: bool | None = None
    arrays: bool | None = None
    buffer_limit: int = BUFFER_LIMIT
    races: bool = True
    """Whether plain accesses are looked at."""

    def is_full(self, result: Result) -> bool:
        """Whether a limit is reached."""
        assert result.states is not None
        return (self.limit is not None and result.states >= self.limit) or (
            self.memory_limit is not None and result.memory_bytes >= self.memory_limit
        )

    def livelock_wanted(self, states: int) -> bool:
        """Whether to look for livelocks among so many states."""
        return states <= LIVELOCK_LIMIT if self.livelock is None else self.livelock


NO_END: Final = "no run comes to an end: livelock is not judged"

TOO_MANY: Final = "too many states to look for livelocks: who waits while another one spins for ever is not found"

LIVELOCK_LIMIT: Final = 1_000_000
"""States, where nobody says whether livelocks are wanted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken promise: the states from the initial one to where it is seen.

    The states stand for others that nobody can tell from them; so do the threads.
    """

    kind: ProblemKind
    path: tuple[State, ...]


class PlainAccess(Exception):
    """A plain access was met under a model in which races cannot be seen."""


def visit_end(automaton: Automaton, state: State, visit: End) -> None:
    """Tell of a state in which nothing is left to do: what each thread has returned (None: it sleeps), and memory."""
    ops = [automaton.locals[automaton.group_of[thread]][local].node.op for thread, local in enumerate(state[0])]
    visit(tuple([op.result if isinstance(op, Done) else None for op in ops]), memory(automaton, state))
