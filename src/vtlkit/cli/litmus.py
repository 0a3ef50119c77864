"""`vtlkit litmus`: the Linux kernel's C litmus tests, under its own memory model or another."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vtlkit.cli.status import BadInput, Status, complain
from vtlkit.cli.words import word_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from vtlkit.checker.litmus.judge import Outcome
    from vtlkit.checker.litmus.syntax import LitmusTest

COMMAND: Final = "vtlkit litmus"
_MODELS: Final = ("lkmm", "sc", "tso", "rc11")
"""Those of `vtlkit.checker.litmus.judge`, without loading it."""
_SUFFIX: Final = ".litmus"
_DISAGREES: Final = 1
_LARGEST_BYTES: Final = 1 << 20


def litmus(
    paths: Annotated[list[str], typer.Argument(metavar="FILE...", help="Litmus tests, or folders of them.")],
    model: Annotated[
        str,
        typer.Option(parser=word_parser(_MODELS), metavar="|".join(_MODELS), help="The memory model."),
    ] = "lkmm",
    show: Annotated[bool, typer.Option("--show", help="Show final states, and how the condition comes true.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> int:
    """Say of each test whether its condition comes true never, sometimes or always.

    Ends with 1 if that is not the result that some test records, with 2 if a file cannot be judged.
    """
    judged: list[_Judged] = []
    refused = False
    for path in _files(paths):
        try:
            judged.append(_judged(path, model))
        except BadInput as error:
            # The others of a folder are of use all the same.
            complain(COMMAND, str(error))
            refused = True
    if not judged:
        return Status.BAD_INPUT
    if as_json:
        print(json.dumps({"model": model, "tests": [_as_dict(each) for each in judged]}, indent=1))
    else:
        from vtlkit.cli.wide import print_wide

        print_wide(*_tables(judged, show))
    if refused:
        return Status.BAD_INPUT
    return _DISAGREES if any(each.agrees is False for each in judged) else 0


@dataclass(frozen=True, slots=True)
class _Judged:
    """One test and its outcome."""

    path: Path
    test: LitmusTest
    outcome: Outcome
    seconds: float

    @property
    def agrees(self) -> bool | None:
        return self.outcome.agrees(self.test)


def _files(paths: list[str]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            below = sorted(path.rglob(f"*{_SUFFIX}"))
            if not below:
                raise BadInput(COMMAND, f"{path}: no {_SUFFIX} file in this folder")
            found += below
        else:
            found.append(path)
    return found


def _judged(path: Path, model: str) -> _Judged:
    from vtlkit.checker.litmus.judge import judge
    from vtlkit.checker.litmus.parser import parse
    from vtlkit.checker.litmus.syntax import LitmusError

    text = _text(path)
    start = time.perf_counter()
    try:
        test = parse(text)
        outcome = judge(test, model)
    except LitmusError as error:
        raise BadInput(COMMAND, f"{path}:{error.line}: {error}" if error.line else f"{path}: {error}") from None
    except RecursionError:
        raise BadInput(COMMAND, f"{path}: statements or expressions are nested too deeply") from None
    return _Judged(path, test, outcome, time.perf_counter() - start)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise BadInput(COMMAND, f"{path}: {error.strerror}; name a litmus test or a folder of them") from None
    except UnicodeDecodeError:
        raise BadInput(COMMAND, f"{path}: not a text file, so not a litmus test") from None
    if len(data) > _LARGEST_BYTES:
        raise BadInput(COMMAND, f"{path}: larger than 1 MiB, so not a litmus test")
    return text


def _as_dict(judged: _Judged) -> dict[str, object]:
    test, outcome = judged.test, judged.outcome
    states = [
        {
            "state": {str(place): _value(value) for place, value in zip(outcome.places, state, strict=True)},
            "count": count,
        }
        for state, count in sorted(outcome.states.items(), key=str)
    ]
    return {
        "name": test.name,
        "file": str(judged.path),
        "result": outcome.verdict,
        "recorded": test.recorded or None,
        "agrees": judged.agrees,
        "positive": outcome.positive,
        "negative": outcome.negative,
        "flags": sorted(outcome.flags),
        "states": states,
        "witness": [list(column) for column in outcome.witness],
        "seconds": round(judged.seconds, 6),
    }


def _value(value: object) -> object:
    return value if isinstance(value, int) else f"&{value}"


def _tables(judged: list[_Judged], show: bool) -> Iterator[RenderableType]:
    if show:
        for each in judged:
            yield from _shown(each)
    if len(judged) == 1:
        yield f"{judged[0].test.name}: {_line(judged[0])}"
        return
    yield _overview(judged)
    known = [each.agrees for each in judged if each.agrees is not None]
    rest = len(judged) - len(known)
    yield f"{sum(known)} of {len(known)} agree with their recorded result" + (f"; {rest} record none" if rest else "")


def _line(judged: _Judged) -> str:
    """The verdict, what was recorded, and warnings, in words."""
    outcome, recorded = judged.outcome, judged.test.recorded
    parts = [f"{outcome.verdict} ({outcome.positive} of {outcome.executions} executions) under {outcome.model}"]
    if not outcome.executions:
        parts.append("nothing can happen: somebody waits for ever, or the filter keeps nothing")
    if judged.agrees is None:
        parts.append(f"recorded: {recorded}" if recorded else "no recorded result")
    else:
        parts.append("as recorded" if judged.agrees else f"recorded: {_recorded(judged.test)}; they DISAGREE")
    parts += [f"Flag {flag}" for flag in sorted(outcome.flags)]
    return "; ".join(parts)


def _recorded(test: LitmusTest) -> str:
    return f"{test.recorded} with a data race" if test.recorded_race else test.recorded


def _overview(judged: list[_Judged]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for heading in ("test", judged[0].outcome.model, "recorded", "", "executions", "flags"):
        table.add_column(heading, justify="right" if heading == "executions" else "left", no_wrap=True)
    words = {True: "agrees", False: "DISAGREES", None: ""}
    for each in judged:
        outcome = each.outcome
        count = f"{outcome.positive} of {outcome.executions}"
        recorded, flags = _recorded(each.test), ", ".join(sorted(outcome.flags))
        table.add_row(each.test.name, outcome.verdict, recorded, words[each.agrees], count, flags)
    return table


def _shown(judged: _Judged) -> Iterator[RenderableType]:
    """The final states, and an execution in which the condition holds."""
    from itertools import zip_longest

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    outcome = judged.outcome
    yield f"{judged.test.name}: final states"
    states = Table(box=SIMPLE_HEAD)
    for place in outcome.places:
        states.add_column(str(place), justify="right", no_wrap=True)
    states.add_column("executions", justify="right", no_wrap=True)
    for state, count in sorted(outcome.states.items(), key=str):
        states.add_row(*[str(_value(value)) for value in state], str(count))
    yield states
    if outcome.witness:
        yield "The condition holds in this execution:"
        witness = Table(box=SIMPLE_HEAD)
        for thread in range(len(outcome.witness)):
            witness.add_column(f"P{thread}")
        for row in zip_longest(*outcome.witness, fillvalue=""):
            witness.add_row(*row)
        yield witness
