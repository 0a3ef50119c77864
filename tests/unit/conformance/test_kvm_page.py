"""The table "On /dev/kvm": what it says of QEMU on the same kernel, and how both tables share a page."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.conformance import devkvm_here, emulators, kvm_unit_tests
from tests.conformance.console import Counts, Outcome, Verdict, judge
from tests.conformance.emulators import QemuKvm, Vtlkit
from tests.conformance.kvm_page import TITLE, compose, for_qemu_too
from tests.conformance.report import Record, Row, from_json, to_json, to_markdown
from tests.conformance.unittests_cfg import PlannedTest

GOOD = Outcome(Verdict.PASS, Counts(passed=3), 1, 0.5)
BAD = Outcome(Verdict.FAIL, Counts(2, 2), 3, 1.25, {"ours": 1, "the kernel's": 1})
THEIRS = Outcome(Verdict.FAIL, Counts(2, 1), 3, 1.25, {"the kernel's": 1})


def row(name: str, ours: Outcome, rival: Outcome | None) -> Row:
    outcomes = {"vtlkit-kvm": ours} | ({"qemu-kvm": rival} if rival else {})
    return Row(name, "a.flat", 1, outcomes=outcomes)


def on_kvm(date: str = "2026-02-02") -> Record:
    rows = (row("alone", BAD, GOOD), row("both", BAD, THEIRS), row("fine", GOOD, BAD))
    versions = {"vtlkit-kvm": "1 --engine kvm", "qemu-kvm": "7", "kernel": "Linux 6, slow", "host": "a host"}
    return Record(date, versions, rows)


def embedded(date: str = "2026-01-01") -> Record:
    return Record(date, {"vtlkit": "1", "qemu": "7"}, (Row("a", "a.flat", 1, outcomes={"vtlkit": GOOD}),))


@pytest.mark.parametrize(
    ("ours", "rival", "said"),
    [
        (Verdict.FAIL, Verdict.PASS, "no"),
        (Verdict.TIMEOUT, Verdict.PASS, "no"),
        (Verdict.FAIL, Verdict.CRASH, "yes"),
        (Verdict.CRASH, Verdict.FAIL, "yes"),
        (Verdict.CRASH, Verdict.TIMEOUT, "TIMEOUT there"),
        (Verdict.FAIL, Verdict.SKIP, "skipped there"),
        (Verdict.FAIL, Verdict.ERROR, "not started there"),
        (Verdict.PASS, Verdict.FAIL, ""),
        (Verdict.SKIP, Verdict.PASS, ""),
    ],
)
def test_a_failure_says_how_it_is_for_qemu(ours: Verdict, rival: Verdict, said: str) -> None:
    assert for_qemu_too(row("a", Outcome(ours), Outcome(rival))) == said
    assert for_qemu_too(row("a", Outcome(ours), None)) == ""


def test_the_table_names_kernel_marks_and_what_is_vtlkits_own() -> None:
    page = compose(on_kvm(), "")
    assert "- kernel: Linux 6, slow" in page
    assert "| alone | 1 | FAIL 2/2/0 | PASS 3/0/0 | 1.2 | 0.5 | no |" in page
    assert "| both | 1 | FAIL 2/2/0 | FAIL 2/1/0 | 1.2 | 1.2 | yes |" in page
    assert "| fine | 1 | PASS 3/0/0 | FAIL 2/2/0 | 0.5 | 1.2 |  |" in page
    assert "**vtlkit-kvm**: 2 FAIL, 1 PASS" in page
    own = page.partition("### Passed by QEMU on this /dev/kvm, not by vtlkit\n")[2].partition("\n###")[0]
    assert own.split("\n") == ["", "- alone: FAIL", ""]
    ours = page.partition("### Failed checks and early ends: vtlkit-kvm\n")[2].partition("\n###")[0]
    alone, both = ours.split("**both**")
    assert alone.count("(not in QEMU)") == 2
    assert both.count("(not in QEMU)") == 1
    assert "ours (not in QEMU)" in both


def test_a_check_that_qemu_did_not_get_to_is_not_called_vtlkits_own() -> None:
    early = Outcome(Verdict.CRASH, Counts(passed=1), 124, 1.0)
    page = compose(Record("2026-02-02", {}, (row("a", BAD, early),)), "")
    assert "  - ours\n" in page


def test_each_table_is_kept_by_a_run_of_the_other() -> None:
    first = compose(embedded(), "")
    assert first.rstrip() == to_markdown(embedded()).rstrip()
    both = compose(on_kvm(), first)
    assert both.startswith(first)
    assert both.count(TITLE) == 1
    later = compose(embedded("2026-03-03"), both)
    assert "- date: 2026-03-03" in later
    assert "- date: 2026-01-01" not in later
    assert later.partition(TITLE)[2] == both.partition(TITLE)[2]
    last = compose(on_kvm("2026-04-04"), later)
    assert last.partition(TITLE)[0] == later.partition(TITLE)[0]
    assert last == both.replace("2026-01-01", "2026-03-03").replace("2026-02-02", "2026-04-04")


def test_one_run_of_all_columns_makes_both_tables() -> None:
    everything = Record(
        "2026-05-05", {**embedded().versions, **on_kvm().versions}, (*embedded().rows, *on_kvm().rows[:1])
    )
    first, _, second = compose(everything, "").partition(TITLE)
    assert "- kernel" not in first
    assert "vtlkit-kvm" not in first
    assert "- vtlkit: 1\n" in first
    assert "- vtlkit: 1\n" not in second
    assert second.count("- date: 2026-05-05") == 1


def case(parameters: tuple[str, ...] = (), name: str = "case") -> PlannedTest:
    return PlannedTest(name, Path(f"{name}.flat"), 2, "x y", "64", 60, parameters)


@pytest.mark.parametrize(
    ("parameters", "model"),
    [
        ((), "max,arch-capabilities=off"),
        (("-cpu", "host,hv_passthrough"), "host,hv_passthrough,arch-capabilities=off"),
        (("-cpu", "qemu64,+x2apic"), "qemu64,+x2apic"),
        (("-enable-kvm", "-cpu", "max"), "max,arch-capabilities=off"),
    ],
)
def test_qemu_on_kvm_gets_the_entry_as_it_is(parameters: tuple[str, ...], model: str) -> None:
    words = QemuKvm(without=("arch-capabilities=off",)).command(case(parameters), 60)
    assert words[words.index("-accel") + 1] == "kvm"
    assert "tcg" not in words
    assert "-enable-kvm" not in words
    assert words.count("-cpu") == 1
    assert words[words.index("-cpu") + 1] == model
    assert words[words.index("-append") + 1] == "x y"


def test_qemu_is_tried_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(words: list[str], **others: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(words, 0 if words[-1] in good else -6)

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", run)
    good = {"max", "max,arch-capabilities=off"}
    assert QemuKvm.find() == QemuKvm()
    good.remove("max")
    assert QemuKvm.find() == QemuKvm(without=("arch-capabilities=off",))
    good.clear()
    assert QemuKvm.find() is None


def test_a_kvm_that_gave_up_is_a_crash() -> None:
    assert judge("PASS: a", "KVM internal error. Suberror: 1\nextra data[0]", 124, 1).verdict is Verdict.CRASH
    ours = judge("PASS: a", "vtlkit run: VP 0 cannot go on: KVM internal error 1 at RIP 0x40\n time 1 s", 4, 1)
    assert (ours.verdict, ours.detail) == (Verdict.CRASH, "KVM internal error 1 at RIP 0x40")


@dataclasses.dataclass(frozen=True)
class Program:
    """An emulator that is a line of Python, and keeps count of its tests."""

    text: str
    name: str = "vtlkit-kvm"

    def command(self, test: PlannedTest, timeout_seconds: int) -> list[str]:
        return [sys.executable, "-S", "-c", self.text]

    def version(self) -> str:
        return "1"


def test_one_that_waits_for_ever_after_that_is_ended(tmp_path: Path) -> None:
    # Without the end that this is about, the test takes the ten minutes and is a TIMEOUT.
    text = "import signal, sys; print('KVM internal error. Suberror: 3', file=sys.stderr, flush=True); signal.pause()"
    outcome = emulators.run_test(
        dataclasses.replace(case(), timeout_seconds=600), Program(text), tmp_path, 1.0, threading.Event()
    )
    assert (outcome.verdict, outcome.detail) == (Verdict.CRASH, "KVM internal error. Suberror: 3")


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "x86").mkdir()
    (tmp_path / "x86" / "unittests.cfg").write_text("[a]\nfile = a.flat\n[b]\nfile = b.flat\n")
    (tmp_path / "x86" / "a.flat").touch()
    (tmp_path / "x86" / "b.flat").touch()
    monkeypatch.setattr(
        kvm_unit_tests, "emulators_for", lambda options: [Program("print('PASS: a'); raise SystemExit(1)")]
    )
    monkeypatch.setattr(devkvm_here, "described", lambda: "a good one")
    logs, page = tmp_path / "logs", tmp_path / "page.md"
    page.write_text(compose(embedded(), ""))
    return ["--dir", str(tmp_path), "--logs", str(logs), "--output", str(page), "--kvm-only"]


def earlier(path: Path, version: str = "1") -> list[str]:
    short = Outcome(Verdict.TIMEOUT, seconds=5.0)
    record = Record("2026-01-01", {"vtlkit-kvm": version}, (row("a", BAD, None), row("b", short, None)))
    path.write_text(to_json(record))
    return ["--earlier", str(path)]


@pytest.mark.parametrize(("limit", "again"), [("5", []), ("6", ["b"])])
def test_a_run_goes_on_from_an_earlier_one(
    limit: str, again: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kvm_unit_tests.main([*words, *earlier(tmp_path / "e.json"), "--limit", limit]) == 0
    ran = [line.partition("vtlkit-kvm ")[2][0] for line in capsys.readouterr().err.splitlines()]
    assert ran == again
    rows = from_json((tmp_path / "logs" / "results.json").read_text()).rows
    verdicts = {r.name: r.outcomes["vtlkit-kvm"].verdict for r in rows}
    assert verdicts == {"a": Verdict.FAIL, "b": Verdict.PASS if again else Verdict.TIMEOUT}
    page = (tmp_path / "page.md").read_text()
    assert page.startswith(to_markdown(embedded()).rstrip())
    assert "its KVM a good one" in page
    assert f"- time limit: {limit} s, each test's own\n" in page


@pytest.mark.parametrize(
    ("more", "expected"),
    [(["--limit", "0"], "1 second or more"), (["--earlier", "absent.json"], "absent.json: not the data")],
)
def test_bad_input_is_one_clear_line(
    more: list[str], expected: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert kvm_unit_tests.main([*words, *more]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_the_data_of_another_version_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kvm_unit_tests.main([*words, *earlier(tmp_path / "e.json", "0")]) == 2
    assert "its vtlkit-kvm is '0', not '1': run anew" in capsys.readouterr().err


def test_without_kvm_the_table_is_refused_or_left_out(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(devkvm_here, "why_not", lambda: "there is no such thing")
    assert kvm_unit_tests.main(words) == 2
    assert capsys.readouterr().err == "conformance: --kvm-only: there is no such thing\n"
    options = kvm_unit_tests.arguments([*words[:-1], "--kvm"])
    assert kvm_unit_tests.emulators_for(options) == [Vtlkit()]
    assert capsys.readouterr().err == "conformance: --kvm does nothing here: there is no such thing\n"
