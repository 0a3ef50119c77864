"""A vCPU's events as user space saves and restores them: KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS.

Counterpart: `struct kvm_vcpu_events`, with one word more for a completion that blocks: without it a vCPU that was saved
while it blocked would enter the guest when it is restored. The vCPU is between two instructions, outside `run`.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtlkit.engine.api import Event
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.kvm.errors import KvmError, require_boundary
from vtlkit.kvm.events import NMI_LIMIT, PENDING_INIT, PENDING_SIPI
from vtlkit.kvm.kvm_run import Hyperv
from vtlkit.kvm.requests import Req

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu


class EventsValid(enum.IntFlag):
    """KVM_VCPUEVENT_VALID_*: which words that other tasks may change meanwhile `set` replaces; the others it leaves."""

    NMI_PENDING = 1
    SIPI_VECTOR = 2
    """INIT too."""
    TRIPLE_FAULT = 0x20
    HV_VTL_BLOCK = 0x10000
    ALL = 0x10023


@dataclass(slots=True)
class VcpuEvents:
    """What waits to be delivered, and what blocks it."""

    injected: Event | None = None
    """Given to the processor and not delivered."""
    interrupted: Event | None = None
    """Its delivery was cut short: delivered again first."""
    exception: Event | None = None
    """Raised by the hypervisor and not given to the processor yet."""
    external: int | None = None
    """A vector that user space gave the vCPU (KVM_INTERRUPT)."""
    shadow: bool = False
    """An STI or MOV SS covers the next instruction."""
    nmi_pending: int = 0
    """NMIs that wait, 0 to 2."""
    nmi_masked: bool = False
    """An NMI is being handled."""
    gif: bool = True
    init: bool = False
    """INIT is latched."""
    sipi_vector: int | None = None
    """The vector of a latched SIPI."""
    triple_fault: bool = False
    hv_vtl_block: bool = False
    """The completion of a VTL call or return blocks until a wake event (`Hyperv.block`)."""


def get(vcpu: Vcpu) -> VcpuEvents:
    """KVM_GET_VCPU_EVENTS."""
    engine, queue = vcpu.engine, vcpu.events
    if vcpu.check_request(Req.NMI):
        queue.process_nmi()
    completion = vcpu.waiting.completion
    return VcpuEvents(
        injected=engine.injected(),
        interrupted=queue.interrupted,
        exception=queue.exception,
        external=queue.external,
        shadow=engine.interrupt_shadow,
        nmi_pending=queue.nmi_pending,
        nmi_masked=engine.nmi_blocked,
        gif=vcpu.gif,
        init=queue.apic_events.test(PENDING_INIT),
        sipi_vector=queue.sipi_vector.load() if queue.apic_events.test(PENDING_SIPI) else None,
        triple_fault=vcpu.requests.test(Req.TRIPLE_FAULT),
        hv_vtl_block=completion is not None and completion.block,
    )


def set(vcpu: Vcpu, events: VcpuEvents, valid: EventsValid = EventsValid.ALL) -> None:  # noqa: A001
    """KVM_SET_VCPU_EVENTS: replace them. `hv_vtl_block` also arms or calls off a completion that blocks.

    Raises:
        KvmError: EINVAL for what no vCPU could have, EBUSY in the middle of an I/O instruction; nothing changed.
    """
    if not 0 <= events.nmi_pending <= NMI_LIMIT:
        raise KvmError(errno.EINVAL, f"{events.nmi_pending} NMIs cannot wait")
    for vector in (events.external, events.sipi_vector):
        if vector is not None and not 0 <= vector <= 0xFF:
            raise KvmError(errno.EINVAL, f"{vector} is no vector")
    if not events.gif and not vcpu.vm.nested:
        raise KvmError(errno.EINVAL, "a guest without SVM has no global interrupt flag that could be clear")
    require_boundary(vcpu.engine)
    engine, queue = vcpu.engine, vcpu.events
    if engine.injected() != events.injected:
        engine.cancel_injection()
        if events.injected is not None:
            engine.inject(events.injected)
    queue.interrupted = events.interrupted
    queue.exception = events.exception
    queue.external = events.external
    engine.interrupt_shadow = events.shadow
    engine.nmi_blocked = events.nmi_masked
    vcpu.gif = events.gif
    if valid & EventsValid.NMI_PENDING:
        vcpu.requests.clear(Req.NMI)
        queue.nmi_queued.store(0)
        queue.nmi_pending = events.nmi_pending
    if valid & EventsValid.SIPI_VECTOR:
        _set_latch(vcpu, PENDING_INIT, events.init)
        if events.sipi_vector is not None:
            queue.sipi_vector.store(events.sipi_vector)
        _set_latch(vcpu, PENDING_SIPI, events.sipi_vector is not None)
    if valid & EventsValid.TRIPLE_FAULT:
        if events.triple_fault:
            vcpu.make_request(Req.TRIPLE_FAULT)
        else:
            vcpu.requests.clear(Req.TRIPLE_FAULT)
    if valid & EventsValid.HV_VTL_BLOCK:
        _set_block(vcpu, events.hv_vtl_block)
    vcpu.make_request(Req.EVENT)


def _set_block(vcpu: Vcpu, block: bool) -> None:
    completion = vcpu.waiting.completion
    if block != (completion is not None and completion.block):
        vcpu.waiting.completion = _restored() if block else None


def _set_latch(vcpu: Vcpu, bit: int, value: bool) -> None:
    if value:
        vcpu.events.apic_events.set(bit)
    else:
        vcpu.events.apic_events.clear(bit)


def _restored() -> Hyperv:
    """Stands for the exit that was answered before the vCPU was saved: RIP is behind its instruction already."""
    return Hyperv(HvCallCode.HvCallVtlReturn, 0, 0, 0, False, complete=False, block=True)
