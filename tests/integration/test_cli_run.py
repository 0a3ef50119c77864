"""`vtlkit run`: how runs end, what is on which output, and that a seed is a run."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conformance import devkvm_here
from tests.integration import cli_rig
from tests.integration.cli_rig import run
from vtlkit.cli import compose, designs
from vtlkit.kvm.uapi import VENDORS, FlushInhibitDesign
from vtlkit.vmm.vsm.vtl_wait import VtlWait

MODES = [[], ["--realtime"]]


@pytest.mark.parametrize("mode", MODES)
def test_power_off_is_status_0(mode: list[str]) -> None:
    done = run("bench", "--append", "compute 10", *mode)
    assert (done.status, done.console) == (0, b"")
    assert done.error_lines[0] == "vtlkit: power-off, status 0"


@pytest.mark.parametrize("mode", MODES)
def test_a_debug_exit_has_the_guests_status(mode: list[str]) -> None:
    done = run("bench", "--append", "exit", "--quiet", *mode)
    assert (done.status, done.console, done.errors) == (1, b"", "")


def test_the_words_of_options_are_those_of_the_machine() -> None:
    assert tuple(VENDORS) == compose.VENDORS
    assert tuple(VtlWait) == designs.VTL_WAITS
    assert tuple(FlushInhibitDesign) == designs.FLUSH_INHIBITS


@pytest.mark.parametrize("mode", MODES)
def test_the_other_vendor(mode: list[str]) -> None:
    done = run("demo", "--vendor", "vmx", *mode)
    assert done.status == 0
    assert "preemption_timer" in done.errors


def test_the_value_of_a_debug_exit_is_shifted() -> None:
    done = run("bench", "--append", "no-such-word")
    assert done.status == 3
    assert b"FAIL" in done.console
    assert done.error_lines[0] == "vtlkit: debug exit, status 3"


@pytest.mark.parametrize("mode", MODES)
def test_a_triple_fault_is_status_3_with_the_processors_state(mode: list[str]) -> None:
    done = run("bench", "--append", "triple", "--quiet", *mode)
    assert (done.status, done.console) == (3, b"")
    assert done.error_lines[0] == "vtlkit run: triple fault on VP 0"
    for register in ("RIP", "RSP", "CR3", "IDT base", "EFER"):
        assert register in done.errors
    hints = [line for line in done.error_lines if "reproduce with" in line]
    assert len(hints) == (not mode)


def test_a_failure_says_which_seed_repeats_it() -> None:
    done = run("bench", "--append", "triple", "--seed", "77", "--quiet")
    assert done.error_lines[-1] == "vtlkit run: reproduce with: --seed 77"


@pytest.mark.parametrize(("word", "mode"), [("spin", []), ("spin", ["--realtime"]), ("hlt", ["--realtime"])])
def test_a_time_out_is_status_124(word: str, mode: list[str]) -> None:
    done = run("bench", "--append", word, "--timeout", "0.2", *mode)
    assert (done.status, done.console) == (124, b"")
    assert done.error_lines[0] == "vtlkit run: the guest had not ended after 0.2 s"
    assert done.error_lines[1] == "vtlkit: timeout, status 124"


def test_a_guest_that_can_never_run_again_is_found_out() -> None:
    done = run("bench", "--append", "hlt")
    assert done.status == 6
    assert "deadlock" in done.error_lines[0]
    assert "vp0" in done.errors


def test_the_console_is_the_guests_and_nothing_else() -> None:
    done = run("demo", "--cpus", "2")
    assert done.status == 0
    lines = done.console.decode("ascii").splitlines()
    assert lines[0] == "[VTL0 VP0] 2 VPs up"
    assert lines[-1] == "[VTL0 VP0] done"
    assert all(line.startswith("[VTL") for line in lines)
    summary = dict(line.split(maxsplit=1) for line in done.error_lines if line.startswith("  "))
    assert {"exits", "instructions", "time", "VTL", "to"} <= summary.keys()


@pytest.mark.tlfs("discovery.selection")
@pytest.mark.parametrize(
    ("features", "line"),
    [
        ("none", "no VSM here: the hypervisor has no interface Hv#1"),
        ("hv-vpindex,hv-synic", "no VSM here: the partition lacks the privileges AccessVsm and AccessVpRegisters"),
        ("all,-hv-stimer", 'CPUID: hypervisor "Microsoft Hv", interface "Hv#1", VSM privileges present'),
    ],
)
def test_features_of_the_hypervisor_are_selected(features: str, line: str) -> None:
    done = run("demo", "--quiet", f"--hv={features}")
    assert (done.status, done.errors) == (0, "")
    assert f"[VTL0 VP0] {line}" in done.console.decode("ascii").splitlines()


def test_a_guest_is_named_or_a_path(tmp_path: Path) -> None:
    from vtlkit import guests

    (tmp_path / "bench").write_bytes(b"not the shipped one")
    (tmp_path / "mine").write_bytes(guests.path("bench").read_bytes())
    words = ["--append", "exit", "--quiet"]
    assert run("bench", *words, cwd=tmp_path).status == 1
    assert run("mine", *words, cwd=tmp_path).status == 1
    assert run("./bench", *words, cwd=tmp_path).status == 2


@pytest.mark.parametrize("size", ["64M", "65536K", "67108864", "1g", "64MiB"])
def test_a_size_is_written_in_many_ways(size: str) -> None:
    assert run("bench", "--append", "exit", "--quiet", "--memory", size).status == 1


def test_the_summary_as_json(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run("bench", "--append", "cpuid 50", "--seed", "5", "--quiet", "--json", str(report))
    assert (done.status, done.errors) == (0, "")
    data = json.loads(report.read_text())
    assert (data["outcome"], data["status"], data["seed"], data["realtime"]) == ("power_off", 0, 5, False)
    assert data["exits"]["cpuid"] == 50
    assert data["instructions"] > 200
    assert data["virtual_ns"] > 0
    assert "crash" not in data


def test_the_same_seed_is_the_same_run_and_others_pass(tmp_path: Path) -> None:
    def one(name: str, *words: str) -> tuple[bytes, dict[str, object]]:
        report = tmp_path / name
        done = run("demo", "--cpus", "2", "--quiet", "--json", str(report), *words)
        assert done.status == 0, done.errors
        data = json.loads(report.read_text())
        del data["wall_seconds"]
        return done.console, data

    assert one("a") == one("b")
    first, second = one("c", "--seed", "7"), one("d", "--seed", "7")
    assert first == second
    other = one("e", "--seed", "8")
    assert other[1] != first[1]
    assert b"done" in other[0]


def test_a_reader_that_goes_away_ends_the_run_quietly() -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        cli_rig.command(["run", "demo", "--cpus", "2"]),
        env=cli_rig.environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    os.close(reader)
    _, errors = process.communicate(timeout=cli_rig.PATIENCE_SECONDS)
    assert (process.returncode, errors) == (141, b"")


def test_an_output_that_is_full_is_said() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            cli_rig.command(["run", "demo", "--quiet"]),
            env=cli_rig.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=cli_rig.PATIENCE_SECONDS,
            check=False,
        )
    assert done.returncode == 74
    assert done.stderr.decode().splitlines() == ["vtlkit run: standard output: No space left on device"]


def test_a_full_output_is_the_outcome() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            cli_rig.command(["run", "demo", "--json", "/dev/stderr"]),
            env=cli_rig.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=cli_rig.PATIENCE_SECONDS,
            check=False,
        )
    lines = done.stderr.decode().splitlines()
    assert lines[1] == "vtlkit: output failed, status 74"
    report = json.loads(lines[-1])
    assert (report["outcome"], report["status"]) == ("output_failed", 74)
    assert report["message"] == "standard output: No space left on device"


@pytest.mark.parametrize("words", [["run", "demo"], ["info"], ["--version"]])
def test_a_closed_output_is_said(words: list[str]) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *cli_rig.command(words)],
        env=cli_rig.environment(),
        stderr=subprocess.PIPE,
        timeout=cli_rig.PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 74
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("vtlkit: standard output is closed")


@pytest.mark.parametrize("words", [["info"], ["--version"]])
def test_a_full_output_of_the_other_commands_is_said(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            cli_rig.command(words),
            env={**cli_rig.environment(), "PYTHONUNBUFFERED": ""},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=cli_rig.PATIENCE_SECONDS,
            check=False,
        )
    assert done.returncode == 74
    assert done.stderr.decode().splitlines() == ["vtlkit: standard output: No space left on device"]


def test_on_kvm() -> None:
    """In real time without being asked; the guest's output is the same."""
    if (reason := devkvm_here.why_not()) is not None:
        pytest.skip(reason)
    done = cli_rig.run("demo", "--cpus", "2", "--engine", "kvm")
    assert done.status == 0, done.errors
    assert done.console.decode().splitlines()[-1].endswith("done")
    assert "since the start" in done.errors
