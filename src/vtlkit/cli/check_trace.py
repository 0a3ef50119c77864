"""A counterexample as a trace file: an event for each step, at the step's number as its time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vtlkit.cli.check_words import COMMAND
from vtlkit.cli.status import BadInput, complain
from vtlkit.trace.events import NO_VCPU, CheckStep
from vtlkit.trace.sinks import open_sink

if TYPE_CHECKING:
    from vtlkit.checker.result import Result
    from vtlkit.cli.check_runs import Outcome


class CounterexampleFile:
    """The file of `--trace`. It is made when there is something to write, but what cannot be is refused before."""

    def __init__(self, name: str) -> None:
        """Raises BadInput: no such format, no such folder."""
        from vtlkit.trace.sinks import SUFFIXES

        self._path = Path(name)
        if self._path.suffix not in SUFFIXES:
            suffixes = ", ".join(SUFFIXES)
            raise BadInput(COMMAND, f"--trace {name}: no format has the suffix '{self._path.suffix}'; give {suffixes}")
        if not self._path.parent.is_dir():
            raise BadInput(COMMAND, f"--trace {name}: there is no folder {self._path.parent}")

    def write(self, outcomes: Iterable[Outcome]) -> None:
        """Write the first counterexample, if there is one. Raises BadInput: the file cannot be written."""
        found = [each for each in outcomes if each.result is not None and each.result.counterexample is not None]
        if not found:
            complain(COMMAND, f"--trace {self._path}: nothing written, there is no counterexample")
            return
        result = found[0].result
        assert result is not None
        try:
            sink = open_sink(self._path)
            sink.write(events(result))
            sink.close()
        except OSError as error:
            raise BadInput(
                COMMAND, f"--trace {self._path}: {error.strerror}; give a file that can be written"
            ) from None
        if len(found) > 1:
            complain(COMMAND, f"--trace {self._path}: holds the counterexample under {found[0].job.model}, the first")


def events(result: Result) -> list[CheckStep]:
    """Steps count from 1, as in the table."""
    found = result.counterexample
    assert found is not None
    return [
        CheckStep(
            time_ns=index,
            task=_line(result.names[step.thread]),
            vm="check",
            vcpu=NO_VCPU,
            step=index,
            source=0 if step.source is None else step.source + 1,
            place=_line(step.place),
            text=_line(step.what),
        )
        for index, step in enumerate(found.steps, 1)
    ]


def _line(text: str) -> str:
    """A trace holds no line breaks and nothing that a terminal obeys."""
    return "".join(char if char.isprintable() else " " for char in text) or "-"
