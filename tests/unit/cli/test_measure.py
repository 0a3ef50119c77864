"""A case's rounds alternate, and its ratio, spread and limit come from the rounds; no real time is measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest

from vtlkit.cli.measure import (
    Case,
    Figure,
    Result,
    Skipped,
    Unavailable,
    duration,
    measure,
    measure_figure,
    measure_row,
    seconds_per_operation,
    to_json,
    to_table,
)


def scripted(log: list[str], name: str, times: Sequence[float]) -> Callable[[], float]:
    remaining = iter(times)

    def run() -> float:
        log.append(name)
        return next(remaining)

    return run


def case(own: Sequence[float], theirs: Sequence[float], limit: float | None = None) -> tuple[Case, list[str]]:
    log: list[str] = []
    return Case("exit", scripted(log, "own", own), "raw", scripted(log, "rival", theirs), limit), log


def test_sides_alternate_and_swap_their_order() -> None:
    measured, log = case([1.0] * 4, [1.0] * 4)
    measure(measured, rounds=3, warm_up=1)
    assert log == ["own", "rival", "own", "rival", "rival", "own", "own", "rival"]


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # The machine is ten times slower in the third round: both sides feel it, and the ratio does not.
    measured, _ = case([2.0, 4.0, 20.0, 6.0, 8.0], [1.0, 1.0, 10.0, 1.0, 1.0])
    result = measure(measured, rounds=5, warm_up=0)
    assert result.ratio == 4.0
    assert (result.ratio_low, result.ratio_high) == (2.0, 6.0)
    assert (result.seconds, result.rival_seconds) == (6.0, 1.0)
    assert result.within_limit is None


def test_a_single_round_has_no_spread() -> None:
    measured, _ = case([3.0], [2.0])
    result = measure(measured, rounds=1, warm_up=0)
    assert (result.ratio_low, result.ratio, result.ratio_high) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(("limit", "kept"), [(2.0, True), (1.9, False)])
def test_a_limit_is_compared_with_the_median(limit: float, kept: bool) -> None:
    measured, _ = case([2.0], [1.0], limit)
    result = measure(measured, rounds=1, warm_up=0)
    assert result.within_limit is kept
    assert ("kept" if kept else "MISSED") in to_table([result])
    assert json.loads(to_json([result]))[0]["within_limit"] is kept


def test_what_cannot_be_measured_is_refused() -> None:
    measured, _ = case([0.0], [1.0])
    with pytest.raises(ValueError, match="too short for the clock"):
        measure(measured, rounds=1, warm_up=0)
    with pytest.raises(ValueError, match="at least one round"):
        measure(measured, rounds=0)


def test_a_body_is_timed_per_operation() -> None:
    calls: list[int] = []
    assert seconds_per_operation(lambda: calls.append(1), 1000) > 0
    assert calls == [1]


def test_json_and_table_have_every_figure() -> None:
    result = Result("exit", "raw", 11, 2.5e-6, 1e-6, 2.5, 2.25, 2.75, 3.0)
    assert json.loads(to_json([result])) == [
        {
            "name": "exit",
            "rival_name": "raw",
            "rounds": 11,
            "seconds": 2.5e-6,
            "rival_seconds": 1e-6,
            "ratio": 2.5,
            "ratio_low": 2.25,
            "ratio_high": 2.75,
            "limit": 3.0,
            "within_limit": True,
        }
    ]
    assert to_table([result]).splitlines()[2] == "| exit | raw | 2.5 us | 1 us | 2.500 (2.250 to 2.750) | 3 kept |"


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.34, "12.3 s"), (0.0125, "12.5 ms"), (1.25e-6, "1.25 us"), (4.2e-8, "42 ns")]
)
def test_a_duration_has_a_fitting_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("limit", "kept"), [(3.0, True), (2.9, False)])
def test_a_figure_is_judged_by_its_median(limit: float, kept: bool) -> None:
    values = iter([99.0, 1.0, 3.0, 5.0])
    quantity = measure_figure(Figure("start", lambda: next(values), "s", limit), rounds=3)
    assert (quantity.value, quantity.value_low, quantity.value_high) == (3.0, 2.0, 4.0)
    assert quantity.within_limit is kept
    assert json.loads(to_json([quantity]))[0]["within_limit"] is kept
    verdict = "kept" if kept else "MISSED"
    assert to_table([quantity]).splitlines()[2] == f"| start |  | 3 s |  | (2 to 4) | {limit:g} s {verdict} |"


def test_a_figure_takes_a_round() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        measure_figure(Figure("start", lambda: 1.0, "s", 1.0), rounds=0)


def test_what_is_not_to_be_had_is_a_row_with_the_reason() -> None:
    def absent() -> float:
        raise Unavailable("no rival here")

    row = measure_row(Case("exit", lambda: 1.0, "raw", absent), rounds=3)
    assert row == Skipped("exit", "no rival here")
    assert row.brief() == "exit: skipped: no rival here"
    assert "skipped: no rival here" in to_table([row])
    assert json.loads(to_json([row])) == [{"name": "exit", "reason": "no rival here", "within_limit": None}]


def test_a_row_of_either_kind_is_measured() -> None:
    assert measure_row(Case("exit", lambda: 2.0, "raw", lambda: 1.0), rounds=1).brief() == "exit: 2.000 of raw"
    assert measure_row(Figure("start", lambda: 2.0, "s", 1.0), rounds=1).brief() == "start: 2 s"
