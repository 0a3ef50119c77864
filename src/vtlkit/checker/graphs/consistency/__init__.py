"""Memory models: each is a `Graph` that knows which reads and which places of writes are consistent."""

from __future__ import annotations

from typing import Final

from vtlkit.checker.graphs.consistency.rc11 import Rc11Graph
from vtlkit.checker.graphs.consistency.sc import ScGraph
from vtlkit.checker.graphs.consistency.tso import TsoGraph
from vtlkit.checker.graphs.graph import Graph

MODELS: Final[dict[str, type[Graph]]] = {model.name: model for model in (ScGraph, TsoGraph, Rc11Graph)}
"""Name -> model, from the strongest to the weakest."""
