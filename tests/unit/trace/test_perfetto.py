"""A Perfetto trace, read with the format's own classes: tracks, slices that nest in nothing, flows with two ends."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TracePacket, TrackDescriptor, TrackEvent

from vtlkit.trace import events
from vtlkit.trace.events import NO_VCPU, Event
from vtlkit.trace.sinks import open_sink

TIMER = "timer 'vcpu0-apic-timer'"
STORY: list[Event] = [
    events.KvmMemoryChange(0, "boot", "vtl0", NO_VCPU, 0, 0x1000, True),
    events.KvmEntry(10, "vp0", "vtl0", 0, 0x1000, False),
    events.KvmVcpuBlock(11, "vp1", "vtl0", 1, "HALTED"),
    events.KvmExit(20, "vp0", "vtl0", 0, "wrmsr", 0x1002),
    events.KvmMakeRequest(21, "vp0", "vtl0", 1, "EVENT", "vtl0-vcpu0"),
    events.KvmVcpuKick(21, "vp0", "vtl0", 1, 1, "vtl0-vcpu0"),
    events.KvmVcpuWakeup(25, "vp1", "vtl0", 1, 14, woken_by=1),
    events.KvmEntry(30, "vp0", "vtl0", 0, 0x1004, False),
    events.KvmEntry(31, "vp1", "vtl0", 1, 0x2000, False),
    events.KvmVcpuKick(40, TIMER, "vtl0", 0, 2, TIMER),
    events.KvmExit(41, "vp0", "vtl0", 0, "interrupted", 0x1100, kicked_by=2),
    events.KvmUserspaceExit(42, "vp0", "vtl0", 0, "KVM_EXIT_HYPERV", 27),
    events.VtlSwitch(43, "vp0", "vtl0", 0, 0, 1, "HvVtlEntryVtlCall"),
    events.KvmEntry(50, "vp0", "vtl1", 0, 0x9000, False),
]


class Read:
    """A trace as its reader sees it, strings put back."""

    def __init__(self, path: Path) -> None:
        trace = Trace()
        trace.ParseFromString(path.read_bytes())
        self.packets = list(trace.packet)
        self.tracks = {
            p.track_descriptor.uuid: p.track_descriptor for p in self.packets if p.HasField("track_descriptor")
        }
        self.titles = {uuid: track.name for uuid, track in self.tracks.items()}
        self.names: dict[int, str] = {}
        self.events: list[tuple[int, Any]] = []
        for packet in self.packets:
            for name in packet.interned_data.event_names:
                self.names[name.iid] = name.name
            if packet.HasField("track_event"):
                self.events.append((packet.timestamp, packet.track_event))

    def slices(self) -> dict[str, list[tuple[int, int, str]]]:
        """(begin, end, name) by track; fails where they nest or end without a beginning."""
        open_: dict[int, tuple[int, str]] = {}
        found = defaultdict(list)
        for now, event in self.events:
            track = event.track_uuid
            if event.type == TrackEvent.TYPE_SLICE_BEGIN:
                assert track not in open_, "slices nest"
                open_[track] = (now, self.names[event.name_iid])
            elif event.type == TrackEvent.TYPE_SLICE_END:
                begin, name = open_.pop(track)
                assert begin <= now
                found[self.titles[track]].append((begin, now, name))
        assert not open_, "slices are left open"
        return found

    def instants(self, title: str) -> list[str]:
        return [
            self.names[event.name_iid]
            for _, event in self.events
            if event.type == TrackEvent.TYPE_INSTANT and self.titles[event.track_uuid] == title
        ]

    def flows(self) -> dict[int, tuple[str, str]]:
        """Titles of the two tracks of each flow."""
        begin = {flow: self.titles[event.track_uuid] for _, event in self.events for flow in event.flow_ids}
        end = {flow: self.titles[event.track_uuid] for _, event in self.events for flow in event.terminating_flow_ids}
        return {flow: (begin[flow], end[flow]) for flow in end}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    sink = open_sink(path := tmp_path / "t.perfetto-trace")
    sink.write(STORY[:7])
    sink.write(STORY[7:])
    sink.close()
    return Read(path)


def test_a_process_and_a_track_for_each_vp_and_vtl(read: Read) -> None:
    (machine,) = (track for track in read.tracks.values() if track.HasField("process"))
    assert machine.process.process_name == "vtlkit machine"
    assert machine.child_ordering == TrackDescriptor.EXPLICIT
    children = [track for track in read.tracks.values() if track is not machine]
    assert all(track.parent_uuid == machine.uuid for track in children)
    ordered = sorted(children, key=lambda track: track.sibling_order_rank)
    assert [track.name for track in ordered] == ["VP 0 VTL 0", "VP 0 VTL 1", "VP 1 VTL 0", "vtl0 memory", TIMER]


def test_every_event_has_a_track_and_incremental_state(read: Read) -> None:
    assert all(event.track_uuid in read.tracks for _, event in read.events)
    first, *others = read.packets
    assert first.sequence_flags == TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
    assert all(
        packet.sequence_flags == TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        for packet in others
        if packet.HasField("track_event")
    )
    assert {packet.trusted_packet_sequence_id for packet in read.packets} == {1}


def test_slices_follow_each_other(read: Read) -> None:
    assert read.slices() == {
        "VP 0 VTL 0": [
            (10, 20, "guest"),
            (20, 30, "wrmsr"),
            (30, 41, "guest"),
            (41, 42, "interrupted"),
            (42, 43, "user space: KVM_EXIT_HYPERV"),
        ],
        "VP 1 VTL 0": [(11, 25, "blocked (HALTED)"), (25, 31, "woken"), (31, 50, "guest")],
        "VP 0 VTL 1": [(50, 50, "guest")],
    }


def test_what_has_no_length_is_an_instant(read: Read) -> None:
    assert read.instants("VP 0 VTL 0") == ["request EVENT of vtl0-vcpu1", "kick vtl0-vcpu1", "VTL 0 to VTL 1"]
    assert read.instants(TIMER) == ["kick vtl0-vcpu0"]
    assert read.instants("vtl0 memory") == ["kvm_memory_change"]


def test_flows_lead_from_causes_to_effects(read: Read) -> None:
    assert set(read.flows().values()) == {
        ("VP 0 VTL 0", "VP 1 VTL 0"),
        (TIMER, "VP 0 VTL 0"),
        ("VP 0 VTL 0", "VP 0 VTL 1"),
    }


def test_steps_of_a_counterexample_are_slices_with_arrows_from_writes_to_reads(tmp_path: Path) -> None:
    sink = open_sink(path := tmp_path / "t.perfetto-trace")
    steps = [("one", 0, "writes x = 1"), ("other", 0, "writes y = 1"), ("other", 1, "reads x = 1")]
    told = [
        events.CheckStep(number, task, "check", NO_VCPU, number, source, "a.py:1 f", text)
        for number, (task, source, text) in enumerate(steps, 1)
    ]
    sink.write(told)
    sink.close()
    read = Read(path)
    slices = read.slices()
    assert slices == {"one": [(1, 4, "writes x = 1")], "other": [(2, 3, "writes y = 1"), (3, 4, "reads x = 1")]}
    flows = [(read.names[event.name_iid], set(event.flow_ids)) for _, event in read.events if event.name_iid]
    assert flows == [("writes x = 1", {1}), ("writes y = 1", {2}), ("reads x = 1", {3, 1})]
