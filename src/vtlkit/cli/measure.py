"""Measure a workload against its rival: alternating rounds in one process, reported as a ratio with its spread.

The promise: no figure stands alone. Each round runs both sides back to back, the order swapped from round to round, so
that a machine that slows down, heats up or is shared weighs on both; a round yields one ratio, and the median and
interquartile range of the ratios are what is reported. A limit is compared with the median; nothing here judges a time.
Only what a user waits for or pays for as a whole (the time to start, the memory of a process) is a `Figure`, with no
rival and a limit of its own. What cannot be measured where it runs is `Skipped`, with the reason.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

SecondsPerOperation = Callable[[], float]
"""Runs a workload once, and returns what one of its operations took, in seconds."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table: a workload, the rival it is measured against, and the ratio that is promised."""

    name: str
    run: SecondsPerOperation
    rival_name: str
    rival: SecondsPerOperation
    limit: float | None = None
    """The largest ratio (time of `run` over time of `rival`) that the project promises, or None for a mere report."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A row without a rival: a quantity in `unit`, and the most that the project promises."""

    name: str
    take: Callable[[], float]
    unit: str
    limit: float


class Unavailable(Exception):
    """A side of a case needs something that is not here. One line: what, and why."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured. Times are medians, in seconds per operation; ratios are time over the rival's time."""

    name: str
    rival_name: str
    rounds: int
    seconds: float
    rival_seconds: float
    ratio: float
    ratio_low: float
    """Lower quartile of the rounds' ratios."""
    ratio_high: float
    """Upper quartile of the rounds' ratios."""
    limit: float | None = None

    @property
    def within_limit(self) -> bool | None:
        """Whether the median ratio keeps the promise; None where there is none."""
        return None if self.limit is None else self.ratio <= self.limit

    def brief(self) -> str:
        """One line for people who wait."""
        return f"{self.name}: {self.ratio:.3f} of {self.rival_name}"

    def columns(self) -> list[str]:
        """The cells of its line in the table."""
        limit = "" if self.limit is None else f"{self.limit:g} {'kept' if self.within_limit else 'MISSED'}"
        ratio = f"{self.ratio:.3f} ({self.ratio_low:.3f} to {self.ratio_high:.3f})"
        return [self.name, self.rival_name, duration(self.seconds), duration(self.rival_seconds), ratio, limit]


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a `Figure` came to: the median of its rounds, and their quartiles."""

    name: str
    rounds: int
    value: float
    value_low: float
    value_high: float
    unit: str
    limit: float

    @property
    def within_limit(self) -> bool:
        """Whether the median keeps the promise."""
        return self.value <= self.limit

    def brief(self) -> str:
        """One line for people who wait."""
        return f"{self.name}: {self.value:.3g} {self.unit}"

    def columns(self) -> list[str]:
        """The cells of its line in the table."""
        limit = f"{self.limit:g} {self.unit} {'kept' if self.within_limit else 'MISSED'}"
        spread = f"({self.value_low:.3g} to {self.value_high:.3g})"
        return [self.name, "", f"{self.value:.3g} {self.unit}", "", spread, limit]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A case that could not be measured here."""

    name: str
    reason: str

    @property
    def within_limit(self) -> None:
        """Nothing was measured."""
        return None

    def brief(self) -> str:
        """One line for people who wait."""
        return f"{self.name}: skipped: {self.reason}"

    def columns(self) -> list[str]:
        """The cells of its line in the table."""
        return [self.name, f"skipped: {self.reason}", "", "", "", ""]


Row = Result | Quantity | Skipped
HEADINGS = ("case", "rival", "case, per op", "rival, per op", "ratio (IQR)", "limit")
"""Of `Row.columns`."""


def seconds_per_operation(body: Callable[[], object], operations: int) -> float:
    """Time one call of `body`, which performs `operations` operations."""
    begin = time.perf_counter()
    body()
    return (time.perf_counter() - begin) / operations


def measure(case: Case, rounds: int = 11, warm_up: int = 1) -> Result:
    """Run one case. Raises ValueError for fewer than one round, or for a side that claims to have taken no time."""
    if rounds < 1:
        raise ValueError(f"a measurement takes at least one round, not {rounds}")
    for _ in range(warm_up):
        case.run()
        case.rival()
    own_times: list[float] = []
    rival_times: list[float] = []
    for number in range(rounds):
        if number % 2:
            theirs = case.rival()
            own = case.run()
        else:
            own = case.run()
            theirs = case.rival()
        if own <= 0 or theirs <= 0:
            raise ValueError(f"{case.name}: a round took {own} s against {theirs} s: too short for the clock")
        own_times.append(own)
        rival_times.append(theirs)
    ratios = [own / theirs for own, theirs in zip(own_times, rival_times, strict=True)]
    low, high = _quartiles(ratios)
    return Result(
        name=case.name,
        rival_name=case.rival_name,
        rounds=rounds,
        seconds=statistics.median(own_times),
        rival_seconds=statistics.median(rival_times),
        ratio=statistics.median(ratios),
        ratio_low=low,
        ratio_high=high,
        limit=case.limit,
    )


def measure_figure(figure: Figure, rounds: int = 11, warm_up: int = 1) -> Quantity:
    """Take one figure. Raises ValueError for fewer than one round."""
    if rounds < 1:
        raise ValueError(f"a measurement takes at least one round, not {rounds}")
    values = [figure.take() for _ in range(warm_up + rounds)][warm_up:]
    low, high = _quartiles(values)
    return Quantity(figure.name, rounds, statistics.median(values), low, high, figure.unit, figure.limit)


def measure_row(case: Case | Figure, rounds: int = 11) -> Row:
    """Whichever it is; `Skipped` if it is not to be had here."""
    try:
        return measure(case, rounds) if isinstance(case, Case) else measure_figure(case, rounds)
    except Unavailable as error:
        return Skipped(case.name, str(error))


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def to_json(results: Iterable[Row]) -> str:
    """The results as a JSON list; `within_limit` included."""
    data = [{**dataclasses.asdict(result), "within_limit": result.within_limit} for result in results]
    return json.dumps(data, indent=1)


def to_table(results: Iterable[Row]) -> str:
    """The results as a Markdown table."""
    lines = [f"| {' | '.join(HEADINGS)} |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {' | '.join(result.columns())} |" for result in results]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Three significant digits with the unit that suits them: `1.25 us`."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
