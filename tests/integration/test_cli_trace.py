"""`vtlkit run --trace` and `vtlkit trace`, as a user has them."""

from __future__ import annotations

import json
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.integration import cli_rig
from tests.integration.cli_rig import PATIENCE_SECONDS, Running
from tests.integration.test_cli_input import refused
from tests.unit.trace.test_perfetto import Read
from vtlkit.trace import events
from vtlkit.trace.reader import read_trace

FORMATS = [".jsonl", ".ftrace", ".pftrace"]
MODES = {"deterministic": [], "realtime": ["--realtime"]}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with traces of one run, in every format."""
    directory = tmp_path_factory.mktemp("traces")
    for suffix in FORMATS:
        done = cli_rig.run("demo", "--cpus", "2", "--seed", "3", "--trace", str(directory / f"t{suffix}"))
        assert done.status == 0, done.errors
    return directory


def test_a_trace_holds_what_happened(traced: Path) -> None:
    trace = list(read_trace(traced / "t.jsonl"))
    names = {event.name for event in trace}
    assert names >= {
        "kvm_entry",
        "kvm_exit",
        "kvm_userspace_exit",
        "kvm_vcpu_block",
        "kvm_vcpu_wakeup",
        "kvm_vcpu_kick",
        "kvm_make_request",
        "kvm_apic_ipi",
        "kvm_apic_accept_irq",
        "kvm_inj_virq",
        "kvm_inj_exception",
        "kvm_eoi",
        "kvm_hv_hypercall",
        "kvm_hv_hypercall_done",
        "kvm_page_fault",
        "kvm_pio",
        "kvm_msr",
        "kvm_memory_change",
        "vtl_switch",
    }
    assert sum(isinstance(event, events.VtlSwitch) for event in trace) == 26
    kicks = {event.id for event in trace if isinstance(event, events.KvmVcpuKick)}
    woken = {event.woken_by for event in trace if isinstance(event, events.KvmVcpuWakeup)}
    assert woken
    assert woken <= kicks, "a wake without its cause"
    times = [event.time_ns for event in trace if event.vm == "vtl0" and event.vcpu == 0 and event.task == "vp0"]
    assert times == sorted(times)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_holds_the_same(suffix: str, traced: Path) -> None:
    assert list(read_trace(traced / f"t{suffix}")) == list(read_trace(traced / "t.jsonl"))


def test_slices_of_a_run_follow_each_other_and_flows_have_two_ends(traced: Path) -> None:
    read = Read(traced / "t.pftrace")
    slices = read.slices()
    assert slices.keys() == {f"VP {vp} VTL {vtl}" for vp in range(2) for vtl in range(2)}
    for found in slices.values():
        assert all(end <= begin for (_, end, _), (begin, _, _) in pairwise(found))
    ends = set(read.flows().values())
    assert ("VP 0 VTL 0", "VP 1 VTL 0") in ends
    assert ("VP 0 VTL 0", "VP 0 VTL 1") in ends


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_seed_has_one_trace(suffix: str, traced: Path, tmp_path: Path) -> None:
    again = tmp_path / f"again{suffix}"
    assert cli_rig.run("demo", "--cpus", "2", "--seed", "3", "--trace", str(again)).status == 0
    assert again.read_bytes() == (traced / f"t{suffix}").read_bytes()


def test_a_trace_changes_nothing_of_the_run(tmp_path: Path) -> None:
    def run(*words: str) -> tuple[bytes, dict[str, object]]:
        done = cli_rig.run("demo", "--cpus", "2", "--seed", "3", "--json", str(report), *words)
        summary = json.loads(report.read_text())
        del summary["wall_seconds"]
        return done.console, summary

    report = tmp_path / "report.json"
    assert run() == run("--trace", str(tmp_path / "t.jsonl"))


def test_a_trace_in_real_time(tmp_path: Path) -> None:
    path = tmp_path / "t.pftrace"
    assert cli_rig.run("demo", "--cpus", "2", "--realtime", "--trace", str(path)).status == 0
    trace = list(read_trace(path))
    assert sum(isinstance(event, events.VtlSwitch) for event in trace) == 26
    assert any(event.woken_by for event in trace if isinstance(event, events.KvmVcpuWakeup))


def wait_until_written(path: Path, running: Running) -> None:
    """A trace is written as the run goes."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists() or path.stat().st_size < 100_000:
        assert running.process.poll() is None, running.process.communicate()
        assert time.monotonic() < deadline, "nothing is written"
        time.sleep(0.01)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("mode", MODES)
def test_ctrl_c_leaves_a_whole_trace(mode: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    with Running("bench", "--append", "cpuid 1000000000", *MODES[mode], "--trace", str(path)) as running:
        wait_until_written(path, running)
        running.process.send_signal(signal.SIGINT)
        assert running.end().status == 130
    trace = list(read_trace(path))
    assert sum(isinstance(event, events.KvmExit) for event in trace) > 100


def test_a_time_out_and_a_crash_leave_a_whole_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    assert cli_rig.run("bench", "--append", "spin", "--timeout", "0.3", "--trace", str(path)).status == 124
    assert any(read_trace(path))
    assert cli_rig.run("bench", "--append", "triple", "--trace", str(path)).status == 3
    texts = [event.payload() for event in read_trace(path)]
    assert "reason KVM_EXIT_SHUTDOWN (8)" in texts[-5:]


def test_a_ring_keeps_the_end(tmp_path: Path) -> None:
    whole, end = tmp_path / "whole.jsonl", tmp_path / "end.jsonl"
    assert cli_rig.run("demo", "--trace", str(whole)).status == 0
    assert cli_rig.run("demo", "--trace", str(end), "--trace-ring", "100").status == 0
    assert list(read_trace(end)) == list(read_trace(whole))[-100:]


def test_a_full_disk_ends_the_trace_and_not_the_run(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("")
    words = ["import resource, signal, sys", "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"]
    words += ["resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))", "from vtlkit.cli.main import main"]
    words += ["sys.exit(main(sys.argv[1:]))"]
    done = cli_rig.program("; ".join(words), "run", "demo", "--trace", str(path))
    assert b"done" in done.console
    assert done.status == 74
    assert any(
        line == f"vtlkit run: --trace {path}: File too large; the trace is not complete" for line in done.error_lines
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_summary_of_a_trace(suffix: str, traced: Path) -> None:
    done = cli_rig.vtlkit("trace", str(traced / f"t{suffix}"))
    assert done.status == 0, done.errors
    text = done.console.decode()
    for part in ("Latencies", "wake: kick to woken", "VTL switch", "Exits", "hypercall", "Who woke whom", "vtl0-vcpu1"):
        assert part in text
    assert "█" in text


def test_the_summary_as_json(traced: Path) -> None:
    summaries = [cli_rig.vtlkit("trace", str(traced / f"t{suffix}"), "--json").console for suffix in FORMATS]
    assert len(set(summaries)) == 1
    summary = json.loads(summaries[0])
    assert summary["latency_ns"]["vtl_switch"]["count"] == 26
    assert {"source": "vtl0-vcpu1", "target": "vtl0-vcpu0", "count": 3} in summary["woke"]


def test_a_summary_of_an_empty_trace(traced: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text((traced / "t.jsonl").read_text().splitlines(keepends=True)[0])
    done = cli_rig.vtlkit("trace", str(path))
    assert (done.status, done.console.decode().strip()) == (0, f"{path}: 0 events in 0 ns")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_trace_that_is_cut_off(suffix: str, traced: Path, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes((traced / f"t{suffix}").read_bytes()[:-7])
    refused(cli_rig.vtlkit("trace", str(path)), path.name, "not complete", command="vtlkit trace")


@pytest.mark.parametrize(("name", "part"), [("missing", "No such file"), (".", "directory"), ("other", "no trace")])
def test_what_is_no_trace(name: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(bytes(range(256)))
    refused(cli_rig.vtlkit("trace", str(tmp_path / name)), part, command="vtlkit trace")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--trace", "t.json"], "no format has the suffix '.json'"),
        (["--trace", "trace"], ".perfetto-trace, .pftrace, .jsonl, .txt, .ftrace"),
        (["--trace", "no/t.jsonl"], "No such file or directory"),
        (["--trace", "directory.txt"], "Is a directory"),
        (["--trace-ring", "5"], "give --trace FILE"),
        (["--trace", "t.jsonl", "--trace-ring", "0"], "--trace-ring"),
    ],
)
def test_what_can_not_be_written_is_refused_before_the_run(words: list[str], part: str, tmp_path: Path) -> None:
    (tmp_path / "directory.txt").mkdir()
    refused(cli_rig.run("demo", *words, cwd=tmp_path), part)
