"""Events on their way into the guest, as `struct kvm_vcpu_events` in the page has them (KVM_GET_VCPU_EVENTS)."""

from __future__ import annotations

from typing import Final

from vtlkit.engine.api import Event, EventType
from vtlkit.engine.devkvm import abi
from vtlkit.engine.devkvm.live import Live
from vtlkit.x86.exceptions import Vector

_AT: Final = abi.RUN_EVENTS
EXCEPTION: Final = _AT
"""Where in the page the byte is that says that the kernel holds an exception; then an interrupt, an NMI."""
INTERRUPT: Final = _AT + 8
NMI: Final = _AT + 12
_PENDING_EXCEPTION: Final = _AT + 3
_U64: Final = (1 << 64) - 1


def take(live: Live) -> Event:
    """Take back what the kernel holds, of which there is something."""
    events = abi.VcpuEvents.unpack_from(live.view, _AT)
    if events.exception_injected:
        code = events.exception_error_code if events.exception_has_error_code else None
        event = Event(EventType.EXCEPTION, events.exception_nr, code)
    elif events.nmi_injected:
        event = Event(EventType.NMI, Vector.NMI)
        live.nmi_masked = True
    elif events.interrupt_soft:
        event = Event(EventType.SOFTWARE, events.interrupt_nr)
    else:
        event = Event(EventType.INTERRUPT, events.interrupt_nr)
    data = live.bytes
    data[EXCEPTION] = data[_PENDING_EXCEPTION] = data[INTERRUPT] = data[NMI] = 0
    live.dirty |= abi.SYNC_EVENTS
    return event


def give(live: Live, event: Event) -> None:
    """Have the kernel deliver it with the next entry."""
    events = abi.VcpuEvents.unpack_from(live.view, _AT)
    events.exception_injected = events.interrupt_injected = events.nmi_injected = 0
    if event.type is EventType.EXCEPTION:
        events.exception_injected = 1
        events.exception_nr = event.vector
        events.exception_has_error_code = event.error_code is not None
        events.exception_error_code = event.error_code or 0
    elif event.type is EventType.NMI:
        # Blocking is the delivery's effect: VM entry refuses to deliver an NMI while NMIs are blocked.
        events.nmi_injected, events.nmi_masked = 1, 0
    else:
        # A software interrupt that began once has passed the gate's check of privilege.
        if event.type is EventType.SOFTWARE:
            live.regs.rip = (live.regs.rip + event.instruction_length) & _U64
        events.interrupt_injected = 1
        events.interrupt_nr = event.vector
        events.interrupt_soft = 0
    events.pack_into(live.view, _AT)
    live.dirty |= abi.SYNC_EVENTS
