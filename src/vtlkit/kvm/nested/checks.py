"""Whether VMRUN accepts a control block: the consistency checks of AMD APM volume 2, section 15.5.1.

Mirrors `__nested_vmcb_check_controls` and `__nested_vmcb_check_save` of arch/x86/kvm/svm/nested.c. Pure questions about
one snapshot of the block; a False is VMEXIT_INVALID.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import EventType
from vtlkit.kvm.control_registers import cr4_allowed
from vtlkit.kvm.errors import GuestMemoryError
from vtlkit.kvm.msrs import efer_allowed
from vtlkit.kvm.nested.vmcb import (
    EVENTINJ_TYPE_MASK,
    EVENTINJ_TYPE_SHIFT,
    EVENTINJ_VALID,
    EVENTINJ_VECTOR,
    IOPM_SIZE,
    MSRPM_SIZE,
    NESTED_CTL_NP_ENABLE,
    TLB_CONTROL_DO_NOTHING,
    TLB_CONTROL_FLUSH_ALL,
    VmcbControl,
    VmcbSave,
)
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.paging import PAE_CR3_MASK, PDPTE_RESERVED, PTE_P
from vtlkit.x86.registers import (
    CR0_CD,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    EFER_LME,
    EFER_SVME,
    RFLAGS_VM,
    SEGMENT_DB,
    SEGMENT_L,
)
from vtlkit.x86.svm import SvmExit

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_U64: Final = 0xFFFFFFFFFFFFFFFF
_TYPES: Final = frozenset(EventType)
_LAST_EXCEPTION: Final = 31
_TLB_CONTROLS: Final = (TLB_CONTROL_DO_NOTHING, TLB_CONTROL_FLUSH_ALL)
"""Flushes by ASID are not offered in CPUID, so their encodings are reserved."""
_NOT_IN_64_BIT: Final = (Vector.OF, Vector.BR)
"""Raised by instructions that 64-bit code does not have."""


def controls_valid(vcpu: Vcpu, control: VmcbControl) -> bool:
    """The control area: what must be intercepted, tables inside physical memory's width, no nested paging."""
    if not control.intercept_4 & 1 << (SvmExit.VMRUN - SvmExit.VMRUN):
        return False
    if not control.asid or control.nested_ctl & NESTED_CTL_NP_ENABLE or control.tlb_control not in _TLB_CONTROLS:
        return False
    limit = 1 << vcpu.cpuid.maxphyaddr()
    # The low twelve bits of the bases are ignored.
    return (control.msrpm_base_pa & ~0xFFF) + MSRPM_SIZE <= limit and (
        control.iopm_base_pa & ~0xFFF
    ) + IOPM_SIZE <= limit


def save_valid(vcpu: Vcpu, save: VmcbSave) -> bool:
    """The state save area: nothing reserved is set, the modes go together."""
    efer, cr0, cr4 = save.efer, save.cr0, save.cr4
    if not efer & EFER_SVME or efer & ~efer_allowed(vcpu):
        return False
    if cr0 >> 32 or (cr0 & CR0_NW and not cr0 & CR0_CD):
        return False
    if save.dr6 >> 32 or save.dr7 >> 32 or cr4 & ~cr4_allowed(vcpu):
        return False
    if efer & EFER_LME and cr0 & CR0_PG:
        if not cr4 & CR4_PAE or not cr0 & CR0_PE or save.cr3 >> vcpu.cpuid.maxphyaddr():
            return False
        return not (save.cs.attributes & SEGMENT_L and save.cs.attributes & SEGMENT_DB)
    if not cr0 & CR0_PG:
        return True
    return not save.cr3 >> vcpu.cpuid.maxphyaddr() and (not cr4 & CR4_PAE or _pdptes_valid(vcpu, save.cr3))


def host_valid(vcpu: Vcpu, save: VmcbSave) -> bool:
    """L1's registers as a saved state names them: in these VMRUN can have been executed (`svm_set_nested_state`)."""
    return bool(save.cr0 & CR0_PE) and not save.rflags & RFLAGS_VM and save_valid(vcpu, save)


def _pdptes_valid(vcpu: Vcpu, cr3: int) -> bool:
    """The four entries that PAE paging loads with CR3: nothing reserved in those that are present."""
    reserved = PDPTE_RESERVED | _U64 & ~((1 << vcpu.cpuid.maxphyaddr()) - 1)
    try:
        entries = struct.unpack("<4Q", vcpu.vm.memory.read_for_guest(cr3 & PAE_CR3_MASK, 32))
    except GuestMemoryError:
        return False
    return not any(entry & PTE_P and entry & reserved for entry in entries)


def event_valid(control: VmcbControl, save: VmcbSave) -> bool:
    """EVENTINJ: a type that there is, and an exception that can be raised (section 15.20)."""
    event = control.event_inj
    if not event & EVENTINJ_VALID:
        return True
    kind = (event & EVENTINJ_TYPE_MASK) >> EVENTINJ_TYPE_SHIFT
    if kind not in _TYPES:
        return False
    if kind != EventType.EXCEPTION:
        return True
    vector = event & EVENTINJ_VECTOR
    long_code = save.efer & EFER_LME and save.cr0 & CR0_PG and save.cs.attributes & SEGMENT_L
    if long_code and vector in _NOT_IN_64_BIT:
        return False
    return vector <= _LAST_EXCEPTION and vector != Vector.NMI


def valid(vcpu: Vcpu, control: VmcbControl, save: VmcbSave) -> bool:
    """All of it."""
    return controls_valid(vcpu, control) and save_valid(vcpu, save) and event_valid(control, save)
