"""Measure a workload against its rival: alternating rounds in one process, reported as a ratio with its spread.

The promise: no figure stands alone. Each round runs both sides back to back, the order swapped from round to round, so
that a machine that slows down, heats up or is shared weighs on both; a round yields one ratio, and the median and
interquartile range of the ratios are what is reported. A limit is compared with the median; nothing here judges a time.
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


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def to_json(results: Iterable[Result]) -> str:
    """The results as a JSON list; `within_limit` included."""
    data = [{**dataclasses.asdict(result), "within_limit": result.within_limit} for result in results]
    return json.dumps(data, indent=1)


def to_table(results: Iterable[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| case | rival | case, per op | rival, per op | ratio (IQR) | limit |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
    for result in results:
        limit = "" if result.limit is None else f"{result.limit:g} {'kept' if result.within_limit else 'MISSED'}"
        ratio = f"{result.ratio:.3f} ({result.ratio_low:.3f} to {result.ratio_high:.3f})"
        times = f"{duration(result.seconds)} | {duration(result.rival_seconds)}"
        lines.append(f"| {result.name} | {result.rival_name} | {times} | {ratio} | {limit} |")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Three significant digits with the unit that suits them: `1.25 us`."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
