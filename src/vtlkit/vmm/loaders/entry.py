"""Register states in which guests start, and the record of what a loader did.

Multiboot 1 (specification 0.6.96, "I386 machine state") and PVH (Xen's docs/misc/pvh.pandoc) agree on flat 32-bit
protected mode; our direct ELF64 start has flat 64-bit mode. All leave interrupts off and the task register on an empty
busy TSS. The GDT that `GDT` holds is in memory too, so that a guest may reload what it was given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vtlkit.x86.registers import (
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    SEGMENT_P,
    DescriptorTable,
    Regs,
    Segment,
    Sregs,
)
from vtlkit.x86.segments import (
    TYPE_TSS_BUSY,
    encode_descriptor,
    encode_system_descriptor,
    flat_code32,
    flat_code64,
    flat_data,
)

CODE32_SELECTOR: Final = 0x08
DATA_SELECTOR: Final = 0x10
CODE64_SELECTOR: Final = 0x18
_TSS_SELECTOR: Final = 0x20


def _busy_tss() -> Segment:
    return Segment(_TSS_SELECTOR, 0, 0x67, SEGMENT_P | TYPE_TSS_BUSY)


GDT: Final = b"".join(
    (
        bytes(8),
        encode_descriptor(flat_code32(CODE32_SELECTOR)),
        encode_descriptor(flat_data(DATA_SELECTOR)),
        encode_descriptor(flat_code64(CODE64_SELECTOR)),
        encode_system_descriptor(_busy_tss()),
    )
)
"""Null, 32-bit code, data, 64-bit code, and a busy TSS at 0 (two slots: in 64-bit mode its descriptor has 16 bytes)."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Something that was put into guest memory at [start, end)."""

    what: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class BootState:
    """How the boot processor starts. `entry` is a guest-physical address, `loaded` is in ascending order."""

    regs: Regs
    sregs: Sregs
    image_name: str
    protocol: str
    entry: int
    loaded: tuple[Loaded, ...]


def _flat(code: Segment, gdt_gpa: int) -> Sregs:
    sregs = Sregs.reset()
    sregs.cs = code
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, flat_data(DATA_SELECTOR))
    sregs.tr = _busy_tss()
    sregs.gdt = DescriptorTable(gdt_gpa, len(GDT) - 1)
    sregs.idt = DescriptorTable(0, 0)
    return sregs


def protected_mode(gdt_gpa: int) -> Sregs:
    """Flat 32-bit protected mode without paging."""
    sregs = _flat(flat_code32(CODE32_SELECTOR), gdt_gpa)
    sregs.cr0 = CR0_PE | CR0_ET
    return sregs


def long_mode(gdt_gpa: int, cr3: int) -> Sregs:
    """Flat 64-bit mode with the page tables at `cr3`, and SSE usable, as compilers expect."""
    sregs = _flat(flat_code64(CODE64_SELECTOR), gdt_gpa)
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG
    sregs.cr3 = cr3
    sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT
    sregs.efer = EFER_LME | EFER_LMA
    return sregs


def waking_vector_state(vector: int) -> tuple[Regs, Sregs]:
    """Real mode at the FACS's firmware waking vector, a physical address below 1 MiB, as the end of ACPI S3 asks.

    CS is `vector` >> 4 and IP `vector` & 0xF. ValueError if real mode cannot reach it.
    """
    if not 0 < vector < 1 << 20:
        raise ValueError(f"firmware waking vector {vector:#x} is not a real-mode address")
    sregs = Sregs.reset()
    sregs.cr0 = CR0_ET
    sregs.cs = Segment(vector >> 4, vector & ~0xF, 0xFFFF, sregs.cs.attributes)
    return Regs(rip=vector & 0xF), sregs
