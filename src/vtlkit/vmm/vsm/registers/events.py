"""Events that wait to be delivered, as registers: one VTL injects into another, and sees what it had cut short.

TLFS, HV_REGISTER_VALUE and HV_X64_PENDING_EXCEPTION_EVENT; the layouts that it does not publish are those of OpenVMM's
hvdef. An event that is written in any other way than it would be read is refused; where
none is pending, the rest of the value does not count.

`HvRegisterPendingEvent0` is what comes next at the present instruction: an exception, or an external interrupt, which
waits until the processor takes interrupts. `HvRegisterPendingInterruption` is an event whose delivery an intercept cut
short, or that was chosen and not delivered yet: it is delivered first, whatever RFLAGS.IF says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Event, EventType
from vtlkit.hvdef import register_values as layout
from vtlkit.hvdef.register_values import (
    HV_PENDING_EVENT_PENDING,
    HV_PENDING_EVENT_TYPE,
    HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE,
    HV_X64_PENDING_EXCEPTION_EVENT,
    HV_X64_PENDING_EXTINT_EVENT,
    HvX64PendingEventType,
    HvX64PendingInterruptionType,
)
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu
from vtlkit.vmm.vsm.registers.table import VALUE_SIZE, Register
from vtlkit.x86.exceptions import HAS_ERROR_CODE, Vector

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_INJECTABLE: Final = frozenset(Vector) - {Vector.NMI, Vector.CSO, Vector.VE, Vector.HV, Vector.VC, Vector.SX}
"""Exceptions that both vendors' processors raise."""
_FIRST_INTERRUPT: Final = 16
_TYPES: Final = {
    HvX64PendingInterruptionType.HvX64PendingInterrupt: EventType.INTERRUPT,
    HvX64PendingInterruptionType.HvX64PendingNmi: EventType.NMI,
    HvX64PendingInterruptionType.HvX64PendingException: EventType.EXCEPTION,
    HvX64PendingInterruptionType.HvX64PendingSoftwareInterrupt: EventType.SOFTWARE,
}
"""SVM has these kinds of events; the two software exceptions of the TLFS are VMX's."""
_TYPE_OF: Final = {event: kind for kind, event in _TYPES.items()}


# --- PendingEvent0 to 3 -----------------------------------------------------------------------------------------------


def _header(kind: HvX64PendingEventType) -> int:
    return HV_PENDING_EVENT_PENDING.make(1) | HV_PENDING_EVENT_TYPE.make(kind)


def _exception_value(event: Event, parameter: int = 0) -> int:
    flags = HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE if event.error_code is not None else 0
    packed = HV_X64_PENDING_EXCEPTION_EVENT(
        _header(HvX64PendingEventType.HvX64PendingEventException),
        flags,
        event.vector,
        event.error_code or 0,
        parameter,
    )
    return int.from_bytes(packed.pack(), "little")


def _external_value(vector: int) -> int:
    packed = HV_X64_PENDING_EXTINT_EVENT(_header(HvX64PendingEventType.HvX64PendingEventExtInt), vector)
    return int.from_bytes(packed.pack(), "little")


def _get_pending_event0(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
    events = vcpu.events
    if events.exception is not None:
        return _exception_value(events.exception)
    return 0 if events.external is None else _external_value(events.external)


def _set_pending_event0(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
    events = vcpu.events
    if not value & HV_PENDING_EVENT_PENDING.mask:
        events.exception = events.external = None
        return HvStatus.SUCCESS
    exception = _exception(value)
    if exception is not None:
        events.exception = events.external = None
        vcpu.queue_exception(exception.vector, exception.error_code)
        return HvStatus.SUCCESS
    vector = HV_X64_PENDING_EXTINT_EVENT.unpack(value.to_bytes(VALUE_SIZE, "little")).Vector
    if vector < _FIRST_INTERRUPT or value != _external_value(vector):
        return HvStatus.INVALID_REGISTER_VALUE
    events.exception = None
    events.queue_interrupt(vector)
    return HvStatus.SUCCESS


def _exception(value: int) -> Event | None:
    """The exception that a pending event is; None if it is another kind, or malformed."""
    fields = HV_X64_PENDING_EXCEPTION_EVENT.unpack(value.to_bytes(VALUE_SIZE, "little"))
    with_code = fields.Flags & HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE
    event = Event(EventType.EXCEPTION, fields.Vector, fields.ErrorCode if with_code else None)
    if fields.Vector not in _INJECTABLE or (with_code and fields.Vector not in HAS_ERROR_CODE):
        return None
    return event if value == _exception_value(event, fields.ExceptionParameter) else None


def fault_address(value: int) -> int | None:
    """The address that a pending event brings: that of a page fault, which goes to CR2."""
    event = _exception(value)
    if event is None or event.vector != Vector.PF:
        return None
    return HV_X64_PENDING_EXCEPTION_EVENT.unpack(value.to_bytes(VALUE_SIZE, "little")).ExceptionParameter


def _get_nothing(_vp: Vp, _level: int, _vcpu: Vcpu) -> int:
    return 0


def _set_nothing(_vp: Vp, _level: int, _vcpu: Vcpu, value: int) -> HvStatus:
    """The further halves of events that are longer than a register: none of the kinds that can be pending is."""
    return HvStatus.INVALID_REGISTER_VALUE if value else HvStatus.SUCCESS


# --- PendingInterruption, InterruptState ------------------------------------------------------------------------------


def _interruption_value(event: Event) -> int:
    return (
        layout.HV_PENDING_INTERRUPTION_PENDING.make(1)
        | layout.HV_PENDING_INTERRUPTION_TYPE.make(_TYPE_OF[event.type])
        | layout.HV_PENDING_INTERRUPTION_DELIVER_ERROR_CODE.make(event.error_code is not None)
        | layout.HV_PENDING_INTERRUPTION_INSTRUCTION_LENGTH.make(event.instruction_length)
        | layout.HV_PENDING_INTERRUPTION_VECTOR.make(event.vector)
        | layout.HV_PENDING_INTERRUPTION_ERROR_CODE.make(event.error_code or 0)
    )


def _get_interruption(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
    event = vcpu.engine.injected() or vcpu.events.interrupted
    return 0 if event is None else _interruption_value(event)


def _set_interruption(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
    event = None
    if value & layout.HV_PENDING_INTERRUPTION_PENDING.mask:
        event = _interruption(value)
        if event is None:
            return HvStatus.INVALID_REGISTER_VALUE
    vcpu.engine.cancel_injection()
    vcpu.events.interrupted = event
    return HvStatus.SUCCESS


def _interruption(value: int) -> Event | None:
    kind = _TYPES.get(layout.HV_PENDING_INTERRUPTION_TYPE.get(value))  # type: ignore[call-overload]
    if kind is None:
        return None
    vector = layout.HV_PENDING_INTERRUPTION_VECTOR.get(value)
    with_code = layout.HV_PENDING_INTERRUPTION_DELIVER_ERROR_CODE.get(value)
    code = layout.HV_PENDING_INTERRUPTION_ERROR_CODE.get(value) if with_code else None
    length = layout.HV_PENDING_INTERRUPTION_INSTRUCTION_LENGTH.get(value)
    event = Event(kind, vector, code, length)
    return event if value == _interruption_value(event) and _deliverable(event) else None


def _deliverable(event: Event) -> bool:
    if bool(event.instruction_length) != (event.type is EventType.SOFTWARE):
        return False
    if event.type is EventType.EXCEPTION:
        return event.vector in _INJECTABLE and (event.error_code is not None) == (event.vector in HAS_ERROR_CODE)
    if event.type is EventType.NMI:
        return event.vector == Vector.NMI and event.error_code is None
    first = 0 if event.type is EventType.SOFTWARE else _FIRST_INTERRUPT
    return first <= event.vector <= 0xFF and event.error_code is None


def _get_interrupt_state(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
    shadow = layout.HV_INTERRUPT_STATE_INTERRUPT_SHADOW if vcpu.engine.interrupt_shadow else 0
    return shadow | (layout.HV_INTERRUPT_STATE_NMI_MASKED if vcpu.engine.nmi_blocked else 0)


def _set_interrupt_state(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
    known = layout.HV_INTERRUPT_STATE_INTERRUPT_SHADOW | layout.HV_INTERRUPT_STATE_NMI_MASKED
    if value & ~known:
        return HvStatus.INVALID_REGISTER_VALUE
    vcpu.engine.interrupt_shadow = bool(value & layout.HV_INTERRUPT_STATE_INTERRUPT_SHADOW)
    vcpu.engine.nmi_blocked = bool(value & layout.HV_INTERRUPT_STATE_NMI_MASKED)
    return HvStatus.SUCCESS


REGISTERS: Final[Mapping[int, Register]] = {
    Name.HvRegisterPendingEvent0: Register(_get_pending_event0, _set_pending_event0),
    Name.HvRegisterPendingEvent1: Register(_get_nothing, _set_nothing),
    Name.HvRegisterPendingEvent2: Register(_get_nothing, _set_nothing),
    Name.HvRegisterPendingEvent3: Register(_get_nothing, _set_nothing),
    Name.HvRegisterPendingInterruption: Register(_get_interruption, _set_interruption),
    Name.HvRegisterInterruptState: Register(_get_interrupt_state, _set_interrupt_state),
}
