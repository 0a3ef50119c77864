"""A million translations over page tables of garbage, every fiftieth checked against an independent walk."""

from __future__ import annotations

import time
from typing import Final

from tests.unit.kvm.translate_rig import TranslateRig
from vtlkit.cli.measure import Case, Figure

TRANSLATIONS: Final = 1_000_000
EACH: Final = 4_000
"""Translations over one set of tables."""
CHECK_EACH: Final = 50
LIMIT_SECONDS: Final = 120.0


def translate_garbage() -> float:
    """Seconds, the making of the tables and the checks included."""
    begin = time.perf_counter()
    for seed in range(TRANSLATIONS // EACH):
        TranslateRig(seed).run(EACH, check_each=CHECK_EACH)
    return time.perf_counter() - begin


def cases() -> list[Case | Figure]:
    return [Figure("translate-garbage", translate_garbage, "s", LIMIT_SECONDS)]
