"""Stress scenarios: for each protocol a small world in which its promise can be broken, on any host.

A scenario builds its virtual machines on the host it is given, spawns its tasks, runs the host to the end, and raises
AssertionError if the promise was broken; a task that sleeps for ever is the simulator's `Deadlock`. The code under it
is the code that ships. It makes its choices by `host.choose` alone, so a seed or token replays it.

Every module of this package that has a tuple `SCENARIOS` adds to the catalogue.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator


@dataclass(frozen=True, slots=True)
class Scenario:
    """`name` is protocol.variant; `summary` one line that says what must not happen; `body` as the module says."""

    name: str
    summary: str
    body: Callable[[RunnableHost], None]


def catalogue() -> dict[str, Scenario]:
    """Every scenario by name, in alphabetical order.

    Raises:
        ValueError: two have one name.
    """
    found: dict[str, Scenario] = {}
    for module in pkgutil.iter_modules(__path__):
        for scenario in getattr(importlib.import_module(f"{__name__}.{module.name}"), "SCENARIOS", ()):
            if scenario.name in found:
                raise ValueError(f"there are two scenarios '{scenario.name}'")
            found[scenario.name] = scenario
    return dict(sorted(found.items()))


def simulator(seed: int) -> Simulator:
    """The host of one seed: every access to a shared word is a scheduling point."""
    return Simulator(seed=seed, instrument=True)


def run_seed(scenario: Scenario, seed: int) -> None:
    """Run a scenario once in the simulator.

    Raises:
        AssertionError, Deadlock: the promise was broken; the error's notes name the scenario and the replay token.
    """
    host = simulator(seed)
    try:
        scenario.body(host)
    except BaseException as error:
        notes = getattr(error, "__notes__", [])
        if not any(note.startswith("replay: ") for note in notes):
            # Raised by the checks after the run.
            error.add_note(f"replay: {host.token()}")
        error.add_note(f"scenario: {scenario.name}")
        raise


def run_seeds(scenario: Scenario, seeds: Iterable[int]) -> int:
    """Run a scenario once a seed; how many there were. Raises as `run_seed`, at the first that fails."""
    count = 0
    for seed in seeds:
        run_seed(scenario, seed)
        count += 1
    return count
