"""GSI routing and MSIs."""

from __future__ import annotations

import pytest

from tests.unit.kvm.irqchip_rig import Machine
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.pic import Pic
from vtlkit.kvm.pit import Pit
from vtlkit.kvm.routing import (
    KVM_MAX_IRQ_ROUTES,
    PIT_IRQ_SOURCE_ID,
    HvSintRoute,
    Irqchip,
    IrqchipRoute,
    IrqRouting,
    MsiRoute,
    Route,
    default_routing,
    msi_irq,
)
from vtlkit.x86.apic import DeliveryMode

MSI_BASE = 0xFEE00000


class Board(Machine):
    """All chips, wired as a `Vm` wires them."""

    def __init__(self, cpus: int = 2) -> None:
        super().__init__(cpus)
        self.rises = 0
        self.sints: list[tuple[int, int]] = []
        self.pic = Pic(self.host, self.lock, self.rise)
        self.routing = IrqRouting(self.host, self.bus, self.pic, self.ioapic, hv_sint=self.raise_sint)
        self.pic.port_write(0x21, 1, 0)

    def rise(self, _level: bool) -> None:
        self.rises += 1

    def raise_sint(self, vcpu: int, sint: int, _group: int) -> int:
        self.sints.append((vcpu, sint))
        return 1

    def unmask(self, pin: int, entry: int) -> None:
        self.ioapic.mmio_write(0, 4, 0x10 + 2 * pin)
        self.ioapic.mmio_write(0x10, 4, entry)


def test_default_routing_drives_both_chips() -> None:
    board = Board()

    def body() -> None:
        board.unmask(4, 0x44)
        board.unmask(20, 0x54)
        assert board.routing.irq_line(4, 1) == 2, "one CPU and the PIC"
        assert board.pic.output.load()
        assert board.apics[0].irr.test(0x44)
        board.pic.port_write(0x21, 1, 0xFF)
        assert board.routing.irq_line(4, 1) == 0, "no new edge at the I/O APIC, and the PIC masks it"
        board.pic.port_write(0x21, 1, 0)
        assert board.routing.irq_line(20, 1) == 1
        assert board.routing.irq_line(21, 1) == -1, "masked"
        assert board.routing.irq_line(24, 1) == -1, "nowhere"
        board.routing.irq_line(12, 1)
        assert board.pic.get_state().slave.irr == 1 << 4

    board.run(body)


def test_msi_route_fires_on_the_rising_line() -> None:
    board = Board()
    board.routing.set_gsi_routing([MsiRoute(30, MSI_BASE | 1 << 12, 0x61), HvSintRoute(31, 1, 2)])
    assert board.routing.irq_line(30, 1) == 1
    assert board.routing.irq_line(30, 0) == -1
    assert board.apics[1].irr.test(0x61)
    assert not board.apics[0].irr.test(0x61)
    assert board.routing.irq_line(4, 1) == -1, "the table was replaced"
    assert board.routing.irq_line(31, 1) == 1
    assert board.routing.irq_line(31, 0) == -1
    assert board.sints == [(1, 2)]


@pytest.mark.parametrize(
    "routes",
    [
        [IrqchipRoute(0, Irqchip.IOAPIC, 24)],
        [IrqchipRoute(0, Irqchip.PIC_MASTER, 8)],
        [IrqchipRoute(0, Irqchip.IOAPIC, 1), IrqchipRoute(0, Irqchip.IOAPIC, 2)],
        [IrqchipRoute(0, Irqchip.IOAPIC, 1), MsiRoute(0, MSI_BASE, 0x40)],
        [MsiRoute(0, MSI_BASE, 0x40), MsiRoute(0, MSI_BASE, 0x41)],
        [MsiRoute(KVM_MAX_IRQ_ROUTES, MSI_BASE, 0x40)],
        [MsiRoute(-1, MSI_BASE, 0x40)],
        [HvSintRoute(31, 0, 16)],
        [HvSintRoute(31, 0, -1)],
        [MsiRoute(n % 4096, MSI_BASE, 0x40) for n in range(KVM_MAX_IRQ_ROUTES + 1)],
    ],
)
def test_bad_tables_are_refused_whole(routes: list[Route]) -> None:
    board = Board()
    with pytest.raises(KvmError):
        board.routing.set_gsi_routing([IrqchipRoute(9, Irqchip.IOAPIC, 9), *routes])
    assert board.routing.routes() == default_routing()


def test_split_irqchip_has_messages_only() -> None:
    machine = Machine()
    routing = IrqRouting(machine.host, machine.bus, None, None)
    assert routing.routes() == ()
    for route in (IrqchipRoute(0, Irqchip.IOAPIC, 0), HvSintRoute(0, 0, 0)):
        with pytest.raises(KvmError):
            routing.set_gsi_routing([route])
    routing.set_gsi_routing([MsiRoute(5, MSI_BASE, 0x40)])
    assert routing.irq_line(5, 1) == 1


def test_msi_decoding() -> None:
    irq = msi_irq(0x123456_00_FEE00000 | 0x7F << 12 | 1 << 3 | 1 << 2, 1 << 15 | 1 << 8 | 0x99, x2apic_format=False)
    assert (irq.dest_id, irq.vector, irq.delivery_mode) == (0x7F, 0x99, DeliveryMode.LOWEST)
    assert irq.logical
    assert irq.trig_level
    assert irq.msi_redir_hint
    assert irq.level == 1
    assert msi_irq(0x123456_00_FEE00000 | 0x7F << 12, 0x99, x2apic_format=True).dest_id == 0x1234567F


def test_signal_msi() -> None:
    board = Board()
    assert board.routing.signal_msi(MSI_BASE | 0xFF << 12, 0x70) == 2
    assert board.routing.signal_msi(MSI_BASE | 9 << 12, 0x70) == 0
    board.bus.x2apic_format = True
    with pytest.raises(KvmError):
        board.routing.signal_msi(0x01_FEE00000, 0x70)


def test_pit_ticks_are_acknowledged_through_either_chip() -> None:
    board = Board()
    pit = Pit(board.host, lambda level: board.routing.irq_line(0, level, PIT_IRQ_SOURCE_ID), board.bus.nmi_watchdog)
    board.routing.register_notifier(0, pit)

    def elapse() -> None:
        board.advance(3_000_000)
        board.host.relax()

    def body() -> None:
        board.unmask(0, 0x40)
        board.pic.port_write(0x21, 1, 0xFF)
        for port, value in ((0x43, 0x34), (0x40, 1193 & 0xFF), (0x40, 1193 >> 8)):
            pit.port_write(port, 1, value)
        elapse()
        taken = 0
        while board.apics[0].get_interrupt() == 0x40:
            board.apics[0].set_eoi()
            board.host.relax()
            taken += 1
        assert taken == 3, "held-back ticks follow each EOI of an edge interrupt"
        assert board.owners[0].eois == [], "no EOI broadcast for an edge"
        board.unmask(0, 0x10040)
        board.pic.port_write(0x21, 1, 0)
        elapse()
        taken = 0
        while board.pic.output.load():
            board.pic.read_irq()
            board.pic.port_write(0x20, 1, 0x20)
            board.host.relax()
            taken += 1
        assert taken == 3
        pit.destroy()

    board.run(body)


def test_a_line_driven_during_a_change_sees_one_table_whole() -> None:
    from vtlkit.host.sim import Simulator

    for seed in range(20):
        machine = Machine(host=Simulator(seed=seed, instrument=True))
        routing = IrqRouting(machine.host, machine.bus, None, None)
        routing.set_gsi_routing([MsiRoute(5, MSI_BASE, 0x40)])
        results: list[int] = []

        def drive(routing: IrqRouting = routing, results: list[int] = results) -> None:
            results.extend(routing.irq_line(5, 1) for _ in range(4))

        def change(routing: IrqRouting = routing) -> None:
            routing.set_gsi_routing([MsiRoute(5, MSI_BASE, 0x41)])

        for task in (drive, change):
            machine.host.spawn(task, task.__name__)
        machine.host.run()
        assert results == [1, 1, 1, 1]
