"""What a check found, whichever search it was: a verdict, counts as its certificate, one way to break the promise."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from vtlkit.checker.ops import Location, Value


class Verdict(enum.Enum):
    """How a check ended."""

    PROVED = "proved"
    """For this size, under this model: nothing of `ProblemKind` can happen."""
    COUNTEREXAMPLE = "counterexample"
    BOUND = "bound reached"
    """Nothing was found before the search had to stop; the promise is neither shown nor broken."""


class ProblemKind(enum.Enum):
    """What is forbidden."""

    ASSERTION = "assertion"
    DEADLOCK = "deadlock"
    LOST_WAKE_UP = "lost wake-up"
    DATA_RACE = "data race"
    LIVELOCK = "livelock"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a counterexample: an operation of one thread, or its store buffer's.

    `what` is a phrase such as "reads flag = 0"; `source` the step's index that wrote what was read, None if that was
    the initial value or nothing was read; `place` the code's line; `stale` whether a later write stood there already.
    """

    thread: int
    what: str
    place: str = ""
    location: Location | None = None
    read: Value = None
    written: Value = None
    source: int | None = None
    stale: bool = False
    buffered: bool = False
    """The store buffer hands the write on to memory."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A thread that waits for ever: for `location` to satisfy it, whose last value is `value`.

    `missed` are the indices of steps that wrote to what its condition reads after it had looked, and could have woken
    it; `why` says in a line why that did not happen.
    """

    thread: int
    location: Location
    value: Value
    place: str = ""
    why: str = ""
    missed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A run that breaks the promise. `shortest`: no run with fewer steps does."""

    kind: ProblemKind
    text: str
    steps: tuple[Step, ...]
    waiting: tuple[Waiting, ...] = ()
    shortest: bool = False


@dataclass(slots=True)
class Result:
    """Of one program under one model. While a search runs, what is known so far.

    `executions` and `blocked` count graphs (docs/design/checker-graphs.md), `states` and `transitions` those of the
    search over states; what a search does not count is None. `frontier`: how much is left to look at, as far as known;
    `depth`: the longest run so far, in steps.
    """

    model: str
    engine: str
    names: tuple[str, ...] = ()
    """Of the threads."""
    verdict: Verdict = Verdict.BOUND
    executions: int | None = None
    blocked: int | None = None
    states: int | None = None
    transitions: int | None = None
    depth: int = 0
    frontier: int = 0
    memory_bytes: int = 0
    """Of the search's own tables, at most."""
    plain: bool = False
    """The program has plain accesses: only then can there be a data race."""
    counterexample: Counterexample | None = None
    notes: list[str] = field(default_factory=list)
    """What a reader has to know: a bound that was reached, an identity that was not found."""
