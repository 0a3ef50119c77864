"""Memory types: what PAT and MTRRs make of a page (SDM volume 3, "Memory Cache Control"). Pure functions.

Types are `msr.MemoryType` numbers, which are HV_CACHE_TYPE's too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from vtlkit.x86 import msr
from vtlkit.x86.msr import MemoryType
from vtlkit.x86.paging import PTE_PAT, PTE_PAT_LARGE, PTE_PCD, PTE_PWT

ReadMsr: TypeAlias = Callable[[int], int]

_64K_END: Final = 0x80000
_16K_END: Final = 0xC0000
_FIXED_END: Final = 0x100000
_PHYS_MASK: Final = 0x000FFFFFFFFFF000


def pat_type(pat: int, entry: int, level: int) -> MemoryType:
    """What IA32_PAT says for a page that `entry`, of a table of this level (1 maps 4 KiB), maps."""
    pat_bit = PTE_PAT if level == 1 else PTE_PAT_LARGE
    index = bool(entry & PTE_PWT) | bool(entry & PTE_PCD) << 1 | bool(entry & pat_bit) << 2
    return MemoryType(pat >> 8 * index & 0xFF)


def mtrr_type(read: ReadMsr, gpa: int) -> MemoryType | None:
    """What the MTRRs say of an address; None while they are disabled."""
    default = read(msr.MSR_MTRRdefType)
    if not default & msr.MTRR_DEF_TYPE_E:
        return None
    if gpa < _FIXED_END and default & msr.MTRR_DEF_TYPE_FE:
        return _fixed(read, gpa)
    found: MemoryType | None = None
    for number in range(read(msr.MSR_MTRRcap) & 0xFF):
        mask = read(msr.MSR_MTRRphysMask0 + 2 * number)
        base = read(msr.MSR_MTRRphysBase0 + 2 * number)
        if mask & msr.MTRR_PHYS_MASK_V and not (gpa ^ base) & mask & _PHYS_MASK:
            kind = MemoryType(base & 0xFF)
            found = kind if found is None else _overlap(found, kind)
    return MemoryType(default & msr.MTRR_DEF_TYPE_TYPE) if found is None else found


def _fixed(read: ReadMsr, gpa: int) -> MemoryType:
    if gpa < _64K_END:
        register, byte = msr.MSR_MTRRfix64K_00000, gpa >> 16
    elif gpa < _16K_END:
        register, byte = msr.MSR_MTRRfix16K_80000, (gpa - _64K_END) >> 14
    else:
        register, byte = msr.MSR_MTRRfix4K_C0000, (gpa - _16K_END) >> 12
    return MemoryType(read(register + byte // 8) >> 8 * (byte % 8) & 0xFF)


def _overlap(one: MemoryType, other: MemoryType) -> MemoryType:
    """Uncached wins, then write-through over write-back; what the manual leaves undefined is uncached."""
    if one is other:
        return one
    if {one, other} == {MemoryType.WT, MemoryType.WB}:
        return MemoryType.WT
    return MemoryType.UC
