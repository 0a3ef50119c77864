"""A vCPU whose VTL is inactive: whether it has something to be woken for, or to take at once, without running it.

TLFS, "Interrupt Masking and VTL Switches" and "Virtual Interrupt Notification Assist". For the task that runs the
processor's vCPUs, outside `run`; the mutex keeps other processors' register calls away meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.kvm import events
from vtlkit.kvm.mpstate import UNSTARTED
from vtlkit.kvm.requests import Req
from vtlkit.kvm.wait import has_events, interrupt_under_way

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_MAY_BECOME_INTERRUPTS: Final = 1 << Req.HV_STIMER | 1 << Req.NMI


def _settle(vcpu: Vcpu) -> None:
    """What the run loop would do before it looks for interrupts. The caller holds the mutex."""
    if vcpu.apic.pending_timer():
        vcpu.apic.inject_pending_timer()
    if vcpu.requests.load() & _MAY_BECOME_INTERRUPTS:
        if vcpu.check_request(Req.NMI):
            vcpu.events.process_nmi()
        if vcpu.check_request(Req.HV_STIMER):
            vcpu.hv.process_stimers()


def wake_event_pending(vcpu: Vcpu) -> bool:
    """Whether a wait of this vCPU would end at once with a wake event. May block for a moment."""
    if vcpu.apic.pending_timer() or vcpu.requests.load() & _MAY_BECOME_INTERRUPTS:
        with vcpu.mutex:
            _settle(vcpu)
    return has_events(vcpu)


def interrupt_deliverable(vcpu: Vcpu) -> bool:
    """Whether the vCPU, were its VTL the active one, would take an interrupt or NMI at once: RFLAGS.IF counts.

    May block for a moment.
    """
    with vcpu.mutex:
        if vcpu.mp_state in UNSTARTED:
            return False
        _settle(vcpu)
        if interrupt_under_way(vcpu):
            return True
        vendor = vcpu.vendor
        if vcpu.events.nmi_pending and not vendor.nmi_blocked(vcpu):
            return True
        # Where L1 masks for its L2 the vendor asks the flag that counts, and L2's own is about virtual interrupts.
        flag = vcpu.engine.interrupt_flag or (vcpu.guest_mode and vcpu.nested.masks_interrupts())
        return flag and vendor.interrupt_allowed(vcpu) and events.has_interrupt(vcpu)
