"""What a processor does that comes to the reset vector."""

from __future__ import annotations

import pytest

from vtlkit.engine.api import RamBlock
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.uapi import Kvm, MpState, Vcpu
from vtlkit.vmm import firmware
from vtlkit.vmm.devices.bus import PortBus
from vtlkit.vmm.firmware import FIRMWARE_PORT, FirmwarePort
from vtlkit.x86.registers import Regs, Sregs

RESUME_SEGMENT, RESUME_OFFSET = 0x1234, 0x0056
RESUME = (RESUME_SEGMENT << 4) + RESUME_OFFSET
RESUMED_PORT = 0x80
OUT_AND_HALT = bytes([0xE6, RESUMED_PORT, 0xF4])
CMOS_INDEX, CMOS_DATA, PIC = 0x70, 0x71, 0x20


class Rig:
    """A vCPU over a MiB of RAM and the ROM page; port writes are logged, CMOS answers `status`."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.host = Simulator()
        vm = Kvm(self.host, UnicornFactory()).create_vm()
        self.vcpu: Vcpu = vm.create_vcpu(0)
        vm.set_user_memory_region(MemoryRegion(0, 0, 1 << 20, RamBlock(1 << 20)))
        vm.set_user_memory_region(MemoryRegion(1, firmware.ROM_GPA, firmware.ROM_SIZE, RamBlock(firmware.ROM_SIZE)))
        memory = vm.memory
        memory.write(firmware.CODE_GPA, firmware.image())
        memory.write(firmware.ROM_GPA, firmware.rom())
        memory.write(0x467, RESUME_OFFSET.to_bytes(2, "little") + RESUME_SEGMENT.to_bytes(2, "little"))
        memory.write(RESUME, OUT_AND_HALT)
        self.log: list[tuple[int, int]] = []

    def run(self) -> list[tuple[int, int]]:
        """Up to the write that ends the firmware's part: its own port's, or the resumed code's."""

        def body() -> None:
            while True:
                exit_ = self.vcpu.run()
                assert isinstance(exit_, Io), exit_
                if not exit_.write:
                    assert (exit_.port, self.log[-1]) == (CMOS_DATA, (CMOS_INDEX, 0x0F))
                    exit_.data = self.status
                    continue
                self.log.append((exit_.port, exit_.data))
                if exit_.port in (FIRMWARE_PORT, RESUMED_PORT):
                    return

        self.host.spawn(body, "vcpu")
        self.host.run()
        return self.log


def _ends(log: list[tuple[int, int]]) -> list[int]:
    return [port for port, _ in log[1:]]


@pytest.mark.parametrize(
    ("status", "ports"),
    [(0x0A, [RESUMED_PORT]), (0x05, [PIC, RESUMED_PORT]), (0x00, [FIRMWARE_PORT]), (0xFF, [FIRMWARE_PORT])],
)
def test_the_shutdown_status_decides(status: int, ports: list[int]) -> None:
    rig = Rig(status)
    assert _ends(rig.run()) == ports
    if ports[-1] == RESUMED_PORT:
        assert rig.vcpu.get_sregs().cs.selector == RESUME_SEGMENT


def test_init_leads_to_the_reset_vector() -> None:
    rig = Rig(0x0A)
    sregs = Sregs.reset()
    sregs.cs.selector, sregs.cs.base = 0, 0
    rig.vcpu.set_sregs(sregs)
    rig.vcpu.set_regs(Regs(rip=0x500, rflags=2))
    rig.vcpu.init()
    assert _ends(rig.run()) == [RESUMED_PORT]


@pytest.mark.parametrize(("segment", "offset"), [(0xF000, 0xFFF0), (0xFFFF, 0)])
def test_a_jump_to_the_reset_vector_below_1_mib(segment: int, offset: int) -> None:
    rig = Rig(0x00)
    sregs = Sregs.reset()
    sregs.cs.selector, sregs.cs.base = segment, segment << 4
    rig.vcpu.set_sregs(sregs)
    rig.vcpu.set_regs(Regs(rip=offset, rflags=2))
    assert _ends(rig.run()) == [FIRMWARE_PORT]


def test_init_of_an_application_processor_waits_for_sipi() -> None:
    host = Simulator()
    vm = Kvm(host, UnicornFactory()).create_vm()
    vm.create_vcpu(0)
    other = vm.create_vcpu(1)
    other.start_runnable()
    other.init()

    def body() -> None:
        # A signal takes effect before INIT does, then after it.
        for _ in range(2):
            other.signal()
            other.run()

    host.spawn(body, "vcpu")
    host.run()
    assert other.get_mp_state() is MpState.INIT_RECEIVED


def test_the_port_asks_the_machine_for_a_new_start() -> None:
    posts: list[None] = []

    class Events:
        def post(self) -> None:
            posts.append(None)

    bus = PortBus()
    bus.register(FIRMWARE_PORT, 1, FirmwarePort(Events()))  # type: ignore[arg-type]
    bus.write(FIRMWARE_PORT, 1, 0)
    assert len(posts) == 1
