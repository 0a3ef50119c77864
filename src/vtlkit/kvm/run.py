"""The run loop of a vCPU: requests, event injection, entry, exit. Mirrors `vcpu_run` and `vcpu_enter_guest` of x86.c.

The caller holds the vCPU's mutex. Everything is plain blocking code over `host.api`; the same functions run on threads,
in the simulator, and under a checker's scheduler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine import api as engine_api
from vtlkit.kvm import events, exits, intercepted, tracing, windows
from vtlkit.kvm.hyperv.flush_inhibit import inside, outside
from vtlkit.kvm.kvm_run import Intr, KvmRun, Shutdown, SystemEvent, SystemEventExit
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vendor.api import Fastpath
from vtlkit.kvm.wait import reports_wakeup, vcpu_running, wait_for_event

_PREEMPTION_TIMER: Final = engine_api.PreemptionTimer
FASTPATH_LIMIT: Final = 16
"""Exits handled before the clock is looked at again: timers are late by no more than these take."""

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu


_REQUESTS_HANDLED: Final = ~(1 << Req.EVENT)
"""EVENT alone, by far the most frequent request, is looked at where events are injected."""
_NEED_BOUNDARY: Final = 1 << Req.EVENT | 1 << Req.MEMORY_CHANGED | 1 << Req.USER_INTERCEPTS | 1 << Req.USERSPACE_KICK
"""Handled between two instructions only."""
_FLUSH: Final = 1 << Req.TLB_FLUSH
"""Handled inside one too, whose other accesses are translated anew."""


def run(vcpu: Vcpu) -> KvmRun:
    """KVM_RUN: run the guest until user space is needed. Blocks. The caller answers the last exit first."""
    transaction, section = vcpu.vm.kicks.transaction, vcpu.section
    with vcpu.mutex:
        # `Vcpu.running`, spelled out: this is on the way of every exit.
        transaction.down_read()
        try:
            if section is None:
                exit_ = vcpu_run(vcpu)
            else:
                with section:
                    exit_ = vcpu_run(vcpu)
        finally:
            transaction.up_read()
    vcpu.left_run()
    return exit_


def complete_exit(vcpu: Vcpu) -> KvmRun | None:
    """Take user space's answer to the last exit and finish its instruction, as KVM_RUN with immediate_exit does.

    None once the vCPU is between two instructions; another exit if the instruction needs user space again.
    """
    with vcpu.mutex:
        if vcpu.section is None and vcpu.engine.at_boundary:
            # Nothing is left of the instruction: no guest code executes, and there is nothing for kick-all to wait for.
            exits.complete(vcpu)
            return None
        with vcpu.running, inside(vcpu.section):
            return complete_only(vcpu)


def vcpu_run(vcpu: Vcpu) -> KvmRun:
    """Run until user space is needed."""
    vcpu.task = vcpu.host.current()
    # Before the timer moves: a bad answer ends the call here.
    exits.complete(vcpu)
    timer = vcpu.apic.timer
    if timer.has_hv_timer:
        timer.switch_to_hv_timer()
    exit_: KvmRun | None = vcpu.vm.kicks.refused(vcpu)
    while exit_ is None:
        if vcpu_running(vcpu):
            exit_ = _enter_guest(vcpu)
        else:
            exit_ = _wait(vcpu)
        if exit_ is None and vcpu.engine.at_boundary and vcpu.take_signal():
            exit_ = Intr()
    if timer.has_hv_timer:
        # Nobody exits outside: only a software timer is heard of there.
        timer.switch_to_sw_timer()
    vcpu.pending_exit = exit_
    vcpu.statistics.user_exits[exit_.reason] += 1
    if vcpu.trace is not None:
        tracing.userspace_exit(vcpu, exit_)
    return exit_


def complete_only(vcpu: Vcpu) -> KvmRun | None:
    """Take the answer to the last exit and run to the next instruction boundary, executing no further instruction."""
    exits.complete(vcpu)
    exit_: KvmRun | None = None
    while exit_ is None and not vcpu.engine.at_boundary:
        vcpu.mode.store(exits.IN_GUEST_MODE)
        # As in `_enter_guest`: who flushes sees that there is a guest to wait for, or is seen here.
        vcpu.host.smp_mb()
        if vcpu.check_request(Req.TLB_FLUSH):
            vcpu.engine.flush_tlb()
        with outside(vcpu.section):
            reason = (vcpu.vendor.vcpu_run if vcpu.trace is None else tracing.vcpu_run)(vcpu, None, True)
            vcpu.mode.store(exits.OUTSIDE_GUEST_MODE)
        vcpu.sync_clock()
        if (
            type(reason) is not _PREEMPTION_TIMER
            or vcpu.vendor.handle_fastpath_preemption_timer(vcpu, True) is Fastpath.NONE
        ):
            exit_ = exits.handle(vcpu, reason)
    vcpu.pending_exit = exit_
    return exit_


def _wait(vcpu: Vcpu) -> KvmRun | None:
    completion = vcpu.waiting.completion
    if completion is not None and not completion.block:
        # User space has called it off.
        vcpu.waiting.completion = None
        return None
    if vcpu.take_signal() or vcpu.vm.kicks.has_to_leave(vcpu):
        return Intr()
    if vcpu.mp_state is MpState.HALTED and completion is None and (window := _window(vcpu)) is not None:
        return window
    if wait_for_event(vcpu) and reports_wakeup(vcpu):
        if completion is not None:
            completion.block = False
            vcpu.waiting.completion = None
        return SystemEventExit(SystemEvent.WAKEUP)
    return None


def _window(vcpu: Vcpu) -> KvmRun | None:
    wanted = vcpu.events.windows
    if wanted is None or not vcpu.engine.at_boundary:
        return None
    return windows.opened(vcpu, wanted)


def _handle_requests(vcpu: Vcpu) -> KvmRun | None:
    if not vcpu.requests.load() & _REQUESTS_HANDLED:
        return None
    if vcpu.requests.test(Req.USERSPACE_KICK) and vcpu.engine.at_boundary and vcpu.vm.kicks.has_to_leave(vcpu):
        return Intr()
    if vcpu.check_request(Req.MEMORY_CHANGED):
        if vcpu.engine.at_boundary:
            vcpu.map.sync()
            if vcpu.guest_mode:
                vcpu.nested.memory_changed()
        else:
            # The map may not change under an unfinished instruction: finish it first.
            vcpu.make_request(Req.MEMORY_CHANGED)
    if vcpu.check_request(Req.USER_INTERCEPTS):
        if vcpu.engine.at_boundary:
            vcpu.user.apply()
        else:
            # What is unfinished began under the old ones.
            vcpu.make_request(Req.USER_INTERCEPTS)
    if vcpu.check_request(Req.TRIPLE_FAULT) and not (vcpu.guest_mode and vcpu.nested.triple_fault()):
        return Shutdown()
    if vcpu.check_request(Req.TLB_FLUSH):
        vcpu.engine.flush_tlb()
    if vcpu.check_request(Req.NMI):
        vcpu.events.process_nmi()
    if vcpu.check_request(Req.HV_STIMER):
        vcpu.hv.process_stimers()
    for request in (Req.HV_CRASH, Req.HV_RESET):
        if vcpu.check_request(request):
            return vcpu.hv.system_event(request)
    vcpu.check_request(Req.UNBLOCK)
    return None


def _enter_guest(vcpu: Vcpu) -> KvmRun | None:
    """One entry (`vcpu_enter_guest`); None means go round again."""
    engine = vcpu.engine
    force_immediate_exit = False
    if vcpu.apic.pending_timer():
        vcpu.apic.inject_pending_timer()
    if vcpu.requests.load():
        exit_ = _handle_requests(vcpu)
        if exit_ is not None:
            return exit_
    if vcpu.events.apic_events.load() and vcpu.vendor.gif(vcpu):
        events.accept_apic_events(vcpu)
        if vcpu.mp_state is not MpState.RUNNABLE:
            return None
    if vcpu.check_request(Req.EVENT) or vcpu.events.has_events():
        if engine.at_boundary:
            force_immediate_exit = events.inject_pending(vcpu)
        else:
            vcpu.make_request(Req.EVENT)
    # An unfinished instruction is finished before what waits for its end, a trap told before anything else executes.
    if vcpu.requests.load() & _NEED_BOUNDARY and not engine.at_boundary:
        force_immediate_exit = True
    if vcpu.user_intercepts is not None and vcpu.user.traps:
        force_immediate_exit = True
    if vcpu.events.windows is not None and (window := _window(vcpu)) is not None:
        return window

    budget_ns = vcpu.host.guest_budget_ns()

    mode = vcpu.mode
    mode.store(exits.IN_GUEST_MODE)
    # Orders the store of the mode before the load of the requests; pairs with kick()'s cmpxchg after make_request.
    vcpu.host.smp_mb()
    if vcpu.signal_pending():
        # EINTR leaves the vCPU between two instructions: an unfinished one is finished first.
        if engine.at_boundary:
            mode.store(exits.OUTSIDE_GUEST_MODE)
            return None
        force_immediate_exit = True
    elif (requests := vcpu.requests.load()) and (
        # Only what asked for a forced exit may wait for it: it may come late, and who made another request has seen a
        # vCPU outside of the guest.
        not force_immediate_exit or requests & (_REQUESTS_HANDLED if engine.at_boundary else _FLUSH)
    ):
        mode.store(exits.OUTSIDE_GUEST_MODE)
        return None
    reason = _run_guest(vcpu, budget_ns, force_immediate_exit)
    if reason is None:
        # What an entry was forced for may be a trap to tell.
        wanted = vcpu.user_intercepts
        return None if wanted is None else intercepted.after(vcpu, wanted, None)
    if vcpu.pauses_alone and type(reason) in exits.MAY_WAKE:
        exits.pause_again(vcpu)
    vcpu.statistics.exits[reason.name] += 1
    plain = vcpu.user_intercepts is None and not vcpu.guest_mode
    return (exits.HANDLERS[type(reason)] if plain else exits.handle)(vcpu, reason)


def _run_guest(vcpu: Vcpu, budget_ns: int | None, force_immediate_exit: bool) -> engine_api.Exit | None:
    """In guest mode, with nothing left to look at: run until an exit that is not answered here, None if all were."""
    engine, hv = vcpu.engine, vcpu.hv
    run = vcpu.vendor.vcpu_run if vcpu.trace is None else tracing.vcpu_run
    budget = entered_ns = None
    if budget_ns is None:
        entered_ns = vcpu.host.now_ns()
        if hv.unhalted.running:
            hv.unhalted.arm(entered_ns)
    else:
        if hv.unhalted.running:
            budget_ns = min(budget_ns, hv.unhalted.left_ns)
        budget = budget_ns // vcpu.vm.ns_per_instruction or 1
    if hv.assist.enabled:
        hv.eoi_assist.offer()
    if vcpu.section is not None:
        vcpu.section.leave()
    reason = run(vcpu, budget, force_immediate_exit)
    mode, in_guest = vcpu.mode, exits.IN_GUEST_MODE
    plain = vcpu.user_intercepts is None and not vcpu.guest_mode
    fast, plain_cpuid = 0, engine_api.Cpuid if plain else None
    while True:
        while type(reason) is plain_cpuid:
            # Fast path: nothing that an interrupt or another task could care about has changed.
            exits.emulate_cpuid(vcpu, reason.length)
            fast += 1
            # A kick that came as the run ended does not count for the next one, and whoever kicks after it finds that
            # the guest is being left: so leave it, whatever the kick was about (`kvm_vcpu_exit_request`).
            if (
                fast == FASTPATH_LIMIT
                or mode.load() != in_guest
                or vcpu.signal_pending()
                or engine.injected() is not None
            ):
                _leave_guest(vcpu, fast, entered_ns)
                return None
            reason = run(vcpu, None, False)
        if type(reason) is not _PREEMPTION_TIMER:
            break
        # Where the guest's timer goes next depends on what time it is.
        vcpu.sync_clock(fast + 1)
        fast = 0
        completion = vcpu.vendor.handle_fastpath_preemption_timer(vcpu, force_immediate_exit)
        if completion is Fastpath.NONE:
            _leave_guest(vcpu, 0, entered_ns)
            return reason
        vcpu.statistics.exits[_PREEMPTION_TIMER.name] += 1
        if completion is Fastpath.EXIT_HANDLED or _exit_request(vcpu):
            _leave_guest(vcpu, 0, entered_ns)
            return None
        reason = run(vcpu, None, False)
    _leave_guest(vcpu, fast + 1, entered_ns)
    return reason


def _exit_request(vcpu: Vcpu) -> bool:
    """Whether the guest may not go on: a kick, a request, a signal, an event to deliver (`kvm_vcpu_exit_request`)."""
    return (
        vcpu.mode.load() != exits.IN_GUEST_MODE
        or bool(vcpu.requests.load())
        or vcpu.signal_pending()
        or vcpu.engine.injected() is not None
    )


def _leave_guest(vcpu: Vcpu, count: int, entered_ns: int | None) -> None:
    """After `count` exits: the local APIC is made exact, time is accounted. `entered_ns`: on a host of real time."""
    vcpu.mode.store(exits.OUTSIDE_GUEST_MODE)
    if vcpu.section is not None:
        vcpu.section.enter()
    hv = vcpu.hv
    if hv.eoi_assist.offered:
        hv.eoi_assist.sync()
    vcpu.sync_clock(count)
    if entered_ns is not None:
        if hv.unhalted.running:
            hv.unhalted.disarm()
        hv.account_guest_time(vcpu.host.now_ns() - entered_ns)
