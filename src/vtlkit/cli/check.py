"""`vtlkit check`: everything that a protocol can do under a memory model, and what of it breaks its promise."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vtlkit.cli.check_words import COMMAND, Job, Wish, jobs_for, parse_models, parse_token, split_words
from vtlkit.cli.quantities import parse_bytes
from vtlkit.cli.status import BadInput, Status, complain
from vtlkit.cli.words import word_parser

if TYPE_CHECKING:
    from vtlkit.cli.check_runs import Outcome

_BROKEN: Final = 1
_BOUND: Final = 3
_ENGINES: Final = ("states", "graphs")


def check(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME] [--SIZE N]...", help="A protocol, or a FILE.py with some; its sizes."),
    ] = None,
    models: Annotated[
        str | None, typer.Option("--model", metavar="MODEL,...", help="Of sc, tso, rc11; all if not given.")
    ] = None,
    variant: Annotated[str | None, typer.Option(metavar="BAD", help="A known-bad variant of the protocol.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(parser=word_parser(_ENGINES), metavar="ENGINE", help="states or graphs; what suits if not given."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Give up behind so many states or executions.")
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            parser=parse_bytes, metavar="SIZE", help="Give up at so many bytes of states; half of the RAM if not given."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    names_only: Annotated[bool, typer.Option("--list", help="Only list the protocols.")] = False,
    token: Annotated[str | None, typer.Option("--replay", metavar="TOKEN", help="Find a counterexample again.")] = None,
    trace: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the counterexample as a trace, its format by the suffix.")
    ] = None,
    show_progress: Annotated[
        bool, typer.Option("--progress", help="Show progress, also where standard error is no terminal.")
    ] = False,
) -> int:
    """Check all that a protocol can do: every schedule, and what a weak memory model adds to it.

    Ends with 0 if all is proved for this size, 1 if there is a counterexample, 3 if a bound was reached before.
    """
    if names_only:
        return _list(as_json)
    jobs = _jobs(words or [], Wish(variant, None if models is None else parse_models(models), engine), token)
    return _check(jobs, limit, memory, as_json, trace, show_progress)


def _list(as_json: bool) -> int:
    from vtlkit.checker.protocols import catalogue
    from vtlkit.cli.check_report import print_list

    print_list(catalogue(), as_json)
    return 0


def _jobs(words: list[str], wish: Wish, token: str | None) -> list[Job]:
    names, sizes = split_words(words)
    if token is not None:
        if names or sizes or wish != Wish():
            raise BadInput(COMMAND, "--replay takes a token alone: it says everything else")
        return [parse_token(token)]
    if not names:
        raise BadInput(COMMAND, "name a protocol or a Python file: 'vtlkit check --list' shows the protocols")
    return [job for name in names for job in jobs_for(name, sizes, wish)]


def _check(
    jobs: list[Job], limit: int | None, memory: int | None, as_json: bool, trace: str | None, show_progress: bool
) -> int:
    from vtlkit.checker.check import Limits
    from vtlkit.cli.check_progress import shown
    from vtlkit.cli.check_runs import run_jobs

    trace_file = None
    if trace is not None:
        from vtlkit.cli.check_trace import CounterexampleFile

        trace_file = CounterexampleFile(trace)
    with shown(show_progress) as watcher:
        outcomes, interrupted = run_jobs(jobs, Limits(limit, memory or _half_of_memory()), watcher)
    from vtlkit.cli.check_report import print_json, print_outcomes

    if as_json:
        print_json(outcomes)
    else:
        print_outcomes(outcomes)
    sys.stdout.flush()
    if trace_file is not None:
        trace_file.write(outcomes)
    if interrupted:
        complain(COMMAND, "interrupted: the counts are of what was looked at")
        return Status.INTERRUPTED
    return _status(outcomes)


def _half_of_memory() -> int:
    """Bytes: a search that takes all would end in the kernel's hands, without a word."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _status(outcomes: list[Outcome]) -> int:
    from vtlkit.checker.result import Verdict

    verdicts = {outcome.result.verdict for outcome in outcomes if outcome.result is not None}
    if Verdict.COUNTEREXAMPLE in verdicts:
        return _BROKEN
    return _BOUND if Verdict.BOUND in verdicts else Status.OK
