"""Open questions of KVM's list, answered by checks: one page for each (docs/findings).

    python -m vtlkit.checker.findings docs/findings

A page has the question, what is asked of the checker, the verdicts, a counterexample, and an answer whose sentences are
chosen by the verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vtlkit.checker.check import MODELS, check
from vtlkit.checker.protocols import find

if TYPE_CHECKING:
    from vtlkit.checker.result import Result

HOLDS: Final = ""


@dataclass(frozen=True)
class Case:
    """A row of a page's table: one protocol or variant at one size. `slow`: only when the pages are written.

    `every`: a size of which all values are gone through, up to its largest.
    """

    text: str
    protocol: str
    variant: str = ""
    sizes: tuple[tuple[str, int], ...] = ()
    models: tuple[str, ...] = MODELS
    slow: bool = False
    every: str = ""

    @property
    def command(self) -> str:
        """What to type to see it, with its counterexample."""
        words = ["vtlkit check", self.protocol]
        words += [f"--{name} {value}" for name, value in self.sizes]
        if self.every:
            words.append(f"--{self.every} 1")
        if self.variant:
            words.append(f"--variant {self.variant}")
        if self.models != MODELS:
            words.append(f"--model {','.join(self.models)}")
        return " ".join(words)


@dataclass(frozen=True)
class Finding:
    """Of one case under one model. `broken`: what kind of problem was found, HOLDS if none."""

    broken: str
    count: int
    """Steps of the counterexample, or states or executions that came to their end."""
    result: Result | None = None
    waiting: int = 0
    """Executions that came to no end."""

    @property
    def verdict(self) -> str:
        """As in the table: what a test compares."""
        return f"{self.broken}, {self.count} steps" if self.broken else "holds"


Findings = Mapping[Case, Mapping[str, Finding]]


@dataclass(frozen=True)
class Page:
    """One question. `answer` gives its sentences, by the verdicts alone; `shown` are the cases whose first
    counterexample is printed, of those that have one the first."""

    name: str
    title: str
    question: str
    cases: Sequence[Case]
    answer: Callable[[Findings], list[str]]
    shown: Sequence[Case]
    method: str = ""


def look(case: Case, model: str) -> Finding:
    """Check one case. Raises RuntimeError: the search came to no end."""
    protocol = find(case.protocol)
    chosen = protocol.variant(case.variant) if case.variant else protocol
    sizes = {**protocol.sizes, **(chosen.sizes if case.variant else {}), **dict(case.sizes)}
    if not case.every:
        return _look(case, model, sizes)
    count = waiting = 0
    for value in range(1, protocol.large[-1][case.every] + 1):
        finding = _look(case, model, {**sizes, case.every: value})
        if finding.broken:
            return finding
        count += finding.count
        waiting += finding.waiting
    return Finding(HOLDS, count, finding.result, waiting)


def _look(case: Case, model: str, sizes: Mapping[str, int]) -> Finding:
    protocol = find(case.protocol)
    chosen = protocol.variant(case.variant) if case.variant else protocol
    result = check(chosen.build(model, sizes), model, engine=protocol.engine)
    found = result.counterexample
    if found is not None:
        return Finding(found.kind.value, len(found.steps), result)
    if result.verdict.value != "proved":
        raise RuntimeError(f"{case.command}: {result.verdict.value}")
    return Finding(HOLDS, result.states or result.executions or 0, result, result.blocked or 0)


def findings(cases: Sequence[Case], *, slow: bool, told: Callable[[Case], object] = lambda _case: None) -> Findings:
    """Check all cases, slow ones only if wanted. `told` hears of each before."""
    found: dict[Case, Mapping[str, Finding]] = {}
    for case in cases:
        if slow or not case.slow:
            told(case)
            found[case] = {model: look(case, model) for model in case.models}
    return found


def breaks(found: Findings, case: Case) -> list[str]:
    """The models under which a case is broken; empty if it was not looked at."""
    return [model for model, finding in found.get(case, {}).items() if finding.broken]


def under(models: Sequence[str]) -> str:
    """`under tso and rc11`."""
    return "under " + joined(models)


def joined(words: Sequence[str]) -> str:
    """`a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
