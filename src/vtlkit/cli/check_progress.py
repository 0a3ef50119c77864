"""How checks go on, on standard error: a line for each on a terminal, plain lines with `--progress`, else nothing."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Final

from vtlkit.cli.check_report import counts
from vtlkit.cli.check_runs import Outcome, Watcher

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SILENT_SECONDS: Final = 0.5
"""A check that ends before says nothing."""
_REDRAW_SECONDS: Final = 0.1
_LINE_SECONDS: Final = 2.0


class Quiet(Watcher):
    """Shows nothing."""

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is to be seen any more."""


class Lines(Quiet):
    """A plain line for each check, every two seconds."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def known(self, outcome: Outcome) -> None:
        key = outcome.job.token("")
        if outcome.result is None or (outcome.seconds < self._next.get(key, 0.0) and not outcome.ended):
            return
        self._next[key] = outcome.seconds + _LINE_SECONDS
        state = "ended" if outcome.ended else "running"
        what = f"{outcome.job.title} {outcome.job.model}: {progress_text(outcome)}"
        print(f"{what}, {state}", file=sys.stderr, flush=True)


class Bars(Quiet):
    """On a terminal: a line for each check that takes its time, redrawn in place and gone at the end."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._next: dict[str, float] = {}

    def known(self, outcome: Outcome) -> None:
        key = outcome.job.token("")
        if outcome.result is None or (outcome.seconds < self._next.get(key, _SILENT_SECONDS) and not outcome.ended):
            return
        self._next[key] = outcome.seconds + _REDRAW_SECONDS
        if outcome.ended and key not in self._tasks:
            return
        if self._progress is None:
            self._progress = self._begin()
        bar = self._progress
        if key not in self._tasks:
            self._tasks[key] = bar.add_task(f"{outcome.job.title} {outcome.job.model}", total=None, what="")
        total = 1 if outcome.ended else None
        bar.update(self._tasks[key], what=progress_text(outcome), total=total, completed=1 if outcome.ended else 0)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    @staticmethod
    def _begin() -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        names, figures = TextColumn("{task.description}"), TextColumn("{task.fields[what]}")
        progress = Progress(
            names, BarColumn(20), figures, TimeElapsedColumn(), console=Console(stderr=True), transient=True
        )
        progress.start()
        return progress


def shown(wanted: bool) -> Quiet:
    """What fits where standard error goes."""
    if sys.stderr.isatty():
        return Bars()
    return Lines() if wanted else Quiet()


def progress_text(outcome: Outcome) -> str:
    """`12,345 executions, 23,000/s, 17 left, 45 MB`."""
    result = outcome.result
    assert result is not None
    number = result.states if result.states is not None else (result.executions or 0) + (result.blocked or 0)
    parts = [counts(result), f"{number / max(outcome.seconds, 1e-3):,.0f}/s"]
    if result.frontier:
        parts.append(f"{result.frontier:,} to go on from")
    if result.memory_bytes:
        parts.append(f"{result.memory_bytes / 1e6:,.0f} MB")
    return ", ".join(parts)
