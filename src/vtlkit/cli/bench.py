"""`vtlkit bench`: what vtlkit costs, against its rivals, side by side in one run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vtlkit.cli.status import BadInput
from vtlkit.cli.wide import print_wide

if TYPE_CHECKING:
    from vtlkit.cli.measure import Row

COMMAND: Final = "vtlkit bench"
_DEFAULT_ROUNDS: Final = 11
_MAX_ROUNDS: Final = 1000


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Rows to measure; all if none.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=_MAX_ROUNDS, metavar="N", help="Rounds of each row.")
    ] = _DEFAULT_ROUNDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    names_only: Annotated[bool, typer.Option("--list", help="Only list the rows.")] = False,
) -> int:
    """Measure vtlkit against its rivals.

    Each row is a ratio of times, measured in alternating rounds in one run, with its spread and what is promised.
    """
    from vtlkit.cli.bench_cases import cases
    from vtlkit.cli.measure import measure_row, to_json

    available = {case.name: case for case in cases()}
    if names_only:
        print("\n".join(available))
        return 0
    unknown = [name for name in names or () if name not in available]
    if unknown:
        raise BadInput(COMMAND, f"no row {', '.join(unknown)}: there are {', '.join(available)}")
    rows: list[Row] = []
    for name in names or available:
        rows.append(measure_row(available[name], rounds))
        print(rows[-1].brief(), file=sys.stderr, flush=True)
    if as_json:
        print(to_json(rows))
    else:
        _print_table(rows)
    return 0


def _print_table(rows: list[Row]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from vtlkit.cli.measure import HEADINGS

    table = Table(box=SIMPLE_HEAD)
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row.columns())
    print_wide(table)
