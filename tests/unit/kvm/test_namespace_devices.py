"""Device interrupts go to the namespace where user space routed them, in both forms; chips that groups share."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.kvm.namespace_worlds import BOTH_FORMS, CPUS, NAMESPACES, world
from vtlkit.checker.scenarios.namespaces_rig import Form, Namespaces
from vtlkit.hvdef.msrs import HV_X64_MSR_SCONTROL, HV_X64_MSR_SINT0
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.events import has_interrupt
from vtlkit.kvm.routing import HvSintRoute, Irqchip, IrqchipRoute, MsiRoute, Route, default_routing
from vtlkit.kvm.vm import Vm
from vtlkit.x86 import apic as regs

VECTOR, PIN, LEVEL, GSI = 0x61, 5, 1 << 15, 30
MSI_BASE = 0xFEE00000
TO_PROCESSOR_2 = MSI_BASE | 2 << 12


def entry(vm: Vm, pin: int, low: int, processor: int = 0) -> None:
    """The guest programs an entry of the I/O APIC."""
    assert vm.ioapic is not None
    for register, value in ((0x11 + 2 * pin, processor << 24), (0x10 + 2 * pin, low)):
        vm.ioapic.mmio_write(regs.IOAPIC_REG_SELECT, 4, register)
        vm.ioapic.mmio_write(regs.IOAPIC_REG_WINDOW, 4, value)


def remote_irr(vm: Vm) -> bool:
    assert vm.ioapic is not None
    return vm.ioapic.get_state().redirtbl[PIN] & regs.IOAPIC_REMOTE_IRR != 0


def pending(machine: Namespaces, vector: int = VECTOR) -> list[list[int]]:
    """For each namespace, the processors that have the vector in IRR."""
    return [
        [number for number, vcpu in enumerate(processors) if vcpu.apic.irr.test(vector)] for processors in machine.vcpus
    ]


def route(machine: Namespaces, namespace: int, route: Route) -> Vm:
    """User space wires a line to a namespace: one line of one Vm."""
    vm = machine.vm(namespace)
    vm.set_gsi_routing([replace(route, group=machine.group(namespace))])
    return vm


def only(namespace: int, processors: list[int]) -> list[list[int]]:
    return [processors if number == namespace else [] for number in range(NAMESPACES)]


@BOTH_FORMS
@pytest.mark.parametrize("namespace", range(NAMESPACES))
@pytest.mark.parametrize("kind", ["msi", "ioapic", "signal_msi", "sint", "msi broadcast", "x2apic broadcast"])
def test_a_hardware_interrupt_goes_where_user_space_routed_it(form: Form, namespace: int, kind: str) -> None:
    machine = world(form, "x2apic" if kind == "x2apic broadcast" else "flat", irqchip=True)
    vm, group = machine.vm(namespace), machine.group(namespace)
    expected = [2]

    def interrupt() -> None:
        if kind == "msi":
            assert route(machine, namespace, MsiRoute(GSI, TO_PROCESSOR_2, VECTOR)).irq_line(GSI, 1) == 1
        elif kind == "ioapic":
            entry(vm, PIN, VECTOR, processor=2)
            assert route(machine, namespace, IrqchipRoute(GSI, Irqchip.IOAPIC, PIN)).irq_line(GSI, 1) == 1
        elif kind == "sint":
            hv = machine.vcpus[namespace][2].hv
            assert hv.set_msr(HV_X64_MSR_SCONTROL, 1, True)
            assert hv.set_msr(HV_X64_MSR_SINT0 + 3, VECTOR, True)
            assert route(machine, namespace, HvSintRoute(GSI, 2, 3)).irq_line(GSI, 1) == 1
        elif kind == "signal_msi":
            assert vm.signal_msi(TO_PROCESSOR_2, VECTOR, group) == 1
        else:
            assert vm.signal_msi(MSI_BASE | 0xFF << 12, VECTOR, group) == CPUS
            expected[:] = range(CPUS)

    machine.run(interrupt)
    assert pending(machine) == only(namespace, expected)


@BOTH_FORMS
def test_what_names_no_group_goes_to_the_first(form: Form) -> None:
    machine = world(form, irqchip=True)

    def interrupt() -> None:
        vm = machine.vm(0)
        vm.set_gsi_routing([MsiRoute(GSI, TO_PROCESSOR_2, VECTOR)])
        assert vm.irq_line(GSI, 1) == 1
        vm.set_gsi_routing([replace(each, group=0) for each in default_routing()])
        entry(vm, PIN, VECTOR + 1)
        vm.irq_line(PIN, 1)
        assert vm.signal_msi(TO_PROCESSOR_2, VECTOR + 2) == 1

    machine.run(interrupt)
    assert pending(machine) == only(0, [2])
    assert pending(machine, VECTOR + 1) == only(0, [0])
    assert pending(machine, VECTOR + 2) == only(0, [2])


@BOTH_FORMS
def test_a_level_interrupt_is_ended_by_its_own_namespace_alone(form: Form) -> None:
    """A processor of the other namespace has an interrupt of its own with the same vector, and ends it."""
    machine = world(form, irqchip=True)
    mine, other = (machine.vcpus[namespace][0].apic for namespace in (1, 0))

    def interrupt() -> None:
        vm = route(machine, 1, IrqchipRoute(GSI, Irqchip.IOAPIC, PIN))
        entry(vm, PIN, LEVEL | VECTOR)
        assert vm.irq_line(GSI, 1) == 1
        other.accept_irq(regs.DeliveryMode.FIXED, VECTOR, 1, True)
        assert (mine.get_interrupt(), other.get_interrupt()) == (VECTOR, VECTOR)
        other.set_eoi()
        assert remote_irr(vm)
        assert pending(machine) == [[], []]
        mine.set_eoi()
        assert pending(machine) == only(1, [0]), "the line is still up"
        vm.irq_line(GSI, 0)
        mine.get_interrupt()
        mine.set_eoi()
        assert not remote_irr(vm)

    machine.run(interrupt)


class Notifier:
    def __init__(self) -> None:
        self.acks = 0

    def acked(self, _pin: int) -> None:
        self.acks += 1

    def mask_changed(self, _pin: int, _masked: bool) -> None:
        """Not of interest."""


@BOTH_FORMS
def test_who_waits_for_an_edge_to_be_ended_hears_of_it_from_its_namespace(form: Form) -> None:
    machine = world(form, irqchip=True)
    mine, other = (machine.vcpus[namespace][0].apic for namespace in (1, 0))
    notifier = Notifier()

    def interrupt() -> None:
        vm = route(machine, 1, IrqchipRoute(GSI, Irqchip.IOAPIC, PIN))
        assert vm.routing is not None
        vm.routing.register_notifier(GSI, notifier)
        entry(vm, PIN, VECTOR)
        vm.irq_line(GSI, 1)
        other.accept_irq(regs.DeliveryMode.FIXED, VECTOR, 1, False)
        assert (mine.get_interrupt(), other.get_interrupt()) == (VECTOR, VECTOR)
        other.set_eoi()
        assert notifier.acks == 0
        mine.set_eoi()
        assert notifier.acks == 1

    machine.run(interrupt)


# --- one Vm's chips and its groups ------------------------------------------------------------------------------------


def test_a_line_in_service_that_is_moved_is_ended_where_it_was_sent_and_goes_on_where_it_is_routed() -> None:
    machine = world(Form.GROUPS, irqchip=True)
    before, after = machine.vcpus[0][0].apic, machine.vcpus[1][0].apic

    def interrupt() -> None:
        vm = route(machine, 0, IrqchipRoute(GSI, Irqchip.IOAPIC, PIN))
        entry(vm, PIN, LEVEL | VECTOR)
        vm.irq_line(GSI, 1)
        assert before.get_interrupt() == VECTOR
        route(machine, 1, IrqchipRoute(GSI, Irqchip.IOAPIC, PIN))
        before.set_eoi()
        assert pending(machine) == only(1, [0])
        assert after.get_interrupt() == VECTOR
        vm.irq_line(GSI, 0)
        after.set_eoi()
        assert not remote_irr(vm)

    machine.run(interrupt)


def test_a_restored_interrupt_in_service_is_ended_in_the_group_of_its_route() -> None:
    machine, saved = world(Form.GROUPS, irqchip=True), world(Form.GROUPS, irqchip=True)
    mine, other = (machine.vcpus[namespace][0].apic for namespace in (1, 0))

    def interrupt() -> None:
        old = route(saved, 1, IrqchipRoute(GSI, Irqchip.IOAPIC, PIN))
        entry(old, PIN, LEVEL | VECTOR)
        old.irq_line(GSI, 1)
        vm = route(machine, 1, IrqchipRoute(GSI, Irqchip.IOAPIC, PIN))
        assert old.ioapic is not None
        assert vm.ioapic is not None
        vm.ioapic.set_state(replace(old.ioapic.get_state(), irr=0))
        for apic in (mine, other):
            apic.accept_irq(regs.DeliveryMode.FIXED, VECTOR, 1, True)
            apic.get_interrupt()
        other.set_eoi()
        assert remote_irr(vm)
        mine.set_eoi()
        assert not remote_irr(vm)

    machine.run(interrupt)


def test_the_pic_and_the_nmi_watchdog_are_wired_to_group_0() -> None:
    machine = world(Form.GROUPS, irqchip=True)
    vm = machine.vms[0]

    def interrupt() -> None:
        assert vm.pic is not None
        vm.irq_line(4, 1)
        assert vm.pic.output.load()
        for namespace, processors in enumerate(machine.vcpus):
            processors[0].apic.mmio_write(regs.APIC_LVT0, 4, regs.APIC_DM_EXTINT)
            assert has_interrupt(processors[0]) is (namespace == 0)
            assert processors[1].apic.set_base(regs.APIC_DEFAULT_PHYS_BASE, True), "no APIC in the way of the PIC"
            assert has_interrupt(processors[1]) is (namespace == 0)
            processors[2].apic.mmio_write(regs.APIC_LVT0, 4, regs.APIC_DM_NMI)
        vm.bus.nmi_watchdog()

    machine.run(interrupt)
    assert [processors[2].events.nmi_queued.load() for processors in machine.vcpus] == [1, 0]


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(KvmError) as caught:
        call()
    assert caught.value.errno == errno.EINVAL


BAD_TABLES: dict[str, Callable[[int], list[Route]]] = {
    "MSI": lambda missing: [MsiRoute(GSI, MSI_BASE, VECTOR, missing)],
    "negative": lambda _missing: [MsiRoute(GSI, MSI_BASE, VECTOR, -1)],
    "pin": lambda missing: [IrqchipRoute(GSI, Irqchip.IOAPIC, PIN, missing)],
    "SINT": lambda missing: [HvSintRoute(GSI, 0, 2, missing)],
    "PIC": lambda _missing: [IrqchipRoute(GSI, Irqchip.PIC_MASTER, 1, 1)],
    "two groups": lambda _missing: [
        IrqchipRoute(GSI, Irqchip.IOAPIC, PIN),
        IrqchipRoute(GSI + 1, Irqchip.IOAPIC, PIN, 1),
    ],
}


@pytest.mark.parametrize(("form", "missing"), [(Form.GROUPS, 16), (Form.VMS, 1)])
def test_bad_groups_are_refused_and_the_table_stays(form: Form, missing: int) -> None:
    vm = world(form, irqchip=True).vms[0]
    assert vm.routing is not None
    for table in BAD_TABLES.values():
        refused(lambda table=table: vm.set_gsi_routing(table(missing)))  # type: ignore[misc]
    for group in (missing, -1):
        refused(lambda group=group: vm.signal_msi(MSI_BASE, VECTOR, group))  # type: ignore[misc]
    assert vm.routing.routes() == default_routing()
