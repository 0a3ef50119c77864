"""Interrupts and APIC namespaces (docs/design/apic-namespaces.md)."""

from __future__ import annotations

from functools import partial
from typing import Final

from vtlkit.checker.scenarios import Scenario
from vtlkit.checker.scenarios.namespaces_rig import Form, Namespaces
from vtlkit.checker.scenarios.rig import APIC_BASE, DONE, EOI, Script
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.kvm.kvm_run import Intr, Io
from vtlkit.kvm.routing import Irqchip, IrqchipRoute
from vtlkit.x86.apic import APIC_ICR, APIC_ICR2, APIC_INT_ASSERT, IOAPIC_REG_SELECT, IOAPIC_REG_WINDOW

VECTORS: Final = (0x31, 0x41)
"""One for each namespace."""
_PIN: Final = 5
_LEVEL: Final = 1 << 15
_SERVICES: Final = 2


def _sender(vector: int) -> Script:
    yield ops.Write(APIC_BASE + APIC_ICR2, 4, 1 << 24)
    yield ops.Write(APIC_BASE + APIC_ICR, 4, APIC_INT_ASSERT | vector)
    yield ops.Out(DONE, 1, 0)


def ipis(host: RunnableHost, form: Form) -> None:
    """In each of two namespaces processor 0 sends an interrupt to APIC ID 1, which halts until it has come."""
    seen: dict[object, list[int]] = {}

    def halting(engine: object) -> Script:
        log = seen.setdefault(engine, [])
        while not log:
            yield ops.Hlt()
        yield ops.Out(DONE, 1, 0)

    def handler(engine: object, event: Event) -> Script:
        seen.setdefault(engine, []).append(event.vector)
        return end()

    def end() -> Script:
        yield EOI

    senders = [partial(_program, vector) for vector in VECTORS]
    world = Namespaces(
        host, form, [[sender, halting] for sender in senders], handlers=dict.fromkeys(VECTORS, handler), group_bits=1
    )
    exits: list[object] = []
    vcpus = [vcpu for processors in world.vcpus for vcpu in processors]
    world.run(*(lambda vcpu=vcpu: exits.append(vcpu.run()) for vcpu in vcpus))
    assert [type(exit_) for exit_ in exits] == [Io] * len(vcpus), exits
    for namespace, vector in enumerate(VECTORS):
        target = world.vcpus[namespace][1]
        assert seen[target.engine] == [vector], f"namespace {namespace} has seen {seen[target.engine]}"
        assert not any(vcpu.apic.irr.load() for vcpu in world.vcpus[namespace]), "an interrupt is left over"


def _program(vector: int, _engine: object) -> Script:
    return _sender(vector)


def moved_line(host: RunnableHost) -> None:
    """A level-triggered line stays up until it is served twice; meanwhile user space moves it to another group."""
    served: list[object] = []
    vector = VECTORS[0]

    def halting(_engine: object) -> Script:
        while True:
            yield ops.Hlt()

    def handler(engine: object, _event: Event) -> Script:
        served.append(engine)
        return body(len(served))

    def body(number: int) -> Script:
        if number == _SERVICES:
            yield ops.Host(lambda: vm.irq_line(_PIN, 0))
        yield EOI
        if number == _SERVICES:
            yield ops.Host(stop)

    def stop() -> None:
        for processors in world.vcpus:
            processors[0].signal()

    def device() -> None:
        vm.irq_line(_PIN, 1)

    def mover() -> None:
        for _ in range(host.choose(40, "linger")):
            pause.load()
        route(1)

    def route(group: int) -> None:
        vm.set_gsi_routing([IrqchipRoute(_PIN, Irqchip.IOAPIC, _PIN, group)])

    world = Namespaces(
        host, Form.GROUPS, [[halting], [halting]], handlers={vector: handler}, irqchip=True, group_bits=1
    )
    vm = world.vms[0]
    pause = host.cell(0, "pause")
    assert vm.ioapic is not None
    vm.ioapic.mmio_write(IOAPIC_REG_SELECT, 4, 0x10 + 2 * _PIN)
    vm.ioapic.mmio_write(IOAPIC_REG_WINDOW, 4, _LEVEL | vector)
    route(0)
    exits: list[object] = []
    world.run(*(lambda vcpu=cpus[0]: exits.append(vcpu.run()) for cpus in world.vcpus), device, mover)
    assert [type(exit_) for exit_ in exits] == [Intr, Intr], exits
    order = [engine is world.vcpus[1][0].engine for engine in served]
    assert len(order) == _SERVICES, order
    assert order == sorted(order), "served in the group that it has been moved away from"


SCENARIOS = (
    Scenario("apic-namespaces.vms", "no IPI crosses into another Vm or is lost", partial(ipis, form=Form.VMS)),
    Scenario("apic-namespaces.groups", "no IPI crosses into another group or is lost", partial(ipis, form=Form.GROUPS)),
    Scenario("apic-namespaces.move", "a line that is moved to another group is served on", moved_line),
)
