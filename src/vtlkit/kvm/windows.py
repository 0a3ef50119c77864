"""What user space asks to be told of: the moment when a vCPU can take an interrupt, an NMI or a SynIC message.

Counterpart: `request_interrupt_window` of `struct kvm_run` and KVM_EXIT_IRQ_WINDOW_OPEN, with the NMI and the message
slots of HvRegisterDeliverabilityNotifications beside it. Looked at before every entry into the guest, and before a
halted vCPU waits; a request is forgotten by the exit that answers it, and by RESET and INIT.

Belongs to the vCPU's task: whoever holds its mutex.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.synic import HV_SYNIC_SINT_COUNT
from vtlkit.kvm.kvm_run import IrqWindowOpen

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_PRIORITY_SHIFT: Final = 4


@dataclass(frozen=True, slots=True)
class Windows:
    """`priority`: that of the interrupt to be delivered (bits 7:4 of its vector), which the processor priority must let
    through; 0 asks for RFLAGS.IF and the interrupt shadow alone. `sints`: a bit per SINT."""

    interrupt: bool = False
    priority: int = 0
    nmi: bool = False
    sints: int = 0


def request(windows: Windows) -> Windows | None:
    """What `EventQueue.windows` holds: None if nothing is asked for, as a priority alone asks for nothing."""
    return windows if windows.interrupt or windows.nmi or windows.sints else None


def opened(vcpu: Vcpu, wanted: Windows) -> IrqWindowOpen | None:
    """Answer what can be answered; for the rest the engine exits when it may have become possible.

    The vCPU is between two instructions.
    """
    engine, synic = vcpu.engine, vcpu.hv.synic
    interrupt = nmi = False
    # An event that is on its way into the guest comes first.
    free = engine.injected() is None and not vcpu.events.waiting()
    if wanted.interrupt:
        blocked = not free or not vcpu.vendor.interrupt_allowed(vcpu)
        interrupt = not blocked and (not wanted.priority or wanted.priority > vcpu.apic.ppr >> _PRIORITY_SHIFT)
        if blocked:
            vcpu.vendor.request_interrupt_window(vcpu)
    if wanted.nmi:
        nmi = free and not vcpu.vendor.nmi_blocked(vcpu)
        if not nmi:
            vcpu.vendor.request_nmi_window(vcpu)
    sints = sum(1 << sint for sint in range(HV_SYNIC_SINT_COUNT) if wanted.sints >> sint & 1 and synic.has_room(sint))
    if not (interrupt or nmi or sints):
        return None
    vcpu.events.windows = request(
        Windows(wanted.interrupt and not interrupt, wanted.priority, wanted.nmi and not nmi, wanted.sints & ~sints)
    )
    return IrqWindowOpen(interrupt, nmi, sints)
