"""Virtual Secure Mode: register layouts, the initial VP context and protection flags (TLFS, "Virtual Secure Mode").

Where the published pages and real Hyper-V differ (VSM capabilities), the layout is the one that runs there.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

from vtlkit.layout import Array, Bits, Struct, u16, u32, u64

HV_INPUT_VTL_TARGET_VTL: Final = Bits(0, 4)
HV_INPUT_VTL_USE_TARGET_VTL: Final = Bits(4)
HV_INPUT_VTL_RESERVED_MASK: Final = 0xE0


class HV_X64_SEGMENT_REGISTER(Struct, size=16, offsets={"Limit": 8, "Selector": 12, "Attributes": 14}):
    """`Attributes` is the descriptor's form: type 3:0, S 4, DPL 6:5, P 7, zero 11:8, AVL 12, L 13, D/B 14, G 15."""

    Base: u64 = 0
    Limit: u32 = 0
    Selector: u16 = 0
    Attributes: u16 = 0


class HV_X64_TABLE_REGISTER(Struct, size=16, offsets={"Limit": 6, "Base": 8}):
    Pad: Annotated[tuple[int, ...], Array("H", 3)] = (0, 0, 0)
    Limit: u16 = 0
    Base: u64 = 0


class HV_INITIAL_VP_CONTEXT(
    Struct,
    size=224,
    offsets={"Cs": 24, "Ldtr": 136, "Idtr": 152, "Gdtr": 168, "Efer": 184, "Cr0": 192, "MsrCrPat": 216},
):
    """State of a VP at its first entry into a VTL (HvCallEnableVpVtl, HvCallStartVirtualProcessor); x64."""

    Rip: u64 = 0
    Rsp: u64 = 0
    Rflags: u64 = 0
    Cs: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Ds: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Es: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Fs: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Gs: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Ss: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Tr: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Ldtr: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Idtr: HV_X64_TABLE_REGISTER = HV_X64_TABLE_REGISTER()
    Gdtr: HV_X64_TABLE_REGISTER = HV_X64_TABLE_REGISTER()
    Efer: u64 = 0
    Cr0: u64 = 0
    Cr3: u64 = 0
    Cr4: u64 = 0
    MsrCrPat: u64 = 0


HV_VP_VTL_CONTEXT = HV_INITIAL_VP_CONTEXT

HV_ENABLE_PARTITION_VTL_ENABLE_MBEC: Final = 1 << 0
HV_ENABLE_PARTITION_VTL_ENABLE_SUPERVISOR_SHADOW_STACK: Final = 1 << 1
HV_ENABLE_PARTITION_VTL_ENABLE_HARDWARE_HVPT: Final = 1 << 2

# HvRegisterVsmCodePageOffsets
HV_VSM_VTL_CALL_OFFSET: Final = Bits(0, 12)
HV_VSM_VTL_RETURN_OFFSET: Final = Bits(12, 12)

# HvRegisterVsmVpStatus
HV_VSM_VP_ACTIVE_VTL: Final = Bits(0, 4)
HV_VSM_VP_ACTIVE_MBEC_ENABLED: Final = Bits(4)
HV_VSM_VP_ENABLED_VTL_SET: Final = Bits(16, 16)

# HvRegisterVsmPartitionStatus
HV_VSM_PARTITION_ENABLED_VTL_SET: Final = Bits(0, 16)
HV_VSM_PARTITION_MAXIMUM_VTL: Final = Bits(16, 4)
HV_VSM_PARTITION_MBEC_ENABLED_VTL_SET: Final = Bits(20, 16)

# HvRegisterVsmVina
HV_VSM_VINA_VECTOR: Final = Bits(0, 8)
HV_VSM_VINA_ENABLED: Final = Bits(8)
HV_VSM_VINA_AUTO_RESET: Final = Bits(9)
HV_VSM_VINA_AUTO_EOI: Final = Bits(10)

# HvRegisterVsmCapabilities
HV_VSM_CAPABILITIES_DR6_SHARED: Final = Bits(0)
HV_VSM_CAPABILITIES_MBEC_VTL_MASK: Final = Bits(1, 16)
HV_VSM_CAPABILITIES_DENY_LOWER_VTL_STARTUP: Final = Bits(17)
HV_VSM_CAPABILITIES_SUPERVISOR_SHADOW_STACK: Final = Bits(18)
HV_VSM_CAPABILITIES_INTERCEPT_PAGE_AVAILABLE: Final = Bits(27)
HV_VSM_CAPABILITIES_RETURN_ACTION_AVAILABLE: Final = Bits(28)

# HvRegisterVsmPartitionConfig
HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION: Final = Bits(0)
HV_VSM_PARTITION_CONFIG_DEFAULT_VTL_PROTECTION_MASK: Final = Bits(1, 4)
HV_VSM_PARTITION_CONFIG_ZERO_MEMORY_ON_RESET: Final = Bits(5)
HV_VSM_PARTITION_CONFIG_DENY_LOWER_VTL_STARTUP: Final = Bits(6)
HV_VSM_PARTITION_CONFIG_INTERCEPT_ACCEPTANCE: Final = Bits(7)
HV_VSM_PARTITION_CONFIG_INTERCEPT_ENABLE_VTL_PROTECTION: Final = Bits(8)
HV_VSM_PARTITION_CONFIG_INTERCEPT_VP_STARTUP: Final = Bits(9)
HV_VSM_PARTITION_CONFIG_VALID: Final = 0x27F
"""Bits that the published layout defines."""

# HvRegisterVsmVpSecureConfigVtl0 to 14
HV_VSM_VP_SECURE_CONFIG_MBEC_ENABLED: Final = 1 << 0
HV_VSM_VP_SECURE_CONFIG_TLB_LOCKED: Final = 1 << 1
HV_VSM_VP_SECURE_CONFIG_VALID: Final = 0x3

# HvRegisterVsmVpWaitForTlbLock
HV_VSM_VP_WAIT_FOR_TLB_LOCK_WAIT: Final = 1 << 0

HV_MAP_GPA_READABLE: Final = 1 << 0
HV_MAP_GPA_WRITABLE: Final = 1 << 1
HV_MAP_GPA_KERNEL_EXECUTABLE: Final = 1 << 2
HV_MAP_GPA_USER_EXECUTABLE: Final = 1 << 3
HV_MAP_GPA_PERMISSIONS_NONE: Final = 0
HV_MAP_GPA_PERMISSIONS_ALL: Final = 0xF


class HvCrInterceptControl(enum.IntFlag):
    """HV_REGISTER_CR_INTERCEPT_CONTROL."""

    Cr0Write = 1 << 0
    Cr4Write = 1 << 1
    XCr0Write = 1 << 2
    IA32MiscEnableRead = 1 << 3
    IA32MiscEnableWrite = 1 << 4
    MsrLstarRead = 1 << 5
    MsrLstarWrite = 1 << 6
    MsrStarRead = 1 << 7
    MsrStarWrite = 1 << 8
    MsrCstarRead = 1 << 9
    MsrCstarWrite = 1 << 10
    ApicBaseMsrRead = 1 << 11
    ApicBaseMsrWrite = 1 << 12
    MsrEferRead = 1 << 13
    MsrEferWrite = 1 << 14
    GdtrWrite = 1 << 15
    IdtrWrite = 1 << 16
    LdtrWrite = 1 << 17
    TrWrite = 1 << 18
    MsrSysenterCsWrite = 1 << 19
    MsrSysenterEipWrite = 1 << 20
    MsrSysenterEspWrite = 1 << 21
    MsrSfmaskWrite = 1 << 22
    MsrTscAuxWrite = 1 << 23
    MsrSgxLaunchControlWrite = 1 << 24


HV_CR_INTERCEPT_CONTROL_VALID: Final = (1 << 25) - 1


class HvVtlEntryReason(enum.IntEnum):
    """HV_VTL_ENTRY_REASON."""

    HvVtlEntryReserved = 0
    HvVtlEntryVtlCall = 1
    HvVtlEntryInterrupt = 2
    HvVtlEntryIntercept = 3


HV_VTL_RETURN_FAST: Final = 1 << 0
"""Input of VTL return: do not restore RAX and RCX from the VTL control structure."""
