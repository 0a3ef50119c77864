"""A litmus test's outcome under a model: its final states with counts, and whether the condition can come true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from vtlkit.checker.litmus.syntax import LitmusTest, Place, Scalar, holds

NEVER: Final = "Never"
SOMETIMES: Final = "Sometimes"
ALWAYS: Final = "Always"
NO_EXECUTION: Final = "DEADLOCK"
"""What a file records of a test in which nothing can happen, as somebody waits for ever."""

State = tuple[Scalar, ...]
Columns = tuple[tuple[str, ...], ...]


@dataclass(slots=True)
class Outcome:
    """What a search has found. `states` are values of `places`, with the number of executions that end so.

    `flags` are warnings about the test, such as "data-race". `witness` is an execution in which the condition holds:
    for each thread its events.
    """

    model: str
    places: tuple[Place, ...]
    states: Counter[State] = field(default_factory=Counter)
    positive: int = 0
    """Executions in which the condition holds."""
    negative: int = 0
    flags: set[str] = field(default_factory=set)
    witness: Columns = ()

    @property
    def executions(self) -> int:
        """Those that can happen and that a filter keeps."""
        return self.positive + self.negative

    @property
    def verdict(self) -> str:
        """NEVER, SOMETIMES or ALWAYS does the condition hold at the end. Of no execution at all: NEVER."""
        if not self.positive:
            return NEVER
        return SOMETIMES if self.negative else ALWAYS

    def agrees(self, test: LitmusTest) -> bool | None:
        """Whether it is what the test records; None where that is nothing that a run can agree with."""
        if test.recorded == NO_EXECUTION:
            return not self.executions
        if test.recorded not in (NEVER, SOMETIMES, ALWAYS):
            return None
        return test.recorded == self.verdict and (not test.recorded_race or "data-race" in self.flags)

    def add(self, test: LitmusTest, state: Mapping[Place, Scalar], witness: Callable[[], Columns]) -> bool:
        """Count an execution that ends in `state`; whether the test's filter keeps it."""
        if test.keep is not None and not holds(test.keep, state):
            return False
        self.states[tuple(state[place] for place in self.places)] += 1
        if not holds(test.condition, state):
            self.negative += 1
        else:
            self.positive += 1
            if not self.witness:
                self.witness = witness()
        return True


MODELS: Final = ("lkmm", "sc", "tso", "rc11")


def judge(test: LitmusTest, model: str = "lkmm") -> Outcome:
    """Search all executions of a test. Raises LitmusError for one that is wrong, too large, or not for this model."""
    if model == "lkmm":
        from vtlkit.checker.litmus.lkmm.search import search

        return search(test)
    if model in MODELS:
        from vtlkit.checker.litmus.graphs import explore_test

        return explore_test(test, model)
    raise ValueError(f"no memory model '{model}': there are {', '.join(MODELS)}")
