"""Register state between vtlkit's form and the instance's: system registers, MSRs, FPU image, CPU features."""

from __future__ import annotations

import ctypes
import enum
import struct
from typing import TYPE_CHECKING, Final

from vtlkit.engine.unicorn.delivery import CS, DS, ES, FS, GS, SS
from vtlkit.engine.unicorn.state import (
    HF_ADDSEG,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HF_LMA,
    HF_MP_SHIFT,
    HF_OSFXSR,
    HF_PE,
    HF_SMAP,
    HF_SS32,
    HF_SVME,
    CpuState,
    SegmentCache,
)
from vtlkit.x86 import cpuid as bits
from vtlkit.x86 import msr
from vtlkit.x86.registers import (
    CR0_PE,
    CR4_OSFXSR,
    CR4_SMAP,
    EFER_LMA,
    RFLAGS_VM,
    XCR0_PKRU,
    XCR0_SSE,
    XCR0_X87,
    DescriptorTable,
    Segment,
    Sregs,
)

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.instance import Instance

MAXPHYADDR: Final = 40
"""Physical address bits of the instance's MMU (QEMU's TCG default)."""

_FIELDS: Final = {
    msr.MSR_EFER: "efer",
    msr.MSR_STAR: "star",
    msr.MSR_LSTAR: "lstar",
    msr.MSR_CSTAR: "cstar",
    msr.MSR_SYSCALL_MASK: "fmask",
    msr.MSR_KERNEL_GS_BASE: "kernel_gs_base",
    msr.MSR_IA32_SYSENTER_CS: "sysenter_cs",
    msr.MSR_IA32_SYSENTER_ESP: "sysenter_esp",
    msr.MSR_IA32_SYSENTER_EIP: "sysenter_eip",
    msr.MSR_IA32_CR_PAT: "pat",
    msr.MSR_TSC_AUX: "tsc_aux",
}
_DPL3: Final = 3 << 13
"""The descriptor privilege level in a cached descriptor's second word."""
_SEGMENT_BASES: Final = {msr.MSR_FS_BASE: FS, msr.MSR_GS_BASE: GS}
NATIVE_MSRS: Final = frozenset(_FIELDS) | frozenset(_SEGMENT_BASES)
READ_NATIVELY: Final = (
    msr.MSR_STAR,
    msr.MSR_LSTAR,
    msr.MSR_CSTAR,
    msr.MSR_SYSCALL_MASK,
    msr.MSR_FS_BASE,
    msr.MSR_GS_BASE,
    msr.MSR_KERNEL_GS_BASE,
    msr.MSR_IA32_SYSENTER_CS,
    msr.MSR_IA32_SYSENTER_ESP,
    msr.MSR_IA32_SYSENTER_EIP,
)
"""MSRs whose reads need no exit. Their writes do: the instance does not check for canonical addresses."""

_ATTRIBUTE_LOW: Final = 0xFF
_FLAGS_LOW_SHIFT: Final = 8
_FLAGS_HIGH_SHIFT: Final = 12
"""Attributes 7:0 are bits 15:8 of the descriptor's second dword, attributes 11:8 its bits 23:20."""
_DPL_SHIFT: Final = 13
_DESC_B: Final = 1 << 22
_DESC_L: Final = 1 << 21

_XSAVE_COMPONENTS: Final = XCR0_X87 | XCR0_SSE | XCR0_PKRU


class FeatureWord(enum.IntEnum):
    """Indices of `CpuState.features` (QEMU's enum of the same name)."""

    FEAT_1_EDX = 0
    FEAT_1_ECX = 1
    FEAT_7_0_EBX = 2
    FEAT_7_0_ECX = 3
    FEAT_8000_0001_EDX = 6
    FEAT_8000_0001_ECX = 7
    FEAT_XSAVE = 19
    FEAT_XSAVE_COMP_LO = 21
    FEAT_XSAVE_COMP_HI = 22


FEATURES: Final = {
    FeatureWord.FEAT_1_EDX: bits.SOFTWARE_1_EDX,
    FeatureWord.FEAT_1_ECX: bits.SOFTWARE_1_ECX,
    FeatureWord.FEAT_7_0_EBX: bits.SOFTWARE_7_0_EBX,
    FeatureWord.FEAT_7_0_ECX: bits.SOFTWARE_7_0_ECX,
    FeatureWord.FEAT_8000_0001_EDX: bits.SOFTWARE_80000001_EDX,
    FeatureWord.FEAT_8000_0001_ECX: bits.SOFTWARE_80000001_ECX | bits.CPUID_80000001_ECX_SVM,
    FeatureWord.FEAT_XSAVE: bits.SOFTWARE_D_1_EAX,
    FeatureWord.FEAT_XSAVE_COMP_LO: _XSAVE_COMPONENTS,
    FeatureWord.FEAT_XSAVE_COMP_HI: 0,
}
"""What the instance executes, of what QEMU 5.0's translator implements (TCG_*_FEATURES of target/i386/cpu.c): all that
a present processor has. Its XSETBV takes XCR0's bits from here, too."""


def enable_features(state: CpuState) -> None:
    """Let the translator execute all it can; what the guest is told of it is the hypervisor's CPUID."""
    for word, features in FEATURES.items():
        state.features[word] = features


def offer_xcr0(state: CpuState, offered: bool) -> None:
    """Whether the instance's own XSETBV takes any value; else it is #GP always."""
    state.features[FeatureWord.FEAT_XSAVE_COMP_LO] = _XSAVE_COMPONENTS if offered else 0


def _segment(register: SegmentCache) -> Segment:
    flags = register.flags
    attributes = (flags >> _FLAGS_LOW_SHIFT & _ATTRIBUTE_LOW) | (flags >> _FLAGS_HIGH_SHIFT & 0xF00)
    return Segment(register.selector, register.base, register.limit, attributes)


def _load(register: SegmentCache, segment: Segment) -> None:
    register.selector = segment.selector
    register.base = segment.base
    register.limit = segment.limit
    register.flags = (segment.attributes & _ATTRIBUTE_LOW) << _FLAGS_LOW_SHIFT | (
        segment.attributes & 0xF00
    ) << _FLAGS_HIGH_SHIFT


def get_sregs(state: CpuState) -> Sregs:
    """System registers; `cr8` and `apic_base` are the hypervisor's and read as zero."""
    segs = state.segs
    return Sregs(
        cs=_segment(segs[CS]),
        ds=_segment(segs[DS]),
        es=_segment(segs[ES]),
        fs=_segment(segs[FS]),
        gs=_segment(segs[GS]),
        ss=_segment(segs[SS]),
        tr=_segment(state.tr),
        ldt=_segment(state.ldt),
        gdt=DescriptorTable(state.gdt.base, state.gdt.limit),
        idt=DescriptorTable(state.idt.base, state.idt.limit),
        cr0=state.cr[0],
        cr2=state.cr[2],
        cr3=state.cr[3],
        cr4=state.cr[4],
        cr8=0,
        efer=state.efer,
        apic_base=0,
    )


def set_sregs(engine: Instance, sregs: Sregs) -> None:
    """Load the system registers and flush the TLB."""
    state = engine.regs
    segs = state.segs
    for number, segment in ((CS, sregs.cs), (DS, sregs.ds), (ES, sregs.es), (FS, sregs.fs), (GS, sregs.gs)):
        _load(segs[number], segment)
    _load(segs[SS], sregs.ss)
    _load(state.tr, sregs.tr)
    _load(state.ldt, sregs.ldt)
    state.gdt.base, state.gdt.limit = sregs.gdt.base, sregs.gdt.limit
    state.idt.base, state.idt.limit = sregs.idt.base, sregs.idt.limit
    state.cr[0], state.cr[2], state.cr[3], state.cr[4] = sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4
    state.efer = sregs.efer
    update_hflags(state, None)
    engine.flush_tlb()


_HFLAGS_KEPT: Final = 0xFFFFFFFF & ~(
    HF_CPL | HF_PE | 7 << HF_MP_SHIFT | HF_LMA | HF_CS32 | HF_SS32 | HF_CS64 | HF_ADDSEG | HF_OSFXSR | HF_SMAP | HF_SVME
)


def update_hflags(state: CpuState, cpl: int | None) -> None:
    """The flags that the translator keys its blocks on, from segments and control registers.

    `cpl`: the new privilege level; None takes it from SS (3 in virtual-8086 mode, 0 in real mode).
    """
    cr0 = state.cr[0]
    hflags = state.hflags & _HFLAGS_KEPT
    if not cr0 & CR0_PE:
        cpl = 0
    elif state.eflags & RFLAGS_VM:
        cpl = 3
    elif cpl is None:
        cpl = (state.segs[SS].flags >> _DPL_SHIFT) & 3
    hflags |= cpl
    if cr0 & CR0_PE:
        hflags |= HF_PE
    hflags |= (cr0 >> 1 & 7) << HF_MP_SHIFT
    if state.cr[4] & CR4_OSFXSR:
        hflags |= HF_OSFXSR
    if state.cr[4] & CR4_SMAP:
        hflags |= HF_SMAP
    # The translator knows VMMCALL only with SVM on. What else that makes valid is intercepted: the hypervisor decides.
    hflags |= HF_SVME
    cs = state.segs[CS].flags
    if state.efer & EFER_LMA:
        hflags |= HF_LMA
    if state.efer & EFER_LMA and cs & _DESC_L:
        hflags |= HF_CS32 | HF_SS32 | HF_CS64
    else:
        if cs & _DESC_B:
            hflags |= HF_CS32
        if state.segs[SS].flags & _DESC_B:
            hflags |= HF_SS32
        segs = state.segs
        if (
            not cr0 & CR0_PE
            or state.eflags & RFLAGS_VM
            or not hflags & HF_CS32
            or segs[DS].base | segs[ES].base | segs[SS].base
        ):
            hflags |= HF_ADDSEG
    state.hflags = hflags


def get_msr(state: CpuState, index: int) -> int:
    """A native MSR."""
    segment = _SEGMENT_BASES.get(index)
    if segment is not None:
        return int(state.segs[segment].base)
    return int(getattr(state, _FIELDS[index]))


def set_msr(state: CpuState, index: int, value: int) -> bool:
    """Set a native MSR; True if translations of addresses depend on it."""
    segment = _SEGMENT_BASES.get(index)
    if segment is not None:
        state.segs[segment].base = value
        # The translator clears the base with the selector when IRET to CPL 3 finds a smaller DPL; processors keep it.
        state.segs[segment].flags |= _DPL3
        return False
    setattr(state, _FIELDS[index], value)
    if index == msr.MSR_EFER:
        update_hflags(state, state.hflags & HF_CPL)
        return True
    return False


_SSE_ROUNDING: Final = 13
_MXCSR_MASK: Final = 0xFFFF
_STATUS_ROUNDING = 1
_STATUS_EXCEPTIONS = 2
_STATUS_PRECISION = 3
_STATUS_FTZ = 4
_STATUS_DAZ = 5
_PRECISION: Final = {0: 32, 2: 64, 3: 80}


def get_fpu(state: CpuState) -> bytes:
    """The FXSAVE64 image; the last instruction and data pointers are not kept by the instance and read as zero."""
    top = state.fpstt & 7
    status = (state.fpus & ~0x3800) | top << 11
    tags = sum(1 << number for number in range(8) if not state.fptags[number])
    image = bytearray(512)
    struct.pack_into("<HHBxHQQII", image, 0, state.fpuc, status, tags, 0, 0, 0, state.mxcsr, _MXCSR_MASK)
    for number in range(8):
        at = 32 + number * 16
        image[at : at + 10] = bytes(state.fpregs[(top + number) & 7])[:10]
    for number in range(16):
        at = 160 + number * 16
        image[at : at + 16] = bytes(state.xmm[number])[:16]
    return bytes(image)


def set_fpu(state: CpuState, image: bytes) -> None:
    """Load an FXSAVE64 image.

    Raises:
        ValueError: the image is not 512 bytes, or MXCSR has reserved bits set.
    """
    if len(image) != 512:
        raise ValueError(f"an FXSAVE image has 512 bytes, not {len(image)}")
    control, status, tags, _opcode, _ip, _dp, mxcsr, _mask = struct.unpack_from("<HHBxHQQII", image)
    if mxcsr & ~_MXCSR_MASK:
        raise ValueError(f"MXCSR {mxcsr:#x} has reserved bits set")
    top = status >> 11 & 7
    state.fpuc, state.fpus, state.fpstt, state.mxcsr = control, status & ~0x3800, top, mxcsr
    for number in range(8):
        state.fptags[number] = 0 if tags >> number & 1 else 1
        ctypes.memmove(state.fpregs[(top + number) & 7], image[32 + number * 16 : 42 + number * 16], 10)
    for number in range(16):
        ctypes.memmove(state.xmm[number], image[160 + number * 16 : 176 + number * 16], 16)
    state.fp_status[_STATUS_ROUNDING] = control >> 10 & 3
    state.fp_status[_STATUS_PRECISION] = _PRECISION.get(control >> 8 & 3, 80)
    state.sse_status[_STATUS_ROUNDING] = mxcsr >> _SSE_ROUNDING & 3
    state.sse_status[_STATUS_FTZ] = mxcsr >> 15 & 1
    state.sse_status[_STATUS_DAZ] = mxcsr >> 6 & 1
