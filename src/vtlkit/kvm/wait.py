"""How a vCPU waits, and what ends the wait. Mirrors `kvm_vcpu_block`, `kvm_vcpu_halt`, `kvm_vcpu_check_block` and
`vcpu_block`; the wait call and the blocking completion have no counterpart.

The promise: a vCPU does not sleep through a wake event. The waiter enters its wait queue, then checks; a waker stores
the event, makes the request, then wakes the queue. `WaitQueue.prepare` and `WaitQueue.wake` are full barriers, so one
of the two sees the other: docs/design/wait.md has the races.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import EventType
from vtlkit.kvm import events, tracing
from vtlkit.kvm.hyperv.flush_inhibit import outside
from vtlkit.kvm.mpstate import UNSTARTED, MpState
from vtlkit.kvm.requests import Req
from vtlkit.kvm.wait_state import WaitFlags, WaitResult, WaitType

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_INTERRUPTS: Final = (EventType.INTERRUPT, EventType.NMI)


def interrupt_under_way(vcpu: Vcpu) -> bool:
    """Whether an interrupt or NMI has left its controller and not reached the guest."""
    for event in (vcpu.engine.injected(), vcpu.events.interrupted):
        if event is not None and event.type in _INTERRUPTS:
            return True
    return False


def is_idle_vtl(vcpu: Vcpu) -> bool:
    """Whether the vCPU waits, or is looked at, as an inactive VTL's: by MP state, completion, wait call, or because
    user space, which polls, has said so. RFLAGS.IF then blocks nothing; exceptions wait for the VTL to be entered."""
    waiting = vcpu.waiting
    return (
        vcpu.vtl_inactive
        or vcpu.mp_state is MpState.HV_INACTIVE_VTL
        or waiting.completion is not None
        or waiting.type is WaitType.INACTIVE_VTL
    )


def ignores_rflags_if(vcpu: Vcpu) -> bool:
    """Whether RFLAGS.IF blocks no interrupts for now (TLFS: of an inactive VTL, of a processor that idles)."""
    if is_idle_vtl(vcpu) or vcpu.waiting.flags & WaitFlags.IGNORE_RFLAGS_IF:
        return True
    return vcpu.hv.idle and vcpu.mp_state is MpState.HALTED


def vcpu_running(vcpu: Vcpu) -> bool:
    """Whether the vCPU may enter the guest (`kvm_vcpu_running`)."""
    if vcpu.mp_state is not MpState.RUNNABLE or vcpu.waiting.completion is not None:
        return False
    return vcpu.section is None or not vcpu.hv.flush_inhibit.suspended()


def has_events(vcpu: Vcpu) -> bool:
    """Whether a wake event is pending (`kvm_vcpu_has_events`)."""
    queue = vcpu.events
    if queue.apic_events.load() and vcpu.vendor.gif(vcpu):
        return True
    if vcpu.mp_state in UNSTARTED:
        # All else waits, or INIT forgets it: a processor that is not started would only look again and again.
        return False
    under_way = queue.exception is not None or queue.interrupted is not None or vcpu.engine.injected() is not None
    # The exceptions of an inactive VTL wait for it to be entered for another reason.
    if under_way and (not is_idle_vtl(vcpu) or interrupt_under_way(vcpu)):
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
    """A signal, UNBLOCK, or kick-all."""


_NOT_YET = Ended.NOT_YET
_RUNNABLE = Ended.RUNNABLE
_OTHERWISE = Ended.OTHERWISE


def check_block(vcpu: Vcpu, ready: Callable[[Vcpu], bool] = vcpu_runnable) -> Ended:
    """Whether the wait is over (`kvm_vcpu_check_block`)."""
    if vcpu.apic.pending_timer():
        # The LVT decides whether this becomes an interrupt; only the vCPU's own task may ask it.
        vcpu.apic.inject_pending_timer()
    if (vcpu.waiting.type is not None or is_idle_vtl(vcpu)) and vcpu.check_request(Req.NMI):
        # A halted vCPU takes it in the run loop; who does not come that way would find it again and again.
        vcpu.events.process_nmi()
    if ready(vcpu):
        return _RUNNABLE
    if vcpu.requests.test_and_clear(Req.UNBLOCK) or vcpu.signal_pending():
        return _OTHERWISE
    if vcpu.requests.test(Req.USERSPACE_KICK):
        return _OTHERWISE
    return _NOT_YET


def _block(vcpu: Vcpu, ready: Callable[[Vcpu], bool]) -> bool:
    """`block`, with the timer in software."""
    queue = vcpu.wait_queue
    with outside(vcpu.section):
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
            if vcpu.trace is not None:
                tracing.block(vcpu)
            vcpu.host.schedule()
            if vcpu.trace is not None:
                vcpu.trace.wakeup()
        queue.finish()
    return ended is _RUNNABLE


def block(vcpu: Vcpu, ready: Callable[[Vcpu], bool] = vcpu_runnable) -> bool:
    """Sleep until `check_block` (`kvm_vcpu_block`): no polling. Whether a wake event ended it.

    HV_STIMER is no wake event: what it asks for is done here, and may bring one. That takes locks, so it is done with
    the wait ended, and the wait begins anew. The vendor's timer counts in the guest alone: while the vCPU is out of it,
    the local APIC's timer is one of the host's.
    """
    return _with_timer_in_software(vcpu, _block, ready)


def halt(vcpu: Vcpu) -> bool:
    """Poll for a while, if that is allowed, then `block` (`kvm_vcpu_halt`). Whether a wake event ended it."""
    return _with_timer_in_software(vcpu, _halt, vcpu_runnable)


def _with_timer_in_software(
    vcpu: Vcpu, sleep: Callable[[Vcpu, Callable[[Vcpu], bool]], bool], ready: Callable[[Vcpu], bool]
) -> bool:
    timer = vcpu.apic.timer
    if timer.in_software:
        return sleep(vcpu, ready)
    timer.switch_to_sw_timer()
    try:
        return sleep(vcpu, ready)
    finally:
        timer.switch_to_hv_timer()


def _halt(vcpu: Vcpu, ready: Callable[[Vcpu], bool]) -> bool:
    """`halt`, with the timer in software."""
    host, poll, statistics = vcpu.host, vcpu.waiting.poll, vcpu.statistics
    begin = now = host.now_ns()
    ended = _NOT_YET
    window_ns = poll.begin(vcpu)
    if window_ns:
        with outside(vcpu.section):
            while now < begin + window_ns and (ended := check_block(vcpu, ready)) is _NOT_YET:
                process_stimers(vcpu)
                host.relax()
                now = host.now_ns()
    polled_ns = now - begin
    found = ended is not _NOT_YET
    if vcpu.trace is not None:
        tracing.polled(vcpu, polled_ns, found=found, valid=ended is _RUNNABLE)
    woken = ended is _RUNNABLE if found else _block(vcpu, ready)
    end = host.now_ns()
    if not found:
        statistics.halt_wait_ns += end - now
    if window_ns:
        poll.polled(vcpu, polled_ns, found=found, valid=woken)
    poll.adjust(vcpu, end - begin, valid=woken)
    return woken


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


def reports_wakeup(vcpu: Vcpu) -> bool:
    """Whether a wake event ends `run`, as user space alone decides whether the vCPU goes on."""
    return vcpu.mp_state is MpState.HV_INACTIVE_VTL or vcpu.waiting.completion is not None


def wait_for_event(vcpu: Vcpu) -> bool:
    """One round of a vCPU that may not enter the guest (`vcpu_block`): wait, then see what came.

    A halted vCPU that a wake event reaches becomes runnable; one that something else woke stays halted, and the run
    loop looks at what that was. Whether a wake event came. Of an inactive VTL nothing changes: INIT, too, waits for it
    to be entered.
    """
    if not (halt(vcpu) if vcpu.mp_state is MpState.HALTED and not is_idle_vtl(vcpu) else block(vcpu)):
        return False
    if reports_wakeup(vcpu):
        return True
    if vcpu.events.apic_events.load():
        events.accept_apic_events(vcpu)
    if vcpu.mp_state is MpState.HALTED:
        vcpu.mp_state = MpState.RUNNABLE
        vcpu.hv.idle = False
        vcpu.statistics.halt_wakeups += 1
        if not vcpu.requests.test(Req.EVENT):
            # The event may be there before its sender's request is: HLT ends with it, not before it.
            vcpu.make_request(Req.EVENT)
    if vcpu.mp_state is MpState.RUNNABLE and vcpu.hv.flush_inhibit.suspended():
        # An event that a suspended vCPU cannot take keeps it awake: the other tasks go on meanwhile.
        vcpu.statistics.suspended_turns += 1
        with outside(vcpu.section):
            vcpu.host.relax()
    return True


def wait(vcpu: Vcpu, kind: WaitType, flags: WaitFlags) -> WaitResult:
    """`Vcpu.wait`: changes no state of the vCPU. The caller holds the mutex, and has checked the arguments."""
    if vcpu.vm.kicks.refuses_wait(vcpu):
        return WaitResult.INTR
    state = vcpu.waiting
    state.type, state.flags = kind, flags
    try:
        while not block(vcpu, has_events):
            if vcpu.take_signal() or vcpu.vm.kicks.has_to_leave(vcpu):
                return WaitResult.INTR
    finally:
        state.type, state.flags = None, WaitFlags.NONE
    return WaitResult.WAKEUP
