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

    @abstractmethod
    def interrupt_blocked(self, vcpu: Vcpu) -> bool:
        """Whether the processor would hold an interrupt off now. The local APIC's priorities are not its business."""

    def interrupt_allowed(self, vcpu: Vcpu) -> bool:
        return not self.interrupt_blocked(vcpu)

    @abstractmethod
    def nmi_blocked(self, vcpu: Vcpu) -> bool:
        """Whether the processor would hold an NMI off now."""

    def inject_irq(self, vcpu: Vcpu, vector: int) -> None:
        vcpu.engine.inject(_INTERRUPTS[vector])

    def inject_nmi(self, vcpu: Vcpu) -> None:
        """NMIs are blocked from here on: the entry that delivers it comes first."""
        vcpu.engine.nmi_blocked = True
        vcpu.engine.inject(_NMI)
