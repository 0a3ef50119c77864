"""Memory intercepts: an access that a higher VTL forbids becomes a message to that VTL, which then runs.

TLFS, "Memory Intercept" and HV_X64_MEMORY_INTERCEPT_MESSAGE (the long form). The intercepted instruction has had no
effect; it runs again when the lower VTL resumes, unless something was injected meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.engine.api import Access
from vtlkit.hvdef import messages as layout
from vtlkit.hvdef.messages import HV_X64_MEMORY_INTERCEPT_MESSAGE, HvCacheType, HvMessageType
from vtlkit.kvm.uapi import InternalErrorExit, MemoryFault, Vcpu
from vtlkit.vmm.vsm.intercepts.delivery import tell
from vtlkit.vmm.vsm.intercepts.messages import gprs, header, padded, segment

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp


def memory_fault(vp: Vp, level: int, vcpu: Vcpu, fault: MemoryFault) -> None:
    """Tell the VTL that forbids the access, of several that are enabled here the lowest, and switch to it."""
    partition = vp.partition
    with partition.lock:
        deniers = partition.deniers(level, fault.gpa, fault.access)
    if not deniers:
        # The protection was lifted since: the access runs again.
        return
    setter = next((denier for denier in deniers if denier in vp.vcpus), None)
    if setter is None:
        partition.supervisor.handle(
            vp,
            vcpu,
            InternalErrorExit(
                f"VTL {deniers[0]} forbids VTL {level} access to GPA {fault.gpa:#x}, "
                "and is not enabled on this processor"
            ),
        )
        return
    payload = memory_intercept(vp, level, vcpu, fault).pack()
    tell(vp, level, setter, (HvMessageType.HvMessageTypeGpaIntercept, payload))


def memory_intercept(vp: Vp, level: int, vcpu: Vcpu, fault: MemoryFault) -> HV_X64_MEMORY_INTERCEPT_MESSAGE:
    """The payload of a GPA intercept."""
    sregs = vcpu.get_sregs()
    message = HV_X64_MEMORY_INTERCEPT_MESSAGE(
        Header=header(vp, level, vcpu, fault.access, fault.instruction_length),
        CacheType=HvCacheType.HvCacheTypeWriteBack,
        GuestPhysicalAddress=fault.gpa,
        TprPriority=sregs.cr8,
        Ds=segment(sregs.ds),
        Ss=segment(sregs.ss),
        Gprs=gprs(vcpu),
    )
    if fault.access is not Access.EXECUTE:
        message.InstructionByteCount = len(fault.instruction)
        message.InstructionBytes = padded(fault.instruction)
    if fault.gva is not None:
        message.MemoryAccessInfo = layout.HV_MEMORY_ACCESS_INFO_GVA_VALID
        message.GuestVirtualAddress = fault.gva
    return message
