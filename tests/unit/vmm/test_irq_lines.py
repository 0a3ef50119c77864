"""Lines to synthetic interrupt sources, from kvm-unit-tests' port to the local APIC."""

from __future__ import annotations

from collections.abc import Callable

from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.api import LockRank
from vtlkit.host.sim import Simulator
from vtlkit.hvdef.msrs import HV_X64_MSR_SCONTROL, HV_X64_MSR_SINT0
from vtlkit.kvm.uapi import HvFeatures, Kvm, Vm, hv_cpuid_entries
from vtlkit.vmm.devices import hyperv_testdev
from vtlkit.vmm.devices.bus import PortBus
from vtlkit.vmm.irq_lines import SintLines
from vtlkit.x86 import apic

CREATE, DESTROY, PULSE, *_ = hyperv_testdev.Control


class NoConnections:
    """What makes connections, and is not asked to."""

    def connect_messages(self, connection_id: int, target_vp: int, sint: int) -> bool:
        raise AssertionError

    def connect_events(self, connection_id: int, target_vp: int, sint: int, flag: int) -> bool:
        raise AssertionError

    def disconnect_messages(self, connection_id: int) -> None:
        raise AssertionError

    def disconnect_events(self, connection_id: int) -> None:
        raise AssertionError

    def disconnect_devices(self) -> None:
        raise AssertionError


class Rig:
    """Two processors with SynICs; `messages` are written to the port in order, in a task."""

    def __init__(self) -> None:
        self.host = Simulator()
        self.vm: Vm = Kvm(self.host, UnicornFactory()).create_vm()
        self.vm.create_irqchip()
        for index in range(2):
            vcpu = self.vm.create_vcpu(index)
            vcpu.set_cpuid2(self.vm.get_supported_cpuid() + hv_cpuid_entries(HvFeatures()))
            vcpu.apic.mmio_write(apic.APIC_SPIV, 4, apic.APIC_SPIV_APIC_ENABLED | 0xFF)
        self.lines = SintLines(self.vm)
        self.bus = PortBus(self.host.lock("bus", LockRank.BUS))
        self.bus.register(
            hyperv_testdev.SYNIC_PORT,
            hyperv_testdev.SYNIC_PORTS,
            hyperv_testdev.HypervTestDevice(self.lines, NoConnections()),
        )

    def sint(self, index: int, sint: int, vector: int) -> None:
        vcpu = self.vm.vcpus[index]

        def body() -> None:
            assert vcpu.set_msr(HV_X64_MSR_SCONTROL, 1)
            assert vcpu.set_msr(HV_X64_MSR_SINT0 + sint, vector)

        self.do(body)

    def write(self, control: int, vp_index: int, sint: int) -> None:
        self.do(lambda: self.bus.write(hyperv_testdev.SYNIC_PORT, 4, control << 16 | vp_index << 8 | sint))

    def do(self, body: Callable[[], None]) -> None:
        self.host.spawn(body, "vcpu")
        self.host.run()

    def pending(self, index: int, vector: int) -> bool:
        return self.vm.vcpus[index].apic.irr.test_and_clear(vector)


def test_a_line_reaches_the_sint_that_it_was_made_for() -> None:
    rig = Rig()
    rig.sint(0, 3, 0x61)
    rig.sint(1, 3, 0x62)
    rig.sint(1, 4, 0x63)
    for vp_index, sint in ((0, 3), (1, 3), (1, 4)):
        rig.write(CREATE, vp_index, sint)
    rig.write(PULSE, 1, 3)
    assert (rig.pending(0, 0x61), rig.pending(1, 0x62), rig.pending(1, 0x63)) == (False, True, False)
    rig.write(PULSE, 1, 4)
    rig.write(PULSE, 0, 3)
    assert (rig.pending(0, 0x61), rig.pending(1, 0x62), rig.pending(1, 0x63)) == (True, False, True)


def test_lines_that_are_not_there_do_nothing() -> None:
    rig = Rig()
    rig.sint(0, 3, 0x61)
    rig.write(PULSE, 0, 3)
    assert not rig.pending(0, 0x61)
    for _ in range(2):
        rig.write(CREATE, 0, 3)
    rig.write(PULSE, 0, 3)
    assert rig.pending(0, 0x61)
    for _ in range(2):
        rig.write(DESTROY, 0, 3)
    rig.write(PULSE, 0, 3)
    assert not rig.pending(0, 0x61)
    for control, vp_index, sint in ((CREATE, 0, 16), (CREATE, 9, 1), (PULSE, 9, 1), (8, 0, 3), (0, 0, 3)):
        rig.write(control, vp_index, sint)


def test_the_chips_lines_stay_and_a_reset_takes_the_others() -> None:
    rig = Rig()
    rig.sint(0, 3, 0x61)
    rig.write(CREATE, 0, 3)
    rig.write(PULSE, 0, 3)
    assert rig.pending(0, 0x61)
    assert rig.vm.routing is not None
    assert {route.gsi for route in rig.vm.routing.routes()} == set(range(25))
    rig.do(rig.lines.reset)
    assert {route.gsi for route in rig.vm.routing.routes()} == set(range(24))
    rig.write(PULSE, 0, 3)
    assert not rig.pending(0, 0x61)


def test_only_processors_that_exist_get_lines_and_lines_are_used_again() -> None:
    rig = Rig()
    for vp_index in range(256):
        for sint in range(16):
            rig.lines.create(vp_index, sint)
    rig.sint(1, 7, 0x62)
    rig.write(PULSE, 1, 7)
    assert rig.pending(1, 0x62)
    assert rig.vm.routing is not None
    assert {route.gsi for route in rig.vm.routing.routes()} == set(range(24 + 2 * 16))
    for _ in range(5000):
        rig.lines.destroy(0, 3)
        rig.lines.create(0, 3)
    rig.write(PULSE, 0, 3)
    assert {route.gsi for route in rig.vm.routing.routes()} == set(range(24 + 2 * 16))
