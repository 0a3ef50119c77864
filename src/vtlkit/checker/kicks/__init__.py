"""Kicks on real threads and a real engine: run control as a user's machine has it, under as many kicks as one likes.

The scenarios of `checker.scenarios` run in the simulator, where every choice is made and none is missed; here the
processors are threads, guests are machine code, and what is between a kick and an entry is decided by the machine.

A kick is *lost* if what it asks for comes only after a second one. So every kicker tells what it waits for; a watchdog
kicks once more where the answer takes longer than its patience, and whoever then gets on has lost the first kick. The
patience is that of a machine which has stopped: nothing here asserts how fast a kick is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtlkit.checker.kicks.world import World


@dataclass(frozen=True, slots=True)
class KickScenario:
    """`summary`: one line that says what must not happen. `build` puts vCPUs and kickers into a new world."""

    name: str
    summary: str
    build: Callable[[World], None]


def catalogue() -> dict[str, KickScenario]:
    """Every scenario by name, in alphabetical order."""
    from vtlkit.checker.kicks.scenarios import SCENARIOS

    return {each.name: each for each in sorted(SCENARIOS, key=lambda each: each.name)}
