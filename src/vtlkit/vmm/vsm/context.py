"""The initial context of a processor in a VTL (HV_INITIAL_VP_CONTEXT): checked, then put into a vCPU."""

from __future__ import annotations

from dataclasses import dataclass

from vtlkit.hvdef.vsm import HV_INITIAL_VP_CONTEXT, HV_X64_SEGMENT_REGISTER
from vtlkit.kvm.uapi import Vcpu
from vtlkit.x86 import msr
from vtlkit.x86.paging import is_canonical
from vtlkit.x86.registers import (
    CR0_ET,
    CR0_PE,
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    RFLAGS_FIXED,
    RFLAGS_VM,
    DescriptorTable,
    Regs,
    Segment,
)
from vtlkit.x86.segments import access_rights_to_attributes

_RFLAGS_RESERVED = ~0x3F7FD7


@dataclass(frozen=True, slots=True)
class InitialState:
    """A context that a processor can start from."""

    context: HV_INITIAL_VP_CONTEXT

    def apply(self, vcpu: Vcpu) -> None:
        """Load it into a vCPU that has never run."""
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


def decode(context: HV_INITIAL_VP_CONTEXT) -> InitialState | None:
    """The state, or None if no processor can have it. VTLs above 0 start in 32- or 64-bit protected mode."""
    cr0, cr4, efer = context.Cr0, context.Cr4, context.Efer
    long_mode = bool(efer & EFER_LMA)
    la57 = bool(cr4 & CR4_LA57)
    valid = (
        not cr0 >> 32
        and cr0 & CR0_PE
        and not context.Rflags & _RFLAGS_RESERVED
        and not context.Rflags & RFLAGS_VM
        and msr.pat_valid(context.MsrCrPat)
        and context.Cs.Attributes & 0x80
        and long_mode == bool(cr0 & CR0_PG and efer & EFER_LME)
        and (not long_mode or (cr4 & CR4_PAE and is_canonical(context.Rip, la57)))
    )
    return InitialState(context) if valid else None
