"""Events that wait to be delivered, as registers: one VTL injects into another (TLFS, HV_REGISTER_VALUE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.register_values import (
    HV_PENDING_EVENT_PENDING,
    HV_PENDING_EVENT_TYPE,
    HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE,
    HV_X64_PENDING_EXCEPTION_EVENT,
    HvX64PendingEventType,
)
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu
from vtlkit.vmm.vsm.registers.table import Register
from vtlkit.x86.exceptions import Vector

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp


def _get_pending_event0(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
    event = vcpu.events.exception
    if event is None:
        return 0
    flags = HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE if event.error_code is not None else 0
    header = HV_PENDING_EVENT_PENDING.make(1) | HV_PENDING_EVENT_TYPE.make(
        HvX64PendingEventType.HvX64PendingEventException
    )
    return int.from_bytes(
        HV_X64_PENDING_EXCEPTION_EVENT(header, flags, event.vector, event.error_code or 0).pack(), "little"
    )


def _set_pending_event0(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
    event = HV_X64_PENDING_EXCEPTION_EVENT.unpack(value.to_bytes(16, "little"))
    if not HV_PENDING_EVENT_PENDING.get(event.Header):
        vcpu.events.exception = None
        return HvStatus.SUCCESS
    known = HV_PENDING_EVENT_PENDING.mask | HV_PENDING_EVENT_TYPE.mask
    if (
        event.Header & ~known
        or HV_PENDING_EVENT_TYPE.get(event.Header) != HvX64PendingEventType.HvX64PendingEventException
        or event.Vector > 31
        or event.Flags & ~HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE
    ):
        return HvStatus.INVALID_REGISTER_VALUE
    error_code = event.ErrorCode if event.Flags & HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE else None
    vcpu.events.exception = None
    vcpu.queue_exception(event.Vector, error_code)
    return HvStatus.SUCCESS


def fault_address(value: int) -> int | None:
    """The address that a pending event brings: that of a page fault, which goes to CR2."""
    event = HV_X64_PENDING_EXCEPTION_EVENT.unpack(value.to_bytes(16, "little"))
    exception = HV_PENDING_EVENT_TYPE.get(event.Header) == HvX64PendingEventType.HvX64PendingEventException
    if HV_PENDING_EVENT_PENDING.get(event.Header) and exception and event.Vector == Vector.PF:
        return event.ExceptionParameter
    return None


REGISTERS: Final[Mapping[int, Register]] = {
    Name.HvRegisterPendingEvent0: Register(_get_pending_event0, _set_pending_event0),
}
