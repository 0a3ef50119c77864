"""An intercept becomes a message to the VTL that wants it, which then runs.

The message goes to SINT 0 of that VTL, or into its VP assist page if the SINT takes none (no message page, or a full
queue): the VTL does not run until the switch, so nobody reads half of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.messages import HvMessageType, make_message
from vtlkit.hvdef.vsm import HvVtlEntryReason

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

INTERCEPT_SINT: Final = 0
_PARTITION_ID: Final = 1


def tell(vp: Vp, level: int, setter: int, message_type: HvMessageType, payload: bytes) -> None:
    """VTL `level`, active, has done what VTL `setter` of the same processor intercepts: switch there with a message.

    The processor's task, between two instructions.
    """
    message = make_message(message_type, payload, sender=_PARTITION_ID).pack()
    higher = vp.vcpus[setter].hv
    if higher.synic.post(INTERCEPT_SINT, message):
        higher.assist.set_intercept_message(message)
    vp.switch(level, setter, HvVtlEntryReason.HvVtlEntryIntercept)
