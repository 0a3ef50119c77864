"""The synthetic timers of one vCPU (TLFS, "Synthetic Timers"; mirrors `struct kvm_vcpu_hv_stimer` and `stimer_*` of
arch/x86/kvm/hyperv.c).

Promise: an enabled timer is signalled once for each expiration that it does not skip, never before its time, and its
periods do not drift. Times are values of the partition's reference counter, in units of 100 ns.

Shared: `_expired` alone. The host timer's callback runs in interrupt context and does no more than mark it, make the
request HV_STIMER and kick, in that order; the vCPU takes the request, then looks at the mark. Every other word belongs
to the vCPU's own task (whoever holds its mutex). Relies on `Timer.cancel`: after it, no callback of the earlier start
is running. docs/design/stimer.md has the races, and what becomes of expirations that are missed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.messages import HvMessageType, make_message
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.synic import (
    HV_STIMER_CONFIG_APIC_VECTOR,
    HV_STIMER_CONFIG_RESERVED_MASK,
    HV_STIMER_CONFIG_SINTX,
    HV_SYNIC_FIRST_VALID_VECTOR,
    HV_TIMER_MESSAGE_PAYLOAD,
    HvStimerConfig,
)
from vtlkit.kvm.hyperv.privileges import DIRECT_TIMERS
from vtlkit.kvm.hyperv.reference_time import NEVER_NS
from vtlkit.kvm.requests import Req
from vtlkit.x86.apic import DeliveryMode

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.vcpu import HvVcpu

_ENABLED: Final = int(HvStimerConfig.Enabled)
_PERIODIC: Final = int(HvStimerConfig.Periodic)
_LAZY: Final = int(HvStimerConfig.Lazy)
_AUTO_ENABLE: Final = int(HvStimerConfig.AutoEnable)
_DIRECT: Final = int(HvStimerConfig.DirectMode)


class SyntheticTimer:
    """One timer. All methods but the callback are for the vCPU's own task, and may take the SynIC's lock."""

    __slots__ = ("_expiration", "_expired", "_hv", "_index", "_timer", "config", "count", "message_waiting")

    def __init__(self, hv: HvVcpu, index: int) -> None:
        host, name = hv.vcpu.host, f"vcpu{hv.vcpu.vcpu_id}-stimer{index}"
        self._hv = hv
        self._index = index
        self._timer = host.timer(self._fired, name)
        self._expired = host.cell(False, f"{name}-expired")
        self._expiration = 0
        """When the armed timer expires; 0 if it is not running."""
        self.config = 0
        """HV_X64_MSR_STIMERx_CONFIG."""
        self.count = 0
        """HV_X64_MSR_STIMERx_COUNT."""
        self.message_waiting = False
        """The timer has expired and its message found no room."""

    # --- registers ----------------------------------------------------------------------------------------------------

    def set_config(self, value: int, *, host_initiated: bool = False) -> bool:
        """Write CONFIG; False is #GP: a reserved bit, direct mode that is not offered, or a direct vector below 16."""
        if value & HV_STIMER_CONFIG_RESERVED_MASK:
            return False
        if value & _DIRECT and not host_initiated:
            if not self._hv.privileges & DIRECT_TIMERS:
                return False
            if HV_STIMER_CONFIG_APIC_VECTOR.get(value) < HV_SYNIC_FIRST_VALID_VECTOR:
                return False
        self._stop()
        self.config = value
        self._start()
        return True

    def set_count(self, value: int, *, host_initiated: bool = False) -> bool:
        """Write COUNT. From the guest, 0 disables the timer, and any other value enables one with AutoEnable."""
        self._stop()
        self.count = value
        if not host_initiated:
            if not value:
                self.config &= ~_ENABLED
            elif self.config & _AUTO_ENABLE:
                self.config |= _ENABLED
        self._start()
        return True

    def reset(self) -> None:
        """RESET: disabled."""
        self._stop()
        self.config = self.count = 0

    def _stop(self) -> None:
        """Disarm, and forget an expiration that has not been signalled (`stimer_cleanup`)."""
        self._timer.cancel()
        self._expired.store(False)
        self._expiration = 0
        self.message_waiting = False

    def _start(self) -> None:
        if not self.config & _DIRECT and not HV_STIMER_CONFIG_SINTX.get(self.config):
            # SINT 0 is the hypervisor's.
            self.config &= ~_ENABLED
        if not self.config & _ENABLED or not self.count:
            return
        first = self._hv.hv_vm.reference_time.counter() if self.config & _PERIODIC else 0
        self._expiration = first + self.count
        self._arm()

    def _arm(self) -> None:
        if self._hv.hv_vm.reference_time.counter() >= self._expiration:
            self._fired()
        else:
            self._start_host_timer()

    def _start_host_timer(self) -> None:
        deadline = self._hv.hv_vm.reference_time.host_ns(self._expiration)
        if deadline < NEVER_NS:
            self._timer.start(deadline)

    # --- expiring -----------------------------------------------------------------------------------------------------

    def _fired(self) -> None:
        # Order against the vCPU's decision to block: mark, request, kick. The kick counts for the vCPU's own task, too:
        # it may set a timer of a VTL that is not the active one.
        self._expired.store(True)
        self._hv.vcpu.make_request(Req.HV_STIMER)
        self._hv.vcpu.kick()

    def process(self) -> None:
        """Req.HV_STIMER: signal an expiration, if there was one (one timer's share of `kvm_hv_process_stimers`)."""
        if not self._expired.xchg(False):
            return
        if self._hv.hv_vm.reference_time.counter() < self._expiration:
            # The counter's parameters have changed since the timer was armed.
            self._arm()
            return
        self._expire()

    def retry(self) -> None:
        """There may be room in a message slot: send the message that waits. The guest may be in the middle of a run."""
        if self.message_waiting and self._expire():
            # The guest's slice was chosen before the timer was armed again.
            self._hv.vcpu.kick()

    def _expire(self) -> bool:
        """Signal the expiration, or skip it, and go on to the next; False if it must wait for room."""
        config = self.config
        if config & _DIRECT:
            vector = HV_STIMER_CONFIG_APIC_VECTOR.get(config)
            self._hv.vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)
        elif not self._send_message() and config & (_PERIODIC | _LAZY) != _PERIODIC | _LAZY:
            self.message_waiting = True
            return False
        self.message_waiting = False
        if not config & _PERIODIC:
            self.config &= ~_ENABLED
            self._expiration = 0
            return True
        late = self._hv.hv_vm.reference_time.counter() - self._expiration
        self._expiration += (late // self.count + 1) * self.count
        # By way of the host's timer even if it has come meanwhile: a period shorter than it takes to serve would leave
        # the vCPU nothing else to do, not even the guest's way to stop it.
        self._start_host_timer()
        return True

    def _send_message(self) -> bool:
        now = self._hv.hv_vm.reference_time.counter()
        payload = HV_TIMER_MESSAGE_PAYLOAD(self._index, 0, self._expiration, now)
        message = make_message(HvMessageType.HvMessageTimerExpired, payload.pack())
        sint = HV_STIMER_CONFIG_SINTX.get(self.config)
        return self._hv.synic.deliver_message(sint, message.pack()) == HvStatus.SUCCESS

    def waits_for_sint(self, sint: int) -> bool:
        """Whether a message waits for this SINT's slot."""
        return self.message_waiting and HV_STIMER_CONFIG_SINTX.get(self.config) == sint

    def destroy(self) -> None:
        """Disarm for good."""
        self._timer.cancel()
