"""The local APIC timer: one-shot, periodic and TSC-deadline.

Mirrors the timer part of arch/x86/kvm/lapic.c (`struct kvm_timer`, `apic_timer_expired`, `start_apic_timer`,
`kvm_lapic_expired_hv_timer`). The bus clock is 1 GHz: one count per `divide_count` nanoseconds.

Promise: an expiry of the armed timer is never lost, and wakes a blocked vCPU whatever its RFLAGS.IF.

Shared: `pending` alone. The timer callback runs in interrupt context and does no more than mark `pending`, make the
UNBLOCK request and kick, in that order; the vCPU looks for requests, then at `pending`, after it has announced its
sleep, so one of the two sees the other. Every other word belongs to the vCPU's own task (whoever holds its mutex).
Unlike KVM's, the callback does not restart a periodic timer: the vCPU does when it takes the tick. Ticks that come
while one is pending would be merged into it anyway, and so no period or target is shared with the interrupt.

Relies on `Timer.cancel` as `hrtimer_cancel`: after it, no callback of the earlier start is running.
"""

from __future__ import annotations

from vtlkit.host.api import Cell
from vtlkit.kvm.lapic_owner import HvTimer, TimerOwner
from vtlkit.kvm.requests import Req
from vtlkit.x86.apic import (
    APIC_LVT_TIMER_MODE_MASK,
    APIC_LVT_TIMER_ONESHOT,
    APIC_LVT_TIMER_PERIODIC,
    APIC_LVT_TIMER_TSCDEADLINE,
    APIC_TDR_DIV_MASK,
    timer_divisor,
)

APIC_BUS_CYCLE_NS = 1
MIN_TIMER_PERIOD_NS = 200_000
"""The shortest period a guest may program (KVM's module parameter min_timer_period_us)."""


class LapicTimer:
    """The timer of one local APIC. All methods but the callback are for the vCPU's own task."""

    __slots__ = (
        "_hv_timer",
        "_in_software",
        "_initial_count",
        "_owner",
        "_target_expiration",
        "_tdcr",
        "_timer",
        "_tscdeadline",
        "divide_count",
        "hv_timer_in_use",
        "mode",
        "mode_mask",
        "pending",
        "period",
    )

    def __init__(self, owner: TimerOwner) -> None:
        self._owner = owner
        self.pending: Cell[int] = owner.host.cell(0, f"vcpu{owner.vcpu_id}-apic-timer-pending")
        self._timer = owner.host.timer(self._apic_timer_fn, f"vcpu{owner.vcpu_id}-apic-timer")
        self._hv_timer: HvTimer | None = None
        self._in_software = True
        self.hv_timer_in_use = False
        self.mode = APIC_LVT_TIMER_ONESHOT
        self.mode_mask = APIC_LVT_TIMER_MODE_MASK
        self._initial_count = 0
        self._tdcr = 0
        self.divide_count = timer_divisor(0)
        self.period = 0
        self._target_expiration = 0
        self._tscdeadline = 0

    # Registers

    @property
    def initial_count(self) -> int:
        """TMICT."""
        return self._initial_count

    @property
    def tdcr(self) -> int:
        """The divide configuration register."""
        return self._tdcr

    @property
    def tscdeadline(self) -> int:
        """IA32_TSC_DEADLINE: the armed deadline, 0 if none or in another mode."""
        return self._tscdeadline if self.mode == APIC_LVT_TIMER_TSCDEADLINE else 0

    def set_mode(self, lvtt: int) -> None:
        """LVTT was written (`apic_update_lvtt`): TSC-deadline to or from a counting mode disarms the timer."""
        mode = lvtt & self.mode_mask
        if mode == self.mode:
            return
        if APIC_LVT_TIMER_TSCDEADLINE in (mode, self.mode):
            self.cancel()
            self._initial_count = 0
            self.period = 0
            self._tscdeadline = 0
            self._target_expiration = 0
        elif mode == APIC_LVT_TIMER_ONESHOT:
            self._catch_up()
        elif not self._timer.armed() and not self.hv_timer_in_use:
            # A one-shot count that has ended stays ended.
            self._target_expiration = 0
        self.mode = mode
        self._limit_periodic_timer_frequency()

    def set_initial_count(self, count: int) -> None:
        """TMICT was written: start counting down from `count`; 0 stops. Ignored in TSC-deadline mode."""
        if self.mode == APIC_LVT_TIMER_TSCDEADLINE:
            return
        self.cancel()
        self._initial_count = count
        self._start(count)

    def set_tdcr(self, value: int) -> None:
        """TDCR was written: a running count goes on from where it is, at the new speed."""
        self._tdcr = value & APIC_TDR_DIV_MASK
        old_divisor = self.divide_count
        self.divide_count = timer_divisor(self._tdcr)
        if self.divide_count == old_divisor or not self.period:
            return
        self._catch_up()
        self._timer.cancel()
        now = self._owner.host.now_ns()
        remaining = max(self._target_expiration - now, 0) * self.divide_count // old_divisor
        self.period = self._count_to_ns(self._initial_count)
        self._limit_periodic_timer_frequency()
        if self._target_expiration:
            self._target_expiration = now + remaining
            self._restart()

    def set_tscdeadline(self, guest_tsc: int) -> None:
        """IA32_TSC_DEADLINE was written: fire when the guest's TSC reaches `guest_tsc`; 0 disarms."""
        if self.mode != APIC_LVT_TIMER_TSCDEADLINE:
            return
        self._timer.cancel()
        self._tscdeadline = guest_tsc
        self.pending.store(0)
        self._restart()

    def current_count(self) -> int:
        """TMCCT. It is the initial count at the moment of the start, where KVM's rounding gives 0."""
        if not self._initial_count or not self.period or self.mode == APIC_LVT_TIMER_TSCDEADLINE:
            return 0
        self._catch_up()
        remaining = self._target_expiration - self._owner.host.now_ns()
        if remaining <= 0:
            return 0
        return min(remaining, self.period) // (APIC_BUS_CYCLE_NS * self.divide_count)

    # Life

    def cancel(self) -> None:
        """Disarm, and forget an expiry that was not injected (`cancel_apic_timer`)."""
        self._timer.cancel()
        self._cancel_hv()
        self.pending.store(0)

    def reset(self) -> None:
        """RESET or INIT; the mode follows when the reset LVTT is written."""
        self.cancel()
        self._initial_count = 0
        self._tdcr = 0
        self.divide_count = timer_divisor(0)
        self.period = 0
        self._target_expiration = 0
        self._tscdeadline = 0

    def restore(self, lvtt: int, initial_count: int, tdcr: int, current_count: int) -> None:
        """Take over saved registers and go on from `current_count` (KVM_SET_LAPIC)."""
        self.cancel()
        self.set_mode(lvtt)
        self._tdcr = tdcr & APIC_TDR_DIV_MASK
        self.divide_count = timer_divisor(self._tdcr)
        self._initial_count = initial_count
        if self.mode == APIC_LVT_TIMER_TSCDEADLINE:
            self._restart()
            return
        if not current_count and self.mode == APIC_LVT_TIMER_PERIODIC:
            current_count = initial_count
        self._start(min(current_count, initial_count))

    def injected(self) -> None:
        """The pending expiry went through the LVT (`kvm_apic_inject_pending_timer_irqs`): go on to the next period."""
        if self.mode == APIC_LVT_TIMER_PERIODIC:
            self._advance_periodic_target()
            return
        self._tscdeadline = 0
        self._target_expiration = 0

    # The hypervisor's timer

    def use_hv_timer(self, hv_timer: HvTimer | None) -> None:
        """The vendor offers (or withdraws) its exit timer; it is used inside `Vcpu.run`, where somebody exits."""
        if self.hv_timer_in_use:
            self._start_sw()
        self._hv_timer = hv_timer

    @property
    def has_hv_timer(self) -> bool:
        """Whether the vendor offers its timer."""
        return self._hv_timer is not None

    @property
    def in_software(self) -> bool:
        """Whether a software timer is all that may be used now."""
        return self._in_software or self._hv_timer is None

    def switch_to_sw_timer(self) -> None:
        """Before the vCPU blocks: without a guest, only a software timer wakes it (`kvm_lapic_switch_to_sw_timer`).

        It stays in software, whatever starts it anew, until `switch_to_hv_timer`.
        """
        self._in_software = True
        if self.hv_timer_in_use:
            self._start_sw()

    def switch_to_hv_timer(self) -> None:
        """After the vCPU blocked (`kvm_lapic_switch_to_hv_timer`)."""
        self._in_software = False
        self._restart()

    def expired_hv_timer(self) -> None:
        """The exit that `set_hv_timer` asked for has come (`kvm_lapic_expired_hv_timer`)."""
        if not self.hv_timer_in_use:
            return
        self._expired()
        self._cancel_hv()
        self._catch_up()

    # Inside

    def _apic_timer_fn(self) -> None:
        # Order against the vCPU's decision to block: pending, request, kick. See docs/design/interrupts.md.
        if self.pending.xchg(1):
            return
        self._owner.make_request(Req.UNBLOCK)
        self._owner.kick()

    def _expired(self) -> None:
        if self.pending.xchg(1) == 0:
            self._owner.make_request(Req.UNBLOCK)

    def _count_to_ns(self, count: int) -> int:
        return count * APIC_BUS_CYCLE_NS * self.divide_count

    def _limit_periodic_timer_frequency(self) -> None:
        if self.mode == APIC_LVT_TIMER_PERIODIC and 0 < self.period < MIN_TIMER_PERIOD_NS:
            self.period = MIN_TIMER_PERIOD_NS

    def _start(self, count: int) -> None:
        self.pending.store(0)
        self.period = self._count_to_ns(self._initial_count)
        if not self.period:
            self._target_expiration = 0
            return
        self._limit_periodic_timer_frequency()
        first = self.period if count == self._initial_count else self._count_to_ns(count)
        self._target_expiration = self._owner.host.now_ns() + first
        self._restart()

    def _deadline_ns(self) -> int | None:
        if self.mode == APIC_LVT_TIMER_TSCDEADLINE:
            return self._owner.tsc_to_ns(self._tscdeadline) if self._tscdeadline else None
        return self._target_expiration if self.period and self._target_expiration else None

    def _restart(self) -> None:
        if self.mode != APIC_LVT_TIMER_PERIODIC and self.pending.load():
            return
        if not self._start_hv():
            self._start_sw()

    def _start_hv(self) -> bool:
        deadline = self._deadline_ns()
        if self._in_software or self._hv_timer is None or deadline is None or not self._hv_timer.set_hv_timer(deadline):
            return False
        self.hv_timer_in_use = True
        self._timer.cancel()
        # A periodic timer stays armed even if it is due: the exit that follows computes its next target.
        if self.mode != APIC_LVT_TIMER_PERIODIC and deadline <= self._owner.host.now_ns():
            self._expired()
        if self.mode != APIC_LVT_TIMER_PERIODIC and self.pending.load():
            self._cancel_hv()
        return True

    def _start_sw(self) -> None:
        self._cancel_hv()
        deadline = self._deadline_ns()
        if deadline is None or (self.mode != APIC_LVT_TIMER_PERIODIC and self.pending.load()):
            return
        if deadline <= self._owner.host.now_ns():
            self._expired()
            self._catch_up()
            return
        self._timer.start(deadline)

    def _cancel_hv(self) -> None:
        if self.hv_timer_in_use:
            assert self._hv_timer is not None
            self._hv_timer.cancel_hv_timer()
            self.hv_timer_in_use = False

    def _catch_up(self) -> None:
        """A periodic tick is pending and not yet taken: count on from the period that runs now."""
        if self.pending.load():
            self._advance_periodic_target()

    def _advance_periodic_target(self) -> None:
        """Move a past target beyond now, without a tick for each period that was missed, and arm for it."""
        if self.mode != APIC_LVT_TIMER_PERIODIC or not self.period or not self._target_expiration:
            return
        late = self._owner.host.now_ns() - self._target_expiration
        if late >= 0:
            self._target_expiration += (late // self.period + 1) * self.period
            self._restart()
