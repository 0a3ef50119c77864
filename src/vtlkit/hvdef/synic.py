"""Synthetic interrupt controller and timers: registers and pages (TLFS, "Virtual Interrupts", "Timers")."""

from __future__ import annotations

import enum
from typing import Annotated, Final

from vtlkit.layout import Bits, Bytes, Struct, u32, u64

HV_SYNIC_SINT_COUNT: Final = 16
HV_SYNIC_STIMER_COUNT: Final = 4
HV_SYNIC_INTERCEPTION_SINT_INDEX: Final = 0
"""SINT on which the hypervisor queues intercept messages."""
HV_SYNIC_FIRST_VALID_VECTOR: Final = 16
HV_SYNIC_VERSION: Final = 1

HV_SYNIC_SCONTROL_ENABLE: Final = 1 << 0
HV_SYNIC_SIEFP_ENABLE: Final = 1 << 0
HV_SYNIC_SIMP_ENABLE: Final = 1 << 0
HV_SYNIC_PAGE_GPA: Final = 0xFFFFFFFFFFFFF000

HV_SYNIC_SINT_VECTOR: Final = Bits(0, 8)
HV_SYNIC_SINT_MASKED: Final = Bits(16)
HV_SYNIC_SINT_AUTO_EOI: Final = Bits(17)
HV_SYNIC_SINT_POLLING: Final = Bits(18)
HV_SYNIC_SINT_PROXY: Final = Bits(20)
HV_SYNIC_SINT_RESET: Final = HV_SYNIC_SINT_MASKED.mask

HV_EVENT_FLAGS_COUNT: Final = 256 * 8
HV_EVENT_FLAGS_BYTE_COUNT: Final = 256


class HV_SYNIC_EVENT_FLAGS(Struct, size=256):
    """Event flags of one SINT: flag f is bit f % 8 of byte f / 8. The page holds one of these per SINT."""

    Flags: Annotated[bytes, Bytes(HV_EVENT_FLAGS_BYTE_COUNT)] = bytes(HV_EVENT_FLAGS_BYTE_COUNT)


class HvStimerConfig(enum.IntFlag):
    """Flags of HV_X64_MSR_STIMERx_CONFIG."""

    Enabled = 1 << 0
    Periodic = 1 << 1
    Lazy = 1 << 2
    AutoEnable = 1 << 3
    DirectMode = 1 << 12


HV_STIMER_CONFIG_APIC_VECTOR: Final = Bits(4, 8)
HV_STIMER_CONFIG_SINTX: Final = Bits(16, 4)
HV_STIMER_CONFIG_RESERVED_MASK: Final = 0xFFFFFFFFFFF0E000


class HV_TIMER_MESSAGE_PAYLOAD(Struct, size=24):
    """Times in units of 100 ns of the partition's reference time."""

    TimerIndex: u32 = 0
    Reserved: u32 = 0
    ExpirationTime: u64 = 0
    DeliveryTime: u64 = 0
