"""HvCallTranslateVirtualAddress and its Ex form: decoding, answering, and the case that needs no user space (TLFS,
HV_TRANSLATE_GVA_CONTROL_FLAGS, HV_TRANSLATE_GVA_RESULT(_EX)).

A VTL that translates in its own context, on its own processor, asks for nothing that VTL policy decides: the walk and
its answer are made here (`translate_own_address`), unless the call codes are in `HvVm.user_space_calls`. All else
exits, and so does what only user space can tell: who forbids a page table, and MTRRs, which the VTLs of a processor
share. User space answers with the same `TranslateRequest` and `answer`, so both say the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef import register_values as values
from vtlkit.hvdef.hypercall_io import HvTranslateGvaResultCode as Code
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.identifiers import HV_PAGE_SIZE, HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF
from vtlkit.hvdef.messages import HvCacheType
from vtlkit.hvdef.register_values import HV_X64_PENDING_EVENT, HvX64PendingEventType
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv.parameters import Hypercall
from vtlkit.kvm.hyperv.vp_set import TargetVtl, target_vtl
from vtlkit.kvm.translate import TranslateAccess, TranslateFault, TranslateFlags, Translation
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.memory_type import pat_type
from vtlkit.x86.msr import MSR_IA32_CR_PAT, MemoryType
from vtlkit.x86.registers import CR0_CD, CR0_PG

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.vcpu import HvVcpu

TRANSLATE_CALLS: Final = frozenset(
    {HvCallCode.HvCallTranslateVirtualAddress, HvCallCode.HvCallTranslateVirtualAddressEx}
)
"""Take them out of `HvVm.user_space_calls`, before any vCPU runs, for the hypervisor to answer what it can."""

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
_SET_BITS: Final = TranslateFlags.SET_ACCESSED | TranslateFlags.SET_DIRTY
_CODES: Final = {
    TranslateFault.NOT_PRESENT: Code.HvTranslateGvaPageNotPresent,
    TranslateFault.PRIVILEGE_VIOLATION: Code.HvTranslateGvaPrivilegeViolation,
    TranslateFault.RESERVED_BITS: Code.HvTranslateGvaInvalidPageTableFlags,
    TranslateFault.INVALID_GVA: Code.HvTranslateGvaInvalidPageTableFlags,
    TranslateFault.INVALID_GPA: Code.HvTranslateGvaGpaUnmapped,
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
class TranslateRequest:
    """What the call asks for, whoever it names."""

    partition_id: int
    vp_index: int
    input_vtl: int
    """An HV_INPUT_VTL byte."""
    gva: int
    access: TranslateAccess
    flags: TranslateFlags
    inhibit: bool
    """The TLB of the VTL is to be locked first."""
    malformed: bool
    """INVALID_PARAMETER, if who is named may be named."""

    @classmethod
    def of(cls, call: Hypercall) -> TranslateRequest:
        """Decode the parameters of either form."""
        request = io.HV_INPUT_TRANSLATE_VIRTUAL_ADDRESS.unpack_from(call.data)
        control = request.ControlFlags
        sets_bits = control & io.HV_TRANSLATE_GVA_SET_PAGE_TABLE_BITS
        return cls(
            request.PartitionId,
            request.VpIndex,
            io.HV_TRANSLATE_GVA_INPUT_VTL.get(control),
            request.GvaPage * HV_PAGE_SIZE,
            _access(control),
            _SET_BITS if sets_bits else TranslateFlags.NONE,
            bool(control & io.HV_TRANSLATE_GVA_TLB_FLUSH_INHIBIT),
            bool(request.Reserved or control & ~_FLAGS or request.GvaPage >= _GVA_PAGE_MAX),
        )


def _access(control: int) -> TranslateAccess:
    access = TranslateAccess.NONE
    for flag, kind in _ACCESS:
        if control & flag:
            access |= kind
    return access


@dataclass(frozen=True, slots=True)
class TranslateAnswer:
    """HV_TRANSLATE_GVA_RESULT and what goes with it."""

    code: Code
    gpa: int = 0
    cache_type: HvCacheType = HvCacheType.HvCacheTypeUncached
    overlay: bool = False
    event: HV_X64_PENDING_EVENT | None = None
    """Of the Ex form: what the access would raise."""

    def put(self, call: Hypercall) -> None:
        """Into the output of either form."""
        result = (
            io.HV_TRANSLATE_GVA_RESULT_CODE.make(self.code)
            | io.HV_TRANSLATE_GVA_CACHE_TYPE.make(self.cache_type)
            | io.HV_TRANSLATE_GVA_OVERLAY_PAGE.make(self.overlay)
        )
        page = self.gpa // HV_PAGE_SIZE
        if call.code == HvCallCode.HvCallTranslateVirtualAddressEx:
            output = io.HV_OUTPUT_TRANSLATE_VIRTUAL_ADDRESS_EX(
                TranslationResult=result, EventInfo=self.event or HV_X64_PENDING_EVENT(), GpaPage=page
            ).pack()
        else:
            output = io.HV_OUTPUT_TRANSLATE_VIRTUAL_ADDRESS(result, page).pack()
        call.write_output(output)


def success(translation: Translation, kind: MemoryType, *, overlay: bool) -> TranslateAnswer:
    """The page was found."""
    return TranslateAnswer(Code.HvTranslateGvaSuccess, translation.gpa, _CACHE_TYPES[kind], overlay)


def paged_memory_type(translation: Translation, cr0: int, pat: int) -> MemoryType | None:
    """The memory type of a page that was found (TLFS, "Memory Cache Control"); None without paging: MTRRs decide."""
    if cr0 & CR0_CD:
        return MemoryType.UC
    return pat_type(pat, translation.entry, translation.level) if cr0 & CR0_PG else None


def failure(translation: Translation, gva: int) -> TranslateAnswer | None:
    """The walk ended without a page; None if a page table may not be read or written: for whoever forbids it to say."""
    fault = translation.fault
    if translation.valid or fault is TranslateFault.FORBIDDEN:
        return None
    code = _CODES[fault]
    if fault in _PAGE_FAULTS:
        return TranslateAnswer(code, event=_exception(Vector.PF, translation.error_code, gva))
    if fault is TranslateFault.INVALID_GVA:
        return TranslateAnswer(code, event=_exception(Vector.GP, 0, 0))
    return TranslateAnswer(code)


def pending_event_header(kind: HvX64PendingEventType) -> int:
    """The first word of an HV_X64_PENDING_EVENT that is pending."""
    return values.HV_PENDING_EVENT_PENDING.make(1) | values.HV_PENDING_EVENT_TYPE.make(kind)


def _exception(vector: int, error_code: int, parameter: int) -> HV_X64_PENDING_EVENT:
    """The exception that the access would raise."""
    event = values.HV_X64_PENDING_EXCEPTION_EVENT(
        pending_event_header(HvX64PendingEventType.HvX64PendingEventException),
        values.HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE,
        vector,
        error_code,
        parameter,
    )
    return HV_X64_PENDING_EVENT.unpack(event.pack().ljust(HV_X64_PENDING_EVENT.SIZE, b"\0"))


# --- the hypervisor's own case ----------------------------------------------------------------------------------------


def translate_own_address(hv: HvVcpu, call: Hypercall) -> HvStatus | None:
    """Both calls, where caller and context are one; None: user space answers."""
    request = TranslateRequest.of(call)
    if request.malformed or request.inhibit or not _names_itself(hv, request):
        return None
    vcpu = hv.vcpu
    translation = vcpu.translate2(request.gva, request.access, request.flags)
    if translation.valid and translation.set_bits_succeeded:
        pat = vcpu.get_msr(MSR_IA32_CR_PAT)
        assert pat is not None
        kind = paged_memory_type(translation, vcpu.engine.cr0, pat)
        if kind is None:
            return None
        answer = success(translation, kind, overlay=vcpu.vm.memory.overlay_at(translation.gpa) is not None)
    else:
        found = failure(translation, request.gva)
        if found is None:
            return None
        answer = found
    answer.put(call)
    return HvStatus.SUCCESS


def _names_itself(hv: HvVcpu, request: TranslateRequest) -> bool:
    if request.partition_id != HV_PARTITION_ID_SELF or request.vp_index not in (HV_VP_INDEX_SELF, hv.vp_index):
        return False
    return target_vtl(request.input_vtl, hv.hv_vm.vtl) is TargetVtl.OWN
