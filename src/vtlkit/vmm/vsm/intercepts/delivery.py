"""An intercept becomes a message to the VTL that wants it, which then runs.

The message goes to the VTL's page for messages about the intercepted one, if it has mapped any (`state_pages`); to its
SINT 0; or into its VP assist page if the SINT takes none (no message page, or a full queue). The VTL does not run until
the switch, so nobody reads half of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from vtlkit.hvdef.messages import HvMessageType, make_message
from vtlkit.hvdef.vsm import HvVtlEntryReason
from vtlkit.vmm.vsm import state_pages

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

Message: TypeAlias = tuple[HvMessageType, bytes]
"""(type, payload)"""

INTERCEPT_SINT: Final = 0
_PARTITION_ID: Final = 1


def tell(vp: Vp, level: int, setter: int, *messages: Message) -> None:
    """VTL `level`, active, has done what VTL `setter` of the same processor intercepts: switch there with the messages.

    The processor's task, between two instructions.
    """
    packed = [make_message(kind, payload, sender=_PARTITION_ID).pack() for kind, payload in messages]
    if vp.state_pages and state_pages.intercepted(vp, level, setter, packed[0]):
        del packed[0]
    hv = vp.vcpus[setter].hv
    for message in packed:
        if hv.synic.post(INTERCEPT_SINT, message):
            hv.assist.set_intercept_message(message)
    vp.switch(level, setter, HvVtlEntryReason.HvVtlEntryIntercept)
