"""Installing an intercept against a processor that runs what is about to be intercepted, under many schedules."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.intercept_guests import PORT, install, must
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.hvdef.intercepts import HvInterceptType as Type
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Io, KvmRun, Vcpu
from vtlkit.kvm.vm import Vm
from vtlkit.vmm.vsm.vp import Vp

SEEDS = range(40)
SLICE_NS = 200
TURNS = 10
X = 4


class Rig(VsmRig):
    """Ports are devices that take their time, and note that they were asked."""

    def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
        assert isinstance(exit_, Io), exit_
        for _ in range(TURNS):
            self.host.relax()
        self.log.append("out")


def executed(guest: Guest) -> int:
    """CPUIDs that VTL 0 of processor 1 has executed."""
    return guest.rig.partition.vps[1].vcpus[0].statistics.cpuid_exits


def installing(kind: Type, parameter: int, use: Any, seed: int) -> list[Any]:
    """VTL1 of processor 0 installs; VTL0 of processor 1 goes on and on. What happened, in order."""

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_synic(1 << 16)
        if guest.vp == 0:
            assert (yield from guest.enable_vp_vtl(1, vp=1)) == HvStatus.SUCCESS
            yield from guest.vtl_return()
            yield from must(install(guest, kind, parameter, 2 if kind == Type.HvInterceptTypeX64IoPort else X))
            guest.note("installed")
            guest.note(executed(guest))
            yield from guest.vtl_return()
        yield from guest.vtl_return()
        guest.note(executed(guest))
        guest.note(("told", guest.entry_reason, len(guest.take_message())))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        guest.note("enabled")
        while "ready" not in guest.rig.log:
            yield ops.Compute(3)
        yield from guest.vtl_call()
        while True:
            yield ops.Compute(100)

    def other(guest: Guest) -> Script:
        while "enabled" not in guest.rig.log:
            yield ops.Compute(5)
        yield from guest.vtl_call()
        guest.note("ready")
        while True:
            yield use

    simulator = Simulator(seed=seed, instrument=True, slice_ns=SLICE_NS)
    rig = Rig({(0, 0): vtl0, (0, 1): vtl1, (1, 0): other, (1, 1): vtl1}, cpus=2, host=simulator)
    return rig.run().log


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("kind", "parameter", "use"),
    [
        (Type.HvInterceptTypeX64IoPort, PORT, ops.Out(PORT, 1)),
        (Type.HvInterceptTypeX64GlobalCpuid, 0, ops.Cpuid()),
    ],
    ids=["port", "cpuid"],
)
@pytest.mark.tlfs("intercepts.io-port", "intercepts.cpuid")
def test_when_the_hypercall_has_returned_nothing_goes_by(kind: Type, parameter: int, use: Any, seed: int) -> None:
    log = installing(kind, parameter, use, seed)
    assert log[-1] == ("told", 3, 256)
    assert "out" not in behind(log)
    assert len({entry for entry in behind(log) if isinstance(entry, int)}) <= 1


def behind(log: list[Any]) -> list[Any]:
    """What happened after the hypercall; nothing, if the other processor was told before it returned."""
    return log[log.index("installed") + 1 :] if "installed" in log else []


def test_without_the_wait_something_goes_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """The known-bad variant: the test above would find it."""
    monkeypatch.setattr(Vm, "wait_for_intercepts", lambda self, given_up: None)
    found = False
    for seed in SEEDS:
        log = installing(Type.HvInterceptTypeX64IoPort, PORT, ops.Out(PORT, 1), seed)
        found = found or "out" in behind(log)
    assert found
