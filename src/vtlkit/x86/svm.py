"""SVM's exit codes and intercepts (AMD APM volume 2, chapter 15, appendices B and C)."""

from __future__ import annotations

import enum
from typing import Final

EXCEPTION_BASE: Final = 0x40
"""Exit code of vector 0's exception intercept; the others follow."""
CR_READ_BASE: Final = 0x00
CR_WRITE_BASE: Final = 0x10
DR_READ_BASE: Final = 0x20
DR_WRITE_BASE: Final = 0x30
VMEXIT_INVALID: Final = 0xFFFFFFFFFFFFFFFF
"""Exit code of a VMRUN whose control block breaks a rule."""


class SvmExit(enum.IntEnum):
    """Exit codes that are also (less 0x60) the bit numbers of the instruction intercept words at 0Ch and 10h."""

    INTR = 0x60
    NMI = 0x61
    SMI = 0x62
    INIT = 0x63
    VINTR = 0x64
    CR0_SEL_WRITE = 0x65
    IDTR_READ = 0x66
    GDTR_READ = 0x67
    LDTR_READ = 0x68
    TR_READ = 0x69
    IDTR_WRITE = 0x6A
    GDTR_WRITE = 0x6B
    LDTR_WRITE = 0x6C
    TR_WRITE = 0x6D
    RDTSC = 0x6E
    RDPMC = 0x6F
    PUSHF = 0x70
    POPF = 0x71
    CPUID = 0x72
    RSM = 0x73
    IRET = 0x74
    SWINT = 0x75
    INVD = 0x76
    PAUSE = 0x77
    HLT = 0x78
    INVLPG = 0x79
    INVLPGA = 0x7A
    IOIO = 0x7B
    MSR = 0x7C
    TASK_SWITCH = 0x7D
    FERR_FREEZE = 0x7E
    SHUTDOWN = 0x7F
    VMRUN = 0x80
    VMMCALL = 0x81
    VMLOAD = 0x82
    VMSAVE = 0x83
    STGI = 0x84
    CLGI = 0x85
    SKINIT = 0x86
    RDTSCP = 0x87
    ICEBP = 0x88
    WBINVD = 0x89
    MONITOR = 0x8A
    MWAIT = 0x8B
    XSETBV = 0x8D


_MSR_RANGES: Final = ((0, 0), (0xC0000000, 0x800), (0xC0010000, 0x1000))
"""(first MSR, byte offset of its bits); each range covers 0x2000 MSRs with two bits each: read, write."""
_MSR_RANGE_SIZE: Final = 0x2000


def msr_permission(index: int) -> tuple[int, int] | None:
    """Byte of the MSR permission map and bit in it of a register's two bits, for reads and above it for writes; None
    for a register that the map does not cover: it is intercepted always."""
    for first, offset in _MSR_RANGES:
        if first <= index < first + _MSR_RANGE_SIZE:
            number = index - first
            return offset + number // 4, number % 4 * 2
    return None
