"""What sinks write can be read back, whichever events they are given; the same events make the same bytes."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.trace.any_events import ANY_EVENT
from vtlkit.trace import events
from vtlkit.trace.reader import UnreadableTrace, read_trace
from vtlkit.trace.sinks import FTRACE_HEADER, JSON_HEADER, SUFFIXES, RingSink, Sink, open_sink
from vtlkit.trace.summary import summarise

FTRACE_LINE = re.compile(
    r"^\s*(?P<comm>.+)-(?P<pid>\d+)\s+\[(?P<cpu>\d{3})\]\s+(?P<flags>\S{5})\s+(?P<time>\d+\.\d+): "
    r"(?P<name>\w+): (?P<text>.*)$"
)
"""As tools split a line of a kernel's trace."""
SOME = [
    events.KvmEntry(10, "vp0", "vtl0", 0, 0x1000, False),
    events.KvmExit(20, "vp0", "vtl0", 0, "hlt", 0x1001),
    events.KvmVcpuBlock(21, "vp0", "vtl0", 0, "HALTED"),
    events.KvmVcpuKick(1_000_000_030, "timer 'vcpu0-apic-timer'", "vtl0", 0, 1, "timer 'vcpu0-apic-timer'"),
    events.KvmVcpuWakeup(1_000_000_031, "vp0", "vtl0", 0, 1_000_000_010, woken_by=1),
    events.KvmMemoryChange(1_000_000_040, "vp0", "vtl1", events.NO_VCPU, 0x1000, 0x2000, False),
]


def write(path: Path, trace: list[events.Event], batch: int = 3) -> None:
    sink = open_sink(path)
    for start in range(0, len(trace), batch):
        sink.write(trace[start : start + batch])
    sink.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=40)
@given(trace=st.lists(ANY_EVENT, max_size=12), batch=st.integers(1, 12))
def test_a_trace_can_be_read_back(suffix: str, trace: list[events.Event], batch: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        once, twice = (Path(directory) / f"{name}{suffix}" for name in ("once", "twice"))
        write(once, trace, batch)
        write(twice, trace, 12)
        assert list(read_trace(once)) == trace
        assert once.read_bytes() == twice.read_bytes()


@pytest.mark.parametrize("name", ["trace", "trace.json", "trace.pftrace.gz", ""])
def test_another_suffix_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.perfetto-trace, \.pftrace"):
        open_sink(tmp_path / name if name else Path())
    assert list(tmp_path.iterdir()) == []


def test_json_lines_are_objects(tmp_path: Path) -> None:
    write(path := tmp_path / "t.jsonl", SOME)
    header, *lines = map(json.loads, path.read_text().splitlines())
    assert header == {"format": "vtlkit trace", "version": 1}
    assert lines[0] == {
        "event": "kvm_entry",
        "time_ns": 10,
        "task": "vp0",
        "vm": "vtl0",
        "vcpu": 0,
        "rip": 0x1000,
        "immediate_exit": False,
    }


def test_ftrace_text_is_split_as_a_kernels(tmp_path: Path) -> None:
    write(path := tmp_path / "t.ftrace", SOME)
    text = path.read_text()
    assert text.startswith(FTRACE_HEADER)
    rows = [FTRACE_LINE.match(line) for line in text.splitlines() if not line.startswith("#")]
    found = [row.groupdict() for row in rows if row is not None]
    assert len(found) == len(SOME)
    assert [row["name"] for row in found] == [event.name for event in SOME]
    assert [row["pid"] for row in found] == ["1", "1", "1", "2", "1", "1"]
    assert [row["flags"] for row in found] == [".....", ".....", ".....", "..h..", ".....", "....."]
    assert found[3]["time"] == "1.000000030"
    assert found[0]["text"] == "vcpu 0, rip 0x1000 (vtl0-vcpu0)"


def test_the_cpu_of_a_line_is_that_of_whoever_runs(tmp_path: Path) -> None:
    """A kick is about one vCPU and made by another."""
    trace: list[events.Event] = [
        events.KvmEntry(1, "vp1", "vtl0", 1, 0, False),
        events.KvmVcpuKick(2, "vp1", "vtl0", 0, 1, "vtl0-vcpu1"),
    ]
    write(path := tmp_path / "t.txt", trace)
    assert [line.split("[")[1][:3] for line in path.read_text().splitlines() if "kvm_" in line] == ["001", "001"]


def test_an_entry_of_no_vcpu_has_a_cpu_column_all_the_same(tmp_path: Path) -> None:
    trace: list[events.Event] = [events.KvmEntry(1, "vp1", "vtl0", events.NO_VCPU, 0, False)]
    write(path := tmp_path / "t.txt", trace)
    assert list(read_trace(path)) == trace


def test_a_ring_keeps_the_last(tmp_path: Path) -> None:
    ring = RingSink(2, open_sink(path := tmp_path / "t.jsonl"))
    ring.write(SOME[:3])
    ring.write(SOME[3:4])
    assert list(ring.events) == SOME[2:4]
    assert list(read_trace(path)) == []
    ring.close()
    assert list(read_trace(path)) == SOME[2:4]


def test_a_ring_needs_no_file() -> None:
    ring: Sink = RingSink(10)
    ring.write(SOME)
    ring.close()


@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".pftrace"])
def test_what_is_cut_off_is_told(suffix: str, tmp_path: Path) -> None:
    write(path := tmp_path / f"t{suffix}", SOME)
    whole = path.read_bytes()
    for lost in (1, 2, 5, 17):
        path.write_bytes(whole[:-lost])
        with pytest.raises(UnreadableTrace, match=r"cut off|not complete"):
            list(read_trace(path))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no trace of vtlkit"),
        (b"hello\n", "no trace of vtlkit"),
        (b"\x7fELF" + bytes(100), "no trace of vtlkit"),
        (b"x" * (1 << 20), "no trace of vtlkit"),
        (b"\n", "Perfetto"),
        (b"\n\x05hello", "Perfetto"),
        (b"\n" + b"\xff" * 9 + b"\x01", "Perfetto"),
        (b"\n\xff\xff\xff\xff\xff\x7f", "Perfetto"),
        (b"\n\x02\x40\x01", "not one of vtlkit"),
        (b'{"format": "vtlkit trace", "version": 1}\n{}\n', "line 2"),
        (b'{"format": "vtlkit trace", "version": 1}\n[1]\n', "line 2"),
        (b'{"format": "vtlkit trace", "version": 1}\n{"event": 3}\n', "line 2"),
        (b'{"format": "vtlkit trace", "version": 1}\nnull\n', "line 2"),
        (b'{"format": "vtlkit trace", "version": 1}\n\xff\n', "line 2"),
        (b'{"format": "vtlkit trace", "version": 1}\n' + b"[" * 50_000 + b"\n", "line 2"),
        (b'{"format": "vtlkit trace", "version": 1}\n{"event": "kvm_entry"}\n', "does not have such fields"),
        (b"# tracer: nop\n<idle>-0 [001] d.h2. 1.000001: irq_handler_entry: irq=1 name=x\n", "line 2"),
        (b"# tracer: nop\n vp0-1 [000] ..... 1.000000001: kvm_none: x (vtl0-vcpu0)\n", "no event 'kvm_none'"),
        (b"# tracer: nop\n vp0-1 [000] ..... 1.000000001: kvm_entry: x (vtl0-vcpu0)\n", "no such text"),
    ],
)
def test_another_file_is_refused_in_one_line(content: bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(UnreadableTrace, match=re.escape(part)) as caught:
        list(read_trace(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("state", "\ud800"), ("state", "\x1b[2J"), ("task", "a\nb"), ("time_ns", 1 << 64), ("vcpu", -2)],
)
def test_values_that_no_event_has_are_refused(field: str, value: object, tmp_path: Path) -> None:
    """They would end in a terminal, or in arithmetic."""
    row = {"event": "kvm_vcpu_block", "time_ns": 1, "task": "vp0", "vm": "vtl0", "vcpu": 0, "state": "HALTED"}
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join((JSON_HEADER, json.dumps(row | {field: value}), "")))
    with pytest.raises(UnreadableTrace, match="line 2: 'kvm_vcpu_block' has a value that no event has"):
        list(read_trace(path))


def test_the_longest_times_have_a_summary(tmp_path: Path) -> None:
    longest = (1 << 64) - 1
    trace: list[events.Event] = [
        events.KvmVcpuWakeup(0, "vp0", "vtl0", 0, longest),
        events.KvmEntry(longest, "vp0", "vtl0", 0, 0, False),
    ]
    write(path := tmp_path / "t.jsonl", trace)
    assert list(summarise(read_trace(path)).blocked.samples) == [longest]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("vm", ["vm0", "vtl0"])
def test_vcpus_of_apic_id_groups_are_traced(suffix: str, vm: str, tmp_path: Path) -> None:
    """Their numbers have the group in the high ones of 32 bits."""
    trace: list[events.Event] = [
        events.KvmEntry(time, "vp0", vm, number, 0, False)
        for time, number in enumerate((0, 1 << 28 | 3, 1 << 31, 0xFF000001))
    ]
    write(path := tmp_path / f"t{suffix}", trace)
    assert list(read_trace(path)) == trace


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"t{data.draw(st.sampled_from(SUFFIXES))}"
        write(path, SOME)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            list(read_trace(path))
        except UnreadableTrace:
            pass
