"""`vtlkit trace`: what a trace that `vtlkit run --trace` wrote amounts to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vtlkit.cli.status import BadInput
from vtlkit.cli.wide import print_wide

if TYPE_CHECKING:
    from vtlkit.trace.summary import Summary

COMMAND: Final = "vtlkit trace"


def trace(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A trace, in any of the formats of --trace.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Summarise a trace: how long wakes, kicks and VTL switches took, the exits, and who woke whom."""
    summary = _summary(Path(file))
    if as_json:
        print(json.dumps(summary.to_json(), indent=1))
        return 0
    from vtlkit.cli.trace_tables import tables

    print_wide(*tables(file, summary))
    return 0


def _summary(path: Path) -> Summary:
    from vtlkit.trace.reader import UnreadableTrace, read_trace
    from vtlkit.trace.summary import summarise

    try:
        return summarise(read_trace(path))
    except OSError as error:
        raise BadInput(COMMAND, f"{path}: {error.strerror}") from None
    except (UnreadableTrace, ValueError) as error:
        raise BadInput(COMMAND, f"{path}: {error}") from None
