"""SVM intercepts of the emulated guest mode: exit codes, intercept words, the MSR permission map.

AMD APM volume 2, chapter 15 and appendix B and C. The control block lies in pages above the guest's physical address
width, which no guest page table can name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from vtlkit.engine.api import NO_REGISTERS, PAGE_SIZE, Intercept, RamBlock, RegisterIntercepts
from vtlkit.engine.unicorn.binding import UC_PROT_READ, UC_PROT_WRITE, Library
from vtlkit.x86.svm import SvmExit, msr_permission

VMCB_GPA: Final = 1 << 44
MSR_PERMISSION_GPA: Final = VMCB_GPA + PAGE_SIZE
_MSR_PERMISSION_SIZE: Final = 2 * PAGE_SIZE
EMPTY_TABLE_GPA: Final = MSR_PERMISSION_GPA + _MSR_PERMISSION_SIZE
"""A page of zeroes: a page table that maps nothing."""
_MSRPM_BASE_PA: Final = 0x48
_EXITINFO2: Final = 0x80


_ALWAYS: Final = (
    SvmExit.NMI,
    SvmExit.SMI,
    SvmExit.VINTR,
    SvmExit.CPUID,
    SvmExit.RSM,
    SvmExit.HLT,
    SvmExit.INVLPGA,
    SvmExit.MSR,
    SvmExit.SHUTDOWN,
    SvmExit.RDPMC,
    SvmExit.VMRUN,
    SvmExit.VMMCALL,
    SvmExit.VMLOAD,
    SvmExit.VMSAVE,
    SvmExit.STGI,
    SvmExit.CLGI,
    SvmExit.SKINIT,
    SvmExit.MONITOR,
    SvmExit.MWAIT,
)

_OPTIONAL: Final = {
    Intercept.PAUSE: (SvmExit.PAUSE,),
    Intercept.RDTSC: (SvmExit.RDTSC,),
    Intercept.INVLPG: (SvmExit.INVLPG,),
    Intercept.DESCRIPTOR_TABLE_READ: (SvmExit.IDTR_READ, SvmExit.GDTR_READ, SvmExit.LDTR_READ, SvmExit.TR_READ),
    Intercept.GDTR_WRITE: (SvmExit.GDTR_WRITE,),
    Intercept.IDTR_WRITE: (SvmExit.IDTR_WRITE,),
    Intercept.LDTR_WRITE: (SvmExit.LDTR_WRITE,),
    Intercept.TR_WRITE: (SvmExit.TR_WRITE,),
    Intercept.IRET: (SvmExit.IRET,),
    Intercept.RDPMC: (SvmExit.RDPMC,),
    Intercept.PUSHF: (SvmExit.PUSHF,),
    Intercept.POPF: (SvmExit.POPF,),
    # The translator takes INVD for WBINVD.
    Intercept.INVALIDATE_CACHES: (SvmExit.WBINVD,),
}

_MNEMONICS: Final = {
    SvmExit.VMRUN: "vmrun",
    SvmExit.VMLOAD: "vmload",
    SvmExit.VMSAVE: "vmsave",
    SvmExit.STGI: "stgi",
    SvmExit.CLGI: "clgi",
    SvmExit.SKINIT: "skinit",
    SvmExit.INVLPGA: "invlpga",
    SvmExit.MONITOR: "monitor",
    SvmExit.MWAIT: "mwait",
    SvmExit.RDPMC: "rdpmc",
    SvmExit.RSM: "rsm",
}

_CR_INTERCEPTS: Final = (0, 4, 8)
"""MOV to and from CR3 runs natively: the instance walks the guest's own tables."""


@dataclass(frozen=True, slots=True)
class InterceptWords:
    """The words of the control block that say what exits."""

    instructions: int
    cr_read: int
    cr_write: int
    dr_read: int
    dr_write: int


@lru_cache(maxsize=64)
def intercept_words(intercepts: Intercept, moves: RegisterIntercepts = NO_REGISTERS) -> InterceptWords:
    """What always exits plus `intercepts`. MOV to or from CR8 always does: the task priority is not the engine's."""
    word = 0
    for code in _ALWAYS:
        word |= 1 << (code - SvmExit.INTR)
    for flag, codes in _OPTIONAL.items():
        if flag & intercepts:
            for code in codes:
                word |= 1 << (code - SvmExit.INTR)
    control = sum(1 << number for number in _CR_INTERCEPTS)
    return InterceptWords(
        instructions=word,
        cr_read=(control if intercepts & Intercept.CR_READ else 1 << 8) | moves.cr_read,
        cr_write=(control if intercepts & Intercept.CR_WRITE else 1 << 8) | moves.cr_write,
        dr_read=(0xFF if intercepts & Intercept.DR_READ else 0) | moves.dr_read,
        dr_write=(0xFF if intercepts & Intercept.DR_WRITE else 0) | moves.dr_write,
    )


def mnemonic_of(code: int) -> str | None:
    """The instruction of an exit code that has only one."""
    try:
        return _MNEMONICS.get(SvmExit(code))
    except ValueError:
        return None


class ControlPages:
    """The control block's page, the MSR permission map and an empty page table, in one RAM block of the instance."""

    def __init__(self) -> None:
        self._block = RamBlock(PAGE_SIZE + _MSR_PERMISSION_SIZE + PAGE_SIZE)
        self._block.view[PAGE_SIZE : PAGE_SIZE + _MSR_PERMISSION_SIZE] = b"\xff" * _MSR_PERMISSION_SIZE
        struct.pack_into("<Q", self._block.view, _MSRPM_BASE_PA, MSR_PERMISSION_GPA)

    def map(self, lib: Library, handle: int) -> None:
        lib.check(
            lib.mem_map_ptr(handle, VMCB_GPA, self._block.size, UC_PROT_READ | UC_PROT_WRITE, self._block.address),
            "the control pages",
        )

    def fault_address(self) -> int:
        """EXITINFO2: the address of the last page fault that was intercepted."""
        return int.from_bytes(self._block.view[_EXITINFO2 : _EXITINFO2 + 8], "little")

    def intercept_msr(self, index: int, read: bool, write: bool) -> None:
        """Set the two permission bits of one MSR.

        Raises:
            ValueError: the MSR lies outside the map's ranges: it always exits.
        """
        place = msr_permission(index)
        if place is not None:
            byte, shift = place
            bits = (1 if read else 0) | (2 if write else 0)
            at = PAGE_SIZE + byte
            self._block.view[at] = (self._block.view[at] & ~(3 << shift)) | bits << shift
        elif not (read and write):
            raise ValueError(f"MSR {index:#x} has no permission bits: it always exits")
