"""HvCallTranslateVirtualAddress and its Ex form: a GVA of a VTL of a processor to a GPA, for a VTL not below it.

TLFS, HV_TRANSLATE_GVA_CONTROL_FLAGS, HV_TRANSLATE_GVA_RESULT(_EX). The walk is the hypervisor's (`Vcpu.translate2`) and
reads page tables as the translated VTL may: what a VTL above it has taken away from it ends in Intercept, unread. Where
caller and context are one the hypervisor answers by itself what it can (`kvm.hyperv.translate_gva`).

Result codes 4 to 8 are about page tables. What lies at the address found does not matter, so that a VTL that emulates
accesses to devices gets their addresses. The cache type is that of the PAT while the VTL pages (TLFS, "Memory Cache
Control"); without paging that of the MTRRs, and write-back while they are disabled.

The processor stands still during the walk. TlbFlushInhibit locks before the walk, and stays if the walk fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Access
from vtlkit.hvdef import register_values as values
from vtlkit.hvdef.hypercall_io import HvTranslateGvaResultCode as Code
from vtlkit.hvdef.messages import HvInterceptAccessType
from vtlkit.hvdef.register_values import HV_X64_PENDING_EVENT, HvX64PendingEventType
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import (
    HypercallParameters,
    TranslateAnswer,
    TranslateRequest,
    Translation,
    Vcpu,
    paged_memory_type,
    pending_event_header,
    translate_failure,
    translate_success,
)
from vtlkit.x86 import msr
from vtlkit.x86.memory_type import mtrr_type
from vtlkit.x86.msr import MemoryType

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_ACCESS_TYPES: Final = {
    Access.READ: HvInterceptAccessType.HvInterceptAccessRead,
    Access.WRITE: HvInterceptAccessType.HvInterceptAccessWrite,
}


def translate(
    vp: Vp, level: int, other: Vp, target: int, call: HypercallParameters, request: TranslateRequest
) -> HvStatus:
    """Translate for VTL `level` of `vp` in the context of VTL `target` of `other`, which it may name. May block."""
    if request.malformed:
        return HvStatus.INVALID_PARAMETER
    if request.inhibit:
        if target == level:
            # Nobody above it would ever let go of such a lock.
            return HvStatus.ACCESS_DENIED
        if level not in other.vcpus:
            # There is no VTL there whose return, or whose register, could end it.
            return HvStatus.INVALID_VTL_STATE
        vp.partition.tlb_locks.acquire(other, level, target)
    vcpu = other.vcpus[target]
    with _standing_still(vp, other, vcpu):
        translation = vcpu.translate2(request.gva, request.access, request.flags)
        cr0, pat = vcpu.engine.cr0, vcpu.get_msr(msr.MSR_IA32_CR_PAT)
    assert pat is not None
    if translation.valid and translation.set_bits_succeeded:
        answer = _success(other, vcpu, translation, cr0, pat)
    else:
        answer = translate_failure(translation, request.gva) or _refused(other, target, translation, request.gva)
    answer.put(call)
    return HvStatus.SUCCESS


@contextmanager
def _standing_still(caller: Vp, vp: Vp, vcpu: Vcpu) -> Iterator[None]:
    """The vCPU does not run, and no other task writes it, meanwhile; another processor's leaves the guest. Blocks."""
    if vp is caller:
        with vp.waits.alone(vcpu):
            yield
        return
    with vp.stopped(), vp.waits.alone(vcpu):
        yield


def _success(vp: Vp, vcpu: Vcpu, translation: Translation, cr0: int, pat: int) -> TranslateAnswer:
    kind = paged_memory_type(translation, cr0, pat)
    if kind is None:
        # The VTLs of a processor share its MTRRs.
        shared, _ = vp.shared_state()
        programmed = mtrr_type(lambda index: shared.get_msr(index) or 0, translation.gpa)
        kind = MemoryType.WB if programmed is None else programmed
    return translate_success(translation, kind, overlay=vcpu.vm.memory.overlay_at(translation.gpa) is not None)


def _refused(vp: Vp, target: int, translation: Translation, gva: int) -> TranslateAnswer:
    """A page table that the VTL may not read, or whose accessed and dirty bits it may not write."""
    gpa, access = (translation.gpa_unwritable, Access.WRITE) if translation.valid else (translation.gpa, Access.READ)
    partition = vp.partition
    with partition.lock:
        setter = partition.denier(target, gpa, access)
    if setter is not None:
        return TranslateAnswer(Code.HvTranslateGvaIntercept, event=_intercept(setter, access, gva, gpa))
    if partition.vtls[target].vm.memory.overlay_at(gpa) is not None:
        return TranslateAnswer(Code.HvTranslateGvaGpaIllegalOverlayAccess)
    if access is Access.WRITE:
        return TranslateAnswer(Code.HvTranslateGvaGpaNoWriteAccess)
    return TranslateAnswer(Code.HvTranslateGvaGpaNoReadAccess)


def _intercept(setter: int, access: Access, gva: int, gpa: int) -> HV_X64_PENDING_EVENT:
    """The memory intercept that the access would be: the page walk's own, not one to the page it looks for."""
    event = values.HV_X64_PENDING_MEMORY_INTERCEPT_EVENT(
        Header=pending_event_header(HvX64PendingEventType.HvX64PendingEventMemoryIntercept),
        TargetVtl=setter,
        AccessType=_ACCESS_TYPES[access],
        AccessFlags=values.HV_PENDING_MEMORY_INTERCEPT_GLA_VALID,
        GuestLinearAddress=gva,
        GuestPhysicalAddress=gpa,
    )
    return HV_X64_PENDING_EVENT.unpack(event.pack())
