"""The local APIC's register page as tables: what may be read, what an LVT entry keeps, KVM's save format.

Mirrors the tables of arch/x86/kvm/lapic.c (`valid_reg_mask`, `apic_lvt_mask`, `kvm_apic_state_fixup`). Pure data.
"""

from __future__ import annotations

import struct

from vtlkit.x86.apic import (
    APIC_ARBPRI,
    APIC_DFR,
    APIC_ESR,
    APIC_ICR,
    APIC_ICR2,
    APIC_ID,
    APIC_INPUT_POLARITY,
    APIC_IRR,
    APIC_ISR,
    APIC_ISR_NR,
    APIC_LDR,
    APIC_LVR,
    APIC_LVT0,
    APIC_LVT1,
    APIC_LVT_LEVEL_TRIGGER,
    APIC_LVT_MASKED,
    APIC_LVT_REMOTE_IRR,
    APIC_LVTCMCI,
    APIC_LVTERR,
    APIC_LVTPC,
    APIC_LVTT,
    APIC_LVTTHMR,
    APIC_MODE_MASK,
    APIC_PROCPRI,
    APIC_REGISTERS_SIZE,
    APIC_SEND_PENDING,
    APIC_SPIV,
    APIC_TASKPRI,
    APIC_TDCR,
    APIC_TMCCT,
    APIC_TMICT,
    APIC_TMR,
    APIC_VECTOR_MASK,
)

REG_SHIFT = 4
"""Registers are 0x10 bytes apart; register index = offset >> REG_SHIFT, which is also its x2APIC MSR number."""
NR_REGS = APIC_REGISTERS_SIZE >> REG_SHIFT

_VECTOR_REG_BITS = 32
_U32_MASK = 0xFFFFFFFF

_LVT_MASK = APIC_LVT_MASKED | APIC_SEND_PENDING | APIC_VECTOR_MASK
_LINT_MASK = _LVT_MASK | APIC_MODE_MASK | APIC_INPUT_POLARITY | APIC_LVT_REMOTE_IRR | APIC_LVT_LEVEL_TRIGGER

LVT_WRITABLE = {
    APIC_LVTT: _LVT_MASK,
    APIC_LVTTHMR: _LVT_MASK | APIC_MODE_MASK,
    APIC_LVTPC: _LVT_MASK | APIC_MODE_MASK,
    APIC_LVT0: _LINT_MASK,
    APIC_LVT1: _LINT_MASK,
    APIC_LVTERR: _LVT_MASK,
    APIC_LVTCMCI: _LVT_MASK | APIC_MODE_MASK,
}
"""Writable bits of each LVT entry, in the order of the version register's count (the timer mode comes on top)."""

_READABLE_COMMON = frozenset(
    {
        APIC_ID,
        APIC_LVR,
        APIC_TASKPRI,
        APIC_PROCPRI,
        APIC_LDR,
        APIC_SPIV,
        APIC_ESR,
        APIC_ICR,
        APIC_LVTT,
        APIC_LVTTHMR,
        APIC_LVTPC,
        APIC_LVT0,
        APIC_LVT1,
        APIC_LVTERR,
        APIC_TMICT,
        APIC_TMCCT,
        APIC_TDCR,
    }
    | {base + (n << REG_SHIFT) for base in (APIC_ISR, APIC_TMR, APIC_IRR) for n in range(APIC_ISR_NR)}
)
READABLE_XAPIC = _READABLE_COMMON | {APIC_ARBPRI, APIC_DFR, APIC_ICR2}
READABLE_X2APIC = _READABLE_COMMON


def vector_reg(bitmap: int, offset: int) -> int:
    """The 32-bit ISR, TMR or IRR register at page offset `offset` of a 256-bit map."""
    return bitmap >> (((offset >> REG_SHIFT) & (APIC_ISR_NR - 1)) * _VECTOR_REG_BITS) & _U32_MASK


def pack_page(regs: dict[int, int], bitmaps: dict[int, int]) -> bytes:
    """`struct kvm_lapic_state`: 1 KiB, one little-endian 32-bit register every 16 bytes.

    `regs` maps page offsets to values, `bitmaps` maps APIC_ISR, APIC_TMR and APIC_IRR to 256-bit maps.
    """
    page = bytearray(APIC_REGISTERS_SIZE)
    for offset, value in regs.items():
        struct.pack_into("<I", page, offset, value)
    for base, bitmap in bitmaps.items():
        for n in range(APIC_ISR_NR):
            offset = base + (n << REG_SHIFT)
            struct.pack_into("<I", page, offset, vector_reg(bitmap, offset))
    return bytes(page)


def page_reg(page: bytes, offset: int) -> int:
    """One 32-bit register of a saved page."""
    value: int = struct.unpack_from("<I", page, offset)[0]
    return value


def page_bitmap(page: bytes, base: int) -> int:
    """The 256-bit map whose first register is at `base` of a saved page."""
    bitmap = 0
    for n in range(APIC_ISR_NR):
        bitmap |= page_reg(page, base + (n << REG_SHIFT)) << (n * _VECTOR_REG_BITS)
    return bitmap
