"""Runs a scenario of kicks: tasks, watchdog, and the tally. See the package."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from vtlkit.checker.kicks import KickScenario
from vtlkit.checker.kicks.world import Place, World
from vtlkit.engine.api import EngineError, EngineFactory
from vtlkit.host.threads import ThreadHost

_LOOK_NS: Final = 50_000_000
_SWITCH_S: Final = 20e-6
"""How long a thread keeps the interpreter while another one wants it: short, so that they meet everywhere."""
_STANDSTILL: Final = 4
"""Patiences in which no kicker ends a round: something else than a kick is stuck."""
_ENDS: Final = 100
"""Looks at tasks that have been told to end."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What a scenario has done so far. `found`: where the kicked were. `failure` is one line or None."""

    scenario: str
    kicks: int
    found: Counter[Place]
    lost: int
    failure: str | None = None


def run(
    scenario: KickScenario, engines: EngineFactory, *, kicks: int, vcpus: int, patience_ns: int, seed: int | None = None
) -> Generator[Tally]:
    """Run a scenario of at least so many kicks on at least so many vCPUs, up to the first lost one; the tally every now
    and then, and at last the final one. Closed early, it ends its threads.

    `seed` draws what the kickers choose; what comes of that is the machine's.

    Raises:
        EngineError: the engine cannot be had here.
    """
    world = World(ThreadHost(seed=seed), engines, kicks, vcpus)
    failure: Exception | None = None
    with _eager_threads():
        try:
            scenario.build(world)
            world.host.on_stop(world.end)
            world.spawn()
            for _ in _watched(world, patience_ns):
                yield _tally(scenario, world)
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a scenario raises is what was looked for
            failure = error
        finally:
            failure = _end(world) or failure
    yield _tally(scenario, world, failure)


def _watched(world: World, patience_ns: int) -> Iterator[None]:
    """Until the last kicker is done, or the first kick is lost."""
    host = world.host
    moved, moved_ns = 0, host.now_ns()
    while not world.ending and not world.kicked():
        host.run(host.now_ns() + _LOOK_NS)
        world.watch(patience_ns)
        rounds, now = sum(kicker.rounds for kicker in world.kickers), host.now_ns()
        if rounds != moved:
            moved, moved_ns = rounds, now
        elif now - moved_ns > _STANDSTILL * patience_ns and not world.ending:
            where = ", ".join(f"{each} ({each.place().value})" for each in world.processors)
            raise AssertionError(f"nobody gets on: {where}")
        yield


def _end(world: World) -> Exception | None:
    """End the tasks, and free what they used; what went wrong meanwhile."""
    host, failure = world.host, None
    for _ in range(_ENDS):
        world.end()
        try:
            host.run(host.now_ns() + _LOOK_NS)
        except Exception as error:  # noqa: BLE001 - told by whoever called
            failure = error
        if world.done():
            break
    try:
        host.shutdown()
    except RuntimeError as error:
        # Somebody is still at work in the engines.
        return failure or error
    world.engines.close()
    return failure


def _tally(scenario: KickScenario, world: World, failure: Exception | None = None) -> Tally:
    found: Counter[Place] = Counter()
    for kicker in world.kickers:
        found.update(kicker.found)
    text = f"{type(failure).__name__}: {failure}" if failure is not None else None
    return Tally(scenario.name, found.total(), found, len(world.lost), world.lost[0] if world.lost else text)


@contextmanager
def _eager_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
