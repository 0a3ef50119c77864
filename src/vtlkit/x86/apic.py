"""Local APIC, I/O APIC and MSI registers (Linux `arch/x86/include/asm/apicdef.h` names; SDM volume 3, chapter 10).

Data and pure decoding; the devices are in `kvm.lapic` and `kvm.ioapic`.
"""

from __future__ import annotations

import enum
from typing import Final

APIC_DEFAULT_PHYS_BASE: Final = 0xFEE00000
IO_APIC_DEFAULT_PHYS_BASE: Final = 0xFEC00000

APIC_ID: Final = 0x20
APIC_LVR: Final = 0x30
APIC_TASKPRI: Final = 0x80
APIC_ARBPRI: Final = 0x90
APIC_PROCPRI: Final = 0xA0
APIC_EOI: Final = 0xB0
APIC_RRR: Final = 0xC0
APIC_LDR: Final = 0xD0
APIC_DFR: Final = 0xE0
APIC_SPIV: Final = 0xF0
APIC_ISR: Final = 0x100
APIC_TMR: Final = 0x180
APIC_IRR: Final = 0x200
APIC_ESR: Final = 0x280
APIC_LVTCMCI: Final = 0x2F0
APIC_ICR: Final = 0x300
APIC_ICR2: Final = 0x310
APIC_LVTT: Final = 0x320
APIC_LVTTHMR: Final = 0x330
APIC_LVTPC: Final = 0x340
APIC_LVT0: Final = 0x350
APIC_LVT1: Final = 0x360
APIC_LVTERR: Final = 0x370
APIC_TMICT: Final = 0x380
APIC_TMCCT: Final = 0x390
APIC_TDCR: Final = 0x3E0
APIC_SELF_IPI: Final = 0x3F0
APIC_REGISTERS_SIZE: Final = 0x400
"""Bytes of the register page that have architectural registers, and of KVM's `struct kvm_lapic_state`."""
APIC_ISR_NR: Final = 8
"""32-bit registers, 0x10 bytes apart, of each of ISR, TMR and IRR."""

APIC_LVR_VERSION: Final = 0xFF
APIC_LVR_MAXLVT_SHIFT: Final = 16
APIC_LVR_DIRECTED_EOI: Final = 1 << 24
APIC_VERSION: Final = 0x14

APIC_XAPIC_ID_SHIFT: Final = 24
APIC_TPRI_MASK: Final = 0xFF
APIC_LDR_MASK: Final = 0xFF << 24
APIC_DFR_CLUSTER: Final = 0x0FFFFFFF
APIC_DFR_FLAT: Final = 0xFFFFFFFF
APIC_DFR_MODEL_SHIFT: Final = 28

APIC_SPIV_VECTOR: Final = 0xFF
APIC_SPIV_APIC_ENABLED: Final = 1 << 8
APIC_SPIV_FOCUS_DISABLED: Final = 1 << 9
APIC_SPIV_DIRECTED_EOI: Final = 1 << 12

APIC_ESR_SEND_CS: Final = 1 << 0
APIC_ESR_RECV_CS: Final = 1 << 1
APIC_ESR_SEND_ACC: Final = 1 << 2
APIC_ESR_RECV_ACC: Final = 1 << 3
APIC_ESR_SENDILL: Final = 1 << 5
APIC_ESR_RECVILL: Final = 1 << 6
APIC_ESR_ILLREGA: Final = 1 << 7

APIC_VECTOR_MASK: Final = 0xFF
APIC_MODE_MASK: Final = 0x700
APIC_MODE_SHIFT: Final = 8
APIC_DEST_MASK: Final = 1 << 11
APIC_DEST_LOGICAL: Final = 1 << 11
APIC_DEST_PHYSICAL: Final = 0
APIC_ICR_BUSY: Final = 1 << 12
APIC_INT_ASSERT: Final = 1 << 14
APIC_INT_LEVELTRIG: Final = 1 << 15
APIC_SHORT_MASK: Final = 3 << 18
APIC_SHORT_SHIFT: Final = 18
APIC_DEST_NOSHORT: Final = 0
APIC_DEST_SELF: Final = 1 << 18
APIC_DEST_ALLINC: Final = 2 << 18
APIC_DEST_ALLBUT: Final = 3 << 18
APIC_ICR_RESERVED: Final = 0xFFF32000
"""Bits of the low half of the ICR that must be zero in x2APIC mode (bit 12, delivery status, is ignored)."""

APIC_DM_FIXED: Final = 0x000
APIC_DM_LOWEST: Final = 0x100
APIC_DM_SMI: Final = 0x200
APIC_DM_REMRD: Final = 0x300
APIC_DM_NMI: Final = 0x400
APIC_DM_INIT: Final = 0x500
APIC_DM_STARTUP: Final = 0x600
APIC_DM_EXTINT: Final = 0x700

APIC_SEND_PENDING: Final = 1 << 12
APIC_INPUT_POLARITY: Final = 1 << 13
APIC_LVT_REMOTE_IRR: Final = 1 << 14
APIC_LVT_LEVEL_TRIGGER: Final = 1 << 15
APIC_LVT_MASKED: Final = 1 << 16
APIC_LVT_TIMER_MODE_MASK: Final = 3 << 17
APIC_LVT_TIMER_ONESHOT: Final = 0 << 17
APIC_LVT_TIMER_PERIODIC: Final = 1 << 17
APIC_LVT_TIMER_TSCDEADLINE: Final = 2 << 17

APIC_TDR_DIV_MASK: Final = 0xB

APIC_BROADCAST: Final = 0xFF
X2APIC_BROADCAST: Final = 0xFFFFFFFF


class DeliveryMode(enum.IntEnum):
    """Delivery mode field (bits 10:8) of ICR, LVT, redirection entry and MSI data."""

    FIXED = 0
    LOWEST = 1
    SMI = 2
    REMRD = 3
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


class Shorthand(enum.IntEnum):
    """Destination shorthand field (bits 19:18) of the ICR."""

    NOSHORT = 0
    SELF = 1
    ALLINC = 2
    ALLBUT = 3


_TIMER_DIVISORS: Final = (2, 4, 8, 16, 32, 64, 128, 1)


def timer_divisor(tdcr: int) -> int:
    """Divisor of the APIC timer that the divide configuration register (bits 3, 1 and 0) selects."""
    return _TIMER_DIVISORS[(tdcr & 3) | ((tdcr >> 1) & 4)]


def x2apic_ldr(x2apic_id: int) -> int:
    """The logical ID that x2APIC mode derives from the APIC ID: cluster in 31:16, one bit of 15:0."""
    return ((x2apic_id >> 4) << 16) | (1 << (x2apic_id & 0xF))


IOAPIC_NUM_PINS: Final = 24
IOAPIC_VERSION_ID: Final = 0x11
IOAPIC_REG_SELECT: Final = 0x00
IOAPIC_REG_WINDOW: Final = 0x10
IOAPIC_REG_EOI: Final = 0x40
"""Directed EOI register; only of I/O APIC version 0x20 and later."""
IOAPIC_REG_APIC_ID: Final = 0x00
IOAPIC_REG_VERSION: Final = 0x01
IOAPIC_REG_ARB_ID: Final = 0x02
IOAPIC_REG_REDIRECTION: Final = 0x10
"""Low half of entry n at IOAPIC_REG_REDIRECTION + 2 * n, the high half after it."""

IOAPIC_VECTOR: Final = 0xFF
IOAPIC_DELIVERY_MODE_SHIFT: Final = 8
IOAPIC_DELIVERY_MODE: Final = 7 << 8
IOAPIC_DEST_LOGICAL: Final = 1 << 11
IOAPIC_DELIVERY_STATUS: Final = 1 << 12
IOAPIC_POLARITY_LOW: Final = 1 << 13
IOAPIC_REMOTE_IRR: Final = 1 << 14
IOAPIC_TRIGGER_LEVEL: Final = 1 << 15
IOAPIC_MASKED: Final = 1 << 16
IOAPIC_DEST_SHIFT: Final = 56
IOAPIC_READ_ONLY: Final = IOAPIC_DELIVERY_STATUS | IOAPIC_REMOTE_IRR

MSI_ADDR_BASE: Final = 0xFEE00000
MSI_ADDR_BASE_MASK: Final = 0xFFF00000
MSI_ADDR_DEST_MODE_LOGICAL: Final = 1 << 2
MSI_ADDR_REDIRECTION_HINT: Final = 1 << 3
MSI_ADDR_DEST_SHIFT: Final = 12
MSI_ADDR_DEST_MASK: Final = 0xFF << 12
MSI_ADDR_EXT_DEST: Final = 0xFFFFFF00
"""Bits of the upper address half that extend the destination ID to 32 bits (x2APIC format of KVM and Hyper-V)."""
MSI_DATA_VECTOR: Final = 0xFF
MSI_DATA_DELIVERY_MODE_SHIFT: Final = 8
MSI_DATA_DELIVERY_MODE: Final = 7 << 8
MSI_DATA_LEVEL_ASSERT: Final = 1 << 14
MSI_DATA_TRIGGER_LEVEL: Final = 1 << 15
