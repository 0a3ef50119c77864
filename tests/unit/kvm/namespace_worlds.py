"""What tests of APIC namespaces share: machines of two namespaces in either form, and what has reached a vCPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.unit.kvm.core_rig import script
from vtlkit.checker.scenarios.namespaces_rig import Form, Namespaces
from vtlkit.checker.scenarios.rig import to_long_mode
from vtlkit.engine.scripted import Guest
from vtlkit.host.sim import Simulator
from vtlkit.kvm.events import PENDING_INIT, PENDING_SIPI
from vtlkit.kvm.uapi import HvFeatures, for_vcpu, hv_cpuid_entries
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86 import apic as regs
from vtlkit.x86.msr import APIC_BASE_MSR, X2APIC_ENABLE

BOTH_FORMS = pytest.mark.parametrize("form", list(Form), ids=lambda form: form.value)
NAMESPACES = 2
CPUS = 4
MODES = ("flat", "cluster", "x2apic")


def idle_programs(namespaces: int = NAMESPACES, cpus: int = CPUS) -> list[list[Guest]]:
    return [[script()] * cpus] * namespaces


def world(form: Form, mode: str = "flat", *, irqchip: bool = False, namespaces: int = NAMESPACES) -> Namespaces:
    """Four idle processors in each namespace, the LDR of all set up for logical destinations of the mode."""
    made = Namespaces(Simulator(), form, idle_programs(namespaces), irqchip=irqchip)
    for processors in made.vcpus:
        for number, vcpu in enumerate(processors):
            set_up(vcpu, mode, number)
    return made


def set_up(vcpu: Vcpu, mode: str, number: int) -> None:
    apic = vcpu.apic
    if mode == "x2apic":
        assert apic.set_base(apic.get_base() | X2APIC_ENABLE, host_initiated=True)
        return
    if mode == "cluster":
        apic.mmio_write(regs.APIC_DFR, 4, regs.APIC_DFR_CLUSTER)
        ldr = number // 2 << 4 | 1 << number % 2
    else:
        ldr = 1 << number
    apic.mmio_write(regs.APIC_LDR, 4, ldr << 24)


def logical(mode: str, targets: set[int]) -> int:
    """A logical destination that names these processors; in cluster mode they are of one cluster."""
    if mode == "cluster":
        (cluster,) = {number // 2 for number in targets}
        return cluster << 4 | sum(1 << number % 2 for number in targets)
    return sum(1 << number for number in targets)


def broadcast(mode: str) -> int:
    return regs.X2APIC_BROADCAST if mode == "x2apic" else regs.APIC_BROADCAST


def send(vcpu: Vcpu, icr: int, dest_id: int) -> None:
    """The guest of `vcpu` writes ICR; only what the mode can encode of the destination is used."""
    apic = vcpu.apic
    if apic.x2apic_mode:
        apic.x2apic_msr_write(APIC_BASE_MSR + (regs.APIC_ICR >> 4), dest_id << 32 | icr)
    else:
        apic.mmio_write(regs.APIC_ICR2, 4, (dest_id & 0xFF) << 24)
        apic.mmio_write(regs.APIC_ICR, 4, icr)


@dataclass(frozen=True)
class Arrived:
    """What senders have done to a vCPU."""

    irr: int
    tmr: int
    arb_prio: int
    nmis: int
    init: bool
    sipi: int | None
    requests: int


def arrived(vcpu: Vcpu) -> Arrived:
    events = vcpu.events
    return Arrived(
        vcpu.apic.irr.load(),
        vcpu.apic.tmr.load(),
        vcpu.apic.arb_prio.load(),
        events.nmi_queued.load(),
        events.apic_events.test(PENDING_INIT),
        events.sipi_vector.load() if events.apic_events.test(PENDING_SIPI) else None,
        vcpu.requests.load(),
    )


def all_arrived(processors: Sequence[Vcpu]) -> list[Arrived]:
    return [arrived(vcpu) for vcpu in processors]


def changed(before: Sequence[Arrived], processors: Sequence[Vcpu]) -> set[int]:
    """The processors that something has reached since."""
    return {number for number, vcpu in enumerate(processors) if arrived(vcpu) != before[number]}


def as_vtls(machine: Namespaces) -> None:
    """User space says which VTL each namespace is, and the guests of all have set up their hypercalls."""
    for vtl, processors in enumerate(machine.vcpus):
        hv = machine.namespace(vtl).hv
        hv.vtl = vtl
        hv.set_guest_os_id(1)
        for vcpu in processors:
            enlighten(vcpu, len(processors))


def enlighten(vcpu: Vcpu, processors: int) -> None:
    """64-bit CPL 0 code at the beginning of its program, and every feature of the Hyper-V interface."""
    entries = for_vcpu(vcpu.vm.get_supported_cpuid(), vcpu.apic.apic_id, processors)
    vcpu.set_cpuid2([*entries, *hv_cpuid_entries(HvFeatures())])
    to_long_mode(vcpu)
