"""`--trace` and `--trace-ring`: the file that a run is traced into.

The promise: a file that cannot be had is refused before the run; whatever ends the run, all that was traced is written;
and a trace that could not be written to its end is told in one line.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vtlkit.cli.quantities import count_parser
from vtlkit.cli.status import BadInput, Status, complain

if TYPE_CHECKING:
    from vtlkit.host.api import Host
    from vtlkit.trace.sinks import Sink
    from vtlkit.trace.tracer import Tracer

_RING_MAXIMUM: Final = 10_000_000

TraceOption = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="Write a trace, its format by the suffix: .perfetto-trace, .pftrace; .txt, .ftrace; .jsonl.",
    ),
]
"""`--trace`."""
TraceRingOption = Annotated[
    int | None,
    typer.Option(
        parser=count_parser(1, _RING_MAXIMUM), metavar="N", help="Keep the last N events of the trace only, in memory."
    ),
]
"""`--trace-ring`."""


class TraceFile:
    """A context around a run, and the trace of it; without a name there is none."""

    def __init__(self, command: str, name: str, ring: int | None) -> None:
        """Raises BadInput: no such format, or the file cannot be made."""
        if ring is not None and not name:
            raise BadInput(command, "--trace-ring: there is no trace to keep the end of; give --trace FILE")
        self._command = command
        self._name = name
        self._sink = _open(command, name, ring) if name else None
        self._tracer: Tracer | None = None

    def start(self, host: Host) -> Tracer | None:
        """The trace of a run on `host`; None if none is wanted."""
        if self._sink is not None:
            from vtlkit.trace.tracer import Tracer

            self._tracer = Tracer(host.now_ns, host.context, self._sink)
        return self._tracer

    @property
    def status(self) -> int:
        """For the process to end with; 0 unless the trace could not be written."""
        failed = self._tracer is not None and self._tracer.error is not None
        return Status.OUTPUT_FAILED if failed else Status.OK

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tracer is not None:
            self._tracer.close()
            if self._tracer.error is not None:
                reason = self._tracer.error.strerror
                complain(self._command, f"--trace {self._name}: {reason}; the trace is not complete")
        elif self._sink is not None:
            self._sink.close()


def _open(command: str, name: str, ring: int | None) -> Sink:
    from vtlkit.trace.sinks import RingSink, open_sink

    try:
        sink = open_sink(Path(name))
    except OSError as error:
        raise BadInput(command, f"--trace {name}: {error.strerror}; give a file that can be written") from None
    except ValueError as error:
        raise BadInput(command, f"--trace {name}: {error}") from None
    return sink if ring is None else RingSink(ring, sink)
