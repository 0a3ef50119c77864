"""The harness finds cases, runs those it is asked for, and says what it does not know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import harness
from vtlkit.cli.measure import Case

CASES = [Case("one", lambda: 2.0, "raw", lambda: 1.0), Case("two", lambda: 3.0, "raw", lambda: 1.0)]


def test_the_cases_of_the_directory_are_found() -> None:
    assert "calibration" in {case.name for case in harness.all_cases()}


def test_the_calibration_case_runs() -> None:
    (case,) = (case for case in harness.all_cases() if case.name == "calibration")
    assert isinstance(case, Case)
    assert case.run() > 0


def test_two_cases_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "twice"
    package.mkdir()
    for name in ("bench_a", "bench_b"):
        (package / f"{name}.py").write_text(
            "from vtlkit.cli.measure import Case\ndef cases(): return [Case('x', float, 'y', float)]\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"bench_b\.py: there is already a case 'x'"):
        harness.all_cases(package, "twice")


def test_json_holds_the_chosen_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.main(["--json", "--rounds", "2", "two"], CASES) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert (result["name"], result["ratio"], result["rounds"]) == ("two", 3.0, 2)


def test_the_table_holds_all_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.main(["--rounds", "1"], CASES) == 0
    printed = capsys.readouterr()
    assert [line.split(" | ")[0] for line in printed.out.splitlines()[2:]] == ["| one", "| two"]
    assert printed.err.splitlines() == ["one: 2.000 of raw", "two: 3.000 of raw"]


@pytest.mark.parametrize(("words", "complaint"), [(["zzz"], "no case zzz"), (["--rounds", "0"], "at least 1")])
def test_bad_input_is_one_clear_line(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.main(words, CASES) == 2
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert printed.out == ""


def test_the_cases_need_no_tool_of_development() -> None:
    """`make bench` installs what users need, and the tests' tools are not among it."""
    program = "import sys\nfor tool in ('pytest', 'hypothesis', 'xdist'):\n    sys.modules[tool] = None\n"
    program += "from benchmarks.harness import all_cases\nprint(len(all_cases()))"
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root / "src"), str(root)))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == len(harness.all_cases())
