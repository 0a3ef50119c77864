"""Calibration: a workload measured against itself. Its ratio's distance from 1 is the machine's noise."""

from __future__ import annotations

from vtlkit.cli.measure import Case, seconds_per_operation

OPERATIONS = 200_000


def _loop() -> int:
    total = 0
    for number in range(OPERATIONS):
        total += number & 7
    return total


def cases() -> list[Case]:
    """The one case, without a limit: a ratio of 1 is the truth, and what is measured is the instrument."""

    def run() -> float:
        return seconds_per_operation(_loop, OPERATIONS)

    return [Case("calibration", run, "itself", run)]
