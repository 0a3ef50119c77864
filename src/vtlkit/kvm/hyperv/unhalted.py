"""The synthetic time-unhalted timer of one vCPU (TLFS, "Synthetic Time-Unhalted Timer Registers"): a periodic interrupt
or NMI after so much time in guest code. KVM has none.

Promise: an expiration for each period of executed time, with no drift; those that one stretch of guest code passed
together are one. Where instructions are counted it comes at the instruction that ends the period.

Everything belongs to the vCPU's own task but the host timer's callback, which runs in interrupt context and only makes
the guest exit: how much time was spent is for the vCPU to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.msrs import HV_STIME_UNHALTED_TIMER_ENABLED, HV_STIME_UNHALTED_TIMER_VECTOR
from vtlkit.hvdef.synic import HV_SYNIC_FIRST_VALID_VECTOR
from vtlkit.kvm.hyperv.reference_time import NEVER_NS, REFERENCE_TICK_NS
from vtlkit.kvm.requests import Req
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.exceptions import Vector

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.vcpu import HvVcpu

_KNOWN: Final = HV_STIME_UNHALTED_TIMER_ENABLED.mask | HV_STIME_UNHALTED_TIMER_VECTOR.mask


class UnhaltedTimer:
    """All methods but the callback are for the vCPU's own task."""

    __slots__ = ("_hv", "_timer", "config", "count", "left_ns", "running")

    def __init__(self, hv: HvVcpu) -> None:
        self._hv = hv
        self._timer = hv.vcpu.host.timer(self._fired, f"vcpu{hv.vcpu.vcpu_id}-unhalted-timer")
        self.config = 0
        """HV_X64_MSR_STIME_UNHALTED_TIMER_CONFIG."""
        self.count = 0
        """HV_X64_MSR_STIME_UNHALTED_TIMER_COUNT: the period in units of 100 ns; 0 stops the timer."""
        self.running = False
        self.left_ns = 0
        """Time to execute until the next expiration; above 0 while the timer runs."""

    def set_config(self, value: int) -> bool:
        """Write CONFIG; False is #GP: a reserved bit, or Enabled with a vector other than 2 and 16 to 255."""
        vector = HV_STIME_UNHALTED_TIMER_VECTOR.get(value)
        enabled = HV_STIME_UNHALTED_TIMER_ENABLED.get(value)
        if value & ~_KNOWN or (enabled and vector < HV_SYNIC_FIRST_VALID_VECTOR and vector != Vector.NMI):
            return False
        self.config = value
        self._start()
        return True

    def set_count(self, value: int) -> bool:
        """Write COUNT: a new period begins."""
        self.count = value
        self._start()
        return True

    def reset(self) -> None:
        """RESET: disabled."""
        self.config = self.count = 0
        self._start()

    def _start(self) -> None:
        self.left_ns = self.count * REFERENCE_TICK_NS
        self.running = HV_STIME_UNHALTED_TIMER_ENABLED.get(self.config) != 0 and self.count != 0

    def account(self, spent_ns: int) -> None:
        """Guest code has executed for `spent_ns`; the timer runs."""
        self.left_ns -= spent_ns
        if self.left_ns > 0:
            return
        self.left_ns = self.left_ns % (self.count * REFERENCE_TICK_NS) or self.count * REFERENCE_TICK_NS
        self._hv.assist.set_unhalted_timer_expired()
        vector = HV_STIME_UNHALTED_TIMER_VECTOR.get(self.config)
        mode = DeliveryMode.NMI if vector == Vector.NMI else DeliveryMode.FIXED
        self._hv.vcpu.apic.accept_irq(mode, vector, 1, False)

    def arm(self, now_ns: int) -> None:
        """Guest code begins to run on a host that does not count instructions."""
        if now_ns + self.left_ns < NEVER_NS:
            self._timer.start(now_ns + self.left_ns)

    def disarm(self) -> None:
        """Guest code has stopped running, or the vCPU goes."""
        self._timer.cancel()

    def _fired(self) -> None:
        # Without the request, a kick between the start of the timer and the entry would be lost.
        self._hv.vcpu.make_request(Req.UNBLOCK)
        self._hv.vcpu.kick()
