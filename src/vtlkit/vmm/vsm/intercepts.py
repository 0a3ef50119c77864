"""Intercepts: an access that a higher VTL forbids becomes a message to that VTL, which then runs.

TLFS, "Memory Intercept" and HV_X64_MEMORY_INTERCEPT_MESSAGE (the long form). The message goes to SINT 0 of the VTL that
set the protection, or into its VP assist page if the SINT takes none. The intercepted instruction has had no effect; it
runs again when the lower VTL resumes, unless something was injected meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Access
from vtlkit.hvdef import messages
from vtlkit.hvdef.messages import (
    HV_X64_INTERCEPT_MESSAGE_HEADER,
    HV_X64_MEMORY_INTERCEPT_MESSAGE,
    HvCacheType,
    HvInterceptAccessType,
    HvMessageType,
    make_message,
)
from vtlkit.hvdef.vsm import HV_X64_SEGMENT_REGISTER, HvVtlEntryReason
from vtlkit.kvm.uapi import InternalErrorExit, MemoryFault, Vcpu
from vtlkit.x86.registers import CR0_AM, CR0_PE, EFER_LMA, Segment
from vtlkit.x86.segments import attributes_to_access_rights

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_ACCESS_TYPE: Final = {
    Access.READ: HvInterceptAccessType.HvInterceptAccessRead,
    Access.WRITE: HvInterceptAccessType.HvInterceptAccessWrite,
    Access.EXECUTE: HvInterceptAccessType.HvInterceptAccessExecute,
}
_GPRS: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)
INTERCEPT_SINT: Final = 0


def memory_fault(vp: Vp, level: int, vcpu: Vcpu, fault: MemoryFault) -> None:
    """Tell the VTL that forbids the access, and switch to it."""
    partition = vp.partition
    with partition.lock:
        setter = partition.denier(level, fault.gpa, fault.access)
    if setter is None:
        # The protection was lifted since: the access runs again.
        return
    if setter not in vp.vcpus:
        partition.supervisor.handle(
            vp,
            vcpu,
            InternalErrorExit(
                f"VTL {setter} forbids VTL {level} access to GPA {fault.gpa:#x}, and is not enabled on this processor"
            ),
        )
        return
    payload = memory_intercept(vp, level, vcpu, fault).pack()
    message = make_message(HvMessageType.HvMessageTypeGpaIntercept, payload, sender=_PARTITION_ID)
    higher = vp.vcpus[setter].hv
    if higher.synic.post(INTERCEPT_SINT, message.pack()):
        # No message page, or a full queue: the VTL that is entered finds it in its VP assist page.
        higher.assist.set_intercept_message(message.pack())
    vp.switch(level, setter, HvVtlEntryReason.HvVtlEntryIntercept)


_PARTITION_ID: Final = 1


def memory_intercept(vp: Vp, level: int, vcpu: Vcpu, fault: MemoryFault) -> HV_X64_MEMORY_INTERCEPT_MESSAGE:
    """The payload of a GPA intercept."""
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    message = HV_X64_MEMORY_INTERCEPT_MESSAGE(
        Header=header(vp, level, vcpu, fault.access, fault.instruction_length),
        CacheType=HvCacheType.HvCacheTypeWriteBack,
        GuestPhysicalAddress=fault.gpa,
        TprPriority=sregs.cr8,
        Ds=_segment(sregs.ds),
        Ss=_segment(sregs.ss),
        Gprs=tuple(getattr(regs, name) for name in _GPRS),
    )
    if fault.access is not Access.EXECUTE:
        message.InstructionByteCount = len(fault.instruction)
        message.InstructionBytes = fault.instruction.ljust(16, b"\0")
    if fault.gva is not None:
        message.MemoryAccessInfo = messages.HV_MEMORY_ACCESS_INFO_GVA_VALID
        message.GuestVirtualAddress = fault.gva
    return message


def header(vp: Vp, level: int, vcpu: Vcpu, access: Access, length: int) -> HV_X64_INTERCEPT_MESSAGE_HEADER:
    """What every intercept message begins with: who, where, in which state."""
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    state = (
        messages.HV_EXECUTION_STATE_CPL.make(vcpu.cpl())
        | messages.HV_EXECUTION_STATE_CR0_PE.make(bool(sregs.cr0 & CR0_PE))
        | messages.HV_EXECUTION_STATE_CR0_AM.make(bool(sregs.cr0 & CR0_AM))
        | messages.HV_EXECUTION_STATE_EFER_LMA.make(bool(sregs.efer & EFER_LMA))
        | messages.HV_EXECUTION_STATE_VTL.make(level)
        | messages.HV_EXECUTION_STATE_INTERRUPT_SHADOW.make(vcpu.engine.interrupt_shadow)
        | messages.HV_EXECUTION_STATE_INTERRUPTION_PENDING.make(vcpu.events.interrupted is not None)
    )
    return HV_X64_INTERCEPT_MESSAGE_HEADER(
        VpIndex=vp.index,
        InstructionLengthCr8=messages.HV_INTERCEPT_INSTRUCTION_LENGTH.make(length)
        | messages.HV_INTERCEPT_CR8.make(sregs.cr8),
        InterceptAccessType=_ACCESS_TYPE[access],
        ExecutionState=state,
        Cs=_segment(sregs.cs),
        Rip=regs.rip,
        Rflags=regs.rflags,
    )


def _segment(segment: Segment) -> HV_X64_SEGMENT_REGISTER:
    return HV_X64_SEGMENT_REGISTER(
        segment.base, segment.limit, segment.selector, attributes_to_access_rights(segment.attributes)
    )
