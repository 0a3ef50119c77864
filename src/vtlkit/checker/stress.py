"""Scenarios under many seeds, on several processes: who drives them need only draw.

Each run is a function of its seed, so the processes share nothing, and the lowest seed that fails is the same however
many there are.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice, starmap
from multiprocessing import get_context
from typing import Final

from vtlkit.checker.scenarios import Scenario, catalogue, run_seed
from vtlkit.host.sim import Simulator

CHUNK: Final = 50
"""Seeds given to a process at a time."""
AHEAD: Final = 4
"""Chunks that wait for each process."""
_REPLAY: Final = "replay: "


@dataclass(frozen=True, slots=True)
class Failure:
    """A seed that breaks a promise. `token` replays the run; `error` is what was found, in one or more lines."""

    scenario: str
    seed: int
    token: str
    error: str


@dataclass(frozen=True, slots=True)
class Progress:
    """`runs` more seeds of a scenario are done; `failure` is the lowest that failed among them, and ended them."""

    scenario: str
    runs: int
    failure: Failure | None


def stress(names: Sequence[str], first: int, count: int, jobs: int) -> Iterator[Progress]:
    """Run seeds `first` to `first + count` - 1 of each scenario on `jobs` processes; what comes back as it comes.

    A scenario that has failed is run up to the failing seed and no further. One job is this process.
    """
    failed: dict[str, int] = {}
    # Made one by one, so that a failure counts for those that are still to come.
    work = (
        (name, start, min(CHUNK, first + count - start))
        for start in range(first, first + count, CHUNK)
        for name in names
        if start <= failed.get(name, start)
    )
    for progress in _on_processes(work, jobs) if jobs > 1 else starmap(run_chunk, work):
        if (failure := progress.failure) is not None:
            failed[failure.scenario] = min(failure.seed, failed.get(failure.scenario, failure.seed))
        yield progress


def _on_processes(work: Iterator[tuple[str, int, int]], jobs: int) -> Iterator[Progress]:
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_ignore_interrupts) as pool:
        running: set[Future[Progress]] = set()
        try:
            while True:
                # A few at a time: however many seeds there are, they take no memory before their turn.
                running.update(pool.submit(run_chunk, *each) for each in islice(work, jobs * AHEAD - len(running)))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


def run_chunk(name: str, first: int, count: int) -> Progress:
    """Seeds of one scenario, up to the first that fails."""
    scenario = catalogue()[name]
    for seed in range(first, first + count):
        try:
            run_seed(scenario, seed)
        except Exception as error:  # noqa: BLE001 - whatever a scenario raises is what was looked for
            return Progress(name, seed - first + 1, _failure(name, seed, error))
    return Progress(name, count, None)


def _failure(name: str, seed: int, error: Exception) -> Failure:
    notes = [note.removeprefix(_REPLAY) for note in error.__notes__ if note.startswith(_REPLAY)]
    return Failure(name, seed, notes[0], f"{type(error).__name__}: {error}")


def replay(scenario: Scenario, token: str) -> None:
    """Run a scenario again as `token` says.

    Raises:
        ValueError: it is not a replay token.
        AssertionError, Deadlock: what the run finds.
    """
    scenario.body(Simulator(replay=token))


def _ignore_interrupts() -> None:
    """Ctrl-C is the driver's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
