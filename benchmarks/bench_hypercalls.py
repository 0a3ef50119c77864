"""How long 100,000 random hypercalls take, each checked against an oracle of what its caller may read and change."""

from __future__ import annotations

import time
from typing import Final

from tests.unit.vmm.vsm.deputy_rig import DeputyRig
from vtlkit.cli.measure import Case, Figure

HYPERCALLS: Final = 100_000
EACH: Final = 2_000
"""Hypercalls at one partition, before another one with other protections."""
LIMIT_SECONDS: Final = 60.0


def random_hypercalls() -> float:
    """Seconds, the making of the partitions included."""
    begin = time.perf_counter()
    for seed in range(HYPERCALLS // EACH):
        DeputyRig(seed).run(EACH)
    return time.perf_counter() - begin


def cases() -> list[Case | Figure]:
    return [Figure("random-hypercalls", random_hypercalls, "s", LIMIT_SECONDS)]
