"""docs/LITMUS.md says what was judged, and marks what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checker.litmus import table
from tests.checker.litmus.rig import FOLDER

PAGE = Path(__file__).parents[3] / "docs" / "LITMUS.md"


def of_shape(name: str) -> table.Row:
    return table.row((FOLDER / f"{name}.litmus").read_text())


def test_a_page() -> None:
    text = table.page([of_shape("LB"), of_shape("RCU+SB")], "2020-02-02", "a folder")
    assert "Generated on 2020-02-02 by `make litmus LITMUS=dir`, `dir` being a folder; do not edit." in text
    assert "| LB | Sometimes | Sometimes | **Never** | **Never** | **Never** |  |" in text
    assert "| RCU+SB | Never | Never | Never | **refused** | **refused** |  |" in text
    assert "- lkmm: 2 of 2 agree" in text
    assert "- tso: 0 of 2 agree" in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    output = tmp_path / "LITMUS.md"
    words = ["--dir", str(tmp_path / "in"), "--output", str(output)]
    assert table.main(words) == 2
    test = (FOLDER / "SB.litmus").read_text()
    (tmp_path / "in" / "SB.litmus").write_text(test)
    assert table.main(words) == 0
    assert "| SB | Sometimes |" in output.read_text()
    (tmp_path / "in" / "other.litmus").write_text(test.replace("Sometimes", "Never"))
    assert table.main(words) == 1
    (tmp_path / "in" / "bad.litmus").write_text("C bad")
    assert table.main(words) == 2
    assert "bad.litmus: no initial values" in capsys.readouterr().err


def test_the_page_in_the_repository_has_no_disagreement_under_lkmm() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.endswith(" ms |")]
    assert len(rows) >= 34
    assert all(recorded == lkmm for _, recorded, lkmm, *_ in rows)
