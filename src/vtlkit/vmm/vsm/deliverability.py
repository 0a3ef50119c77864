"""HvRegisterDeliverabilityNotifications: a VTL is told when a lower one can take an interrupt, an NMI or a message.

The hypervisor reports the moment (`Windows`, exit IrqWindowOpen); what comes of it is an intercept: a message
HvMessageTypeX64InterruptionDeliverable or HvMessageTypeSynicSintDeliverable to the VTL that asked, which then runs. A
notification is given once: its bits are clear when the message is read.

Who asked is `Vp.notified`: written by whoever holds the mutex of the lower VTL's vCPU, as the request itself is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Access
from vtlkit.hvdef.messages import (
    HV_X64_INTERRUPTION_DELIVERABLE_MESSAGE,
    HV_X64_SYNIC_SINT_DELIVERABLE_MESSAGE,
    HvMessageType,
)
from vtlkit.hvdef.register_values import (
    HV_DELIVERABILITY_INTERRUPT_NOTIFICATION,
    HV_DELIVERABILITY_INTERRUPT_PRIORITY,
    HV_DELIVERABILITY_NMI_NOTIFICATION,
    HV_DELIVERABILITY_SINTS,
    HvX64PendingInterruptionType,
)
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import IrqWindowOpen, Vcpu, Windows, windows_request
from vtlkit.vmm.vsm.intercepts.delivery import tell
from vtlkit.vmm.vsm.intercepts.messages import header

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_KNOWN: Final = (
    HV_DELIVERABILITY_NMI_NOTIFICATION.mask
    | HV_DELIVERABILITY_INTERRUPT_NOTIFICATION.mask
    | HV_DELIVERABILITY_INTERRUPT_PRIORITY.mask
    | HV_DELIVERABILITY_SINTS.mask
)


def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
    """The notifications that have not been given yet."""
    windows = vcpu.events.windows
    if windows is None:
        return 0
    return (
        HV_DELIVERABILITY_NMI_NOTIFICATION.make(windows.nmi)
        | HV_DELIVERABILITY_INTERRUPT_NOTIFICATION.make(windows.interrupt)
        | HV_DELIVERABILITY_INTERRUPT_PRIORITY.make(windows.priority)
        | HV_DELIVERABILITY_SINTS.make(windows.sints)
    )


def write(asker: int, vp: Vp, level: int, vcpu: Vcpu, value: int) -> HvStatus:
    """VTL `asker`, which must be above `level` and enabled on this processor, asks to be told."""
    if asker <= level:
        return HvStatus.ACCESS_DENIED
    if asker not in vp.vcpus:
        return HvStatus.INVALID_VTL_STATE
    if value & ~_KNOWN:
        return HvStatus.INVALID_REGISTER_VALUE
    if vcpu.events.windows is not None and vp.notified.get(level, 0) > asker:
        # A higher VTL waits to be told: nobody below it takes that away.
        return HvStatus.ACCESS_DENIED
    vp.notified[level] = asker
    vcpu.events.windows = windows_request(
        Windows(
            interrupt=bool(HV_DELIVERABILITY_INTERRUPT_NOTIFICATION.get(value)),
            priority=HV_DELIVERABILITY_INTERRUPT_PRIORITY.get(value),
            nmi=bool(HV_DELIVERABILITY_NMI_NOTIFICATION.get(value)),
            sints=HV_DELIVERABILITY_SINTS.get(value),
        )
    )
    return HvStatus.SUCCESS


def opened(vp: Vp, level: int, vcpu: Vcpu, exit_: IrqWindowOpen) -> None:
    """Tell the VTL that asked, and switch to it."""
    asker = vp.notified[level]
    head = header(vp, level, vcpu, Access.READ, 0)
    messages = []
    for present, kind in (
        (exit_.interrupt, HvX64PendingInterruptionType.HvX64PendingInterrupt),
        (exit_.nmi, HvX64PendingInterruptionType.HvX64PendingNmi),
    ):
        if present:
            payload = HV_X64_INTERRUPTION_DELIVERABLE_MESSAGE(head, kind).pack()
            messages.append((HvMessageType.HvMessageTypeX64InterruptionDeliverable, payload))
    if exit_.sints:
        payload = HV_X64_SYNIC_SINT_DELIVERABLE_MESSAGE(head, exit_.sints).pack()
        messages.append((HvMessageType.HvMessageTypeSynicSintDeliverable, payload))
    tell(vp, level, asker, *messages)
