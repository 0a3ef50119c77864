"""Interrupts against targets that change, in two namespaces of either form; and variants that must be caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.known_bad import fails, scenario
from tests.unit.kvm.core_rig import script
from tests.unit.kvm.namespace_worlds import BOTH_FORMS, send
from vtlkit.checker.scenarios import simulator
from vtlkit.checker.scenarios.namespaces_rig import Form, Namespaces
from vtlkit.host.api import RunnableHost
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.events import PENDING_INIT, PENDING_SIPI, accept_apic_events
from vtlkit.kvm.ioapic import IoApic
from vtlkit.kvm.ipi import IpiBus
from vtlkit.kvm.lapic_core import LapicCore
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.namespaces import ApicNamespaces
from vtlkit.kvm.requests import Req
from vtlkit.kvm.routing import Irqchip, IrqchipRoute
from vtlkit.x86 import apic as regs
from vtlkit.x86.apic import DeliveryMode

VECTOR = 0x50
SENDS = 4
SEEDS = range(150)
REAL_RUNS = 20

Race = Callable[[RunnableHost, Form], None]


def idle(host: RunnableHost, form: Form, *, irqchip: bool = False) -> Namespaces:
    return Namespaces(host, form, [[script()] * 2] * 2, irqchip=irqchip)


def init_and_sipi(host: RunnableHost, form: Form) -> None:
    """Processor 1 is started anew in namespace 1 while both its vCPUs are sent interrupts."""
    machine = idle(host, form)
    steady, restarted = machine.vcpus[0][1], machine.vcpus[1][1]

    def interrupts() -> None:
        for number in range(SENDS):
            send(machine.vcpus[0][0], VECTOR + number, 1)

    def starts() -> None:
        for icr in (VECTOR, regs.APIC_DM_INIT | regs.APIC_INT_ASSERT, regs.APIC_DM_STARTUP | 0x9F):
            send(machine.vcpus[1][0], icr, 1)

    def restarting() -> None:
        while restarted.mp_state is not MpState.RUNNABLE or restarted.engine.regs.rip != 0:
            accept_apic_events(restarted)
            host.relax()

    machine.run(interrupts, starts, restarting)
    assert steady.apic.irr.load() == sum(1 << VECTOR + number for number in range(SENDS))
    assert not steady.events.apic_events.load()
    assert restarted.apic.irr.load() & ~(1 << VECTOR) == 0
    assert not any(restarted.events.apic_events.test(bit) for bit in (PENDING_INIT, PENDING_SIPI))
    for processors in machine.vcpus:
        assert not processors[0].apic.irr.load()


def moving_id(host: RunnableHost, form: Form) -> None:
    """The local APIC of processor 1 in namespace 1 takes another ID while both namespaces send to both IDs."""
    machine = idle(host, form)
    moved = host.cell(False, "moved")

    def move() -> None:
        machine.vcpus[1][1].apic.mmio_write(regs.APIC_ID, 4, 7 << 24)
        moved.store_release(True)

    def sender(namespace: int) -> Callable[[], None]:
        def send_to_both() -> None:
            target = machine.namespace(namespace)
            for _ in range(SENDS):
                certain = moved.load_acquire()
                new = target.deliver_interrupt(DeliveryMode.FIXED, VECTOR, 7)
                old = target.deliver_interrupt(DeliveryMode.FIXED, VECTOR + 1, 1)
                if namespace == 0:
                    assert (new, old) == (0, 1)
                elif certain:
                    assert (new, old) == (1, 0)

        return send_to_both

    machine.run(move, sender(0), sender(1), sender(1))
    assert not machine.vcpus[0][1].apic.irr.test(VECTOR)
    assert machine.namespace(1).deliver_interrupt(DeliveryMode.FIXED, VECTOR, 7) == 1
    assert not any(processors[0].apic.irr.load() for processors in machine.vcpus)


RACES = pytest.mark.parametrize("race", [init_and_sipi, moving_id])


@BOTH_FORMS
@RACES
def test_no_interrupt_crosses_or_is_lost_while_its_target_changes(race: Race, form: Form) -> None:
    for seed in SEEDS:
        race(simulator(seed), form)


@BOTH_FORMS
@RACES
def test_nor_on_threads(race: Race, form: Form) -> None:
    for _ in range(REAL_RUNS):
        race(ThreadHost(), form)


def two_tables(seed: int) -> None:
    """A line drives pin 5 in group 0; then pin 6 in group 0, and another line pin 5 in group 1. Vectors follow pins."""
    machine = idle(simulator(seed), Form.GROUPS, irqchip=True)
    vm = machine.vms[0]
    ioapic = vm.ioapic
    assert ioapic is not None
    for pin in (5, 6):
        ioapic.mmio_write(regs.IOAPIC_REG_SELECT, 4, 0x10 + 2 * pin)
        ioapic.mmio_write(regs.IOAPIC_REG_WINDOW, 4, VECTOR + pin)
    vm.set_gsi_routing([IrqchipRoute(30, Irqchip.IOAPIC, 5)])

    def drive() -> None:
        assert vm.irq_line(30, 1) == 1

    def change() -> None:
        vm.set_gsi_routing([IrqchipRoute(30, Irqchip.IOAPIC, 6), IrqchipRoute(31, Irqchip.IOAPIC, 5, group=1)])

    machine.run(drive, change)
    assert machine.vcpus[0][0].apic.irr.load() in (1 << VECTOR + 5, 1 << VECTOR + 6)
    assert not machine.vcpus[1][0].apic.irr.load(), "a pin of one table in the group of another"


def test_a_line_that_is_driven_during_a_change_is_of_one_table() -> None:
    for seed in SEEDS:
        two_tables(seed)


# --- known bad --------------------------------------------------------------------------------------------------------


def test_a_map_of_all_groups_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one matching function had forgotten the mask."""
    enable = ApicNamespaces.enable_groups

    def share(self: ApicNamespaces, bits: int) -> None:
        enable(self, bits)
        first = self.at(0).bus
        for namespace in self:
            namespace.bus._members, namespace.bus._generation = first._members, first._generation

    monkeypatch.setattr(ApicNamespaces, "enable_groups", share)
    monkeypatch.setattr(IpiBus, "by_apic_id", lambda _self, _apic_id: None)
    assert fails(scenario("apic-namespaces.groups"))
    assert fails(lambda seed: moving_id(simulator(seed), Form.GROUPS))


def test_an_end_of_interrupt_that_is_matched_by_the_present_route_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    eoi = IoApic.eoi

    def by_route(self: IoApic, vcpu_id: int, vector: int, bus: IpiBus | None = None) -> None:
        with self._lock:
            self._sent_on = list(self._pin_bus)
        eoi(self, vcpu_id, vector, bus)

    monkeypatch.setattr(IoApic, "eoi", by_route)
    assert fails(scenario("apic-namespaces.move"))


def test_a_line_driven_by_the_group_of_the_moment_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    set_irq = IoApic.set_irq

    def without_bus(
        self: IoApic, pin: int, level: int, source_id: int = 0, *, line_status: bool = False, bus: IpiBus | None = None
    ) -> int:
        return set_irq(self, pin, level, source_id, line_status=line_status)

    monkeypatch.setattr(IoApic, "set_irq", without_bus)
    assert fails(two_tables)


def test_telling_of_a_new_address_before_it_is_there_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = LapicCore._publish_address

    def early(self: LapicCore) -> None:
        bus = self._bus
        bus.address_changed()
        with monkeypatch.context() as patch:
            patch.setattr(IpiBus, "address_changed", lambda _bus: None)
            publish(self)

    monkeypatch.setattr(LapicCore, "_publish_address", early)
    assert fails(lambda seed: moving_id(simulator(seed), Form.VMS))


def test_a_kick_before_the_interrupt_is_there_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = LapicCore.accept_irq

    def early(self: LapicCore, mode: int, vector: int, level: int, trig_level: bool, dest_map: object = None) -> int:
        if mode != DeliveryMode.FIXED:
            return accept(self, mode, vector, level, trig_level)
        self._owner.make_request(Req.EVENT)
        self._owner.kick()
        self.irr.test_and_set(vector)
        return 1

    monkeypatch.setattr(LapicCore, "accept_irq", early)
    for name in ("apic-namespaces.vms", "apic-namespaces.groups"):
        assert fails(scenario(name))
