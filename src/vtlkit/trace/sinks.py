"""Where events go: a ring in memory, a file of JSON lines, a file in the text format of ftrace, a Perfetto trace.

A sink is given events in batches, by one task at a time, and writes them before it returns: what a crash leaves behind
is all but the last batch. The same events make the same bytes.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, BinaryIO, Final, Protocol

from vtlkit.trace.events import Event, KvmEntry, KvmVcpuBlock, vcpu_name

JSON_HEADER: Final = '{"format": "vtlkit trace", "version": 1}'
"""The first line of a file of JSON lines."""
FTRACE_HEADER: Final = """\
# tracer: nop
#
#                                _-----=> irqs-off/BH-disabled
#                               / _----=> need-resched
#                              | / _---=> hardirq/softirq
#                              || / _--=> preempt-depth
#                              ||| / _-=> migrate-disable
#                              |||| /     delay
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""
"""The kernel's own, of a file `trace`, but for the count of entries, which nobody knows before the end."""
INTERRUPT: Final = "timer "
"""How the context of a timer's callback begins: flagged as hard interrupt."""


class Sink(Protocol):
    """See the module."""

    def write(self, batch: Sequence[Event]) -> None:
        """Take the next events. Raises OSError if they cannot be written."""

    def close(self) -> None:
        """Nothing more comes. Raises OSError as `write`."""


class RingSink:
    """The last `capacity` events, in memory; given to `then`, if there is one, at the end."""

    def __init__(self, capacity: int, then: Sink | None = None) -> None:
        self.events: deque[Event] = deque(maxlen=capacity)
        self._then = then

    def write(self, batch: Sequence[Event]) -> None:
        self.events.extend(batch)

    def close(self) -> None:
        if self._then is not None:
            self._then.write(tuple(self.events))
            self._then.close()


class JsonLinesSink:
    """One JSON object a line: `event` is its name, the other members its fields."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        file.write(JSON_HEADER + "\n")
        file.flush()

    def write(self, batch: Sequence[Event]) -> None:
        dumps = json.dumps
        self._file.write("".join(dumps({"event": event.name, **event.values()}) + "\n" for event in batch))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class FtraceSink:
    """Lines as in /sys/kernel/tracing/trace.

    The PID is a number that a task or timer gets when it is first seen; the CPU is the number of the vCPU that the task
    runs, or that the event is about if it runs none. Times have nine digits behind the point. The name of the vCPU that
    the event is about stands behind the text, as KVM's own text does not always tell it.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._pids: dict[str, int] = {}
        self._cpus: dict[str, int] = {}
        file.write(FTRACE_HEADER)
        file.flush()

    def write(self, batch: Sequence[Event]) -> None:
        self._file.write("".join(map(self._line, batch)))
        self._file.flush()

    def _line(self, event: Event) -> str:
        task = event.task
        pid = self._pids.setdefault(task, len(self._pids) + 1)
        if isinstance(event, KvmEntry | KvmVcpuBlock):
            self._cpus[task] = max(event.vcpu, 0)
        cpu = self._cpus.get(task, max(event.vcpu, 0))
        seconds, ns = divmod(event.time_ns, 1_000_000_000)
        flags = "..h.." if task.startswith(INTERRUPT) else "....."
        where = vcpu_name(event.vm, event.vcpu)
        return (
            f"{task:>16}-{pid:<7} [{cpu:03}] {flags} {seconds:5}.{ns:09}: {event.name}: {event.payload()} ({where})\n"
        )

    def close(self) -> None:
        self._file.close()


def _perfetto(file: BinaryIO) -> Sink:
    from vtlkit.trace.perfetto_sink import PerfettoSink

    return PerfettoSink(file)


_TEXT: Final[dict[str, Callable[[IO[str]], Sink]]] = {
    ".jsonl": JsonLinesSink,
    ".txt": FtraceSink,
    ".ftrace": FtraceSink,
}
_BINARY: Final[dict[str, Callable[[BinaryIO], Sink]]] = {".perfetto-trace": _perfetto, ".pftrace": _perfetto}
SUFFIXES: Final = (*_BINARY, *_TEXT)
"""Of trace files: they say which format is written."""


def open_sink(path: Path) -> Sink:
    """A sink for a new file, its format by the suffix.

    Raises:
        ValueError: another suffix, or no file's name.
        OSError: the file cannot be made.
    """
    if path.suffix in _TEXT:
        return _TEXT[path.suffix](path.open("w", encoding="utf-8"))
    if path.suffix in _BINARY:
        return _BINARY[path.suffix](path.open("wb"))
    raise ValueError(f"no format has the suffix '{path.suffix}'; give one of {', '.join(SUFFIXES)}")
