"""VMX behaviour of the run loop. Mirrors arch/x86/kvm/vmx/vmx.c (SDM volume 3, chapters 25 to 28).

Forced exits and the guest's timer are exits of the preemption timer; NMIs are virtual NMIs; there is no global
interrupt flag. The interrupt window and the NMI window are the engine's: they are what the primary controls
"interrupt-window exiting" and "NMI-window exiting" make, and asked for by the same code as on SVM.

NMI blocking that IRET ended and then exited needs no recovery (`vmx_recover_nmi_blocking`): an IRET that exits
has not been executed, and has ended nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.engine.api import Exit
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vendor.api import Fastpath, Vendor
from vtlkit.kvm.vendor.preemption_timer import PreemptionTimer

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu


class VmxVendor(Vendor):
    """One per process; the state is the vCPU's."""

    name = "vmx"

    def preemption_timer(self, vcpu: Vcpu) -> PreemptionTimer:
        return PreemptionTimer(vcpu)

    def vcpu_run(self, vcpu: Vcpu, budget: int | None, force_immediate_exit: bool) -> Exit:
        """Enter the guest until the next exit (`vmx_vcpu_run`).

        `force_immediate_exit` is a preemption timer of zero: it cannot come late, as there is nothing on its way.
        """
        timer = vcpu.preemption_timer
        assert timer is not None
        if force_immediate_exit or budget is not None or not timer.counting_on:
            timer.load(force_immediate_exit)
        return vcpu.engine.run(budget)

    def handle_fastpath_preemption_timer(self, vcpu: Vcpu, force_immediate_exit: bool) -> Fastpath:
        timer = vcpu.preemption_timer
        assert timer is not None
        if timer.soft_disabled:
            # Nobody asked for this exit: the longest time there is has passed.
            timer.reload()
            return Fastpath.REENTER_GUEST
        if force_immediate_exit:
            return Fastpath.EXIT_HANDLED
        if vcpu.guest_mode:
            # The guest's timer in L2: its interrupt may have to be an exit to L1, which the fast path cannot make.
            return Fastpath.NONE
        vcpu.apic.timer.expired_hv_timer()
        return Fastpath.REENTER_GUEST

    def handle_preemption_timer(self, vcpu: Vcpu) -> None:
        """The guest's timer ran down in L2; everything else is the fast path's.

        Ends with the requests that make the run loop look for interrupts: what L1 intercepts becomes a nested exit
        there, before L2 executes anything.
        """
        assert vcpu.guest_mode, "a preemption timer exit that the fast path should have answered"
        vcpu.apic.timer.expired_hv_timer()
        vcpu.make_request(Req.EVENT)

    def gif(self, vcpu: Vcpu) -> bool:
        """Only a guest that has SVM of its own has a global interrupt flag."""
        return vcpu.gif or not vcpu.vm.nested


VMX = VmxVendor()
