"""A wait call is kicked as `run` is: refused while the kick holds, counted, and waited for by no kicker for ever."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.known_bad import fails
from tests.sim.test_kick_all import in_every_design, on_both_hosts, sleeping, wait_for
from tests.unit.kvm.core_rig import Machine
from vtlkit.checker.scenarios import simulator
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Deadlock
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.kick_all import KickAll, KickDesign
from vtlkit.kvm.wait_state import WaitResult, WaitType


def waits_that_begin_again(host: RunnableHost, design: KickDesign) -> None:
    """A task that calls `wait` again and again; the kick returns all the same, and a wait after the resume waits."""
    machine = Machine(host=host)
    vcpu, vm = machine.vcpu, machine.vm
    vm.set_kick_design(design)
    through = host.cell(False, "kicked-and-resumed")
    results: list[WaitResult] = []

    def user() -> None:
        while not through.load():
            results.append(vcpu.wait(WaitType.INACTIVE_VTL))
        while vcpu.wait(WaitType.INACTIVE_VTL) is WaitResult.INTR:
            pass

    def kicker() -> None:
        for _ in range(host.choose(30, "linger")):
            through.load()
        vm.kick_all_running_vcpus()
        vm.resume_all_kicked_vcpus()
        through.store(True)
        vcpu.signal()
        wait_for(machine, lambda: bool(results))
        vcpu.nmi()

    machine.run(user, kicker)


@in_every_design
def test_a_wait_call_is_kicked_as_run_is(design: KickDesign) -> None:
    for seed in range(400):
        waits_that_begin_again(simulator(seed), design)
    for _ in range(10):
        waits_that_begin_again(ThreadHost(), design)


def test_a_wait_call_that_is_let_in_while_a_kicker_waits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The INTR before has taken the request: nothing ends the wait, and the kicker waits for it."""
    monkeypatch.setattr(KickAll, "refuses_wait", lambda _kicks, _vcpu: False)

    def attempt(seed: int) -> None:
        waits_that_begin_again(simulator(seed), KickDesign.CLEARED_BY_FIRST_EXIT)

    assert fails(attempt, errors=(Deadlock,))


@on_both_hosts
def test_a_busy_loop_of_wait_calls_is_counted_and_stops_nobody(make_host: Callable[[], RunnableHost]) -> None:
    machine = Machine(host=make_host())
    vcpu, vm = machine.vcpu, machine.vm
    kicked = machine.host.cell(False, "kicked")

    def user() -> None:
        wait_for(machine, kicked.load)
        while vcpu.wait(WaitType.INACTIVE_VTL) is WaitResult.INTR:
            pass

    def kicker() -> None:
        vm.kick_all_running_vcpus()
        kicked.store(True)
        queue.prepare()
        machine.host.schedule(machine.host.now_ns() + 1_000_000)
        queue.finish()
        assert vcpu.statistics.kicked_entries > 0
        vm.resume_all_kicked_vcpus()
        vcpu.nmi()

    queue = machine.host.wait_queue("kicker")
    machine.run(user, kicker)


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
