"""Traces read back: JSON lines, ftrace text and Perfetto, told apart by how they begin.

Promise: what a sink wrote comes back as the same events in the same order; any other file, and one that was cut off, is
`UnreadableTrace` with one line that says where and why. Events are read as they are asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from vtlkit.trace.events import KINDS, NO_VCPU, TEMPLATES, Event, MalformedEvent, from_values
from vtlkit.trace.sinks import FTRACE_HEADER, JSON_HEADER

PACKET_TAG: Final = b"\n"
"""How a Perfetto trace and each of its packets begin: field 1, which has a length."""
_LINE: Final = re.compile(r" *(.+)-\d+ +\[\d+\] \S+ +(\d+)\.(\d{9}): (\w+): (.*) \((.+?)(?:-vcpu(\d+))?\)")
_LONGEST_LINE: Final = 1 << 16


class UnreadableTrace(Exception):
    """The file is no trace of this project's, or not a whole one. One line."""


def read_trace(path: Path) -> Iterator[Event]:
    """The events of a file, in its order.

    Raises:
        UnreadableTrace: see there; also in the middle.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.readline(_LONGEST_LINE)
        if start == JSON_HEADER.encode() + b"\n":
            yield from _lines(file, 2, _from_json)
        elif start == FTRACE_HEADER.encode().splitlines(keepends=True)[0]:
            yield from _lines(file, 2, _from_ftrace)
        elif start.startswith(PACKET_TAG):
            from vtlkit.trace.perfetto_reader import read_perfetto

            file.seek(0)
            yield from read_perfetto(file)
        else:
            raise UnreadableTrace("is no trace of vtlkit: neither JSON lines, nor ftrace text, nor Perfetto")


def _lines(file: BinaryIO, number: int, parse: Callable[[str], Event | None]) -> Iterator[Event]:
    """`number`: that of the first line."""
    while line := file.readline(_LONGEST_LINE):
        if not line.endswith(b"\n"):
            raise UnreadableTrace(f"line {number} is cut off: the trace is not complete")
        try:
            event = parse(line.decode().removesuffix("\n"))
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, MalformedEvent) else "is no event of a trace"
            raise UnreadableTrace(f"line {number}: {reason}") from None
        if event is not None:
            yield event
        number += 1


def _from_json(line: str) -> Event:
    values = json.loads(line)
    if not isinstance(values, dict) or not isinstance(name := values.pop("event", None), str):
        raise MalformedEvent("is no event of a trace")
    return from_values(name, values)


def _from_ftrace(line: str) -> Event | None:
    if line.startswith("#"):
        return None
    found = _LINE.fullmatch(line)
    if found is None:
        raise MalformedEvent("is no event of a trace")
    task, seconds, nanoseconds, name, payload, vm, vcpu = found.groups()
    values = TEMPLATES[name].parse(payload) if name in KINDS else {}
    if values is None:
        raise MalformedEvent(f"'{name}' has no such text")
    common = {
        "time_ns": int(seconds) * 1_000_000_000 + int(nanoseconds),
        "task": task,
        "vm": vm,
        "vcpu": NO_VCPU if vcpu is None else int(vcpu),
    }
    return from_values(name, {**values, **common})
