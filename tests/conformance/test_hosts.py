"""Both hosts keep the promises of `vtlkit.host.api`: the same checks on threads, on the simulator, and instrumented."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.testing import host_conformance
from vtlkit.testing.host_conformance import HOST_CHECKS, HostCheck

SEEDS = 50
each_check = pytest.mark.parametrize("check", HOST_CHECKS, ids=lambda check: check.__name__)


def test_every_check_is_listed() -> None:
    modules = [ast.parse(path.read_text()) for path in Path(host_conformance.__file__).parent.glob("*.py")]
    defined = [node.name for module in modules for node in module.body if isinstance(node, ast.FunctionDef)]
    functions = {name for name in defined if name.startswith("check_")}
    assert functions == {check.__name__ for check in HOST_CHECKS}


@each_check
def test_threads(check: HostCheck) -> None:
    with ThreadHost() as host:
        check(host)


@each_check
@pytest.mark.parametrize("instrument", [False, True], ids=["plain", "instrumented"])
def test_simulator_fifo(check: HostCheck, instrument: bool) -> None:
    check(Simulator(instrument=instrument))


@each_check
@pytest.mark.parametrize("instrument", [False, True], ids=["plain", "instrumented"])
def test_simulator_seeds(check: HostCheck, instrument: bool) -> None:
    for seed in range(SEEDS):
        check(Simulator(seed=seed, instrument=instrument))
