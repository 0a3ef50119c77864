"""HvCallTranslateVirtualAddress and its Ex form: a GVA of a VTL of a processor to a GPA, for a VTL not below it.

TLFS, HV_TRANSLATE_GVA_CONTROL_FLAGS, HV_TRANSLATE_GVA_RESULT(_EX). The walk is the hypervisor's (`Vcpu.translate2`) and
reads page tables as the translated VTL may: what a VTL above it has taken away from it ends in Intercept, unread.

Result codes 4 to 8 are about page tables. What lies at the address found does not matter, so that a VTL that emulates
accesses to devices gets their addresses. The cache type is that of the PAT while the VTL pages (TLFS, "Memory Cache
Control"); without paging that of the MTRRs, and write-back while they are disabled.

The processor stands still during the walk. TlbFlushInhibit locks before the walk, and stays if the walk fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Access
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef import register_values as values
from vtlkit.hvdef.hypercall_io import HvTranslateGvaResultCode as Code
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.identifiers import HV_PAGE_SIZE
from vtlkit.hvdef.messages import HvCacheType, HvInterceptAccessType
from vtlkit.hvdef.register_values import HV_X64_PENDING_EVENT, HvX64PendingEventType
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import (
    HypercallParameters,
    TranslateAccess,
    TranslateFault,
    TranslateFlags,
    Translation,
    Vcpu,
)
from vtlkit.x86 import msr
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.memory_type import mtrr_type, pat_type
from vtlkit.x86.msr import MemoryType
from vtlkit.x86.registers import CR0_CD, CR0_PG

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_GVA_PAGE_MAX: Final = 1 << 52
# Shadow stacks are not offered.
_FLAGS: Final = io.HV_TRANSLATE_GVA_VALID & ~io.HV_TRANSLATE_GVA_SHADOW_STACK
_ACCESS: Final = (
    (io.HV_TRANSLATE_GVA_VALIDATE_READ, TranslateAccess.READ),
    (io.HV_TRANSLATE_GVA_VALIDATE_WRITE, TranslateAccess.WRITE),
    (io.HV_TRANSLATE_GVA_VALIDATE_EXECUTE, TranslateAccess.EXECUTE),
    (io.HV_TRANSLATE_GVA_PRIVILEGE_EXEMPT, TranslateAccess.EXEMPT),
    (io.HV_TRANSLATE_GVA_SUPERVISOR_ACCESS, TranslateAccess.SUPERVISOR),
    (io.HV_TRANSLATE_GVA_USER_ACCESS, TranslateAccess.USER),
    (io.HV_TRANSLATE_GVA_ENFORCE_SMAP, TranslateAccess.ENFORCE_SMAP),
    (io.HV_TRANSLATE_GVA_OVERRIDE_SMAP, TranslateAccess.OVERRIDE_SMAP),
)
_CODES: Final = {
    TranslateFault.NOT_PRESENT: Code.HvTranslateGvaPageNotPresent,
    TranslateFault.PRIVILEGE_VIOLATION: Code.HvTranslateGvaPrivilegeViolation,
    TranslateFault.RESERVED_BITS: Code.HvTranslateGvaInvalidPageTableFlags,
    TranslateFault.INVALID_GVA: Code.HvTranslateGvaInvalidPageTableFlags,
    TranslateFault.INVALID_GPA: Code.HvTranslateGvaGpaUnmapped,
}
_ACCESS_TYPES: Final = {
    Access.READ: HvInterceptAccessType.HvInterceptAccessRead,
    Access.WRITE: HvInterceptAccessType.HvInterceptAccessWrite,
}
_PAGE_FAULTS: Final = (
    TranslateFault.NOT_PRESENT,
    TranslateFault.PRIVILEGE_VIOLATION,
    TranslateFault.RESERVED_BITS,
)
_CACHE_TYPES: Final = {kind: HvCacheType(kind) for kind in MemoryType if kind is not MemoryType.UC_MINUS} | {
    MemoryType.UC_MINUS: HvCacheType.HvCacheTypeUncached
}


@dataclass(frozen=True, slots=True)
class _Answer:
    code: Code
    gpa: int = 0
    cache_type: HvCacheType = HvCacheType.HvCacheTypeUncached
    overlay: bool = False
    event: HV_X64_PENDING_EVENT | None = None

    @property
    def result(self) -> int:
        return (
            io.HV_TRANSLATE_GVA_RESULT_CODE.make(self.code)
            | io.HV_TRANSLATE_GVA_CACHE_TYPE.make(self.cache_type)
            | io.HV_TRANSLATE_GVA_OVERLAY_PAGE.make(self.overlay)
        )


def translate(vp: Vp, level: int, other: Vp, target: int, call: HypercallParameters) -> HvStatus:
    """Translate for VTL `level` of `vp` in the context of VTL `target` of `other`, which it may name. May block."""
    request = io.HV_INPUT_TRANSLATE_VIRTUAL_ADDRESS.unpack_from(call.data)
    flags = request.ControlFlags
    if request.Reserved or flags & ~_FLAGS or request.GvaPage >= _GVA_PAGE_MAX:
        return HvStatus.INVALID_PARAMETER
    if flags & io.HV_TRANSLATE_GVA_TLB_FLUSH_INHIBIT:
        if target == level:
            # Nobody above it would ever let go of such a lock.
            return HvStatus.ACCESS_DENIED
        if level not in other.vcpus:
            # There is no VTL there whose return, or whose register, could end it.
            return HvStatus.INVALID_VTL_STATE
        vp.partition.tlb_locks.acquire(other, level, target)
    vcpu = other.vcpus[target]
    gva = request.GvaPage * HV_PAGE_SIZE
    access = TranslateAccess.NONE
    for flag, kind in _ACCESS:
        if flags & flag:
            access |= kind
    bits = TranslateFlags.NONE
    if flags & io.HV_TRANSLATE_GVA_SET_PAGE_TABLE_BITS:
        bits = TranslateFlags.SET_ACCESSED | TranslateFlags.SET_DIRTY
    with _standing_still(vp, other, vcpu):
        translation = vcpu.translate2(gva, access, bits)
        cr0, pat = vcpu.engine.cr0, vcpu.get_msr(msr.MSR_IA32_CR_PAT)
    assert pat is not None
    if translation.valid and translation.set_bits_succeeded:
        answer = _success(other, vcpu, translation, cr0, pat)
    else:
        answer = _failure(other, target, translation, gva)
    if call.code == HvCallCode.HvCallTranslateVirtualAddressEx:
        output = io.HV_OUTPUT_TRANSLATE_VIRTUAL_ADDRESS_EX(
            TranslationResult=answer.result,
            EventInfo=answer.event or HV_X64_PENDING_EVENT(),
            GpaPage=answer.gpa // HV_PAGE_SIZE,
        ).pack()
    else:
        output = io.HV_OUTPUT_TRANSLATE_VIRTUAL_ADDRESS(answer.result, answer.gpa // HV_PAGE_SIZE).pack()
    call.write_output(output)
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


def _success(vp: Vp, vcpu: Vcpu, translation: Translation, cr0: int, pat: int) -> _Answer:
    if cr0 & CR0_CD:
        cache = MemoryType.UC
    elif cr0 & CR0_PG:
        cache = pat_type(pat, translation.entry, translation.level)
    else:
        # The VTLs of a processor share its MTRRs.
        shared, _ = vp.shared_state()
        programmed = mtrr_type(lambda index: shared.get_msr(index) or 0, translation.gpa)
        cache = MemoryType.WB if programmed is None else programmed
    overlay = vcpu.vm.memory.overlay_at(translation.gpa) is not None
    return _Answer(Code.HvTranslateGvaSuccess, translation.gpa, _CACHE_TYPES[cache], overlay)


def _failure(vp: Vp, target: int, translation: Translation, gva: int) -> _Answer:
    fault = translation.fault
    if translation.valid:
        return _forbidden(vp, target, translation.gpa_unwritable, Access.WRITE, gva)
    if fault is TranslateFault.FORBIDDEN:
        return _forbidden(vp, target, translation.gpa, Access.READ, gva)
    code = _CODES[fault]
    if fault in _PAGE_FAULTS:
        return _Answer(code, event=_exception(Vector.PF, translation.error_code, gva))
    if fault is TranslateFault.INVALID_GVA:
        return _Answer(code, event=_exception(Vector.GP, 0, 0))
    return _Answer(code)


def _forbidden(vp: Vp, target: int, gpa: int, access: Access, gva: int) -> _Answer:
    """A page table that the VTL may not read, or whose accessed and dirty bits it may not write."""
    partition = vp.partition
    with partition.lock:
        setter = partition.denier(target, gpa, access)
    if setter is not None:
        return _Answer(Code.HvTranslateGvaIntercept, event=_intercept(setter, access, gva, gpa))
    if partition.vtls[target].vm.memory.overlay_at(gpa) is not None:
        return _Answer(Code.HvTranslateGvaGpaIllegalOverlayAccess)
    if access is Access.WRITE:
        return _Answer(Code.HvTranslateGvaGpaNoWriteAccess)
    return _Answer(Code.HvTranslateGvaGpaNoReadAccess)


# --- events of the Ex form --------------------------------------------------------------------------------------------


def _header(kind: HvX64PendingEventType) -> int:
    return values.HV_PENDING_EVENT_PENDING.make(1) | values.HV_PENDING_EVENT_TYPE.make(kind)


def _exception(vector: int, error_code: int, parameter: int) -> HV_X64_PENDING_EVENT:
    """The exception that the access would raise."""
    event = values.HV_X64_PENDING_EXCEPTION_EVENT(
        _header(HvX64PendingEventType.HvX64PendingEventException),
        values.HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE,
        vector,
        error_code,
        parameter,
    )
    return HV_X64_PENDING_EVENT.unpack(event.pack().ljust(HV_X64_PENDING_EVENT.SIZE, b"\0"))


def _intercept(setter: int, access: Access, gva: int, gpa: int) -> HV_X64_PENDING_EVENT:
    """The memory intercept that the access would be: the page walk's own, not one to the page it looks for."""
    event = values.HV_X64_PENDING_MEMORY_INTERCEPT_EVENT(
        Header=_header(HvX64PendingEventType.HvX64PendingEventMemoryIntercept),
        TargetVtl=setter,
        AccessType=_ACCESS_TYPES[access],
        AccessFlags=values.HV_PENDING_MEMORY_INTERCEPT_GLA_VALID,
        GuestLinearAddress=gva,
        GuestPhysicalAddress=gpa,
    )
    return HV_X64_PENDING_EVENT.unpack(event.pack())
