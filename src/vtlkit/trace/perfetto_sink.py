"""A Perfetto trace, for ui.perfetto.dev: a process for the machine, a track for each VP and VTL, arrows from causes.

Counterpart: protos/perfetto/trace/track_event/track_event.proto. The messages are those of the package `perfetto`. A
track shows what its vCPU does as slices that follow each other without nesting: in the guest, handling an exit (by its
reason), blocked, in user space. What has no length is an instant; a kick stands on the track of the vCPU that sent it,
or of the timer or task. Flows lead from a kick to the wake or exit that it brought about, and from a VTL switch to the
entry of the VTL that it goes to.

Promise: every event is one packet, which carries all of its fields as debug annotations and its name as category, so
that the trace can be read back (`perfetto_reader`); packets without a category are what slices need beside. Strings are
interned; packets are written as the run goes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import BinaryIO, Final

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    DebugAnnotation,
    InternedData,
    Trace,
    TracePacket,
    TrackDescriptor,
    TrackEvent,
)

from vtlkit.trace import events
from vtlkit.trace.events import NO_VCPU, Event, vcpu_name
from vtlkit.trace.template import Value

MACHINE_TRACK: Final = 1
_NEEDS_STATE: Final = TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
SEQUENCE: Final = 1
"""All packets are one sequence: one writer."""
_MAX_VTLS: Final = 16
_VTL: Final = re.compile(r"vtl(\d+)")
_SWITCH_FLOWS: Final = 1 << 32
"""Flow IDs of VTL switches begin here; those of kicks are the kicks' own."""
_ANNOTATIONS_KEPT: Final = 10_000
_LAST: Final = 1 << 20
"""Rank of tracks that are no vCPU's."""


class _Interned:
    """One kind of interned string."""

    def __init__(self, new: list[tuple[_Interned, int, str]]) -> None:
        """`new`: what the packet at hand must tell is put there."""
        self._ids: dict[str, int] = {}
        self._new = new

    def number(self, text: str) -> int:
        """Its ID."""
        found = self._ids.get(text)
        if found is None:
            found = self._ids[text] = len(self._ids) + 1
            self._new.append((self, found, text))
        return found


class PerfettoSink:
    """See the module."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._tracks: dict[str, int] = {}
        self._open: dict[int, bool] = {}
        """Tracks on which a slice is open."""
        self._switches = 0
        self._arriving: dict[int, int] = {}
        """VP -> flow of the VTL switch whose end the next entry is."""
        self._new: list[tuple[_Interned, int, str]] = []
        self._names, self._categories, self._keys, self._values = (_Interned(self._new) for _ in range(4))
        self._annotations: dict[tuple[str, Value, type], DebugAnnotation] = {}
        self._now = 0
        self._out = Trace()
        first = self._out.packet.add(trusted_packet_sequence_id=SEQUENCE)
        first.sequence_flags = TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        first.track_descriptor.uuid = MACHINE_TRACK
        first.track_descriptor.process.pid = 1
        first.track_descriptor.process.process_name = "vtlkit machine"
        first.track_descriptor.child_ordering = TrackDescriptor.EXPLICIT
        self._flush()

    def write(self, batch: Sequence[Event]) -> None:
        for event in batch:
            self._now = max(self._now, event.time_ns)
            self._add(event)
        self._flush()

    def close(self) -> None:
        for track in list(self._open):
            self._end(track, self._now)
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        # A trace is a repeated field, so that the bytes of its parts, one after the other, are the whole.
        self._file.write(self._out.SerializeToString())
        self._file.flush()
        self._out = Trace()

    # --- events -----------------------------------------------------------------------------------------------------

    def _add(self, event: Event) -> None:
        if isinstance(event, events.CheckStep):
            self._check_step(event)
            return
        track = self._vcpu_track(event.vm, event.vcpu)
        if isinstance(event, events.KvmEntry):
            self._slice(event, track, "guest", self._arriving.pop(event.vcpu, 0))
        elif isinstance(event, events.KvmExit):
            self._slice(event, track, event.reason, event.kicked_by)
        elif isinstance(event, events.KvmVcpuBlock):
            self._slice(event, track, f"blocked ({event.state})")
        elif isinstance(event, events.KvmVcpuWakeup):
            self._slice(event, track, "woken" if event.waited else "polled", event.woken_by)
        elif isinstance(event, events.KvmUserspaceExit):
            self._slice(event, track, f"user space: {event.reason}")
        elif isinstance(event, events.KvmVcpuKick):
            self._instant(event, self._source_track(event.source), f"kick {self._target(event)}", event.id)
        elif isinstance(event, events.KvmVcpuSignal):
            self._instant(event, self._source_track(event.source), f"signal {self._target(event)}")
        elif isinstance(event, events.KvmMakeRequest):
            name = f"request {event.request} of {self._target(event)}"
            self._instant(event, self._source_track(event.source), name)
        elif isinstance(event, events.VtlSwitch):
            self._switches += 1
            self._arriving[event.vcpu] = flow = _SWITCH_FLOWS + self._switches
            self._end(track, event.time_ns)
            self._instant(event, track, f"VTL {event.source} to VTL {event.target}", flow)
        else:
            self._instant(event, track, event.name)

    def _check_step(self, event: events.CheckStep) -> None:
        """A slice on the task's own track, with an arrow from the step that wrote what it read."""
        self._now = event.time_ns + 1
        self._slice(event, self._source_track(event.task), event.text, 0, (event.step, event.source))

    @staticmethod
    def _target(event: Event) -> str:
        return vcpu_name(event.vm, event.vcpu)

    def _slice(self, event: Event, track: int, name: str, ends_flow: int = 0, flows: tuple[int, ...] = ()) -> None:
        """End what was on the track, and begin this."""
        self._end(track, event.time_ns)
        self._open[track] = True
        event_packet = self._packet(event, track, name, TrackEvent.TYPE_SLICE_BEGIN)
        if ends_flow:
            event_packet.terminating_flow_ids.append(ends_flow)
        event_packet.flow_ids.extend(flow for flow in flows if flow)

    def _end(self, track: int, now: int) -> None:
        if self._open.pop(track, False):
            packet = self._plain_packet(now)
            packet.track_event.type = TrackEvent.TYPE_SLICE_END
            packet.track_event.track_uuid = track

    def _instant(self, event: Event, track: int, name: str, begins_flow: int = 0) -> None:
        made = self._packet(event, track, name, TrackEvent.TYPE_INSTANT)
        if begins_flow:
            made.flow_ids.append(begins_flow)

    # --- packets ----------------------------------------------------------------------------------------------------

    def _plain_packet(self, now: int) -> TracePacket:
        return self._out.packet.add(timestamp=now, trusted_packet_sequence_id=SEQUENCE, sequence_flags=_NEEDS_STATE)

    def _packet(self, event: Event, track: int, name: str, kind: int) -> TrackEvent:
        packet = self._plain_packet(event.time_ns)
        made: TrackEvent = packet.track_event
        made.type = kind
        made.track_uuid = track
        made.name_iid = self._names.number(name)
        made.category_iids.append(self._categories.number(event.name))
        values = event.values()
        del values["time_ns"]
        made.debug_annotations.extend(map(self._annotation, values.items()))
        if self._new:
            self._tell(packet.interned_data)
        return made

    def _annotation(self, item: tuple[str, Value]) -> DebugAnnotation:
        """The annotation for a field; most come again and again, so they are kept: to copy one is faster."""
        key, value = item
        kind = type(value)
        known = self._annotations.get((key, value, kind))
        if known is not None:
            return known
        made = DebugAnnotation(name_iid=self._keys.number(key))
        if kind is bool:
            made.bool_value = value
        elif isinstance(value, str):
            made.string_value_iid = self._values.number(value)
        elif value < 0:
            made.int_value = value
        else:
            made.uint_value = value
        if len(self._annotations) < _ANNOTATIONS_KEPT:
            self._annotations[key, value, kind] = made
        return made

    def _tell(self, data: InternedData) -> None:
        """Strings that this packet is the first to use."""
        for interned, number, text in self._new:
            if interned is self._names:
                data.event_names.add(iid=number, name=text)
            elif interned is self._categories:
                data.event_categories.add(iid=number, name=text)
            elif interned is self._keys:
                data.debug_annotation_names.add(iid=number, name=text)
            else:
                data.debug_annotation_string_values.add(iid=number, str=text.encode())
        self._new.clear()

    # --- tracks -----------------------------------------------------------------------------------------------------

    def _vcpu_track(self, vm: str, vcpu: int) -> int:
        name = vcpu_name(vm, vcpu)
        found = self._tracks.get(name)
        if found is not None:
            return found
        vtl = _VTL.fullmatch(vm)
        if vcpu == NO_VCPU:
            return self._new_track(name, f"{vm} memory", _LAST)
        if vtl is None:
            return self._new_track(name, name, _rank(vcpu, 0))
        return self._new_track(name, f"VP {vcpu} VTL {vtl[1]}", _rank(vcpu, int(vtl[1])))

    def _source_track(self, source: str) -> int:
        found = self._tracks.get(source)
        return found if found is not None else self._new_track(source, source, _LAST)

    def _new_track(self, key: str, title: str, rank: int) -> int:
        uuid = self._tracks[key] = MACHINE_TRACK + 1 + len(self._tracks)
        packet = self._out.packet.add(trusted_packet_sequence_id=SEQUENCE)
        packet.track_descriptor.uuid = uuid
        packet.track_descriptor.parent_uuid = MACHINE_TRACK
        packet.track_descriptor.name = title
        packet.track_descriptor.sibling_order_rank = rank
        return uuid


def _rank(vcpu: int, vtl: int) -> int:
    """A vCPU's place among the tracks, which has 31 bits; the number of one in an APIC ID group can be larger."""
    return min(vcpu * _MAX_VTLS + vtl, _LAST)
