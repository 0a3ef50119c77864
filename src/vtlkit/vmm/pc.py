"""The PC around the processors: its devices, where they answer, and how they are wired.

The model is the smallest that kvm-unit-tests, firmware-less kernels and Hyper-V guests find complete: QEMU's "pc"
addresses, no video, no disks. All devices are behind one bus lock (QEMU's big lock).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vtlkit.engine.api import Access, RamBlock
from vtlkit.host.api import Host, LockRank
from vtlkit.kvm.uapi import GuestMemoryError, Vm
from vtlkit.vmm import acpi, firmware
from vtlkit.vmm.devices import (
    acpi_pm,
    cmos,
    debugcon,
    debugexit,
    fw_cfg,
    hyperv_testdev,
    i8042,
    pci,
    testdev,
    uart16550,
)
from vtlkit.vmm.devices.bus import MmioBus, PortBus
from vtlkit.vmm.devices.events import MachineEvents
from vtlkit.vmm.irq_lines import IrqLines, SintLines

EPOCH_S: Final = 1_735_689_600
"""The clock chip starts every run at 2025-01-01 00:00:00 UTC: a run does not depend on the day."""
LOW_RAM_MAX: Final = 3 << 30
COM1_IRQ: Final = 4
RTC_IRQ: Final = 8
ACPI_IRQ: Final = 9
I8042_IRQ: Final = 1


class Pc:
    """Devices of one machine. `vm` is where device interrupts go: VTL 0's; `connections` are the partition's."""

    def __init__(
        self,
        host: Host,
        vm: Vm,
        ram: RamBlock,
        connections: hyperv_testdev.Connections,
        *,
        cpus: int,
        events: MachineEvents,
        console: Callable[[bytes], None],
    ) -> None:
        self._vm = vm
        lock = host.lock("bus", LockRank.BUS)
        self.lock = lock
        self.ports = PortBus(lock)
        self.mmio = MmioBus(lock)
        self.lines = IrqLines(host, vm.irq_line)
        self.hyperv_testdev = hyperv_testdev.HypervTestDevice(SintLines(vm), connections)
        low = min(ram.size, LOW_RAM_MAX)
        direct, deferred = self.lines.direct, self.lines.deferred

        self.uart = uart16550.Uart16550(direct(COM1_IRQ), console)
        self.fw_cfg = fw_cfg.FwCfg(
            ram_size=ram.size, cpus=cpus, max_cpus=cpus, read_memory=self.dma_read, write_memory=self.dma_write
        )
        self.pm = acpi_pm.AcpiPm(host, deferred(ACPI_IRQ), events)
        self.gpe = acpi_pm.GpeBlock(host, self.pm)
        self.smi = acpi_pm.SmiCommand(self.pm)
        self.rtc = cmos.CmosRtc(
            host,
            deferred(RTC_IRQ),
            epoch_s=EPOCH_S,
            memory_size=ram.size,
            low_memory=low,
            on_alarm=self.pm.rtc_alarm,
        )
        self.i8042 = i8042.I8042(direct(I8042_IRQ), events)
        self.port92 = i8042.Port92(self.i8042, events)
        self.reset_control = i8042.ResetControl(events)
        self.pci = pci.PciHostBridge()
        self._wire(events, console)
        self.tables = acpi.build_tables(range(cpus))

    def _wire(self, events: MachineEvents, console: Callable[[bytes], None]) -> None:
        ports = self.ports
        ports.register(uart16550.COM1_PORT, 8, self.uart)
        ports.register(debugexit.DEBUG_EXIT_PORT, debugexit.DEBUG_EXIT_PORTS, debugexit.DebugExit(events))
        ports.register(debugcon.DEBUGCON_PORT, 1, debugcon.DebugConsole(console))
        ports.register(testdev.IRQ_LINE_PORT, 24, testdev.TestIrqLines(self._test_line))
        ports.register(testdev.SCRATCH_PORT, testdev.SCRATCH_PORTS, testdev.ScratchPorts())
        ports.register(testdev.FLUSH_PAGE_PORT, testdev.FLUSH_PAGE_PORTS, testdev.FlushPagePort(self._flush_page))
        ports.register(hyperv_testdev.SYNIC_PORT, hyperv_testdev.SYNIC_PORTS, self.hyperv_testdev)
        ports.register(firmware.FIRMWARE_PORT, 1, firmware.FirmwarePort(events))
        ports.register(fw_cfg.FW_CFG_PORT, fw_cfg.FW_CFG_PORTS, self.fw_cfg)
        ports.register(cmos.CMOS_PORT, cmos.CMOS_PORTS, self.rtc)
        ports.register(i8042.I8042_DATA_PORT, 1, self.i8042)
        ports.register(i8042.I8042_COMMAND_PORT, 1, self.i8042)
        ports.register(i8042.PORT92, 1, self.port92)
        ports.register(i8042.RESET_CONTROL_PORT, 1, self.reset_control)
        ports.register(pci.CONFIG_ADDRESS_PORT, 1, self.pci)
        ports.register(pci.CONFIG_DATA_PORT, pci.CONFIG_DATA_PORTS, self.pci)
        ports.register(acpi_pm.PM_BASE, acpi_pm.PM_PORTS, self.pm)
        ports.register(acpi_pm.GPE0_PORT, acpi_pm.GPE0_PORTS, self.gpe)
        ports.register(acpi_pm.SMI_COMMAND_PORT, acpi_pm.SMI_PORTS, self.smi)
        self.mmio.register(testdev.MMIO_BASE, testdev.MMIO_SIZE, testdev.ScratchMmio())

    def _test_line(self, line: int, level: int) -> None:
        self._vm.irq_line(line, level)

    def _flush_page(self, gpa: int) -> None:
        """The test device asks that stale translations of a page go."""
        for vcpu in self._vm.vcpus:
            vcpu.request_tlb_flush()

    def dma_read(self, gpa: int, size: int) -> bytes | None:
        """What a device reads from memory, with VTL 0's rights; None where that may not or cannot be read."""
        memory = self._vm.memory
        if not memory.check(gpa, size, Access.READ):
            return None
        try:
            return memory.read(gpa, size)
        except GuestMemoryError:
            return None

    def dma_write(self, gpa: int, data: bytes) -> bool:
        """A device's write, with VTL 0's rights: all of it, or False and nothing."""
        memory = self._vm.memory
        if not memory.check(gpa, len(data), Access.WRITE):
            return False
        try:
            memory.write(gpa, data)
        except GuestMemoryError:
            return False
        return True

    def reset(self) -> None:
        """A machine reset: every device as after power-on, but for the clock."""
        with self.lock:
            self.port92.reset()
            self.reset_control.reset()
        self.post()

    def post(self) -> None:
        """What firmware sets up anew whenever it starts."""
        with self.lock:
            for device in (self.uart, self.fw_cfg, self.pm, self.gpe, self.smi, self.rtc, self.i8042):
                device.reset()
            self.hyperv_testdev.reset()
            self.pci.reset()
