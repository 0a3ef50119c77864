"""What pending events are to an L2: the #VMEXIT that L1 has asked for. Mirrors `svm_check_nested_events`.

Asked before anything is injected, with the engine at a boundary, so that no event of L1's reaches L2. Belongs to the
vCPU's task; what senders on other tasks have stored is looked at behind the requests that tell of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Event, EventType
from vtlkit.kvm import events
from vtlkit.kvm.events import PENDING_INIT
from vtlkit.kvm.nested.intercepts import NestedExit
from vtlkit.kvm.requests import Req
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.svm import EXCEPTION_BASE, SvmExit

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_SINGLE_STEP: Final = Event(EventType.EXCEPTION, Vector.DB)


def check_events(vcpu: Vcpu) -> bool:
    """Make the #VMEXIT that is due, if any.

    True if one is due when the event on its way into L2 has been delivered: it must be, and L2 left before its next
    instruction.
    """
    exit_ = _exception_exit(vcpu)
    if exit_ is not None:
        vcpu.nested.leave(exit_)
        return False
    exit_ = _event_exit(vcpu)
    if exit_ is None:
        return False
    queue = vcpu.events
    if vcpu.engine.injected() is not None or queue.interrupted is not None or queue.exception is not None:
        vcpu.make_request(Req.EVENT)
        return True
    vcpu.nested.leave(exit_)
    return False


def _exception_exit(vcpu: Vcpu) -> NestedExit | None:
    """An exception that the hypervisor raised, or the single step of an instruction that it skipped."""
    engine, queue, nested = vcpu.engine, vcpu.events, vcpu.nested
    event = queue.exception
    if event is None:
        event = engine.injected()
        if event != _SINGLE_STEP or nested.entry_pending():
            return None
    if not nested.intercepts.wants_exception(event.vector):
        return None
    queue.exception = None
    if engine.injected() is event:
        engine.cancel_injection()
    address = engine.get_sregs().cr2 if event.vector == Vector.PF else 0
    return NestedExit(EXCEPTION_BASE + event.vector, event.error_code or 0, address)


def _event_exit(vcpu: Vcpu) -> NestedExit | None:
    queue, vendor, nested = vcpu.events, vcpu.vendor, vcpu.nested
    if queue.apic_events.test(PENDING_INIT) and nested.exits_on(SvmExit.INIT):
        return NestedExit(SvmExit.INIT)
    if queue.nmi_pending and nested.exits_on(SvmExit.NMI) and not vendor.nmi_blocked(vcpu):
        return NestedExit(SvmExit.NMI)
    if nested.exits_on(SvmExit.INTR) and not vendor.interrupt_blocked(vcpu) and events.has_interrupt(vcpu):
        return NestedExit(SvmExit.INTR)
    if nested.exits_on(SvmExit.VINTR) and nested.virtual_interrupt() >= 0:
        return NestedExit(SvmExit.VINTR)
    return None
