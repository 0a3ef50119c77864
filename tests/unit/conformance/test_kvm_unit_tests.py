"""The runner records what an emulator did, survives what it should not do, and its page shows the difference."""

from __future__ import annotations

import dataclasses
import sys
import threading
from pathlib import Path

import pytest

from tests.conformance import emulators, kvm_unit_tests
from tests.conformance.console import Counts, Outcome, Verdict
from tests.conformance.report import Record, Row, from_json, to_json, to_markdown
from tests.conformance.unittests_cfg import NotRun, PlannedTest

GOOD = Outcome(Verdict.PASS, Counts(passed=3), 1, 0.5)
BAD = Outcome(Verdict.FAIL, Counts(2, 1, 1, 0, 4), 3, 1.25, {"msr: x | y": 1})


@dataclasses.dataclass(frozen=True)
class Program:
    """An emulator that is a line of Python."""

    text: str
    name: str = "vtlkit"

    def command(self, test: PlannedTest, timeout_seconds: int) -> list[str]:
        return [sys.executable, "-S", "-c", self.text]

    def version(self) -> str:
        return "1"


def case(timeout_seconds: int = 60) -> PlannedTest:
    return PlannedTest("case", Path("case.flat"), 1, "", None, timeout_seconds)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("print('PASS: a'); raise SystemExit(1)", Verdict.PASS),
        ("print('FAIL: a'); raise SystemExit(3)", Verdict.FAIL),
        ("import os; os.kill(os.getpid(), 9)", Verdict.CRASH),
        ("raise RuntimeError('our bug')", Verdict.CRASH),
        ("import os; os.write(1, b'\\xff\\xfePASS: a\\n'); raise SystemExit(1)", Verdict.PASS),
    ],
)
def test_a_run_is_judged_by_what_the_process_did(text: str, verdict: Verdict, tmp_path: Path) -> None:
    assert emulators.run_test(case(), Program(text), tmp_path, 1.0, threading.Event()).verdict is verdict
    assert (tmp_path / "case.vtlkit.out").is_file()


def alive(process: str) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(") ")[2][0] != "Z"


@pytest.mark.parametrize("last", ["signal.pause()", "parent and os._exit(1) or signal.pause()"])
def test_nothing_of_a_run_stays_behind(last: str, tmp_path: Path) -> None:
    # The parent waits until both have written their line, so the test does not depend on how fast they are.
    program = "import os, signal; r, w = os.pipe(); parent = os.fork(); os.write(1, b'%d\\n' % os.getpid()); "
    program += f"parent and os.read(r, 1) or os.write(w, b'x'); {last}"
    console = tmp_path / "case.vtlkit.out"
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set() and not (console.exists() and console.read_text().count("\n") == 2):
            stop.wait(0.01)
        stop.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    emulators.run_test(case(), Program(program), tmp_path, 1.0, stop)
    stop.set()
    watcher.join()
    processes = console.read_text().split()
    assert len(processes) == 2
    for _ in range(1000):
        if not any(map(alive, processes)):
            break
        threading.Event().wait(0.01)  # a kill takes a moment to arrive
    assert not any(map(alive, processes))


def test_a_run_past_its_limit_is_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulators, "GRACE_SECONDS", 0)
    outcome = emulators.run_test(case(1), Program("import signal; signal.pause()"), tmp_path, 1.0, threading.Event())
    assert outcome.verdict is Verdict.TIMEOUT
    assert outcome.seconds >= 1


def test_a_run_can_be_stopped(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    outcome = emulators.run_test(case(), Program("import signal; signal.pause()"), tmp_path, 1.0, stop)
    assert outcome.verdict is Verdict.TIMEOUT


def record() -> Record:
    rows = (
        Row("same", "a.flat", 1, outcomes={"vtlkit": GOOD, "qemu": GOOD}),
        Row("ours", "b.flat", 2, "x", ("-cpu max",), {"vtlkit": BAD, "qemu": GOOD}),
        Row("shared", "b.flat", 2, outcomes={"vtlkit": BAD, "qemu": BAD}),
    )
    return Record(
        "2026-01-02", {"vtlkit": "1", "qemu": "7"}, rows, (NotRun("vmx", "needs more"), NotRun("svm", "needs more"))
    )


def test_json_is_read_back_as_written() -> None:
    assert from_json(to_json(record())) == record()


def test_the_page_shows_results_differences_and_reasons() -> None:
    page = to_markdown(record())
    assert "| same | 1 | PASS 3/0/0 | PASS 3/0/0 | 0.5 | 0.5 |  |" in page
    assert "| ours | 2 | FAIL 2/1/4+1 | PASS 3/0/0 | 1.2 | 0.5 | yes |" in page
    assert "| shared | 2 | FAIL 2/1/4+1 | FAIL 2/1/4+1 | 1.2 | 1.2 |  |" in page
    assert "**vtlkit**: 2 FAIL, 1 PASS" in page
    assert page.count("msr: x \\| y (not in QEMU)") == 1
    assert "- vmx, svm: needs more" in page
    assert "- ours: -cpu max" in page


def test_a_row_without_reference_differs_from_nothing() -> None:
    assert Row("a", "a.flat", 1, outcomes={"vtlkit": BAD}).differs is None


def checkout(root: Path) -> Path:
    (root / "x86").mkdir()
    (root / "x86" / "unittests.cfg").write_text("[a]\nfile = a.flat\n[b]\nfile = b.flat\n[c]\nfile = vmx.flat\n")
    (root / "x86" / "a.flat").touch()
    (root / "x86" / "b.flat").touch()
    return root


def test_a_whole_run_writes_page_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        kvm_unit_tests, "emulators_for", lambda options: [Program("print('PASS: a'); raise SystemExit(1)")]
    )
    reference = Record("2026-01-01", {"qemu": "7"}, (Row("a", "a.flat", 1, outcomes={"qemu": BAD}),))
    (tmp_path / "reference.json").write_text(to_json(reference))
    words = ["--dir", str(checkout(tmp_path)), "--logs", str(tmp_path / "logs"), "--output", str(tmp_path / "page.md")]
    assert kvm_unit_tests.main([*words, "--reference", str(tmp_path / "reference.json")]) == 0
    progress = capsys.readouterr()
    assert progress.err.count("PASS    vtlkit") == 2
    assert "vtlkit: 2 PASS" in progress.out
    data = from_json((tmp_path / "logs" / "results.json").read_text())
    assert [(row.name, row.differs) for row in data.rows] == [("a", True), ("b", None)]
    assert "recorded 2026-01-01" in data.versions["qemu"]
    page = (tmp_path / "page.md").read_text()
    assert "- c: needs nested virtualisation" in page
    assert str(tmp_path) not in page


def test_a_part_does_not_replace_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm_unit_tests, "emulators_for", lambda options: [Program("raise SystemExit(1)")])
    page = tmp_path / "page.md"
    page.write_text("the whole")
    words = ["--dir", str(checkout(tmp_path)), "--logs", str(tmp_path / "logs"), "--output", str(page), "--only", "b"]
    assert kvm_unit_tests.main(words) == 0
    assert page.read_text() == "the whole"
    assert [row.name for row in from_json((tmp_path / "logs" / "results.json").read_text()).rows] == ["b"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "must name a kvm-unit-tests checkout"),
        (["--only", "c"], "no test 'c' to run: needs nested"),
        (["--only", "zzz"], "no test 'zzz' to run: not in"),
        (["--reference", "absent.json"], "absent.json"),
    ],
)
def test_bad_input_is_one_clear_line(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = checkout(tmp_path) if words else tmp_path
    assert kvm_unit_tests.main(["--dir", str(directory), *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_a_checkout_that_is_not_built_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x86").mkdir()
    (tmp_path / "x86" / "unittests.cfg").write_text("[a]\nfile = a.flat\n")
    assert kvm_unit_tests.main(["--dir", str(tmp_path)]) == 2
    assert "./configure && make" in capsys.readouterr().err
