"""The search over execution graphs: microseconds for each graph visited, of one core.

Figures without a rival: there is none in Python, and what somebody waits for is the number of graphs.
"""

from __future__ import annotations

from collections.abc import Callable

from vtlkit.checker.graphs.consistency import MODELS
from vtlkit.checker.graphs.search import explore
from vtlkit.checker.programs import counted
from vtlkit.cli.measure import Figure, seconds_per_operation

SMALL_LIMIT = 100.0
"""Of a program with up to 14 events, in microseconds a graph."""
LARGE_LIMIT = 250.0


def cases() -> list[Figure]:
    """Three programs under each model."""
    return [
        Figure(f"graphs: {name}, {model}", _take(name, model), "us", limit)
        for name, limit in (("ainc(7)", SMALL_LIMIT), ("casrot(9)", SMALL_LIMIT), ("big0", LARGE_LIMIT))
        for model in MODELS
    ]


def _take(name: str, model: str) -> Callable[[], float]:
    item = next(item for item in counted.catalogue() if item.name == name)
    graphs = item.counts.get(model, item.counts["sc"])  # big0 under TSO has as many as under SC.

    def take() -> float:
        return 1e6 * seconds_per_operation(lambda: explore(item.program, model), graphs)

    return take
