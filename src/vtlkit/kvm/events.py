"""Event injection: what the vCPU delivers next. Mirrors `inject_pending_event` and `kvm_apic_accept_events` of x86.c.

Order: an exception the hypervisor queued, an event whose delivery an exit cut short, an NMI, an interrupt. One is
injected; for what must wait a window is requested, so that the guest exits the moment it can take it. An exception that
comes while another event is being delivered is about that delivery, so the two are taken together when it is queued.

`nmi_queued` and the INIT/SIPI latch are set by senders on other tasks; the rest belongs to the vCPU's task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Event, EventType
from vtlkit.kvm import tracing
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.kvm.windows import Windows
from vtlkit.x86.exceptions import DOUBLE_FAULT, HAS_ERROR_CODE, SHUTDOWN, Vector, combine

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

NMI_LIMIT: Final = 2
"""One NMI in service and one latched, as the processor does."""

PENDING_INIT: Final = 0
PENDING_SIPI: Final = 1


class EventQueue:
    """The events of one vCPU that are not in the engine yet."""

    def __init__(self, vcpu: Vcpu) -> None:
        host, name = vcpu.host, vcpu.name
        self._vcpu = vcpu
        self.interrupted: Event | None = None
        """Cut short by an exit; delivered again first (EXITINTINFO)."""
        self.exception: Event | None = None
        self.external: int | None = None
        """A vector that user space gives the vCPU as an external interrupt, from none of its controllers."""
        self.windows: Windows | None = None
        self.nmi_queued = host.cell(0, f"{name}-nmi-queued")
        """NMIs that have been sent and not been looked at yet."""
        self.nmi_pending = 0
        """NMIs that wait to be delivered."""
        self.apic_events = host.bitmap(f"{name}-apic-events")
        self.sipi_vector = host.cell(0, f"{name}-sipi-vector")

    def reset(self) -> None:
        self.interrupted = None
        self.exception = None
        self.external = None
        self.windows = None
        self.nmi_queued.store(0)
        self.nmi_pending = 0

    def queue_exception(self, vector: int, error_code: int | None = None) -> None:
        """Queue an exception that the hypervisor raises; two in a row combine as the processor's do."""
        if error_code is None and vector in HAS_ERROR_CODE:
            error_code = 0
        previous = self.exception
        if previous is None and self.interrupted is not None:
            if self.interrupted.type is EventType.EXCEPTION:
                previous, self.interrupted = self.interrupted, None
            elif self.interrupted.type is EventType.SOFTWARE:
                # RIP is at the INT instruction: it is executed again when the exception's handler returns.
                self.interrupted = None
        if previous is not None:
            combined = combine(previous.vector, vector)
            if combined is SHUTDOWN:
                self.exception = None
                self._vcpu.make_request(Req.TRIPLE_FAULT)
                return
            if combined is DOUBLE_FAULT:
                vector, error_code = Vector.DF, 0
        self.exception = Event(EventType.EXCEPTION, vector, error_code)
        self._vcpu.make_request(Req.EVENT)

    def queue_interrupt(self, vector: int) -> None:
        """An external interrupt that none of the vCPU's controllers has (KVM_INTERRUPT); a second replaces it."""
        self.external = vector
        self._vcpu.make_request(Req.EVENT)

    def queue_nmi(self) -> None:
        """From any task."""
        self.nmi_queued.fetch_add(1)
        self._vcpu.make_request(Req.NMI)

    def process_nmi(self) -> None:
        """Take over what has been sent (`process_nmi`): beside an NMI in service one is latched, the rest are lost."""
        limit = 1 if self._vcpu.engine.nmi_blocked else NMI_LIMIT
        self.nmi_pending = min(self.nmi_pending + self.nmi_queued.xchg(0), limit)
        self._vcpu.make_request(Req.EVENT)

    def has_events(self) -> bool:
        """Whether something but an interrupt waits to be delivered, or someone waits for that to be possible."""
        return (
            self.exception is not None
            or self.interrupted is not None
            or bool(self.nmi_pending)
            or self.windows is not None
        )

    def waiting(self) -> bool:
        """Whether there is an event that nothing can hold up."""
        return self.exception is not None or self.interrupted is not None


def has_interrupt(vcpu: Vcpu) -> bool:
    """An interrupt that the interrupt controllers, or user space, would deliver (`kvm_cpu_has_injectable_intr`)."""
    if vcpu.events.external is not None:
        return True
    pic = vcpu.vm.pic
    if pic is not None and pic.output.load() and vcpu.apic.accept_pic_intr():
        return True
    return vcpu.apic.has_interrupt() >= 0


def _next_vector(vcpu: Vcpu) -> int:
    """Take the interrupt out of its controller (`kvm_cpu_get_interrupt`); -1 if it has gone meanwhile."""
    external, vcpu.events.external = vcpu.events.external, None
    if external is not None:
        return external
    pic = vcpu.vm.pic
    if pic is not None and pic.output.load() and vcpu.apic.accept_pic_intr():
        return pic.read_irq()
    return vcpu.apic.get_interrupt()


def inject_pending(vcpu: Vcpu) -> bool:
    """Give the engine the event that is next and ask for windows for the others. The engine is at a boundary.

    Whether an immediate exit must be forced: there is one more, deliverable as soon as the injected one is through
    (`req_immediate_exit` of `kvm_check_and_inject_events`).
    """
    engine, queue, vendor = vcpu.engine, vcpu.events, vcpu.vendor
    # L1 may have asked for a #VMEXIT instead; all below is then about L1.
    force_immediate_exit = vcpu.guest_mode and vcpu.nested.check_events()
    busy = engine.injected() is not None
    if not busy and queue.exception is not None:
        if vcpu.trace is not None:
            tracing.injected(vcpu, queue.exception, again=False)
        engine.inject(queue.exception)
        queue.exception = None
        busy = True
    if not busy and queue.interrupted is not None:
        if vcpu.trace is not None:
            tracing.injected(vcpu, queue.interrupted, again=True)
        engine.inject(queue.interrupted)
        queue.interrupted = None
        busy = True
    if queue.exception is not None or queue.interrupted is not None:
        # Next, and nothing can hold it up: come back as soon as the injected event is through.
        vcpu.make_request(Req.EVENT)
        force_immediate_exit = True

    nmis = queue.nmi_pending
    if nmis and not busy and not vendor.nmi_blocked(vcpu):
        queue.nmi_pending = nmis = nmis - 1
        vendor.inject_nmi(vcpu)
        if vcpu.trace is not None:
            vcpu.trace.inject_nmi()
        busy = True
    if nmis:
        if busy and not engine.nmi_blocked:
            # Deliverable as soon as the injected event is through: ask again then.
            vcpu.make_request(Req.EVENT)
            force_immediate_exit = True
        else:
            vendor.request_nmi_window(vcpu)

    vector = -1
    allowed = not busy and vendor.injection_allowed(vcpu)
    if allowed:
        vector = _next_vector(vcpu)
    if vector >= 0:
        vendor.inject_irq(vcpu, vector)
        if vcpu.trace is not None:
            vcpu.trace.inject_irq(vector)
        vcpu.statistics.injected_interrupts += 1
    # Where there was none: what comes from now on makes the request again, and kicks.
    if (vector >= 0 or not allowed) and has_interrupt(vcpu):
        vendor.request_interrupt_window(vcpu)
    if vcpu.guest_mode:
        vcpu.nested.inject_virtual()
    return force_immediate_exit


def accept_apic_events(vcpu: Vcpu) -> None:
    """Act on INIT and SIPI (`kvm_apic_accept_events`)."""
    latch = vcpu.events.apic_events
    if vcpu.vendor.init_blocked(vcpu):
        return
    if latch.test_and_clear(PENDING_INIT):
        vcpu.reset(init_event=True)
        vcpu.mp_state = MpState.RUNNABLE if vcpu.is_bsp else MpState.INIT_RECEIVED
    # Fully ordered: the bit before the vector. Pairs with `deliver_sipi`.
    started = latch.test(PENDING_SIPI) and latch.test_and_clear(PENDING_SIPI)
    if started and vcpu.mp_state is MpState.INIT_RECEIVED:
        vcpu.start_at(vcpu.events.sipi_vector.load())
        vcpu.mp_state = MpState.RUNNABLE
