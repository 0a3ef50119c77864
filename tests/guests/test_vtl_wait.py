"""Guests live through the same whichever way their inactive VTLs are waited for."""

from __future__ import annotations

import pytest

from tests.guests.test_demo import MEMORY, check_story, run_on
from tests.guests.test_three_vtls import check_levels
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.vsm.vtl_wait import VtlWait

LONG_NS = 60_000_000_000

pytestmark = pytest.mark.parametrize("design", list(VtlWait), ids=str)


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_the_demonstration(design: VtlWait, seed: int | None) -> None:
    host = Simulator() if seed is None else Simulator(seed=seed)
    check_story(run_on(host, MachineConfig(cpus=2, memory=MEMORY, vtl_wait=design)), 2)


@pytest.mark.parametrize("seed", [None, 1])
def test_three_vtls(design: VtlWait, seed: int | None) -> None:
    host = Simulator() if seed is None else Simulator(seed=seed)
    check_levels(run_on(host, MachineConfig(cpus=2, memory=MEMORY, vtls=3, vtl_wait=design), image="vtls3"), 2)


def test_on_threads(design: VtlWait) -> None:
    with ThreadHost() as host:
        config = MachineConfig(cpus=2, memory=MEMORY, vtl_wait=design)
        check_story(run_on(host, config, realtime=True, timeout_ns=LONG_NS), 2)
    with ThreadHost() as host:
        config = MachineConfig(cpus=2, memory=MEMORY, vtls=3, vtl_wait=design)
        check_levels(run_on(host, config, image="vtls3", realtime=True, timeout_ns=LONG_NS), 2)


def test_halt_polling_changes_nothing_that_a_guest_sees(design: VtlWait) -> None:
    config = MachineConfig(cpus=2, memory=MEMORY, vtl_wait=design, halt_poll_ns=50_000)
    check_story(run_on(Simulator(), config), 2)
