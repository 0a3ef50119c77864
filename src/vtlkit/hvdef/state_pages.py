"""VP state pages (TLFS, HV_VP_STATE_PAGE_TYPE); the register page as OpenVMM's hvdef has it."""

from __future__ import annotations

import enum
from typing import Annotated, Final

from vtlkit.hvdef.identifiers import HV_PAGE_SIZE
from vtlkit.hvdef.vsm import HV_X64_SEGMENT_REGISTER
from vtlkit.layout import Array, Bits, Bytes, Struct, u8, u16, u32, u64


class HvX64RegisterPageDirty(enum.IntFlag):
    """Groups of registers that the page's owner has changed."""

    GeneralPurpose = 1 << 0
    InstructionPointer = 1 << 1
    Xmm = 1 << 2
    Segments = 1 << 3
    Flags = 1 << 4


HV_X64_REGISTER_PAGE_VERSION: Final = 1
HV_X64_REGISTER_PAGE_RSP: Final = 4
"""RSP's place in `GpRegisters`."""
_XMM_SIZE: Final = 96
_RESERVED_END: Final = 3672


class HV_X64_REGISTER_PAGE(
    Struct,
    size=HV_PAGE_SIZE,
    offsets={
        "IsValid": 2,
        "Vtl": 3,
        "Dirty": 4,
        "GpRegisters": 8,
        "Rip": 136,
        "Rflags": 144,
        "Xmm": 160,
        "Es": 256,
        "Cr0": 352,
        "Dr7": 392,
        "PendingInterruption": 400,
        "InterruptState": 408,
        "InstructionEmulationHints": 416,
        "ReservedEnd": 424,
    },
):
    """`GpRegisters` in the processor's order; `Xmm`: XMM0 to XMM5. From Cr0 on, and `Vtl`, for reading only."""

    Version: u16 = 0
    IsValid: u8 = 0
    Vtl: u8 = 0
    Dirty: u32 = 0
    GpRegisters: Annotated[tuple[int, ...], Array("Q", 16)] = (0,) * 16
    Rip: u64 = 0
    Rflags: u64 = 0
    Reserved: u64 = 0
    Xmm: Annotated[bytes, Bytes(_XMM_SIZE)] = bytes(_XMM_SIZE)
    Es: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Cs: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Ss: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Ds: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Fs: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Gs: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Cr0: u64 = 0
    Cr3: u64 = 0
    Cr4: u64 = 0
    Cr8: u64 = 0
    Efer: u64 = 0
    Dr7: u64 = 0
    PendingInterruption: u64 = 0
    InterruptState: u64 = 0
    InstructionEmulationHints: u64 = 0
    ReservedEnd: Annotated[bytes, Bytes(_RESERVED_END)] = bytes(_RESERVED_END)


# HvX64RegisterRegisterPage
HV_REGISTER_PAGE_ENABLED: Final = Bits(0)
HV_REGISTER_PAGE_RESERVED: Final = Bits(1, 11)
HV_REGISTER_PAGE_GPA_PAGE_NUMBER: Final = Bits(12, 52)
