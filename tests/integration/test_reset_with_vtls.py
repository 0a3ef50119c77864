"""A partition reset while processors are in every VTL: active, passed over, waiting for a start; twice in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.scripted_machine import ENTRY, LONG_NS, ScriptedMachine, spin
from tests.unit.vmm.vsm.vsm_rig import FREE, PAGE, Guest, Script, initial_context
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import MpState
from vtlkit.vmm.machine import Outcome, RunResult
from vtlkit.vmm.vsm.vtl_wait import VtlWait

SECRET = 0x5EC2E7
CPUS = 3
PROTECT, ZERO, DENY = 1 | 0xF << 1, 1 << 5, 1 << 6
VINA = 0x170


def run(
    tmp_path: Path, host: RunnableHost, *, zero: bool = True, design: VtlWait = VtlWait.POLL
) -> tuple[ScriptedMachine, RunResult]:
    """VP 0 goes up to VTL 2 and resets there; VP 1 is in VTL 1, VP 2 is being started."""

    def upper(guest: Guest) -> Script:
        rig = guest.rig
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        if guest.vp:
            rig.log.append("in VTL1")
            yield from spin()
        config = PROTECT | DENY | (ZERO if zero else 0)
        assert (yield from guest.set(Name.HvRegisterVsmPartitionConfig, config)) == HvStatus.SUCCESS
        assert (yield from guest.set(Name.HvRegisterVsmVina, VINA)) == HvStatus.SUCCESS
        rig.write(FREE + guest.vtl * PAGE, SECRET.to_bytes(8, "little"))
        yield from guest.protect([FREE + guest.vtl * PAGE], 0)
        if guest.vtl == 1:
            yield from guest.enable(2)
            assert (yield from guest.enable_vp_vtl(1, vp=1)) == HvStatus.SUCCESS
            assert (yield from guest.start_vp(1, 1)) == HvStatus.SUCCESS
            while "in VTL1" not in rig.log:
                yield ops.Compute(10)
            rig.log.remove("in VTL1")
            yield from guest.vtl_call()
        assert (yield from guest.start_vp(2, 0, context=initial_context(ENTRY))) == HvStatus.SUCCESS
        yield ops.Out(0xCF9, 1, 6)
        yield from spin()

    def vtl0(guest: Guest) -> Script:
        if guest.vp:
            yield from spin()
        scripted.log.append("boot")
        check_start(guest)
        if scripted.log.count("boot") == 3:
            scripted.log.append([guest.rig.read(FREE + vtl * PAGE, 8) for vtl in (1, 2)])
            # Nothing denies a start any more, and every processor waits for one.
            for vp in range(1, CPUS):
                assert (yield from guest.start_vp(vp, 0, context=initial_context(ENTRY))) == HvStatus.SUCCESS
            yield from guest.end()
        yield from guest.enable(1)
        yield from guest.vtl_call()

    scripted = ScriptedMachine(tmp_path, vtl0, upper, host=host, cpus=CPUS, vtls=3, vtl_wait=design)
    return scripted, scripted.run(LONG_NS)


def check_start(guest: Guest) -> None:
    """VTL 0 alone, on every processor, with nothing left of what was."""
    partition: Any = guest.rig.partition
    assert sorted(partition.vtls) == [0]
    for vp in partition.vps:
        assert sorted(vp.vcpus) == [0]
        assert vp.active.load() == 0
        assert vp.starting.load() is None
        assert vp._passed == 0
        assert [vp.vina.read(vtl) for vtl in range(1, 16)] == [0] * 15
        assert not vp.vcpus[0].startup_blocked.load()
        assert not vp.vcpus[0].vtl_inactive
        assert vp.index == 0 or vp.vcpus[0].get_mp_state() is MpState.UNINITIALIZED
    attributes = partition.vtl0.vm.memory.attributes
    assert [int(attributes.at(FREE + vtl * PAGE)) for vtl in (1, 2)] == [7, 7]


@pytest.mark.tlfs("vsm.reset", "discovery.start-in-vtl0", "protection.zero-on-reset")
@pytest.mark.parametrize("zero", [True, False])
def test_a_reset_in_the_middle_of_everything(tmp_path: Path, zero: bool) -> None:
    scripted, result = run(tmp_path, Simulator(), zero=zero)
    assert scripted.log == ["boot"] * 3 + [[0, 0] if zero else [SECRET, SECRET]]
    assert result.outcome is Outcome.POWER_OFF


@pytest.mark.tlfs("vsm.reset")
@pytest.mark.parametrize("seed", range(6))
def test_under_other_schedules(tmp_path: Path, seed: int) -> None:
    scripted, _ = run(tmp_path, Simulator(seed=seed, instrument=True))
    assert scripted.log == ["boot"] * 3 + [[0, 0]]


def test_on_threads(tmp_path: Path) -> None:
    with ThreadHost() as host:
        scripted, _ = run(tmp_path, host)
    assert scripted.log == ["boot"] * 3 + [[0, 0]]


@pytest.mark.parametrize("design", [design for design in VtlWait if design is not VtlWait.POLL], ids=str)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_whichever_way_inactive_vtls_are_waited_for(tmp_path: Path, design: VtlWait, seed: int | None) -> None:
    host = Simulator() if seed is None else Simulator(seed=seed, instrument=True)
    scripted, _ = run(tmp_path, host, design=design)
    assert scripted.log == ["boot"] * 3 + [[0, 0]]
    with ThreadHost() as threads:
        scripted, _ = run(tmp_path, threads, design=design)
    assert scripted.log == ["boot"] * 3 + [[0, 0]]
