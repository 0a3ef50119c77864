"""SVM behaviour of the run loop. Mirrors arch/x86/kvm/svm/svm.c.

What blocks an interrupt or NMI, how an event is injected, how an immediate exit is forced. The engine is the hardware;
this says how AMD's behaves and lets the run loop stay free of vendors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Event, EventType, Exit, Intercept
from vtlkit.kvm.events import PENDING_INIT
from vtlkit.kvm.requests import Req
from vtlkit.x86.svm import SvmExit

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_INTERRUPTS: Final = tuple(Event(EventType.INTERRUPT, vector) for vector in range(256))


class SvmVendor:
    """One per process; the state is the vCPU's."""

    name = "svm"

    intercepts = Intercept.PAUSE | Intercept.RDTSC | Intercept.CR_WRITE | Intercept.XSETBV | Intercept.RDPMC
    """Writes of CR0 and CR4 exit because the engine does not check reserved bits; their reads do not, as the guest owns
    all their bits. CR8 always exits: the TPR is the APIC's."""

    def vcpu_run(self, vcpu: Vcpu, budget: int | None, force_immediate_exit: bool) -> Exit:
        """Enter the guest until the next exit (`svm_vcpu_run`).

        `force_immediate_exit` is the self-IPI of the hardware: the pending interrupt makes VMRUN exit before the first
        guest instruction, after an injected event has been delivered.
        """
        return vcpu.engine.run(budget, force_immediate_exit=force_immediate_exit)

    def interrupt_blocked(self, vcpu: Vcpu) -> bool:
        """`svm_interrupt_blocked`: GIF, RFLAGS.IF (but for an idle VTL), the interrupt shadow.

        In L2 the flag that counts may be L1's, which no rule for idle VTLs overrides; #VMEXIT heeds no shadow.
        """
        engine = vcpu.engine
        if not vcpu.gif:
            return True
        if vcpu.guest_mode:
            if vcpu.nested.interrupt_masked():
                return True
            return not vcpu.nested.exits_on(SvmExit.INTR) and engine.interrupt_shadow
        return bool(vcpu.is_irq_blocked_by_rflags_if() or engine.interrupt_shadow)

    def interrupt_allowed(self, vcpu: Vcpu) -> bool:
        return not self.interrupt_blocked(vcpu)

    def injection_allowed(self, vcpu: Vcpu) -> bool:
        """Whether an interrupt may be injected (`for_injection` of `svm_interrupt_allowed`): one that came since L1 was
        asked must not slip into an L2 whose interrupts L1 intercepts."""
        return not self.interrupt_blocked(vcpu) and not vcpu.nested.exits_on(SvmExit.INTR)

    def nmi_blocked(self, vcpu: Vcpu) -> bool:
        """`svm_nmi_blocked`: GIF, an NMI being handled, the interrupt shadow."""
        engine = vcpu.engine
        if not vcpu.gif:
            return True
        if vcpu.nested.exits_on(SvmExit.NMI):
            return False
        return bool(engine.nmi_blocked or engine.interrupt_shadow)

    def init_blocked(self, vcpu: Vcpu) -> bool:
        """`svm_apic_init_signal_blocked`: GIF clear; and an L1 that intercepts INIT gets a #VMEXIT with it latched."""
        if not vcpu.gif:
            return True
        if not vcpu.events.apic_events.test(PENDING_INIT) or not vcpu.nested.exits_on(SvmExit.INIT):
            return False
        vcpu.make_request(Req.EVENT)
        return True

    def request_interrupt_window(self, vcpu: Vcpu) -> None:
        """`svm_enable_irq_window`: exit when the guest can take an interrupt, if its own instructions decide that.

        STGI, and the #VMEXIT after which L1's own flag counts again, make the vCPU look anyway.
        """
        if not vcpu.gif:
            return
        if vcpu.nested.exits_on(SvmExit.INTR) and not self.interrupt_blocked(vcpu):
            vcpu.make_request(Req.EVENT)
            return
        if not vcpu.guest_mode or not vcpu.nested.masks_interrupts():
            vcpu.engine.request_interrupt_window(True)
        elif vcpu.engine.interrupt_shadow and not vcpu.nested.interrupt_masked():
            # Whatever L2's flag is: what is awaited is the end of the shadow, as an NMI awaits it.
            vcpu.engine.request_nmi_window(True)

    def request_nmi_window(self, vcpu: Vcpu) -> None:
        """`svm_enable_nmi_window`; as for interrupts STGI looks anyway."""
        if vcpu.gif:
            vcpu.engine.request_nmi_window(True)

    def inject_irq(self, vcpu: Vcpu, vector: int) -> None:
        vcpu.engine.inject(_INTERRUPTS[vector])

    def inject_nmi(self, vcpu: Vcpu) -> None:
        vcpu.engine.nmi_blocked = True
        vcpu.engine.inject(Event(EventType.NMI, 2))


SVM = SvmVendor()
