"""The two forms of APIC namespaces side by side: an interrupt, the look-up of a sibling, and the memory of a vCPU."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from functools import cache, partial
from typing import Final

from vtlkit.checker.scenarios.namespaces_rig import Form, Namespaces
from vtlkit.checker.scenarios.rig import Script
from vtlkit.cli.measure import Case, Figure, seconds_per_operation
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.kvm.routing import MsiRoute
from vtlkit.x86 import apic as regs

OPERATIONS: Final = 5_000
PROCESSORS: Final = 16
VECTOR: Final = 0x41
GSI: Final = 30
MEMORY_LIMIT_KIB: Final = 64.0
"""A vCPU's share of the hypervisor's own memory, the engine's left out."""


def _idle(_engine: object) -> Script:
    while True:
        yield ops.Hlt()


def _machine(form: Form, processors: int = PROCESSORS) -> Namespaces:
    return Namespaces(Simulator(), form, [[_idle] * processors] * 2, irqchip=True)


@cache
def _warm(form: Form) -> Namespaces:
    machine = _machine(form)
    machine.vm(1).set_gsi_routing([MsiRoute(GSI, 0xFEE00000 | 1 << 12, VECTOR, machine.group(1))])
    return machine


def ipi(form: Form) -> float:
    """A guest's write of ICR in namespace 1, to one processor."""
    sender = _warm(form).vcpus[1][0].apic
    sender.mmio_write(regs.APIC_ICR2, 4, 1 << 24)

    def body() -> None:
        for _ in range(OPERATIONS):
            sender.mmio_write(regs.APIC_ICR, 4, VECTOR)

    return seconds_per_operation(body, OPERATIONS)


def message(form: Form) -> float:
    """A device's message that is routed to namespace 1."""
    vm = _warm(form).vm(1)

    def body() -> None:
        for _ in range(OPERATIONS):
            vm.irq_line(GSI, 1)

    return seconds_per_operation(body, OPERATIONS)


def sibling(form: Form) -> float:
    """The same processor's vCPU in the other namespace."""
    machine = _warm(form)
    vcpu = machine.vcpus[0][3]
    look_up: Callable[[], object]
    if form is Form.GROUPS:
        look_up = partial(machine.vms[0].sibling, vcpu, 1)
    else:
        other = machine.vms[1]

        def look_up() -> object:
            return other.get_vcpu_by_id(vcpu.vcpu_id)

    def body() -> None:
        for _ in range(OPERATIONS):
            look_up()

    return seconds_per_operation(body, OPERATIONS)


def memory(form: Form) -> float:
    """KiB of Python objects for each vCPU of a machine of two namespaces."""
    _machine(form, 1)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        machine = _machine(form)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / 1024 / sum(map(len, machine.vcpus))


def cases() -> list[Case | Figure]:
    rows: list[Case | Figure] = [
        Case(f"namespaces-{name}", partial(run, Form.GROUPS), "a Vm each", partial(run, Form.VMS))
        for name, run in (("ipi", ipi), ("message", message), ("sibling", sibling))
    ]
    return rows + [
        Figure(f"namespaces-memory-{form.value}", partial(memory, form), "KiB", MEMORY_LIMIT_KIB) for form in Form
    ]
