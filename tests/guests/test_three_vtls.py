"""Three VTLs, each supervising the one below: who is told of what, in which order, and what becomes of it."""

from __future__ import annotations

import pytest

from tests.guests.test_demo import Run, Story, run_on
from vtlkit.host.sim import Simulator
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.machine import Outcome

MEMORY = 64 << 20
GPA = r"GPA (0x\w+)"
RIP = r"RIP 0x\w+"
PASSED_DOWN = "nothing here is for me: VTL2 returns to VTL0, and I pass it down"


def run_levels(cpus: int, *, vtls: int = 3, seed: int | None = None, vendor: str = "svm") -> Run:
    host = Simulator() if seed is None else Simulator(seed=seed)
    try:
        return run_on(host, MachineConfig(cpus=cpus, memory=MEMORY, vtls=vtls, vendor=vendor), image="vtls3")
    finally:
        host.stop()


def check_start(story: Story, cpus: int) -> None:
    story.take(0, 0, f"VPs up: {cpus}")
    story.take(0, 0, "operating system: enabling VTL1 above me, of VTLs up to VTL2")
    story.take(1, 0, "secure kernel: set up on this VP")
    story.take(1, 0, "enabling VTL2 above me")
    story.take(2, 0, "supervisor: set up on this VP")
    pages = story.take(
        2,
        0,
        r"(\d+) pages are mine; (\d+) pages of code are for all below to run, not to write; "
        r"(\d+) pages are for VTL1 to write, not to run",
    )
    assert all(int(count) > 0 for count in pages.groups())
    for vp in range(1, cpus):
        story.take(2, 0, f"VTL2 enabled on VP{vp}")
    story.take(1, 0, r"\d+ pages are mine: VTL0 can neither read nor write them")
    for vp in range(1, cpus):
        story.take(1, 0, f"VTL1 enabled on VP{vp}")
    back = "back from above: VTL0, VTL1 and VTL2 are enabled on this VP"
    story.take(0, 0, back)
    for vp in range(1, cpus):
        story.take(1, vp, "secure kernel: set up on this VP")
        story.take(2, vp, "supervisor: set up on this VP")
        story.take(0, vp, back)
    tags = {story.take(0, vp, rf"VTL1 signs {1000 + vp} and VTL2 attests it: (0x\w+)")[1] for vp in range(cpus)}
    assert len(tags) == cpus


def check_mistakes_of_vtl1(story: Story, vp: int) -> None:
    story.take(0, vp, "having VTL1 make its mistakes")
    code = story.take(1, vp, f"patching my own code at {GPA}")[1]
    story.take(2, vp, f"intercept: VTL1 writes GPA {code} at {RIP}")
    story.take(2, vp, "refused and logged: #GP for VTL1")
    story.take(1, vp, "the patch took #GP: my code is as it was")
    data = story.take(1, vp, f"running a plug-in that I have put at {GPA}")[1]
    story.take(2, vp, f"intercept: VTL1 executes GPA {data} at RIP {data}")
    story.take(2, vp, "refused and logged: #GP for VTL1")
    story.take(1, vp, "the plug-in took #GP: my data does not run")
    story.take(0, vp, "VTL1 is no more trusted by VTL2 than I am by VTL1")


def check_levels(run: Run, cpus: int) -> None:
    story = Story(run)
    last = cpus - 1
    check_start(story, cpus)

    key = story.take(0, 0, f"reading the key of VTL1 at {GPA}")[1]
    story.take(1, 0, f"intercept: VTL0 reads GPA {key} at {RIP}")
    story.take(1, 0, "refused: #GP for VTL0")
    story.take(0, 0, "the read took #GP; going on without it")

    check_mistakes_of_vtl1(story, last)

    log = story.take(0, last, f"reading the log of VTL2 at {GPA}")[1]
    story.take(2, last, f"intercept: VTL0 reads GPA {log} at {RIP}")
    story.take(2, last, "refused and logged: #GP for VTL0")
    story.take(1, last, PASSED_DOWN)
    story.take(0, last, "the read took #GP; going on without it")

    board = story.take(2, 0, f"VTL0 may not write to {GPA}, say I")[1]
    story.take(1, 0, f"VTL0 may not write to GPA {board}, say I too")
    story.take(0, 0, f"writing to a page that both have closed, GPA {board}")
    story.take(1, 0, f"intercept: VTL0 writes GPA {board} at {RIP}")
    story.take(1, 0, "allowed by me: VTL0 tries again")
    story.take(2, 0, f"intercept: VTL0 writes GPA {board} at {RIP}")
    story.take(2, 0, "allowed, and nobody is above me: the write may land")
    story.take(1, 0, PASSED_DOWN)
    story.take(0, 0, "the write landed: first VTL1 was asked, then VTL2")

    # Each VP has three tags made.
    story.take(2, 0, rf"audit: {3 * cpus} tags attested; attempts of VTL1: 2, of VTL0: 1")
    story.take(0, 0, "done")
    story.end()
    assert (run.result.outcome, run.result.status) == (Outcome.POWER_OFF, 0)
    assert run.result.user_exits["MEMORY_FAULT"] == 6


@pytest.mark.tlfs("vsm.three", "protection.order", "intercepts.nested-order")
@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_each_level_supervises_the_one_below(cpus: int) -> None:
    check_levels(run_levels(cpus), cpus)


def test_on_vmx() -> None:
    check_levels(run_levels(2, vendor="vmx"), 2)


@pytest.mark.parametrize("seed", range(5))
def test_under_other_schedules(seed: int) -> None:
    check_levels(run_levels(2, seed=seed), 2)


def test_without_a_third_vtl_it_says_so_and_powers_off() -> None:
    run = run_levels(1, vtls=2)
    assert run.lines[-2:] == [(0, 0, "no three VTLs here: there is no VTL2"), (0, 0, "done")]
    assert (run.result.outcome, run.result.vtl_switches) == (Outcome.POWER_OFF, 0)
