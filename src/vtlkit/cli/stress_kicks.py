"""`vtlkit stress --engine`: kicks on real threads and a real engine, counted, and whether one was lost."""

from __future__ import annotations

import enum
import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vtlkit.cli.quantities import parse_seconds
from vtlkit.cli.status import BadInput, Status, complain
from vtlkit.cli.words import word_parser

if TYPE_CHECKING:
    from vtlkit.checker.kicks import KickScenario
    from vtlkit.checker.kicks.runner import Tally

COMMAND: Final = "vtlkit stress"
DEFAULT_KICKS: Final = 100_000
DEFAULT_CPUS: Final = 5
"""One for each kind of guest."""
MAX_CPUS: Final = 64
DEFAULT_PATIENCE_S: Final = 10.0
_FAILED: Final = 1
_NS_PER_S: Final = 1_000_000_000


class StressEngine(enum.StrEnum):
    """What `--engine` takes."""

    KVM = "kvm"
    UNICORN = "unicorn"


EngineOption = Annotated[
    StressEngine | None,
    typer.Option(
        parser=word_parser(StressEngine),
        metavar="|".join(StressEngine),
        help="Kick vCPUs on real threads and this engine, instead of schedules in the simulator.",
    ),
]
Kicks = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help=f"Kicks of each scenario with --engine.  [default: {DEFAULT_KICKS}]"),
]
Cpus = Annotated[
    int | None,
    typer.Option(
        min=1, max=MAX_CPUS, metavar="N", help=f"Virtual processors with --engine.  [default: {DEFAULT_CPUS}]"
    ),
]
Patience = Annotated[
    float | None,
    typer.Option(
        parser=parse_seconds,
        metavar="S",
        help=f"With --engine, kick once more after S seconds without an answer.  [default: {DEFAULT_PATIENCE_S:g}]",
    ),
]


@dataclass(slots=True)
class _Run:
    """One scenario's: its last tally, and the seconds that it took."""

    seconds: float = 0.0
    tally: Tally | None = None

    def kicks(self) -> int:
        return 0 if self.tally is None else self.tally.kicks

    def failure(self) -> str | None:
        return None if self.tally is None else self.tally.failure


@dataclass(slots=True)
class _Report:
    engine: StressEngine
    kicks: int
    cpus: int
    runs: dict[str, _Run]
    interrupted: bool = field(default=False)


def list_kicks(names: list[str]) -> int:
    """Print what there is, for `--list`."""
    scenarios = _chosen(names)
    width = max(map(len, scenarios))
    print("\n".join(f"{name:<{width}}  {scenario.summary}" for name, scenario in scenarios.items()))
    return 0


def stress_kicks(
    names: list[str],
    engine: StressEngine,
    kicks: int | None,
    cpus: int | None,
    patience_s: float | None,
    *,
    as_json: bool,
) -> int:
    """Run the scenarios of these names, or all, with the defaults for what is None; the exit status."""
    from vtlkit.engine.api import EngineError

    scenarios = _chosen(names)
    report = _Report(engine, kicks or DEFAULT_KICKS, cpus or DEFAULT_CPUS, {name: _Run() for name in scenarios})
    patience_ns = int((patience_s or DEFAULT_PATIENCE_S) * _NS_PER_S)
    try:
        for name, scenario in scenarios.items():
            _run(report, report.runs[name], scenario, patience_ns)
    except EngineError as error:
        raise BadInput(COMMAND, f"--engine {engine}: {error}") from None
    except KeyboardInterrupt:
        report.interrupted = True
    if as_json:
        print(json.dumps(_as_dict(report), indent=1))
    else:
        _print_table(report)
    if report.interrupted:
        complain(COMMAND, "interrupted: the counts are of what was run")
        return Status.INTERRUPTED
    return _FAILED if any(run.failure() for run in report.runs.values()) else Status.OK


def _chosen(names: list[str]) -> dict[str, KickScenario]:
    from vtlkit.checker.kicks import catalogue

    available = catalogue()
    for name in names:
        if name not in available:
            raise BadInput(COMMAND, f"no scenario {name} with --engine: there are {', '.join(available)}")
    return {name: available[name] for name in names} if names else available


def _run(report: _Report, run: _Run, scenario: KickScenario, patience_ns: int) -> None:
    from vtlkit.checker.kicks.engines import engines
    from vtlkit.checker.kicks.runner import run as run_scenario

    begin = time.monotonic()
    tallies = run_scenario(
        scenario, engines(report.engine), kicks=report.kicks, vcpus=report.cpus, patience_ns=patience_ns
    )
    try:
        # Closed also by Ctrl-C: then the threads are ended.
        with closing(tallies):
            for tally in _drawn(tallies, report.kicks):
                run.tally = tally
    finally:
        run.seconds = time.monotonic() - begin


def _drawn(tallies: Iterator[Tally], kicks: int) -> Iterator[Tally]:
    """The same, with a bar on a terminal's standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from tallies
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = None
        for tally in tallies:
            if task is None:
                task = bar.add_task(tally.scenario, total=kicks)
            bar.update(task, completed=min(tally.kicks, kicks))
            yield tally


def _as_dict(report: _Report) -> dict[str, object]:
    from vtlkit.checker.kicks.world import Place

    rows = []
    for name, run in report.runs.items():
        tally = run.tally
        rows.append(
            {
                "name": name,
                "kicks": run.kicks(),
                "found": {place.value: 0 if tally is None else tally.found[place] for place in Place},
                "lost": 0 if tally is None else tally.lost,
                "failure": run.failure(),
                "seconds": round(run.seconds, 3),
            }
        )
    return {
        "engine": str(report.engine),
        "kicks": report.kicks,
        "cpus": report.cpus,
        "interrupted": report.interrupted,
        "scenarios": rows,
    }


def _print_table(report: _Report) -> None:
    from vtlkit.checker.kicks.world import Place

    width = max(map(len, report.runs))
    print(" ".join([f"{'':<{width}}", f"{'kicks':>9}", *(f"{place.value:>9}" for place in Place), "  lost  seconds"]))
    for name, run in report.runs.items():
        tally = run.tally
        if tally is None:
            print(f"{name:<{width}} {'not run':>9}")
            continue
        found = " ".join(f"{tally.found[place]:>9}" for place in Place)
        print(f"{name:<{width}} {tally.kicks:>9} {found} {tally.lost:>6} {run.seconds:>8.1f}")
        if tally.failure is not None:
            print(f"    {'LOST' if tally.lost else 'BROKEN'}: {' '.join(tally.failure.split())}")
    sys.stdout.flush()
