"""Kick-all's rules for its callers: who may, how often, and what is refused."""

from __future__ import annotations

import errno

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, script
from vtlkit.engine.scripted import ops
from vtlkit.host.api import LockRank
from vtlkit.host.ranks import LockOrderError
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.kick_all import KickDesign
from vtlkit.kvm.kvm_run import Intr, Io
from vtlkit.kvm.requests import Req
from vtlkit.vmm.report import describe_vcpu

DEVICE = 0x70


def machine() -> Machine:
    return Machine(script(ops.Out(DONE, 1, 0)), vcpus=2)


def test_each_kick_is_resumed_and_the_last_resume_counts() -> None:
    vm = machine().vm
    for _ in range(3):
        vm.kick_all_running_vcpus()
    for _ in range(2):
        vm.resume_all_kicked_vcpus()
        assert all(vcpu.requests.test(Req.USERSPACE_KICK) for vcpu in vm.vcpus)
    vm.resume_all_kicked_vcpus()
    assert not any(vcpu.requests.test(Req.USERSPACE_KICK) for vcpu in vm.vcpus)


def test_a_resume_without_a_kick_is_refused() -> None:
    vm = machine().vm
    with pytest.raises(KvmError, match="resumed") as refused:
        vm.resume_all_kicked_vcpus()
    assert refused.value.errno == errno.EINVAL


def test_a_kick_that_has_not_returned_cannot_be_resumed() -> None:
    rig = machine()
    vm, order = rig.vm, list[str]()

    def slow() -> None:
        order.append("inside")
        while "refused" not in order:
            rig.host.relax()

    def kicker() -> None:
        while "inside" not in order:
            rig.host.relax()
        vm.kick_all_running_vcpus()
        order.append("kicked")
        vm.resume_all_kicked_vcpus()

    def other() -> None:
        while not rig.vcpu.requests.test(Req.USERSPACE_KICK):
            rig.host.relax()
        with pytest.raises(KvmError, match="resumed"):
            vm.resume_all_kicked_vcpus()
        order.append("refused")

    rig.cpu.on_run = slow
    rig.run(rig.vcpu.run, kicker, other)
    assert order == ["inside", "refused", "kicked"]


@pytest.mark.parametrize("design", KickDesign)
def test_the_design_stays_while_anybody_is_kicked(design: KickDesign) -> None:
    vm = machine().vm
    assert vm.kicks.design is KickDesign.STICKY
    vm.set_kick_design(design)
    vm.kick_all_running_vcpus()
    with pytest.raises(KvmError, match="design") as refused:
        vm.set_kick_design(KickDesign.STICKY)
    assert refused.value.errno == errno.EBUSY
    vm.resume_all_kicked_vcpus()
    vm.set_kick_design(KickDesign.STICKY)
    assert vm.kicks.design is KickDesign.STICKY


def test_a_caller_inside_run_is_refused() -> None:
    rig = Machine(script(ops.Out(DEVICE, 1, 0), ops.Out(DONE, 1, 0)))
    refused: list[int] = []

    def write(_port: int, _size: int, _value: int) -> None:
        with pytest.raises(KvmError, match="wait for itself") as error:
            rig.vm.kick_all_running_vcpus()
        refused.append(error.value.errno)

    rig.vm.port_bus.register(range(DEVICE, DEVICE + 1), lambda _port, _size: 0, write)
    rig.run(lambda: isinstance(rig.vcpu.run(), Io))
    assert refused == [errno.EDEADLK]
    # Nothing of it has happened.
    assert not rig.vcpu.requests.test(Req.USERSPACE_KICK)


def test_a_caller_with_a_lock_above_the_ranks_is_refused() -> None:
    rig = machine()
    lock = rig.host.lock("leaf", LockRank.SLOTS)

    def caller() -> None:
        with lock:
            rig.vm.kick_all_running_vcpus()

    with pytest.raises(LockOrderError, match="takes 'vm-running'"):
        rig.run(caller)


def test_a_lock_below_is_fine() -> None:
    rig = machine()
    lock = rig.host.lock("partition", LockRank.PARTITION)

    def caller() -> None:
        with lock:
            rig.vm.kick_all_running_vcpus()
            rig.vm.resume_all_kicked_vcpus()

    rig.run(caller)


def test_a_vcpu_that_is_destroyed_while_kicked_is_forgotten() -> None:
    rig = machine()
    vm, gone = rig.vm, rig.vcpus[1]
    vm.kick_all_running_vcpus()
    gone.close()
    assert vm.vcpus == [rig.vcpu]
    vm.resume_all_kicked_vcpus()
    assert isinstance(rig.vcpu.run(), Io)


def test_a_reset_does_not_let_a_kicked_vcpu_in() -> None:
    rig = machine()
    rig.vm.kick_all_running_vcpus()
    rig.vcpu.reset_to_power_on()
    assert isinstance(rig.vcpu.run(), Intr)
    rig.vm.resume_all_kicked_vcpus()
    assert isinstance(rig.vcpu.run(), Io)


def test_another_vm_is_not_kicked() -> None:
    first, second = machine(), machine()
    first.vm.kick_all_running_vcpus()
    assert isinstance(second.vcpu.run(), Io)


def test_a_crash_report_tells_of_a_busy_loop() -> None:
    rig = machine()
    rig.vcpu.statistics.kicked_entries = 999
    assert "busy loop" not in describe_vcpu(0, rig.vcpu)
    rig.vcpu.statistics.kicked_entries = 1000
    assert "1,000 calls of run() while it was kicked: a busy loop" in describe_vcpu(0, rig.vcpu)
