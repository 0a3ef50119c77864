"""What tests of known-bad variants share: whether some schedule shows that something is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.unit.vmm.vsm.vsm_rig import VsmRig
from vtlkit.checker.scenarios import catalogue, run_seed
from vtlkit.host.sim import Deadlock, Simulator

SEEDS = range(3000)
"""Until the first that fails."""
BROKEN: tuple[type[Exception], ...] = (AssertionError, Deadlock)

Attempt = Callable[[int], object]
"""Runs a seed, and raises one of BROKEN if it shows what is wrong."""


def failure(attempt: Attempt, seeds: Iterable[int] = SEEDS, errors: tuple[type[Exception], ...] = BROKEN) -> str | None:
    """What the first seed that fails in one of these ways says; None if none does. Other errors are the caller's."""
    for seed in seeds:
        try:
            attempt(seed)
        except errors as error:
            return str(error)
    return None


def fails(attempt: Attempt, seeds: Iterable[int] = SEEDS, errors: tuple[type[Exception], ...] = BROKEN) -> bool:
    """Whether some seed fails, in one of these ways."""
    return failure(attempt, seeds, errors) is not None


def scenario(name: str) -> Attempt:
    """Runs a scenario of the catalogue."""
    found = catalogue()[name]
    return lambda seed: run_seed(found, seed)


def end_within(limit_ns: int, world: VsmRig, good: Callable[[VsmRig], bool] = lambda _world: True) -> None:
    """Run a world whose guests end it, for no longer than that in virtual time; it is `good` then."""
    host = world.host
    assert isinstance(host, Simulator)
    try:
        for vp in world.partition.vps:
            vp.start()
        host.run(until=limit_ns)
        assert world.ending(), "has not ended"
        assert good(world)
    finally:
        host.stop()
