"""The initial context of a processor in a VTL (HV_INITIAL_VP_CONTEXT): checked, then put into a vCPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vtlkit.hvdef.vsm import HV_INITIAL_VP_CONTEXT, HV_X64_SEGMENT_REGISTER
from vtlkit.kvm.uapi import MAXPHYADDR, Vcpu
from vtlkit.x86 import msr
from vtlkit.x86.paging import is_canonical
from vtlkit.x86.registers import (
    CR0_CD,
    CR0_ET,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_VALID,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    EFER_SCE,
    RFLAGS_FIXED,
    RFLAGS_VALID,
    RFLAGS_VM,
    SEGMENT_DB,
    SEGMENT_L,
    SEGMENT_P,
    SEGMENT_S,
    DescriptorTable,
    Regs,
    Segment,
)
from vtlkit.x86.segments import TYPE_CODE, access_rights_to_attributes

_EFER_VALID: Final = EFER_SCE | EFER_LME | EFER_LMA | EFER_NX
_CODE: Final = SEGMENT_P | SEGMENT_S | TYPE_CODE


@dataclass(frozen=True, slots=True)
class InitialState:
    """A context that a processor can start from."""

    context: HV_INITIAL_VP_CONTEXT

    def apply(self, vcpu: Vcpu) -> None:
        """Load it into a vCPU that does not run."""
        context = self.context
        sregs = vcpu.get_sregs()
        for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr"):
            setattr(sregs, name, _segment(getattr(context, name.capitalize())))
        sregs.ldt = _segment(context.Ldtr)
        sregs.gdt = DescriptorTable(context.Gdtr.Base, context.Gdtr.Limit)
        sregs.idt = DescriptorTable(context.Idtr.Base, context.Idtr.Limit)
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = context.Cr0 | CR0_ET, context.Cr3, context.Cr4, context.Efer
        vcpu.set_sregs(sregs)
        vcpu.set_regs(Regs(rip=context.Rip, rsp=context.Rsp, rflags=context.Rflags | RFLAGS_FIXED))
        vcpu.set_msr(msr.MSR_IA32_CR_PAT, context.MsrCrPat)
        vcpu.start_runnable()


def _segment(register: HV_X64_SEGMENT_REGISTER) -> Segment:
    return Segment(register.Selector, register.Base, register.Limit, access_rights_to_attributes(register.Attributes))


def decode(context: HV_INITIAL_VP_CONTEXT, cr4_allowed: int, *, real_mode: bool = False) -> InitialState | None:
    """The state, or None if no processor can have it. VTLs above 0 start in 32- or 64-bit protected mode.

    `cr4_allowed`: CR4 bits that the processor's CPUID offers. `real_mode`: it may be that, too.
    """
    valid = (
        (real_mode or bool(context.Cr0 & CR0_PE))
        and _control_registers_valid(context, cr4_allowed)
        and not context.Rflags & ~RFLAGS_VALID
        and not context.Rflags & RFLAGS_VM
        and msr.pat_valid(context.MsrCrPat)
        and _code_valid(context)
    )
    return InitialState(context) if valid else None


def _control_registers_valid(context: HV_INITIAL_VP_CONTEXT, cr4_allowed: int) -> bool:
    cr0, cr4, efer = context.Cr0, context.Cr4, context.Efer
    if cr0 & ~CR0_VALID or (cr0 & CR0_PG and not cr0 & CR0_PE) or (cr0 & CR0_NW and not cr0 & CR0_CD):
        return False
    if cr4 & ~cr4_allowed or efer & ~_EFER_VALID or context.Cr3 >> MAXPHYADDR:
        return False
    if not efer & EFER_LMA:
        return not cr4 & CR4_PCIDE and not (cr0 & CR0_PG and efer & EFER_LME)
    return bool(cr0 & CR0_PG and efer & EFER_LME and cr4 & CR4_PAE)


def _code_valid(context: HV_INITIAL_VP_CONTEXT) -> bool:
    attributes = access_rights_to_attributes(context.Cs.Attributes)
    if attributes & _CODE != _CODE:
        return False
    if context.Efer & EFER_LMA and attributes & SEGMENT_L:
        return not attributes & SEGMENT_DB and is_canonical(context.Rip, bool(context.Cr4 & CR4_LA57))
    return not context.Rip >> 32
