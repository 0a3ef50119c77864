"""The summary of a run: what people read fits their terminal, what programs read is all of it."""

from __future__ import annotations

import json
from collections import Counter

from vtlkit.cli.summary import Summary
from vtlkit.vmm.machine import Outcome, RunResult


def summary(exits: dict[str, int], instructions: int | None = 1234567, crash: str = "") -> Summary:
    result = RunResult(
        Outcome.POWER_OFF,
        0,
        "the guest powered off",
        crash,
        Counter(exits),
        Counter({"IO": 3}),
        42,
        instructions,
        1_500_000,
    )
    return Summary(result, 0, 0.25, instructions is None, None)


def test_counts_are_in_descending_order_and_grouped() -> None:
    assert summary({"io": 5, "cpuid": 12000, "hlt": 5}).to_text().splitlines() == [
        "vtlkit: power-off, status 0",
        "  exits         12,010: cpuid 12,000, hlt 5, io 5",
        "  to the VMM    3: IO 3",
        "  VTL switches  42",
        "  instructions  1,234,567",
        "  time          0.250 s wall clock, 0.001500 s virtual",
    ]


def test_what_is_not_counted_is_not_shown() -> None:
    text = summary({}, instructions=None).to_text()
    assert "instructions" not in text
    assert "  exits         0\n" in text
    assert "0.001500 s since the start" in text


def test_a_busy_loop_of_refused_runs_is_shown() -> None:
    shown = summary({})
    shown.result.kicked_entries = 999
    assert "kicked" not in shown.to_text()
    shown.result.kicked_entries = 12_345
    assert "  kicked        12,345 calls of run() before the resume: a busy loop\n" in shown.to_text()
    assert json.loads(shown.to_json())["kicked_entries"] == 12_345


def test_no_line_is_longer_than_it_may_be() -> None:
    lines = summary({f"reason_number_{n}": 10**n for n in range(12)}).to_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.count("reason_number_") for line in lines) == 12


def test_json_has_everything() -> None:
    data = json.loads(summary({"io": 2}, crash="VP 0").to_json())
    assert data == {
        "outcome": "power_off",
        "status": 0,
        "message": "the guest powered off",
        "exits": {"io": 2},
        "user_exits": {"IO": 3},
        "vtl_switches": 42,
        "kicked_entries": 0,
        "instructions": 1234567,
        "virtual_ns": 1500000,
        "wall_seconds": 0.25,
        "realtime": False,
        "seed": None,
        "crash": "VP 0",
    }
    assert summary({}).to_json().count("\n") == 1
