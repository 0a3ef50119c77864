"""Running the checks: one after the other where they take no time, side by side on processes where they do.

What is under way can be interrupted: an outcome then holds what was known.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vtlkit.cli.check_words import COMMAND, Job
from vtlkit.cli.status import BadInput

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

    from vtlkit.checker.check import Limits
    from vtlkit.checker.result import Result

QUICK_SECONDS: Final = 0.1
"""A check that takes longer goes to a process of its own, if others wait: a process costs about a fifth of that."""
_REPORT_SECONDS: Final = 0.2


@dataclass(slots=True)
class Outcome:
    """A job and what came out of it; `ended` is false where it was interrupted, or never begun: then `result` may be
    None."""

    job: Job
    result: Result | None = None
    seconds: float = 0.0
    ended: bool = False

    @property
    def engine(self) -> str:
        """The one that did it, or would do it."""
        from vtlkit.checker.check import engine_for

        return self.result.engine if self.result is not None else engine_for(self.job.model, self.job.engine)

    @property
    def token(self) -> str:
        """See `Job.token`."""
        return self.job.token(self.engine)


class Watcher:
    """Is told how the checks go on."""

    def known(self, outcome: Outcome) -> None:
        """What is known so far of a check that is under way; also at its end."""


class _Slow(Exception):
    """This one takes longer than QUICK_SECONDS."""


def run_jobs(jobs: list[Job], limits: Limits, watcher: Watcher) -> tuple[list[Outcome], bool]:
    """An outcome for each job, and whether Ctrl-C ended it.

    Raises BadInput: a user's file, or sizes that cannot be.
    """
    outcomes = [Outcome(job) for job in jobs]
    side_by_side = len(os.sched_getaffinity(0)) > 1
    try:
        for index, outcome in enumerate(outcomes):
            more = index + 1 < len(outcomes)
            try:
                _run(outcome, limits, watcher, QUICK_SECONDS if more and side_by_side else None)
            except _Slow:
                _run_on_processes(outcomes[index:], limits, watcher)
                break
    except KeyboardInterrupt:
        return outcomes, True
    return outcomes, False


def _run(outcome: Outcome, limits: Limits, watcher: Watcher, patience: float | None) -> None:
    begin = time.perf_counter()

    def progress(result: Result) -> None:
        outcome.result = result
        outcome.seconds = time.perf_counter() - begin
        if patience is not None and outcome.seconds > patience:
            raise _Slow
        watcher.known(outcome)

    outcome.result = _search(outcome.job, limits, progress)
    outcome.seconds = time.perf_counter() - begin
    outcome.ended = True
    watcher.known(outcome)


def _search(job: Job, limits: Limits, progress: Callable[[Result], object]) -> Result:
    from vtlkit.checker.check import check
    from vtlkit.checker.user import UserError, located

    try:
        program = job.build()
    except UserError as error:
        raise BadInput(COMMAND, str(error)) from None
    except ValueError as error:
        if job.file is None:
            raise BadInput(COMMAND, f"{job.title}: {error}") from None
        raise BadInput(COMMAND, located(error, job.file)) from None
    except Exception as error:
        if job.file is None:
            raise
        raise BadInput(COMMAND, located(error, job.file)) from None
    try:
        return check(program, job.model, engine=job.engine, limits=limits, progress=progress)
    except _Slow:
        raise
    except Exception as error:
        if job.file is None:
            raise
        raise BadInput(COMMAND, located(error, job.file)) from None


# --- on processes -----------------------------------------------------------------------------------------------------


def _run_on_processes(outcomes: list[Outcome], limits: Limits, watcher: Watcher) -> None:
    """Each in a child, as many at a time as there are processors. A child is a fork: it has everything loaded."""
    from multiprocessing.connection import Connection, wait

    waiting = iter(outcomes)
    running: dict[Connection, tuple[Outcome, ForkProcess]] = {}
    try:
        while True:
            for outcome in _up_to(waiting, len(os.sched_getaffinity(0)) - len(running)):
                connection, process = _start(outcome.job, limits)
                running[connection] = outcome, process
            if not running:
                return
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                outcome, process = running[ready]
                _take(outcome, ready, watcher)
                if outcome.ended:
                    del running[ready]
                    process.join()
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _up_to(outcomes: Iterator[Outcome], count: int) -> Iterator[Outcome]:
    for _ in range(count):
        outcome = next(outcomes, None)
        if outcome is None:
            return
        yield outcome


def _start(job: Job, limits: Limits) -> tuple[Connection, ForkProcess]:
    from multiprocessing import get_context

    context = get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, limits, there), daemon=True)
    # Ctrl-C goes to all processes, and is the parent's to answer: a child leaves it blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    there.close()
    return here, process


def _take(outcome: Outcome, connection: Connection, watcher: Watcher) -> None:
    """One message of a child."""
    try:
        kind, content, seconds = connection.recv()
    except EOFError:
        raise RuntimeError(f"the process that checked {outcome.token} has died") from None
    if kind == "bad":
        raise BadInput(COMMAND, content)
    if kind == "bug":
        raise RuntimeError(f"in the process that checked {outcome.token}:\n{content}")
    outcome.result, outcome.seconds, outcome.ended = content, seconds, kind == "end"
    watcher.known(outcome)


class _Teller(Watcher):
    """In a child: sends what is known to the parent, now and then."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told = -_REPORT_SECONDS

    def known(self, outcome: Outcome) -> None:
        if outcome.ended or outcome.seconds - self._told >= _REPORT_SECONDS:
            self._told = outcome.seconds
            _send(self._connection, "end" if outcome.ended else "so far", portable(outcome.result), outcome.seconds)


def _child(job: Job, limits: Limits, connection: Connection) -> None:
    try:
        _run(Outcome(job), limits, _Teller(connection), None)
    except BadInput as error:
        _send(connection, "bad", str(error), 0.0)
    except Exception:  # noqa: BLE001 - the parent reports it
        _send(connection, "bug", traceback.format_exc(), 0.0)


def _send(connection: Connection, kind: str, content: object, seconds: float) -> None:
    try:
        connection.send((kind, content, seconds))
    except BrokenPipeError:
        # The parent is gone: nobody wants to know.
        os._exit(1)


def portable(result: Result | None) -> Any:
    """The same with plain values only: a user's locations and values need not go through a pipe."""
    from dataclasses import replace

    if result is None or result.counterexample is None:
        return result
    found = result.counterexample
    steps = tuple(
        replace(each, location=_plain(each.location), read=_plain(each.read), written=_plain(each.written))
        for each in found.steps
    )
    waiting = tuple(replace(each, location=_plain(each.location), value=_plain(each.value)) for each in found.waiting)
    return replace(result, counterexample=replace(found, steps=steps, waiting=waiting))


def _plain(value: object) -> Any:
    if value is None or type(value) in (int, str, bool, float):
        return value
    if isinstance(value, tuple):
        return tuple([_plain(each) for each in value])
    return repr(value)
