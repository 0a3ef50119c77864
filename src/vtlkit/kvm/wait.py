"""How a vCPU waits, and what ends the wait. Mirrors `kvm_vcpu_block`, `kvm_vcpu_check_block` and `vcpu_block`.

The promise: a vCPU does not sleep through a wake event. The waiter enters its wait queue, then checks; a waker stores
the event, makes the request, then wakes the queue. `WaitQueue.prepare` and `WaitQueue.wake` are full barriers, so one
of the two sees the other: docs/design/wait.md has the races.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import EventType
from vtlkit.kvm import events
from vtlkit.kvm.mpstate import UNSTARTED, MpState
from vtlkit.kvm.requests import Req

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_INTERRUPTS: Final = (EventType.INTERRUPT, EventType.NMI)


def interrupt_under_way(vcpu: Vcpu) -> bool:
    """Whether an interrupt or NMI has left its controller and not reached the guest."""
    for event in (vcpu.engine.injected(), vcpu.events.interrupted):
        if event is not None and event.type in _INTERRUPTS:
            return True
    return False


def vcpu_running(vcpu: Vcpu) -> bool:
    """Whether the vCPU may enter the guest (`kvm_vcpu_running`)."""
    return vcpu.mp_state is MpState.RUNNABLE


def has_events(vcpu: Vcpu) -> bool:
    """Whether a wake event is pending (`kvm_vcpu_has_events`)."""
    queue = vcpu.events
    if queue.apic_events.load() and vcpu.gif:
        return True
    if vcpu.mp_state in UNSTARTED:
        # All else waits, or INIT forgets it: a processor that is not started would only look again and again.
        return False
    under_way = queue.exception is not None or queue.interrupted is not None or vcpu.engine.injected() is not None
    # The exceptions of an inactive VTL wait for it to be entered for another reason.
    if under_way and (not vcpu.vtl_inactive or interrupt_under_way(vcpu)):
        return True
    requests = vcpu.requests
    if requests.test(Req.NMI) or (queue.nmi_pending and not vcpu.vendor.nmi_blocked(vcpu)):
        return True
    if vcpu.guest_mode and vcpu.nested.virtual_interrupt() >= 0:
        return True
    return events.has_interrupt(vcpu) and vcpu.vendor.interrupt_allowed(vcpu)


def vcpu_runnable(vcpu: Vcpu) -> bool:
    """`kvm_arch_vcpu_runnable`."""
    return vcpu_running(vcpu) or has_events(vcpu)


class Ended(enum.Enum):
    """What ended a wait."""

    NOT_YET = 0
    RUNNABLE = 1
    """A wake event."""
    OTHERWISE = 2
    """A signal, or UNBLOCK."""


_NOT_YET = Ended.NOT_YET
_RUNNABLE = Ended.RUNNABLE
_OTHERWISE = Ended.OTHERWISE


def check_block(vcpu: Vcpu, ready: Callable[[Vcpu], bool] = vcpu_runnable) -> Ended:
    """Whether the wait is over (`kvm_vcpu_check_block`)."""
    if vcpu.apic.pending_timer():
        # The LVT decides whether this becomes an interrupt; only the vCPU's own task may ask it.
        vcpu.apic.inject_pending_timer()
    if ready(vcpu):
        return _RUNNABLE
    if vcpu.requests.test_and_clear(Req.UNBLOCK) or vcpu.signal_pending():
        return _OTHERWISE
    return _NOT_YET


def block(vcpu: Vcpu, ready: Callable[[Vcpu], bool] = vcpu_runnable) -> bool:
    """Sleep until `check_block` (`kvm_vcpu_block`): no polling. Whether a wake event ended it.

    HV_STIMER is no wake event: what it asks for is done here, and may bring one. That takes locks, so it is done with
    the wait ended, and the wait begins anew.
    """
    queue = vcpu.wait_queue
    while True:
        queue.prepare()
        ended = check_block(vcpu, ready)
        if ended is not _NOT_YET:
            break
        if vcpu.requests.test(Req.HV_STIMER):
            queue.finish()
            process_stimers(vcpu)
            continue
        vcpu.statistics.blocks += 1
        vcpu.host.schedule()
    queue.finish()
    return ended is _RUNNABLE


def suspend(vcpu: Vcpu) -> None:
    """Wait at an instruction that cannot be executed now and will be executed again.

    Ended by UNBLOCK, by a signal, and by what the vCPU would take before the instruction anyway: the run loop does.
    """
    vcpu.statistics.suspends += 1
    block(vcpu, has_events)


def process_stimers(vcpu: Vcpu) -> None:
    """Req.HV_STIMER of a vCPU that waits."""
    if vcpu.check_request(Req.HV_STIMER):
        vcpu.hv.process_stimers()


def wait_for_event(vcpu: Vcpu) -> bool:
    """One round of a vCPU that may not enter the guest (`vcpu_block`): wait, then see what came.

    A halted vCPU that a wake event reaches becomes runnable; one that something else woke stays halted, and the run
    loop looks at what that was. Whether a wake event came.
    """
    if not block(vcpu):
        return False
    if vcpu.events.apic_events.load():
        events.accept_apic_events(vcpu)
    if vcpu.mp_state is MpState.HALTED:
        vcpu.mp_state = MpState.RUNNABLE
        vcpu.hv.idle = False
        vcpu.statistics.halt_wakeups += 1
    return True
