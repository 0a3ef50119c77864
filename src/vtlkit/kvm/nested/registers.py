"""A processor's registers to and from the state save area of a control block.

Two groups, as the processor has them: what VMRUN and #VMEXIT change, and what VMLOAD and VMSAVE do (AMD APM volume 2,
sections 15.5 and 15.5.2). Belongs to the vCPU's task; the engine is between two instructions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.kvm.nested.vmcb import VmcbSave, VmcbSegment
from vtlkit.x86 import msr
from vtlkit.x86.registers import (
    CR0_PE,
    CR0_PG,
    EFER_LMA,
    EFER_LME,
    RFLAGS_FIXED,
    SEGMENT_ATTRIBUTES,
    SEGMENT_DPL,
    SEGMENT_DPL_SHIFT,
    DescriptorTable,
    Segment,
)

if TYPE_CHECKING:
    from vtlkit.engine.api import Engine

_U64: Final = 0xFFFFFFFFFFFFFFFF
_MSRS: Final = {
    msr.MSR_STAR: "star",
    msr.MSR_LSTAR: "lstar",
    msr.MSR_CSTAR: "cstar",
    msr.MSR_SYSCALL_MASK: "sfmask",
    msr.MSR_KERNEL_GS_BASE: "kernel_gs_base",
    msr.MSR_IA32_SYSENTER_CS: "sysenter_cs",
    msr.MSR_IA32_SYSENTER_ESP: "sysenter_esp",
    msr.MSR_IA32_SYSENTER_EIP: "sysenter_eip",
}


def _to_vmcb(segment: Segment) -> VmcbSegment:
    return VmcbSegment(segment.selector, segment.attributes & SEGMENT_ATTRIBUTES, segment.limit, segment.base)


def _from_vmcb(segment: VmcbSegment) -> Segment:
    return Segment(segment.selector, segment.base, segment.limit, segment.attributes & SEGMENT_ATTRIBUTES)


def save_state(engine: Engine, save: VmcbSave) -> None:
    """Store what #VMEXIT stores; the rest of `save` stays."""
    sregs, live = engine.get_sregs(), engine.regs
    save.es, save.cs, save.ss, save.ds = (_to_vmcb(one) for one in (sregs.es, sregs.cs, sregs.ss, sregs.ds))
    save.gdtr = VmcbSegment(0, 0, sregs.gdt.limit, sregs.gdt.base)
    save.idtr = VmcbSegment(0, 0, sregs.idt.limit, sregs.idt.base)
    save.cpl = engine.cpl
    save.efer, save.cr0, save.cr2, save.cr3, save.cr4 = sregs.efer, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4
    save.dr6, save.dr7 = engine.get_debugregs()[4:]
    save.rflags, save.rip, save.rsp, save.rax = engine.rflags, live.rip, live.rsp, live.rax


def load_state(engine: Engine, save: VmcbSave, *, guest: bool) -> None:
    """Load it as VMRUN does for a guest; for a host as #VMEXIT does, which keeps CR2 and DR6."""
    sregs, live = engine.get_sregs(), engine.regs
    sregs.es, sregs.cs, sregs.ss, sregs.ds = (_from_vmcb(one) for one in (save.es, save.cs, save.ss, save.ds))
    if save.cr0 & CR0_PE:
        # The block's CPL counts, whatever SS says; engines have it from SS.
        sregs.ss.attributes = sregs.ss.attributes & ~SEGMENT_DPL | (save.cpl & 3) << SEGMENT_DPL_SHIFT
    sregs.gdt = DescriptorTable(save.gdtr.base, save.gdtr.limit & 0xFFFF)
    sregs.idt = DescriptorTable(save.idtr.base, save.idtr.limit & 0xFFFF)
    sregs.cr0, sregs.cr3, sregs.cr4 = save.cr0, save.cr3, save.cr4
    long_mode = save.efer & EFER_LME and save.cr0 & CR0_PG
    sregs.efer = save.efer & ~EFER_LMA | (EFER_LMA if long_mode else 0)
    if long_mode and sregs.cs.long:
        # 64-bit code has no base, whatever the block says; engines add what they are given.
        sregs.cs.base = 0
    debug = engine.get_debugregs()
    dr6 = debug[4]
    if guest:
        sregs.cr2, dr6 = save.cr2, save.dr6
    wanted = (*debug[:4], dr6, save.dr7)
    if wanted != debug:
        engine.set_debugregs(wanted)
    # Flags first: virtual-8086 mode decides the privilege level.
    engine.rflags = save.rflags | RFLAGS_FIXED
    engine.set_sregs(sregs)
    live.rip, live.rsp, live.rax = save.rip, save.rsp, save.rax


def vmsave(engine: Engine, save: VmcbSave) -> None:
    """FS, GS, TR, LDTR with their hidden parts, and the system call MSRs."""
    sregs = engine.get_sregs()
    save.fs, save.gs, save.tr, save.ldtr = (_to_vmcb(one) for one in (sregs.fs, sregs.gs, sregs.tr, sregs.ldt))
    for index, name in _MSRS.items():
        setattr(save, name, engine.get_msr(index))


def vmload(engine: Engine, save: VmcbSave, linear_bits: int) -> None:
    """The same the other way. Bases are made canonical for addresses of so many bits, not refused."""
    sregs = engine.get_sregs()
    segments = [_from_vmcb(one) for one in (save.fs, save.gs, save.tr, save.ldtr)]
    for segment in segments:
        segment.base = _canonical(segment.base, linear_bits)
    sregs.fs, sregs.gs, sregs.tr, sregs.ldt = segments
    engine.set_sregs(sregs)
    for index, name in _MSRS.items():
        value = getattr(save, name)
        engine.set_msr(index, _canonical(value, linear_bits) if index == msr.MSR_KERNEL_GS_BASE else value)


def _canonical(address: int, linear_bits: int) -> int:
    address &= (1 << linear_bits) - 1
    return address | _U64 & ~((1 << linear_bits) - 1) if address >> (linear_bits - 1) else address
