"""Events out of a Perfetto trace that `perfetto_sink` wrote: each packet with a category is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from google.protobuf import proto
from google.protobuf.message import DecodeError
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import DebugAnnotation, InternedData, TracePacket, TrackEvent

from vtlkit.trace.events import Event, MalformedEvent, from_values
from vtlkit.trace.perfetto_sink import MACHINE_TRACK, SEQUENCE
from vtlkit.trace.reader import PACKET_TAG, UnreadableTrace
from vtlkit.trace.template import Value

_CUT_OFF: Final = "is no Perfetto trace, or one that is not complete"
_FOREIGN: Final = "is a Perfetto trace, but not one of vtlkit"


def read_perfetto(file: BinaryIO) -> Iterator[Event]:
    """The events of a trace.

    Raises:
        UnreadableTrace: it is not one of ours, or it was cut off.
    """
    packets = _packets(file)
    first = next(packets, None)
    if first is None or first.track_descriptor.uuid != MACHINE_TRACK or first.trusted_packet_sequence_id != SEQUENCE:
        raise UnreadableTrace(_FOREIGN)
    strings = _Strings()
    for packet in packets:
        strings.learn(packet.interned_data)
        if packet.HasField("track_event") and packet.track_event.category_iids:
            try:
                yield strings.event(packet.timestamp, packet.track_event)
            except (MalformedEvent, KeyError):
                raise UnreadableTrace(_FOREIGN) from None


def _packets(file: BinaryIO) -> Iterator[TracePacket]:
    while tag := file.read(1):
        try:
            packet = proto.parse_length_prefixed(TracePacket, file) if tag == PACKET_TAG else None
        except (DecodeError, ValueError, OverflowError, MemoryError):
            # The last two: a length that is larger than any file.
            packet = None
        if packet is None:
            raise UnreadableTrace(_CUT_OFF)
        yield packet


class _Strings:
    """What has been interned so far."""

    def __init__(self) -> None:
        self._categories: dict[int, str] = {}
        self._keys: dict[int, str] = {}
        self._values: dict[int, str] = {}

    def learn(self, data: InternedData) -> None:
        for category in data.event_categories:
            self._categories[category.iid] = category.name
        for key in data.debug_annotation_names:
            self._keys[key.iid] = key.name
        for value in data.debug_annotation_string_values:
            self._values[value.iid] = value.str.decode(errors="replace")

    def event(self, time_ns: int, packet: TrackEvent) -> Event:
        values: dict[str, Value] = {"time_ns": time_ns}
        for annotation in packet.debug_annotations:
            values[self._keys[annotation.name_iid]] = self._value(annotation)
        return from_values(self._categories[packet.category_iids[0]], values)

    def _value(self, annotation: DebugAnnotation) -> Value:
        kind = annotation.WhichOneof("value")
        if kind == "string_value_iid":
            return self._values[annotation.string_value_iid]
        value: Value = getattr(annotation, kind) if kind in ("bool_value", "uint_value", "int_value") else ""
        return value
