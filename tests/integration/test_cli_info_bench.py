"""`vtlkit info` and `vtlkit bench`: what they print, for people and for programs; and the help of everything."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import vtlkit
from tests.conformance import devkvm_here
from tests.integration import cli_rig
from vtlkit.cli.info import describe_kvm, kvm_answers
from vtlkit.cli.main import main


def test_info_says_what_can_run_here() -> None:
    done = cli_rig.vtlkit("info")
    assert (done.status, done.errors) == (0, "")
    text = done.console.decode()
    assert f"vtlkit    {vtlkit.__version__}" in text
    assert "unicorn  usable: Unicorn 2.1" in text
    kvm = next(line for line in text.splitlines() if line.startswith("  kvm  "))
    if (reason := devkvm_here.why_not()) is None:
        assert "usable: " in kvm
        assert "million instructions a second" in kvm
    else:
        assert kvm == f"  kvm      not usable: {reason}"
    for feature in ("hv-vpindex", "hv-stimer-direct", "hv-spinlocks"):
        assert f"\n  {feature} " in text


def test_info_as_json() -> None:
    done = cli_rig.vtlkit("info", "--json")
    data = json.loads(done.console)
    assert data["versions"]["vtlkit"] == vtlkit.__version__
    usable = {engine["name"]: engine["usable"] for engine in data["engines"]}
    assert usable == {"unicorn": True, "kvm": devkvm_here.why_not() is None}
    assert sorted(data["guests"]) == ["bench", "demo", "vtls3"]
    assert all(Path(path).is_file() for path in data["guests"].values())
    assert data["host"]["cores"] >= 1
    assert data["hv"]["hv-avic"].endswith("(not in all)")


def test_a_device_that_is_not_kvm_is_described(tmp_path: Path) -> None:
    assert "No such file" in describe_kvm(str(tmp_path / "kvm"))
    (tmp_path / "kvm").write_bytes(b"")
    assert "does not answer as KVM does" in describe_kvm(str(tmp_path / "kvm"))
    assert not kvm_answers(str(tmp_path / "kvm"))


def test_bench_measures_the_rows_that_it_is_asked_for() -> None:
    done = cli_rig.vtlkit("bench", "--json", "--rounds", "1", "start", "cpuid")
    assert done.status == 0, done.errors
    start, cpuid = json.loads(done.console)
    assert (start["name"], start["unit"], start["limit"]) == ("start", "s", 0.6)
    assert start["value"] > 0
    assert (cpuid["name"], cpuid["limit"]) == ("cpuid", 2.0)
    assert cpuid["ratio"] > 0
    assert [line.split(":")[0] for line in done.error_lines] == ["start", "cpuid"]


def test_bench_prints_a_table() -> None:
    done = cli_rig.vtlkit("bench", "--rounds", "1", "start")
    lines = done.console.decode().splitlines()
    assert any("rival" in line and "limit" in line for line in lines)
    assert any(line.strip().startswith("start") and "0.6 s" in line for line in lines)


def test_bench_lists_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    assert {"compute", "memory-realtime", "cpuid", "vtl-call", "apic-write", "ipi", "start"} <= set(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--help"], ["run", "info", "bench", "--version"]),
        (
            ["run", "--help"],
            [
                *(
                    "GUEST",
                    "--cpus",
                    "--memory",
                    "--engine",
                    "--vtls",
                    "--hv",
                    "--append",
                    "--initrd",
                    "--seed",
                    "--realtime",
                ),
                *("--timeout", "--trace", "--json", "--quiet"),
            ],
        ),
        (["info", "--help"], ["--json"]),
        (["bench", "--help"], ["--json", "--rounds", "--list"]),
        (["--version"], [vtlkit.__version__]),
    ],
)
def test_help_names_what_there_is(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for part in parts:
        assert part in printed.out


def test_a_reader_that_has_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        cli_rig.command(["info"]), env=cli_rig.environment(), stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    _, errors = process.communicate(timeout=cli_rig.PATIENCE_SECONDS)
    assert (process.returncode, errors) == (141, b"")
