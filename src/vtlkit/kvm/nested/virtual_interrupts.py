"""Events in the control block: EVENTINJ, EXITINTINFO, and the virtual interrupt of int_ctl (AMD APM volume 2, sections
15.20, 15.21). Pure."""

from __future__ import annotations

from typing import Final

from vtlkit.engine.api import Event, EventType
from vtlkit.kvm.nested.vmcb import (
    EVENTINJ_EV,
    EVENTINJ_TYPE_MASK,
    EVENTINJ_TYPE_SHIFT,
    EVENTINJ_VALID,
    EVENTINJ_VECTOR,
    V_IGN_TPR,
    V_INTR_PRIO_MASK,
    V_INTR_PRIO_SHIFT,
    V_IRQ,
    V_TPR_MASK,
    VmcbControl,
)
from vtlkit.x86.exceptions import Vector

_SOFTWARE_EXCEPTIONS: Final = (Vector.BP, Vector.OF)
_U64: Final = 0xFFFFFFFFFFFFFFFF


def event_of(control: VmcbControl, rip: int) -> Event | None:
    """What EVENTINJ asks for; the word is one that `checks.event_valid` accepts.

    A software interrupt returns to nRIP, where L1 gives one, else to RIP.
    """
    word = control.event_inj
    if not word & EVENTINJ_VALID:
        return None
    kind = EventType((word & EVENTINJ_TYPE_MASK) >> EVENTINJ_TYPE_SHIFT)
    vector = word & EVENTINJ_VECTOR
    if kind is EventType.NMI:
        vector = Vector.NMI
    elif kind is EventType.SOFTWARE or (kind is EventType.EXCEPTION and vector in _SOFTWARE_EXCEPTIONS):
        length = (control.next_rip - rip) & _U64 if control.next_rip else 0
        return Event(EventType.SOFTWARE if length < 16 and length else kind, vector, instruction_length=length)
    error = control.event_inj_error if word & EVENTINJ_EV and kind is EventType.EXCEPTION else None
    return Event(kind, vector, error)


def event_word(event: Event | None) -> tuple[int, int]:
    """EXITINTINFO of an event whose delivery was cut short, and its error code; zeros for none."""
    if event is None:
        return 0, 0
    # INT3 and INTO are exceptions here; INT n of those vectors is longer.
    single = event.type is EventType.SOFTWARE and event.instruction_length == 1
    kind = EventType.EXCEPTION if single and event.vector in _SOFTWARE_EXCEPTIONS else event.type
    word = EVENTINJ_VALID | kind << EVENTINJ_TYPE_SHIFT | event.vector
    if event.error_code is None:
        return word, 0
    return word | EVENTINJ_EV, event.error_code


def virtual_vector(control: VmcbControl) -> int:
    """Vector of a virtual interrupt that the virtual TPR lets through; -1 if there is none."""
    word = control.int_ctl
    if not word & V_IRQ:
        return -1
    priority = (word & V_INTR_PRIO_MASK) >> V_INTR_PRIO_SHIFT
    if not word & V_IGN_TPR and priority <= word & V_TPR_MASK:
        return -1
    return control.int_vector & 0xFF
