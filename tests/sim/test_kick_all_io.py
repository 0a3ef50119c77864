"""A kick while a vCPU completes I/O: the instruction is finished, `complete_exit` counts as being inside."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.test_kick_all import on_both_hosts, wait_for
from tests.unit.kvm.core_rig import DONE, Machine, Script
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.kvm.kvm_run import Intr, Io
from vtlkit.kvm.vcpu import Vcpu

RESULT_PORT = 0x98


def between_instructions(vcpu: Vcpu) -> bool:
    return vcpu.engine.at_boundary


@on_both_hosts
@pytest.mark.parametrize("by_run", [True, False])
def test_a_kick_does_not_keep_io_from_being_finished(by_run: bool, make_host: Callable[[], RunnableHost]) -> None:
    """EINTR leaves a vCPU between two instructions, and `complete_exit` gets it there."""

    def program(_engine: object) -> Script:
        yield ops.In(RESULT_PORT, 4)
        yield ops.Out(DONE, 4)

    machine = Machine(program, host=make_host())
    vm, vcpu = machine.vm, machine.vcpu

    def user() -> None:
        exit_ = vcpu.run()
        assert isinstance(exit_, Io)
        exit_.data = 0x1234
        vm.kick_all_running_vcpus()
        assert not between_instructions(vcpu)
        if by_run:
            assert isinstance(vcpu.run(), Intr)
        else:
            assert vcpu.complete_exit() is None
        assert between_instructions(vcpu)
        assert vcpu.engine.regs.rax == 0x1234
        assert isinstance(vcpu.run(), Intr)
        vm.resume_all_kicked_vcpus()
        exit_ = vcpu.run()
        assert isinstance(exit_, Io)
        assert exit_.data == 0x1234

    machine.run(user)


@on_both_hosts
def test_an_exit_that_is_being_completed_is_waited_for(make_host: Callable[[], RunnableHost]) -> None:
    """`complete_exit` counts as being inside: its instruction's second half stands still in a device's callback."""
    host = make_host()
    there, go_on, returned = (host.cell(False, name) for name in ("there", "go-on", "returned"))

    def program(_engine: object) -> Script:
        yield ops.In(RESULT_PORT, 1)
        yield ops.Out(DONE, 1, 0)

    machine = Machine(program, host=host)
    vcpu, vm = machine.vcpu, machine.vm

    def slow() -> None:
        there.store(True)
        while not go_on.load():
            host.relax()

    def user() -> None:
        assert isinstance(vcpu.run(), Io)
        machine.cpu.on_run = slow
        assert vcpu.complete_exit() is None

    def kicker() -> None:
        wait_for(machine, there.load)
        vm.kick_all_running_vcpus()
        returned.store(True)
        vm.resume_all_kicked_vcpus()

    def watcher() -> None:
        wait_for(machine, there.load)
        for _ in range(50):
            host.relax()
        assert not returned.load()
        go_on.store(True)

    machine.run(user, kicker, watcher)
    assert returned.load()
