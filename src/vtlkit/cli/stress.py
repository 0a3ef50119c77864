"""`vtlkit stress`: the protocols by which vCPUs wait, wake, are kicked and suspended, under many random schedules; with
`--engine`, on real threads."""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vtlkit.cli.status import BadInput, Status, complain
from vtlkit.cli.stress_kicks import Cpus, EngineOption, Kicks, Patience, list_kicks, stress_kicks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vtlkit.checker.scenarios import Scenario
    from vtlkit.checker.stress import Failure, Progress

COMMAND: Final = "vtlkit stress"
_DEFAULT_SEEDS: Final = 10_000
_FAILED: Final = 1


def stress(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Scenarios to run, or what their names begin with.")
    ] = None,
    engine: EngineOption = None,
    kicks: Kicks = None,
    cpus: Cpus = None,
    patience: Patience = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help=f"Seeds of each scenario.  [default: {_DEFAULT_SEEDS}]")
    ] = None,
    first: Annotated[int | None, typer.Option(min=0, metavar="SEED", help="The first seed.  [default: 0]")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes; one a processor if not given.")
    ] = None,
    token: Annotated[str | None, typer.Option("--replay", metavar="TOKEN", help="Run one scenario again.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    names_only: Annotated[bool, typer.Option("--list", help="Only list the scenarios.")] = False,
) -> int:
    """Run each protocol's scenario in the simulator, a schedule a seed; or, with --engine, on real threads.

    Ends with 1 if a promise was broken: the lowest seed that breaks it is printed, and the token that replays the run.
    With --engine, if a kick was lost: which one, and where it found its processor.
    """
    threads = {"--kicks": kicks, "--cpus": cpus, "--patience": patience}
    simulator = {"--seeds": seeds, "--first": first, "--jobs": jobs, "--replay": token}
    _refuse(simulator if engine is not None else threads, with_engine=engine is not None)
    if engine is not None:
        if names_only:
            return list_kicks(names or [])
        return stress_kicks(names or [], engine, kicks, cpus, patience, as_json=as_json)
    chosen = _chosen(names or [])
    if names_only:
        width = max(map(len, chosen))
        print("\n".join(f"{name:<{width}}  {scenario.summary}" for name, scenario in chosen.items()))
        return 0
    if token is not None:
        return _replay(list(chosen.values()), token)
    return _run(list(chosen), first or 0, seeds or _DEFAULT_SEEDS, jobs or len(os.sched_getaffinity(0)), as_json)


def _refuse(given: Mapping[str, object], *, with_engine: bool) -> None:
    """Options of the other kind of stress."""
    for name, value in given.items():
        if value is not None:
            where = "is for the simulator: leave out --engine, or it" if with_engine else "needs --engine"
            raise BadInput(COMMAND, f"{name} {where}")


def _chosen(names: list[str]) -> dict[str, Scenario]:
    from vtlkit.checker.scenarios import catalogue

    available = catalogue()
    if not names:
        return available
    chosen: dict[str, Scenario] = {}
    for name in names:
        found = {full: each for full, each in available.items() if full == name or full.startswith(f"{name}.")}
        if not found:
            raise BadInput(COMMAND, f"no scenario {name}: there are {', '.join(available)}")
        chosen.update(found)
    return chosen


def _replay(scenarios: list[Scenario], token: str) -> int:
    from vtlkit.checker.stress import replay
    from vtlkit.host.sim.simulator import Token

    if len(scenarios) != 1:
        raise BadInput(COMMAND, "--replay takes one scenario: name the one that the token was printed for")
    try:
        Token.parse(token)
    except ValueError as error:
        raise BadInput(COMMAND, f"{error}; take the one that a failed run printed") from None
    try:
        replay(scenarios[0], token)
    except Exception as error:  # noqa: BLE001 - whatever a scenario raises is what was looked for
        traceback.print_exception(error, file=sys.stderr)
        return _FAILED
    print(f"{scenarios[0].name}: the promise holds in this run")
    return 0


def _run(names: list[str], first: int, count: int, jobs: int, as_json: bool) -> int:
    from vtlkit.checker.stress import stress as run_all

    runs = dict.fromkeys(names, 0)
    failures: dict[str, Failure] = {}
    interrupted = False
    try:
        for progress in _drawn(run_all(names, first, count, jobs), names, count):
            runs[progress.scenario] += progress.runs
            failure = progress.failure
            if failure is not None and failure.seed <= failures.get(failure.scenario, failure).seed:
                failures[failure.scenario] = failure
    except KeyboardInterrupt:
        interrupted = True
    if as_json:
        rows = [{"name": name, "runs": runs[name], "failure": _as_dict(failures.get(name))} for name in names]
        print(json.dumps({"first": first, "seeds": count, "interrupted": interrupted, "scenarios": rows}, indent=1))
    else:
        _print_table(names, runs, failures)
    if interrupted:
        complain(COMMAND, "interrupted: the counts are of what was run")
        return Status.INTERRUPTED
    return _FAILED if failures else 0


def _as_dict(failure: Failure | None) -> dict[str, object] | None:
    return None if failure is None else asdict(failure)


def _drawn(results: Iterable[Progress], names: list[str], count: int) -> Iterable[Progress]:
    """The same, with a bar on a terminal's standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from results
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        bars = {name: bar.add_task(name, total=count) for name in names}
        for progress in results:
            bar.advance(bars[progress.scenario], progress.runs)
            yield progress


def _print_table(names: list[str], runs: dict[str, int], failures: dict[str, Failure]) -> None:
    width = max(map(len, names))
    for name in names:
        failure = failures.get(name)
        if failure is None:
            print(f"{name:<{width}}  {runs[name]:>8} runs  promise kept")
            continue
        print(f"{name:<{width}}  {runs[name]:>8} runs  BROKEN by seed {failure.seed}")
        print("\n".join(f"    {line}" for line in failure.error.splitlines()))
        print(f"    {COMMAND} {name} --replay {failure.token}")
