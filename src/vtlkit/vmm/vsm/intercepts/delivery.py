"""An intercept becomes a message to the VTL that wants it, which then runs.

The message goes to SINT 0 of that VTL, or into its VP assist page if the SINT takes none (no message page, or a full
queue): the VTL does not run until the switch, so nobody reads half of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.messages import HvMessageType, make_message
from vtlkit.hvdef.vsm import HvVtlEntryReason
from vtlkit.kvm.uapi import Vcpu

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

INTERCEPT_SINT: Final = 0
_PARTITION_ID: Final = 1


def queue(higher: Vcpu, kind: HvMessageType, payload: bytes) -> None:
    """Put a message before a VTL that is about to be entered."""
    message = make_message(kind, payload, sender=_PARTITION_ID).pack()
    if higher.hv.synic.post(INTERCEPT_SINT, message):
        higher.hv.assist.set_intercept_message(message)


def tell(vp: Vp, level: int, setter: int, kind: HvMessageType, payload: bytes) -> None:
    """VTL `level`, active, has done what VTL `setter` of the same processor intercepts: switch there with a message.

    The processor's task, between two instructions.
    """
    queue(vp.vcpus[setter], kind, payload)
    vp.switch(level, setter, HvVtlEntryReason.HvVtlEntryIntercept)
