"""The table of a counterexample: a column for each task where there is room, else a task's steps are indented."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vtlkit.checker.telling import Row, rows
from vtlkit.cli.wide import WIDE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vtlkit.checker.result import Counterexample

_INDENT: Final = 2
_PADDING: Final = 3
"""Between two columns."""


def counterexample_table(found: Counterexample, names: Sequence[str]) -> Table:
    """A line for each step, on a terminal of 100 columns as well as in a pipe."""
    shown = rows(found)
    used = sorted({row.thread for row in shown})
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
    widest = [max(len(row.text) for row in shown if row.thread == thread) for thread in used]
    needed = [max(text, len(names[thread])) + _PADDING for text, thread in zip(widest, used, strict=True)]
    place = max(len(row.place) for row in shown)
    room = sum(needed) + len("step") + _PADDING + place + _PADDING <= width
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("step", justify="right")
    for heading in [names[thread] for thread in used] if room else ["task", "what"]:
        table.add_column(heading, overflow="fold")
    if place:
        table.add_column("where", style="dim", overflow="fold")
    for row in shown:
        cells = [row.text if thread == row.thread else "" for thread in used]
        table.add_row(
            row.number,
            *map(Text, cells if room else _in_one_column(row, used.index(row.thread), names)),
            *([Text(row.place)] if place else []),
        )
    return table


def _in_one_column(row: Row, lane: int, names: Sequence[str]) -> list[str]:
    return [names[row.thread], " " * (_INDENT * lane) + row.text]
