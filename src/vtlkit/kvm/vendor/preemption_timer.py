"""The VMX preemption timer of one vCPU: forces exits, and is the guest's timer. Mirrors `vmx_set_hv_timer`,
`vmx_cancel_hv_timer` and `vmx_update_hv_timer` of arch/x86/kvm/vmx/vmx.c (SDM volume 3, "VMX-Preemption Timer").

The timer counts guest TSC cycles in the guest alone, so it is loaded anew at every entry for which time has been
accounted; an entry that is a mere continuation lets it count on. Unused it is not switched off, which would cost a
write of the execution controls, but loaded with the longest time there is (`soft_disabled`): an exit that comes all the
same means nothing.

A guest's timer can be such an exit only where the engine counts instructions and they are what time is made of: on a
deterministic host. Elsewhere it is not offered, and the local APIC keeps its software timer. So it does outside of
`Vcpu.run` and while the vCPU waits: nobody exits there, and only a software timer is heard of.

Belongs to the vCPU's task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

TIMER_BITS: Final = 32
TIMER_SHIFT: Final = 5
"""The hardware's timer has 32 bits and counts once in 2 to the power of this many TSC cycles (IA32_VMX_MISC 4:0)."""
LIMIT: Final = 1 << TIMER_BITS + TIMER_SHIFT
SOFT_DISABLED: Final = LIMIT - 1


class PreemptionTimer:
    """See the module; an `HvTimer` for the local APIC."""

    __slots__ = ("_deadline_ns", "_longest", "_vcpu", "counting_on", "soft_disabled")

    def __init__(self, vcpu: Vcpu) -> None:
        engine, vm = vcpu.engine, vcpu.vm
        self._vcpu = vcpu
        self._deadline_ns: int | None = None
        self._longest = SOFT_DISABLED if engine.counts_preemption_timer else None
        self.counting_on = False
        """An entry that continues the last one needs no new load."""
        self.soft_disabled = False
        """Loaded with the longest time there is: nobody wants its exit."""
        engine.instruction_cycles = (vm.ns_per_instruction * vm.tsc_khz, 1_000_000)
        if engine.counts_preemption_timer and vcpu.host.deterministic:
            vcpu.apic.timer.use_hv_timer(self)

    # --- for the local APIC (HvTimer) -------------------------------------------------------------------------------

    def set_hv_timer(self, deadline_ns: int) -> bool:
        """Exit at `deadline_ns` of the host clock; False for what the timer cannot hold."""
        if self._ticks_until(deadline_ns) >= LIMIT:
            return False
        self._deadline_ns = deadline_ns
        self.counting_on = False
        return True

    def cancel_hv_timer(self) -> None:
        self._deadline_ns = None
        self.counting_on = False

    def _ticks_until(self, deadline_ns: int) -> int:
        """Guest TSC cycles from now on, rounded up; the guest's TSC runs as the host's, apart from the offset."""
        vcpu = self._vcpu
        return max(-((vcpu.host.now_ns() - deadline_ns) * vcpu.vm.tsc_khz // 1_000_000), 0)

    # --- for the vendor ---------------------------------------------------------------------------------------------

    def load(self, force_immediate_exit: bool) -> None:
        """Before an entry (`vmx_update_hv_timer`)."""
        self.counting_on = not force_immediate_exit
        if force_immediate_exit:
            ticks: int | None = 0
        elif self._deadline_ns is not None:
            ticks = self._ticks_until(self._deadline_ns)
        elif self.soft_disabled:
            return
        else:
            ticks = self._longest
        self.soft_disabled = not force_immediate_exit and self._deadline_ns is None
        self._vcpu.engine.set_preemption_timer(ticks)

    def reload(self) -> None:
        """It has run down while it was soft-disabled: the next entry loads it again."""
        self.soft_disabled = self.counting_on = False
