"""What docs/PROOFS.md says of a check that holds, one that is broken, and one that takes too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checker import prove
from tests.checker.handover import handover
from vtlkit.checker.program import Program
from vtlkit.checker.protocols import Protocol, Sizes, catalogue
from vtlkit.cli.check_words import Job


def job(name: str, n: int, model: str = "sc") -> Job:
    protocol = catalogue()[name]
    return Job(protocol, "", {"n": n}, model, "graphs")


def test_a_count_is_the_certificate(tmp_path: Path) -> None:
    output = tmp_path / "PROOFS.md"
    assert prove.main(["ainc", "--output", str(output), "--jobs", "1"]) == 0
    text = output.read_text()
    assert "| `ainc` | n 5 | sc | graphs | proved: 120 executions |" in text
    assert "| `ainc` | n 7 | rc11 | graphs | proved: 5,040 executions |" in text
    assert "6 of 6 checks were done" in text


def test_what_takes_too_long_is_listed_and_the_rest_goes_on() -> None:
    told: list[int] = []
    rows = prove.run([job("lastzero", 30), job("ainc", 3)], 4.0, 2, lambda _row, left: told.append(left))
    assert [row.result is None for row in rows] == [True, False]
    assert told == [1, 0]
    assert "not done in this time" in prove.render(rows, 2)


def test_a_broken_protocol_is_said_to_be() -> None:
    def build(_model: str, _sizes: Sizes) -> Program:
        return handover(barrier=0)

    protocol = Protocol("handover", "nobody sleeps for ever", build, abstracts="nothing")
    (row,) = prove.run([Job(protocol, "", {}, "tso", "graphs")], 60.0, 1, lambda *_: None)
    assert row.broken
    assert "**broken**: lost wake-up, 6 steps" in prove.render([row], 1)


@pytest.mark.parametrize("arguments", [["nothing"], ["ainc", "--jobs", "0"], ["ainc", "--seconds", "0"]])
def test_bad_input_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert prove.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_default_sizes_come_first() -> None:
    sizes = [dict(each.sizes) for each in prove.jobs([catalogue()["ainc"]])]
    assert sizes == [{"n": 5}] * 3 + [{"n": 7}] * 3
