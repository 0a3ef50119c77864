"""One time-stamp counter for all vCPUs, whenever they were created."""

from __future__ import annotations

from vtlkit.engine.scripted import ScriptedFactory
from vtlkit.host.sim import Simulator
from vtlkit.kvm.uapi import Kvm


def _pass_time(host: Simulator, duration_ns: int) -> None:
    host.spawn(lambda: host.consume_ns(duration_ns), "time")
    host.run()


def test_late_vcpus_read_the_same_and_a_reset_starts_all_again() -> None:
    host = Simulator()
    vm = Kvm(host, ScriptedFactory({})).create_vm()
    early = vm.create_vcpu(0)
    _pass_time(host, 5000)
    late = vm.create_vcpu(1)
    assert early.guest_tsc() == late.guest_tsc() == vm.tsc_at(5000)
    vm.reset()
    for vcpu in (early, late):
        vcpu.reset_to_power_on()
        _pass_time(host, 700)
    assert early.guest_tsc() == late.guest_tsc() == vm.tsc_at(1400)


def test_a_write_moves_one_vcpu_alone() -> None:
    host = Simulator()
    vm = Kvm(host, ScriptedFactory({})).create_vm()
    first, second = vm.create_vcpu(0), vm.create_vcpu(1)
    _pass_time(host, 100)
    first.write_tsc(1 << 40)
    assert first.guest_tsc() == 1 << 40
    assert second.guest_tsc() == vm.tsc_at(100)
    assert first.tsc_adjust == (1 << 40) - vm.tsc_at(100)
