"""What the hypervisor has stopped because some higher VTL wants to hear of it: the lowest of them is told.

The instruction has not begun; of the traps (EOI, writes of the local APIC, INIT and SIPI) it is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.kvm.uapi import Intercepted, InterceptedStartup, Vcpu
from vtlkit.vmm.vsm.intercepts import messages, wishes
from vtlkit.vmm.vsm.intercepts.delivery import tell

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp


def intercepted(vp: Vp, level: int, vcpu: Vcpu, exit_: Intercepted) -> None:
    """Tell the lowest VTL above `level` that wants it, and switch there."""
    with vp.partition.lock:
        setter = wishes.first_to_be_told(vp, level, vcpu, exit_)
    if setter is None:
        # Lifted since: an instruction runs again, and what was kept from being sent is sent.
        if isinstance(exit_, InterceptedStartup):
            vcpu.apic.send_startup(exit_.icr)
        return
    tell(vp, level, setter, messages.of_exit(vp, level, vcpu, exit_))
