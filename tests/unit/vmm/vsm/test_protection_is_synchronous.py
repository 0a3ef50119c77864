"""What a VTL takes away is gone when its hypercall returns: on every processor, whatever that one was doing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import FREE, Guest, Script, VsmRig, input_vtl
from vtlkit.engine.scripted import ScriptedEngine, ops
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Io, KvmRun, Vcpu
from vtlkit.vmm.vsm.vp import Vp

READ, ALL = 1, 15
PORT = 0x80
TURNS = 200
"""How long the device of the suspended instruction takes, in turns of other tasks."""


def by_mask(guest: Guest) -> Script:
    yield from guest.protect([FREE], READ)


def by_mask_up_to_a_bad_page(guest: Guest) -> Script:
    yield from guest.protect([FREE, 1 << 40], READ)


def by_default_mask(guest: Guest) -> Script:
    assert (yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | READ << 1)) == HvStatus.SUCCESS


def by_default_mask_of_another_processor(guest: Guest) -> Script:
    status = yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | READ << 1, vp=1)
    assert status == HvStatus.SUCCESS


class SlowDeviceRig(VsmRig):
    """A device that answers VP 1's access only after VTL 1 of VP 0 has begun to protect memory; `ends`: never, as the
    access ends the run."""

    ends = False

    def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
        assert isinstance(exit_, Io), exit_
        self.log.append("in the exit")
        for _ in range(TURNS):
            self.host.relax()
        while "protecting" not in self.log:
            self.host.relax()
        for _ in range(TURNS):
            self.host.relax()
        if self.ends:
            self.end()
            return
        exit_.data = 0x41
        self.log.append("answered")


def make(access: Any, protect: Any, host: RunnableHost, *, ending: bool = False) -> tuple[SlowDeviceRig, list[Any]]:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        if protect is by_default_mask_of_another_processor:
            yield from guest.enable_vp_vtl(1, vp=1)
        elif protect is not by_default_mask:
            yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | ALL << 1)
        guest.note("ready")
        while "in the exit" not in guest.rig.log:
            yield ops.Compute(10)
        guest.note("protecting")
        yield from protect(guest)
        other = guest.rig.partition.vtl0.vm.vcpus[1]
        seen.append(("answered" in guest.rig.log, other.may_run_on_old_map()))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    def suspended(guest: Guest) -> Script:
        while "ready" not in guest.rig.log:
            yield ops.Compute(10)
        yield access
        while True:
            yield ops.Compute(10)

    guests = {(0, 0): vtl0, (0, 1): vtl1, (1, 0): suspended, (1, 1): suspended}
    rig = SlowDeviceRig(guests, cpus=2, host=host)
    rig.ends = ending
    if not host.deterministic:
        unlimited(rig)
    return rig, seen


def unlimited(rig: VsmRig) -> None:
    """Engines that nobody gives a budget."""
    create = rig.factory.create

    def make_engine(vcpu_name: str) -> ScriptedEngine:
        engine = create(vcpu_name)
        engine.left = 1 << 62
        return engine

    rig.factory.create = make_engine  # type: ignore[method-assign]
    for vcpu in rig.partition.all_vcpus():
        vcpu.engine.left = 1 << 62  # type: ignore[attr-defined]


HOWS = [by_mask, by_mask_up_to_a_bad_page, by_default_mask, by_default_mask_of_another_processor]


@pytest.mark.parametrize("protect", HOWS)
@pytest.mark.parametrize("access", [ops.In(PORT, 1), ops.Out(PORT, 1, 1)])
@pytest.mark.tlfs("protection.synchronous")
def test_a_suspended_access_is_over_before_the_hypercall_returns(access: Any, protect: Any) -> None:
    rig, seen = make(access, protect, Simulator())
    rig.run()
    assert seen == [(True, False)]


@pytest.mark.parametrize("protect", HOWS)
@pytest.mark.tlfs("protection.synchronous")
def test_on_threads(protect: Any) -> None:
    with ThreadHost() as host:
        rig, seen = make(ops.In(PORT, 1), protect, host)
        rig.run()
    assert seen == [(True, False)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.tlfs("protection.synchronous")
def test_under_other_schedules(seed: int) -> None:
    rig, seen = make(ops.In(PORT, 1), by_mask, Simulator(seed=seed))
    rig.run()
    assert seen == [(True, False)]


@pytest.mark.parametrize("realtime", [False, True])
def test_an_access_that_ends_the_run_is_not_waited_for(realtime: bool) -> None:
    """Its instruction is never finished: the VTL that waits for it must end with the run."""
    if realtime:
        with ThreadHost() as host:
            make(ops.Out(PORT, 1, 1), by_mask, host, ending=True)[0].run()
    else:
        make(ops.Out(PORT, 1, 1), by_mask, Simulator(), ending=True)[0].run()


def test_a_processor_that_computes_is_not_waited_for_long() -> None:
    """It leaves the guest at the kick; and those that sleep are not waited for at all."""

    def vtl1(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | ALL << 1)
        for number in range(50):
            assert (yield from guest.protect([FREE], READ if number & 1 else ALL, vtl=input_vtl(0))) == 1 << 32
            memories = [vcpu.may_run_on_old_map() for vcpu in guest.rig.partition.vtl0.vm.vcpus]
            assert memories == [False, False, False]
        guest.note("done")
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    def spinning(_guest: Guest) -> Script:
        while True:
            yield ops.Compute(1000)

    def halted(_guest: Guest) -> Script:
        yield ops.Hlt()

    for host in (Simulator(), Simulator(seed=3)):
        rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1, (1, 0): spinning, (2, 0): halted}, cpus=3, host=host)
        rig.run()
        assert rig.log == ["done"]
