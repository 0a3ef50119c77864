"""Kick-all against `Vcpu.wait`, which blocks as the vCPU without entering the guest: simulator and threads."""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.test_kick_all import in_every_design, on_both_hosts, sleeping, wait_for
from tests.unit.kvm.core_rig import Machine
from vtlkit.host.api import RunnableHost
from vtlkit.kvm.kick_all import KickDesign
from vtlkit.kvm.wait_state import WaitResult, WaitType


@on_both_hosts
@in_every_design
def test_the_wait_call_is_interrupted_and_finds_its_event_after_the_resume(
    design: KickDesign, make_host: Callable[[], RunnableHost]
) -> None:
    machine = Machine(host=make_host())
    vm, vcpu, results = machine.vm, machine.vcpu, list[WaitResult]()
    vm.set_kick_design(design)

    def user() -> None:
        results.append(vcpu.wait(WaitType.INACTIVE_VTL))
        vcpu.wait_until_resumed()
        results.append(vcpu.wait(WaitType.INACTIVE_VTL))

    def kicker() -> None:
        wait_for(machine, sleeping(vcpu))
        vm.kick_all_running_vcpus()
        wait_for(machine, lambda: bool(results))
        vm.resume_all_kicked_vcpus()
        vcpu.nmi()

    machine.run(user, kicker)
    assert results == [WaitResult.INTR, WaitResult.WAKEUP]
