"""The registers of a scripted engine: plain attributes, no instruction looks at most of them."""

from __future__ import annotations

from typing import Final

from vtlkit.x86 import msr
from vtlkit.x86.registers import GENERAL_REGISTERS, RFLAGS_FIXED, Sregs

FPU_SIZE: Final = 512
_FCW_RESET: Final = b"\x40\x00"
_MXCSR_RESET: Final = b"\x80\x1f\x00\x00"
_MXCSR_OFFSET: Final = 24
_DR6_RESET: Final = 0xFFFF0FF0
_DR7_RESET: Final = 0x400

_VALUES: Final = {
    msr.MSR_STAR: 0,
    msr.MSR_LSTAR: 0,
    msr.MSR_CSTAR: 0,
    msr.MSR_SYSCALL_MASK: 0,
    msr.MSR_KERNEL_GS_BASE: 0,
    msr.MSR_IA32_SYSENTER_CS: 0,
    msr.MSR_IA32_SYSENTER_ESP: 0,
    msr.MSR_IA32_SYSENTER_EIP: 0,
    msr.MSR_IA32_CR_PAT: msr.PAT_RESET,
    msr.MSR_TSC_AUX: 0,
}
NATIVE_MSRS: Final = frozenset(_VALUES) | {msr.MSR_EFER, msr.MSR_FS_BASE, msr.MSR_GS_BASE}


class State:
    """`RegisterFile`, and what lies beside it."""

    __slots__ = (*GENERAL_REGISTERS, "dr", "fpu", "msrs", "pkru", "rflags", "rip", "sregs", "xcr0")

    rax: int
    rcx: int
    rdx: int
    rbx: int
    rsp: int
    rbp: int
    rsi: int
    rdi: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int

    def __init__(self) -> None:
        for name in GENERAL_REGISTERS:
            setattr(self, name, 0)
        self.rip = 0xFFF0
        self.rflags = RFLAGS_FIXED
        self.sregs = Sregs.reset()
        self.msrs = dict(_VALUES)
        self.dr = [0, 0, 0, 0, _DR6_RESET, _DR7_RESET]
        """DR0..DR3, DR6, DR7."""
        fpu = bytearray(FPU_SIZE)
        fpu[:2] = _FCW_RESET
        fpu[_MXCSR_OFFSET : _MXCSR_OFFSET + 4] = _MXCSR_RESET
        self.fpu = bytes(fpu)
        self.xcr0 = 1
        self.pkru = 0

    def get_msr(self, index: int) -> int:
        if index == msr.MSR_EFER:
            return self.sregs.efer
        if index == msr.MSR_FS_BASE:
            return self.sregs.fs.base
        if index == msr.MSR_GS_BASE:
            return self.sregs.gs.base
        return self.msrs[index]

    def set_msr(self, index: int, value: int) -> None:
        if index == msr.MSR_EFER:
            self.sregs.efer = value
        elif index == msr.MSR_FS_BASE:
            self.sregs.fs.base = value
        elif index == msr.MSR_GS_BASE:
            self.sregs.gs.base = value
        else:
            assert index in self.msrs, f"MSR {index:#x} does not live in the engine"
            self.msrs[index] = value

    def copy_shared(self, source: State) -> None:
        """What all VTLs of a VP share (TLFS): RAX..R15 but RSP, CR2, DR0..DR3, the FPU image and XCR0."""
        for name in GENERAL_REGISTERS:
            if name != "rsp":
                setattr(self, name, getattr(source, name))
        self.sregs.cr2 = source.sregs.cr2
        self.dr[:4] = source.dr[:4]
        self.fpu = source.fpu
        self.xcr0 = source.xcr0
        self.pkru = source.pkru
