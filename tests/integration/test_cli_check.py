"""`vtlkit check`: verdicts, tables, tokens, JSON, traces, exit statuses, and one line for whatever cannot be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration import cli_rig
from vtlkit.checker import protocols
from vtlkit.checker.check import Limits
from vtlkit.checker.result import Result
from vtlkit.cli import check_runs, check_table
from vtlkit.cli.check_words import Job, Wish, jobs_for, parse_token, split_words
from vtlkit.cli.main import main
from vtlkit.cli.status import BadInput
from vtlkit.trace.events import CheckStep
from vtlkit.trace.reader import read_trace

HANDOVER = Path(__file__).parents[1] / "checker" / "handover.py"
NAME = f"{HANDOVER}::handover"


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["check", *words])
    written = capsys.readouterr()
    return status, written.out, written.err


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict[str, Any]]]:
    status, output, _ = check(capsys, *words, "--json")
    return status, json.loads(output)


def test_a_count_is_the_certificate(capsys: pytest.CaptureFixture[str]) -> None:
    status, output, errors = check(capsys, "readers", "--n", "5")
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0] == "readers: n 5"
    assert [line.split()[0] for line in lines[1:]] == ["sc", "tso", "rc11"]
    assert all("32 executions" in line and "(graphs)" in line for line in lines[1:])


def test_what_is_proved_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = check(capsys, "kvm_block", "--wakers=1", "--model", "sc,rc11")
    assert status == 0
    assert output.count("proved for this size: no lost wake-up, no deadlock, no assertion fails, no data race;") == 2
    assert " states in " in output
    assert " executions in " in output


def test_a_counterexample_is_a_table_who_waits_and_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    words = NAME, "--barrier", "0", "--engine", "graphs", "--model", "tso"
    status, output, _ = check(capsys, *words)
    assert status == 1
    assert "BROKEN: lost wake-up in 6 steps, the fewest there can be: vcpu waits for ever" in output
    lines = [line.rstrip() for line in output.splitlines()]
    head = next(line for line in lines if line.split()[:1] == ["step"])
    assert head.split() == ["step", "vcpu", "waker", "0", "where"]
    rows = [line for line in lines if line.split()[:1] and line.split()[0].isdigit()]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert "hands on blocking = 1 to memory" in rows[-1]
    assert "handover.py:" in rows[-1]
    assert rows[3].index("rmw pending: 0 -> 1") == head.index("waker 0")
    assert "<-1" in rows[3]
    assert "    step 5 looked at blocking before step 6 stored it" in lines
    token = output.split("--replay ")[1].split("'")[1]
    assert token == f"check:{NAME}:wakers=1,barrier=0,look_again=1:tso:graphs"
    again, replayed, _ = check(capsys, "--replay", token)
    assert again == 1
    table = output[output.index("step ") : output.index("--replay")]
    assert table == replayed[replayed.index("step ") : replayed.index("--replay")]


def test_where_there_is_no_room_for_columns_steps_are_indented(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_table, "WIDE", 100)
    _, output, _ = check(capsys, "kvm_block", "--variant", "no-barrier", "--model", "tso", "--wakers", "3")
    lines = [line.rstrip() for line in output.splitlines()]
    head = next(line for line in lines if line.split()[:1] == ["step"])
    assert head.split() == ["step", "task", "what", "where"]
    rows = [line for line in lines if line.split()[:1] and line.split()[0].isdigit()]
    assert len(rows) == 10
    begin = head.index("what")
    assert rows[0][begin:].startswith("reads pending = 0 (acq) <-init")
    assert rows[3][begin:].startswith("  rmw pending: 0 -> 1 (rel) <-init")
    assert rows[5][begin:].startswith("      rmw pending: 2 -> 3 (rel) <-5")
    assert max(map(len, rows)) <= 100


def test_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    status, (row,) = checked(capsys, NAME, "--barrier", "0", "--engine", "graphs", "--model", "tso")
    assert status == 1
    known = {"name": "handover", "file": str(HANDOVER), "variant": None, "model": "tso", "engine": "graphs"}
    assert {key: row[key] for key in known} == known
    assert row["sizes"] == {"wakers": 1, "barrier": 0, "look_again": 1}
    assert (row["verdict"], row["executions"], row["states"], row["interrupted"]) == ("counterexample", 6, None, False)
    assert row["seconds"] > 0
    found = row["counterexample"]
    assert (found["kind"], found["shortest"], len(found["steps"])) == ("lost wake-up", True, 6)
    assert found["steps"][3] == {
        "task": "waker 0",
        "what": "rmw pending: 0 -> 1",
        "place": found["steps"][3]["place"],
        "location": "pending",
        "read": 0,
        "written": 1,
        "source": 0,
        "stale": False,
        "buffered": False,
    }
    assert [(each["task"], each["location"], each["missed"]) for each in found["waiting"]] == [
        ("vcpu", "blocking", [3])
    ]
    status, rows = checked(capsys, "wcas", "--n", "2")
    assert status == 0
    assert [(each["n"], each["executions"], each["verdict"]) for each in rows] == [(2, 5, "proved")] * 3


def test_a_bound_is_status_3_and_a_counterexample_outweighs_it(capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = checked(capsys, "casw", "--limit", "10")
    assert status == 3
    assert {row["verdict"] for row in rows} == {"bound reached"}
    assert rows[0]["notes"] == ["stopped after 10 executions"]
    status, rows = checked(capsys, str(HANDOVER), "--model", "tso", "--limit", "20", "--engine", "graphs")
    assert [row["name"] for row in rows] == ["handover", "counter"]
    assert status == 0
    status, rows = checked(capsys, f"{HANDOVER}::counter", "casw", "--n", "3", "--limit", "10", "--model", "rc11")
    assert [row["verdict"] for row in rows] == ["counterexample", "bound reached"]
    assert status == 1


def test_a_variant_breaks_as_it_is_expected_to(capsys: pytest.CaptureFixture[str]) -> None:
    bad = protocols.find("kvm_block").variant("no-barrier")
    status, rows = checked(capsys, "kvm_block", "--variant", "no-barrier")
    assert status == 1
    told = {row["model"]: row["counterexample"] and len(row["counterexample"]["steps"]) for row in rows}
    assert told == {model: expected and expected[1] for model, expected in bad.expect.items()}
    assert all(row["variant"] == "no-barrier" and "!no-barrier:" in row["token"] for row in rows)
    assert parse_token(rows[1]["token"]).variant == "no-barrier"


def test_the_list_has_groups_sizes_models_and_variants(capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = check(capsys, "--list")
    assert status == 0
    lines = output.splitlines()
    headings = [line for line in lines if line and not line.startswith(" ")]
    assert {"benchmarks of model checkers", "litmus shapes", "models of the kernel's code"} <= set(headings)
    assert any(line.split()[:4] == ["lastzero", "--n", "5", "sc,tso,rc11"] for line in lines)
    assert any(line.strip().startswith("--variant no-barrier: ") for line in lines)
    status, output, _ = check(capsys, "--list", "--json")
    assert [each["name"] for each in json.loads(output)] == list(protocols.catalogue())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "name a protocol or a Python file: 'vtlkit check --list' shows the protocols"),
        (["raeders"], "no protocol 'raeders': did you mean readers"),
        (["Readers"], "no protocol 'Readers': did you mean readers"),
        (["qqqq"], "no protocol 'qqqq': 'vtlkit check --list' shows all"),
        (["readers", "--m", "3"], "readers has no size --m: there is --n"),
        (["SB", "--n", "3"], "SB has no size --n: it has none"),
        (["readers", "--n", "x"], "--n: 'x' is no whole number; write --n 3"),
        (["readers", "--n", "-1"], "--n: '-1' is no whole number; write --n 3"),
        (["readers", "--n"], "--n: '' is no whole number; write --n 3"),
        (["readers", "--n", "0"], "readers: n is at least 1"),
        (["readers", "-x"], "no option '-x': 'vtlkit check --help' says what there is"),
        (["readers", "--model", "sc,arm"], "--model: 'arm' is not one of sc, tso, rc11"),
        (["tlb_inhibit", "--model", "rc11"], "tlb_inhibit is for sc, tso, not for rc11"),
        (["readers", "--engine", "states"], "readers is for the engine 'graphs' alone: leave --engine out"),
        (["kvm_block", "--engine", "states"], "the engine 'states' knows sc and tso, not rc11; take 'graphs'"),
        (["kvm_block", "--engine", "spin"], "'spin' is not one of states, graphs"),
        (["kvm_block", "--variant", "x"], "kvm_block has no variant 'x': there are no-recheck, no-barrier"),
        (["readers", "--variant", "x"], "readers has no variant 'x': it has no known-bad variants"),
        (["readers", "--limit", "0"], "invalid value for '--limit'"),
        (["readers", "--memory", "12"], "'12' is no size of 1M or more: write 512M or 4G"),
        (["no_file.py"], "no_file.py: there is no such Python file"),
        ([f"{HANDOVER}::x"], "handover.py has no protocol 'x': there are handover, counter"),
        ([f"{HANDOVER}::counter", "--n", "0"], "ValueError: n is at least 1"),
        (["--replay", "1.2.3"], "'1.2.3' is no token of a check; take one that was printed with a counterexample"),
        (["--replay", "check:readers:n=3:arm:graphs"], "no memory model 'arm'"),
        (["--replay", "check:readers:n=3:sc:graphs", "readers"], "--replay takes a token alone"),
        (["SB", "--trace", "x.bin"], "--trace x.bin: no format has the suffix '.bin'"),
        (["SB", "--trace", "no_such/x.txt"], "--trace no_such/x.txt: there is no folder no_such"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], complaint: str) -> None:
    status, output, errors = check(capsys, *words)
    assert (status, output) == (2, "")
    assert complaint in errors
    assert len(errors.splitlines()) == 1
    assert errors.startswith("vtlkit check: ")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A user's file whose thread fails in line 6."""
    path = tmp_path / "own.py"
    path.write_text(
        "from vtlkit.checker import protocol\n"
        "from vtlkit.checker.ops import Read\n"
        "from vtlkit.checker.program import Threads\n"
        "def thread():\n"
        "    value = yield Read('x')\n"
        "    value.nothing()\n"
        "@protocol\n"
        "def mine():\n"
        "    return Threads(thread)\n"
    )
    return path


def test_an_error_in_a_users_thread_names_the_line(capsys: pytest.CaptureFixture[str], broken: Path) -> None:
    status, _, errors = check(capsys, str(broken), "--model", "sc")
    assert status == 2
    assert errors == f"vtlkit check: {broken}:6: AttributeError: 'int' object has no attribute 'nothing'\n"


HOSTED = """\
from vtlkit.checker import protocol

@protocol
def handover(host, *, wakers: int = 1, look_again: int = 1):
    work = host.cell(0, "work")
    queue = host.wait_queue("queue")

    def sleeper():
        done = 0
        while done < wakers:
            done += work.xchg(0)
            if done < wakers:
                queue.prepare()
                if not (look_again and work.load()):
                    host.schedule()
                queue.finish()

    def waker():
        work.fetch_add(1)
        queue.wake()

    host.spawn(sleeper, "sleeper")
    for number in range(wakers):
        host.spawn(waker, f"waker {number}")
"""


def test_a_users_tasks_run_on_the_host_that_ships(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("vtlkit.checker.hosted", reason="tasks over the host API cannot be checked yet")
    path = tmp_path / "waits.py"
    path.write_text(HOSTED)
    status, rows = checked(capsys, str(path), "--wakers", "2")
    assert (status, [row["verdict"] for row in rows]) == (0, ["proved"] * 3)
    status, rows = checked(capsys, str(path), "--look_again", "0")
    assert status == 1
    assert [row["counterexample"]["kind"] for row in rows] == ["lost wake-up"] * 3
    assert {row["counterexample"]["waiting"][0]["task"] for row in rows} == {"sleeper"}


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "perfetto-trace"])
def test_a_counterexample_can_be_a_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"found.{suffix}"
    words = NAME, "--barrier", "0", "--engine", "graphs", "--model", "sc,tso", "--trace", str(path)
    assert check(capsys, *words)[0] == 1
    events = list(read_trace(path))
    assert [event.time_ns for event in events] == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(event, CheckStep) for event in events)
    assert [event.task for event in events] == ["vcpu", "vcpu", "vcpu", "waker 0", "waker 0", "vcpu"]
    assert main(["trace", str(path)]) == 0
    assert "check_step" in capsys.readouterr().out


def test_no_counterexample_is_no_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, errors = check(capsys, "SB", "--trace", str(tmp_path / "x.txt"))
    assert status == 0
    assert errors.endswith("nothing written, there is no counterexample\n")
    assert not (tmp_path / "x.txt").exists()


def test_help_says_what_there_is() -> None:
    done = cli_rig.vtlkit("check", "--help")
    assert (done.status, done.errors) == (0, "")
    text = done.console.decode()
    options = ("model", "variant", "engine", "limit", "memory", "json", "list", "replay", "trace", "progress")
    assert [option for option in options if f"--{option}" not in text] == []
    assert "check" in cli_rig.vtlkit("--help").console.decode()


def test_words_in_any_order_and_a_token_that_says_all() -> None:
    assert split_words(["--n", "3", "a", "--m=4", "b"]) == (["a", "b"], {"n": 3, "m": 4})
    (job,) = jobs_for("tlb_inhibit", {"cycles": 2}, Wish("suspended-first", ("tso",)))
    token = "check:tlb_inhibit!suspended-first:flushers=2,cycles=2:tso:states"
    assert job.token("states") == token
    assert parse_token(token) == replace(job, engine="states")
    with pytest.raises(BadInput):
        parse_token(token.replace("cycles", "cycle"))


# --- side by side -----------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check is one that takes long."""
    monkeypatch.setattr(check_runs, "QUICK_SECONDS", -1.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})


@pytest.mark.usefixtures("impatient")
def test_side_by_side_finds_the_same(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = NAME, "--barrier", "0", "--engine", "graphs"
    apart, rows = checked(capsys, *words)
    monkeypatch.setattr(check_runs, "QUICK_SECONDS", 1e9)
    together, same = checked(capsys, *words)
    assert apart == together == 1
    for row in (*rows, *same):
        del row["seconds"]
    assert rows == same


@pytest.mark.usefixtures("impatient")
def test_errors_come_out_of_processes_as_they_are(
    capsys: pytest.CaptureFixture[str], broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, errors = check(capsys, str(broken), "--engine", "graphs")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert "own.py:6: AttributeError" in errors

    def fail(job: Job, _limits: Limits, progress: Callable[[Result], object]) -> Result:
        progress(Result(job.model, "graphs"))
        raise LookupError("what nobody thought of")

    monkeypatch.setattr(check_runs, "_search", fail)
    status, _, errors = check(capsys, "ainc")
    assert status == 70
    assert "LookupError: what nobody thought of" in errors
    assert "the process that checked check:ainc:n=5:" in errors


def test_ctrl_c_prints_what_is_known() -> None:
    process = subprocess.Popen(
        cli_rig.command(["check", "fib_bench", "--n", "9", "--progress"]),
        env=cli_rig.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=cli_rig.PATIENCE_SECONDS)
    assert first.startswith("fib_bench sc: ")
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "vtlkit check: interrupted: the counts are of what was looked at"
    assert output.splitlines()[0] == "fib_bench: n 9"
    assert "sc    nothing found so far; " in output


def test_progress_is_silent_in_a_pipe_unless_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, "ainc", "--n", "6")[2] == ""
    errors = check(capsys, "ainc", "--n", "6", "--progress")[2]
    # On a busy machine they run side by side, and end in any order.
    ended = {line.split(":")[0] for line in errors.splitlines() if line.endswith("ended")}
    assert ended == {"ainc sc", "ainc tso", "ainc rc11"}
    assert "720 executions" in errors
