"""The conformance suite of `vtlkit.engine.api`: every engine passes it, or lacks what a case needs and says so.

for case in CASES:
    if (reason := engine_under_test.why_not(case)) is None:
        case.run(engine_under_test)
"""

from vtlkit.testing.engine_conformance import (
    arithmetic,
    budgets,
    code,
    events,
    exits,
    fast_calls,
    hostile,
    intercepts,
    legacy_modes,
    long_mode,
    memory,
    mmio,
    nested_intercepts,
    operands,
    ports,
    preemption_timer,
    state,
)
from vtlkit.testing.engine_conformance.suite import CASES, Bench, Case, EngineUnderTest, Need

__all__ = ["CASES", "Bench", "Case", "EngineUnderTest", "Need"]

CASE_MODULES = (
    arithmetic,
    budgets,
    code,
    events,
    exits,
    fast_calls,
    hostile,
    intercepts,
    legacy_modes,
    long_mode,
    memory,
    mmio,
    nested_intercepts,
    operands,
    ports,
    preemption_timer,
    state,
)
