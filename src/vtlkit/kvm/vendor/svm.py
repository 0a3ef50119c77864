"""SVM behaviour of the run loop. Mirrors arch/x86/kvm/svm/svm.c.

What blocks an interrupt or NMI, how an event is injected, how an immediate exit is forced. The engine is the hardware;
this says how AMD's behaves and lets the run loop stay free of vendors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Event, EventType, Exit, Intercept

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
        """`svm_interrupt_blocked`: GIF, RFLAGS.IF (but for an idle VTL), the interrupt shadow."""
        engine = vcpu.engine
        if not vcpu.gif:
            return True
        return bool(vcpu.is_irq_blocked_by_rflags_if() or engine.interrupt_shadow)

    def interrupt_allowed(self, vcpu: Vcpu) -> bool:
        return not self.interrupt_blocked(vcpu)

    def nmi_blocked(self, vcpu: Vcpu) -> bool:
        """`svm_nmi_blocked`: GIF, an NMI being handled, the interrupt shadow."""
        engine = vcpu.engine
        return bool(not vcpu.gif or engine.nmi_blocked or engine.interrupt_shadow)

    def inject_irq(self, vcpu: Vcpu, vector: int) -> None:
        vcpu.engine.inject(_INTERRUPTS[vector])

    def inject_nmi(self, vcpu: Vcpu) -> None:
        vcpu.engine.nmi_blocked = True
        vcpu.engine.inject(Event(EventType.NMI, 2))


SVM = SvmVendor()
