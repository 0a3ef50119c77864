"""Programs with a known number of executions have that number, none twice, and no lock leads to a blocked one."""

from __future__ import annotations

import pytest

from vtlkit.checker.check import MODELS
from vtlkit.checker.graphs.report import Exploration, Verdict
from vtlkit.checker.graphs.search import explore
from vtlkit.checker.programs import counted, litmus
from vtlkit.checker.programs.counted import Counted

SMALL = [item for item in counted.catalogue() if not item.big]
SHAPES = list(litmus.catalogue())


def holds(item: Counted, model: str) -> Exploration:
    result = explore(item.program, model, check_duplicates=True)
    assert result.verdict is Verdict.HOLDS
    assert result.executions == item.counts[model]
    assert result.duplicates == 0
    return result


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("item", SMALL, ids=lambda item: item.name)
def test_a_program_has_its_executions(item: Counted, model: str) -> None:
    if model not in item.counts:
        pytest.skip(f"no count is known under {model}")
    result = holds(item, model)
    assert result.blocked == 0 or item.name == "peterson"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("item", SHAPES, ids=lambda item: item.name)
def test_a_shape_has_its_executions(item: Counted, model: str) -> None:
    assert holds(item, model).blocked == 0
