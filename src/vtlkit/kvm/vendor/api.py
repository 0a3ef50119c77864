"""What a vendor is: how one kind of hardware virtualisation makes the run loop behave. Counterpart: `kvm_x86_ops`.

A vendor is about the run loop alone: how an exit is forced, what holds an interrupt or NMI off, how an event is
injected, whether the guest's timer can be an exit. What CPUID says and which instructions there are is the engine's.

One object a process; what it has to remember is the vCPU's (`Vcpu.preemption_timer`).
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

from vtlkit.engine.api import Event, EventType, Exit, Intercept
from vtlkit.kvm.events import PENDING_INIT
from vtlkit.kvm.requests import Req
from vtlkit.x86.svm import SvmExit

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu
    from vtlkit.kvm.vendor.preemption_timer import PreemptionTimer

_INTERRUPTS: Final = tuple(Event(EventType.INTERRUPT, vector) for vector in range(256))
_NMI: Final = Event(EventType.NMI, 2)


class Fastpath(enum.Enum):
    """What is left to do about an exit that was looked at before the guest was left (`enum exit_fastpath_completion`).

    NONE: the exit's handler. REENTER_GUEST: nothing; the guest goes on if nobody wants it to stop. EXIT_HANDLED:
    nothing, but the run loop has something to look at.
    """

    NONE = 0
    REENTER_GUEST = 1
    EXIT_HANDLED = 2


class Vendor(ABC):
    """See the module. All methods are for the vCPU's task."""

    name: ClassVar[str]
    intercepts: ClassVar[Intercept] = (
        Intercept.PAUSE | Intercept.RDTSC | Intercept.CR_WRITE | Intercept.XSETBV | Intercept.RDPMC
    )
    """Writes of CR0 and CR4 exit because the engine does not check reserved bits; their reads do not, as the guest owns
    all their bits. CR8 always exits: the TPR is the APIC's."""

    @abstractmethod
    def vcpu_run(self, vcpu: Vcpu, budget: int | None, force_immediate_exit: bool) -> Exit:
        """Enter the guest until the next exit; `budget` as for `Engine.run`.

        `force_immediate_exit`: the exit comes before the first guest instruction, after an injected event has been
        delivered and an unfinished I/O instruction finished.
        """

    def preemption_timer(self, vcpu: Vcpu) -> PreemptionTimer | None:
        """What this vendor needs a vCPU to have for exits at a given time; None if it knows no such exits."""
        return None

    def handle_fastpath_preemption_timer(self, vcpu: Vcpu, force_immediate_exit: bool) -> Fastpath:
        """The engine's preemption timer has run down; the clock is exact. `force_immediate_exit`: of the entry."""
        raise AssertionError(f"{self.name} uses no preemption timer")

    def handle_preemption_timer(self, vcpu: Vcpu) -> None:
        """The same, with the guest left: whatever the fast path has answered NONE for."""
        raise AssertionError(f"{self.name} uses no preemption timer")

    # --- what holds events off --------------------------------------------------------------------------------------
    #
    # The rules of L2 are those of the processor that L1 sees, which has SVM, whoever's hardware runs the two.

    def gif(self, vcpu: Vcpu) -> bool:
        """The global interrupt flag."""
        return vcpu.gif

    def interrupt_blocked(self, vcpu: Vcpu) -> bool:
        """Whether the processor would hold an interrupt off now (`svm_interrupt_blocked`, `vmx_interrupt_blocked`):
        GIF, RFLAGS.IF (but for an idle VTL), blocking by STI or MOV SS. The local APIC's priorities are not its
        business.

        In L2 the flag that counts may be L1's, which no rule for idle VTLs overrides; #VMEXIT heeds no shadow.
        """
        if not self.gif(vcpu):
            return True
        engine = vcpu.engine
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
        """Whether the processor would hold an NMI off now (`svm_nmi_blocked`, `vmx_nmi_blocked`): GIF, an NMI being
        handled, blocking by MOV SS, and by STI, which hardware may let through."""
        engine = vcpu.engine
        if not self.gif(vcpu):
            return True
        if vcpu.nested.exits_on(SvmExit.NMI):
            return False
        return bool(engine.nmi_blocked or engine.interrupt_shadow)

    def init_blocked(self, vcpu: Vcpu) -> bool:
        """`svm_apic_init_signal_blocked`: GIF clear; and an L1 that intercepts INIT gets a #VMEXIT with it latched."""
        if not self.gif(vcpu):
            return True
        if not vcpu.events.apic_events.test(PENDING_INIT) or not vcpu.nested.exits_on(SvmExit.INIT):
            return False
        vcpu.make_request(Req.EVENT)
        return True

    def request_interrupt_window(self, vcpu: Vcpu) -> None:
        """Exit when the guest can take an interrupt, if its own instructions decide that (`svm_enable_irq_window`;
        on VMX the control "interrupt-window exiting").

        STGI, and the #VMEXIT after which L1's own flag counts again, make the vCPU look anyway.
        """
        if not self.gif(vcpu):
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
        """`svm_enable_nmi_window`, "NMI-window exiting"; as for interrupts STGI looks anyway."""
        if self.gif(vcpu):
            vcpu.engine.request_nmi_window(True)

    # --- injection --------------------------------------------------------------------------------------------------

    def inject_irq(self, vcpu: Vcpu, vector: int) -> None:
        vcpu.engine.inject(_INTERRUPTS[vector])

    def inject_nmi(self, vcpu: Vcpu) -> None:
        """NMIs are blocked from here on: the entry that delivers it comes first."""
        vcpu.engine.nmi_blocked = True
        vcpu.engine.inject(_NMI)
