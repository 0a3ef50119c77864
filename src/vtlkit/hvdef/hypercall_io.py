"""Input and output blocks of hypercalls (TLFS, hypercall reference pages; OpenVMM's hvdef where those are short).

HV_INPUT_X and HV_OUTPUT_X are the fixed part of HvCallX; the elements of a rep call follow it, the variable header (a
`vp_set.HV_VP_SET` and its banks) before them. What is reserved here must be zero in the guest's block. Calls about
intercepts are in `intercepts`, those about ports in `ports`.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

from vtlkit.hvdef.messages import HV_MESSAGE_MAX_PAYLOAD_BYTE_COUNT, HV_MESSAGE_SIZE
from vtlkit.hvdef.register_values import HV_X64_PENDING_EVENT
from vtlkit.hvdef.vp_set import HV_VP_SET
from vtlkit.hvdef.vsm import HV_INITIAL_VP_CONTEXT
from vtlkit.layout import Array, Bits, Bytes, Struct, u8, u16, u32, u64

# --- virtual trust levels -----------------------------------------------------------------------------------------


class HV_INPUT_MODIFY_VTL_PROTECTION_MASK(Struct, size=16, offsets={"MapFlags": 8, "TargetVtl": 12}):
    """Elements: 64-bit GPA page numbers. `TargetVtl` is an HV_INPUT_VTL."""

    TargetPartitionId: u64 = 0
    MapFlags: u32 = 0
    TargetVtl: u8 = 0
    RsvdZ: Annotated[bytes, Bytes(3)] = bytes(3)


class HV_INPUT_ENABLE_PARTITION_VTL(Struct, size=16, offsets={"TargetVtl": 8, "Flags": 9}):
    TargetPartitionId: u64 = 0
    TargetVtl: u8 = 0
    Flags: u8 = 0
    RsvdZ: Annotated[bytes, Bytes(6)] = bytes(6)


class HV_INPUT_ENABLE_VP_VTL(Struct, size=240, offsets={"VpIndex": 8, "TargetVtl": 12, "VpVtlContext": 16}):
    TargetPartitionId: u64 = 0
    VpIndex: u32 = 0
    TargetVtl: u8 = 0
    RsvdZ: Annotated[bytes, Bytes(3)] = bytes(3)
    VpVtlContext: HV_INITIAL_VP_CONTEXT = HV_INITIAL_VP_CONTEXT()


class HV_INPUT_CHECK_SPARSE_GPA_PAGE_VTL_ACCESS(Struct, size=16, offsets={"TargetVtl": 8, "DesiredAccess": 9}):
    """Elements: 64-bit GPA page numbers."""

    PartitionId: u64 = 0
    TargetVtl: u8 = 0
    DesiredAccess: u8 = 0
    Reserved0: u16 = 0
    Reserved1: u32 = 0


# Result of HvCallCheckSparseGpaPageVtlAccess, one 64-bit word
HV_CHECK_VTL_ACCESS_RESULT_CODE: Final = Bits(0, 8)
HV_CHECK_VTL_ACCESS_DENIED_ACCESS: Final = Bits(8, 8)
HV_CHECK_VTL_ACCESS_INTERCEPTING_VTL: Final = Bits(16, 4)
HV_CHECK_VTL_ACCESS_SUCCESS: Final = 0
HV_CHECK_VTL_ACCESS_MEMORY_INTERCEPT: Final = 1


# --- virtual processors -------------------------------------------------------------------------------------------


class HV_INPUT_GET_VP_REGISTERS(Struct, size=16, offsets={"VpIndex": 8, "TargetVtl": 12}):
    """Elements: 32-bit register names in, 16-byte values out."""

    PartitionId: u64 = 0
    VpIndex: u32 = 0
    TargetVtl: u8 = 0
    RsvdZ: Annotated[bytes, Bytes(3)] = bytes(3)


HV_INPUT_SET_VP_REGISTERS = HV_INPUT_GET_VP_REGISTERS
"""Elements: HV_REGISTER_ASSOC."""


class HV_REGISTER_ASSOC(Struct, size=32, offsets={"RegisterValue": 16}):
    RegisterName: u32 = 0
    RsvdZ: Annotated[tuple[int, ...], Array("I", 3)] = (0, 0, 0)
    RegisterValue: Annotated[bytes, Bytes(16)] = bytes(16)


class HV_INPUT_START_VIRTUAL_PROCESSOR(Struct, size=240, offsets={"VpIndex": 8, "TargetVtl": 12, "VpContext": 16}):
    """`TargetVtl` is a plain VTL number."""

    PartitionId: u64 = 0
    VpIndex: u32 = 0
    TargetVtl: u8 = 0
    RsvdZ: Annotated[bytes, Bytes(3)] = bytes(3)
    VpContext: HV_INITIAL_VP_CONTEXT = HV_INITIAL_VP_CONTEXT()


class HV_INPUT_GET_VP_INDEX_FROM_APIC_ID(Struct, size=16, offsets={"TargetVtl": 8}):
    """Elements: 32-bit APIC IDs in, 32-bit VP indices out (the stride that Linux and OpenVMM use)."""

    PartitionId: u64 = 0
    TargetVtl: u8 = 0
    Padding: Annotated[bytes, Bytes(7)] = bytes(7)


class HV_INPUT_GET_VP_CPUID_VALUES(Struct, size=24, offsets={"Flags": 12}):
    """Elements: 32-bit leaf and subleaf in, EAX, EBX, ECX and EDX out."""

    PartitionId: u64 = 0
    VpIndex: u32 = 0
    Flags: u32 = 0
    ReservedZ: u64 = 0


class HvVpStatePageType(enum.IntEnum):
    """HV_VP_STATE_PAGE_TYPE."""

    HvVpStatePageRegisters = 0
    HvVpStatePageInterceptMessage = 1
    HvVpVtlStatePageGhcb = 2


class HV_INPUT_MAP_VP_STATE_PAGE(Struct, size=24, offsets={"Type": 12, "InputVtl": 14, "RequestedMapLocation": 16}):
    """Output: a 64-bit GPA page number."""

    PartitionId: u64 = 0
    VpIndex: u32 = 0
    Type: u16 = 0
    InputVtl: u8 = 0
    Flags: u8 = 0
    RequestedMapLocation: u64 = 0


HV_MAP_VP_STATE_PAGE_MAP_LOCATION_PROVIDED: Final = 1 << 0


class HV_INPUT_UNMAP_VP_STATE_PAGE(Struct, size=16, offsets={"InputVtl": 14}):
    PartitionId: u64 = 0
    VpIndex: u32 = 0
    Type: u16 = 0
    InputVtl: u8 = 0
    Reserved0: u8 = 0


# --- address translation and TLB ----------------------------------------------------------------------------------

HV_TRANSLATE_GVA_VALIDATE_READ: Final = 1 << 0
HV_TRANSLATE_GVA_VALIDATE_WRITE: Final = 1 << 1
HV_TRANSLATE_GVA_VALIDATE_EXECUTE: Final = 1 << 2
HV_TRANSLATE_GVA_PRIVILEGE_EXEMPT: Final = 1 << 3
HV_TRANSLATE_GVA_SET_PAGE_TABLE_BITS: Final = 1 << 4
HV_TRANSLATE_GVA_TLB_FLUSH_INHIBIT: Final = 1 << 5
HV_TRANSLATE_GVA_SUPERVISOR_ACCESS: Final = 1 << 6
HV_TRANSLATE_GVA_USER_ACCESS: Final = 1 << 7
HV_TRANSLATE_GVA_ENFORCE_SMAP: Final = 1 << 8
HV_TRANSLATE_GVA_OVERRIDE_SMAP: Final = 1 << 9
HV_TRANSLATE_GVA_SHADOW_STACK: Final = 1 << 10
HV_TRANSLATE_GVA_INPUT_VTL: Final = Bits(56, 8)
HV_TRANSLATE_GVA_VALID: Final = 0xFF000000000007FF


class HV_INPUT_TRANSLATE_VIRTUAL_ADDRESS(Struct, size=32, offsets={"ControlFlags": 16, "GvaPage": 24}):
    """Also the input of HvCallTranslateVirtualAddressEx."""

    PartitionId: u64 = 0
    VpIndex: u32 = 0
    Reserved: u32 = 0
    ControlFlags: u64 = 0
    GvaPage: u64 = 0


class HvTranslateGvaResultCode(enum.IntEnum):
    """HV_TRANSLATE_GVA_RESULT_CODE."""

    HvTranslateGvaSuccess = 0
    HvTranslateGvaPageNotPresent = 1
    HvTranslateGvaPrivilegeViolation = 2
    HvTranslateGvaInvalidPageTableFlags = 3
    HvTranslateGvaGpaUnmapped = 4
    HvTranslateGvaGpaNoReadAccess = 5
    HvTranslateGvaGpaNoWriteAccess = 6
    HvTranslateGvaGpaIllegalOverlayAccess = 7
    HvTranslateGvaIntercept = 8
    HvTranslateGvaGpaUnaccepted = 9


# HV_TRANSLATE_GVA_RESULT, one 64-bit word
HV_TRANSLATE_GVA_RESULT_CODE: Final = Bits(0, 32)
HV_TRANSLATE_GVA_CACHE_TYPE: Final = Bits(32, 8)
HV_TRANSLATE_GVA_OVERLAY_PAGE: Final = Bits(40)


class HV_OUTPUT_TRANSLATE_VIRTUAL_ADDRESS(Struct, size=16, offsets={"GpaPage": 8}):
    TranslationResult: u64 = 0
    GpaPage: u64 = 0


class HV_OUTPUT_TRANSLATE_VIRTUAL_ADDRESS_EX(Struct, size=64, offsets={"EventInfo": 16, "GpaPage": 48}):
    """Padded as a 16-byte aligned EventInfo makes it on real Hyper-V; the published offsets leave no room for it."""

    TranslationResult: u64 = 0
    Reserved0: u64 = 0
    EventInfo: HV_X64_PENDING_EVENT = HV_X64_PENDING_EVENT()
    GpaPage: u64 = 0
    Reserved1: u64 = 0


HV_FLUSH_ALL_PROCESSORS: Final = 1 << 0
HV_FLUSH_ALL_VIRTUAL_ADDRESS_SPACES: Final = 1 << 1
HV_FLUSH_NON_GLOBAL_MAPPINGS_ONLY: Final = 1 << 2
HV_FLUSH_USE_EXTENDED_RANGE_FORMAT: Final = 1 << 3
HV_FLUSH_USE_TARGET_VTL: Final = 1 << 4
HV_FLUSH_TARGET_VTLS: Final = Bits(8, 2)
"""A bit per VTL to be flushed (`HvFlushFlags` of OpenVMM's hvdef)."""


class HV_INPUT_FLUSH_VIRTUAL_ADDRESS_SPACE(Struct, size=24, offsets={"Flags": 8, "ProcessorMask": 16}):
    """Also the fixed part of HvCallFlushVirtualAddressList, whose elements are HV_GVA_RANGE words."""

    AddressSpace: u64 = 0
    Flags: u64 = 0
    ProcessorMask: u64 = 0


class HV_INPUT_FLUSH_VIRTUAL_ADDRESS_SPACE_EX(Struct, size=32, offsets={"Flags": 8, "ProcessorSet": 16}):
    """Bank contents follow; then, of HvCallFlushVirtualAddressListEx, HV_GVA_RANGE words."""

    AddressSpace: u64 = 0
    Flags: u64 = 0
    ProcessorSet: HV_VP_SET = HV_VP_SET()


class HV_INPUT_FLUSH_GUEST_PHYSICAL_ADDRESS_SPACE(Struct, size=16):
    """Also the fixed part of HvCallFlushGuestPhysicalAddressList."""

    AddressSpace: u64 = 0
    Flags: u64 = 0


# HV_GVA_RANGE and HV_GPA_RANGE: simple, extended (4 KiB) and extended (large page) format
HV_GVA_RANGE_ADDITIONAL_PAGES: Final = Bits(0, 12)
HV_GVA_RANGE_PAGE_NUMBER: Final = Bits(12, 52)
HV_GVA_RANGE_EX_ADDITIONAL_PAGES: Final = Bits(0, 11)
HV_GVA_RANGE_EX_LARGE_PAGE: Final = Bits(11)
HV_GVA_RANGE_EX_PAGE_SIZE_1G: Final = Bits(12)
HV_GVA_RANGE_EX_LARGE_PAGE_NUMBER: Final = Bits(21, 43)
HV_GVA_RANGE_EX_LARGE_RESERVED_MASK: Final = 0x1FE000
"""Of a range of large pages."""


# --- interrupts ------------------------------------------------------------------------------------

HV_IPI_LOW_VECTOR: Final = 0x10
HV_IPI_HIGH_VECTOR: Final = 0xFF


class HV_INPUT_SEND_SYNTHETIC_CLUSTER_IPI(Struct, size=16, offsets={"TargetVtl": 4, "ProcessorMask": 8}):
    Vector: u32 = 0
    TargetVtl: u8 = 0
    Flags: u8 = 0
    Reserved: u16 = 0
    ProcessorMask: u64 = 0


class HV_INPUT_SEND_SYNTHETIC_CLUSTER_IPI_EX(Struct, size=24, offsets={"TargetVtl": 4, "ProcessorSet": 8}):
    """Bank contents follow."""

    Vector: u32 = 0
    TargetVtl: u8 = 0
    Flags: u8 = 0
    Reserved: u16 = 0
    ProcessorSet: HV_VP_SET = HV_VP_SET()


class HvInterruptType(enum.IntEnum):
    """HV_INTERRUPT_TYPE, low half of HV_INTERRUPT_CONTROL."""

    HvX64InterruptTypeFixed = 0
    HvX64InterruptTypeLowestPriority = 1
    HvX64InterruptTypeSmi = 2
    HvX64InterruptTypeRemoteRead = 3
    HvX64InterruptTypeNmi = 4
    HvX64InterruptTypeInit = 5
    HvX64InterruptTypeSipi = 6
    HvX64InterruptTypeExtInt = 7
    HvX64InterruptTypeLocalInt0 = 8
    HvX64InterruptTypeLocalInt1 = 9


HV_INTERRUPT_CONTROL_TYPE: Final = Bits(0, 32)
HV_INTERRUPT_CONTROL_LEVEL_TRIGGERED: Final = Bits(32)
HV_INTERRUPT_CONTROL_LOGICAL_DESTINATION_MODE: Final = Bits(33)


class HV_INPUT_ASSERT_VIRTUAL_INTERRUPT(Struct, size=32, offsets={"RequestedVector": 24, "TargetVtl": 28}):
    TargetPartition: u64 = 0
    InterruptControl: u64 = 0
    DestinationAddress: u64 = 0
    RequestedVector: u32 = 0
    TargetVtl: u8 = 0
    ReservedZ0: u8 = 0
    ReservedZ1: u16 = 0


class HV_INPUT_GET_VP_SET_FROM_MDA(Struct, size=24, offsets={"TargetVtl": 16, "LogicalDestinationMode": 17}):
    """Output: an HV_VP_SET of up to 4104 bytes."""

    TargetPartition: u64 = 0
    DestinationAddress: u64 = 0
    TargetVtl: u8 = 0
    LogicalDestinationMode: u8 = 0
    Reserved: Annotated[bytes, Bytes(6)] = bytes(6)


HV_INTERRUPT_SOURCE_MSI: Final = 1
HV_INTERRUPT_SOURCE_IO_APIC: Final = 2
HV_DEVICE_INTERRUPT_TARGET_MULTICAST: Final = 1 << 0
HV_DEVICE_INTERRUPT_TARGET_PROCESSOR_SET: Final = 1 << 1


class HV_INPUT_RETARGET_DEVICE_INTERRUPT(
    Struct, size=56, offsets={"InterruptSource": 16, "MsiAddress": 24, "Vector": 40, "ProcessorMask": 48}
):
    """With HV_DEVICE_INTERRUPT_TARGET_PROCESSOR_SET a VP set begins at `ProcessorMask`, banks after it."""

    PartitionId: u64 = 0
    DeviceId: u64 = 0
    InterruptSource: u32 = 0
    Reserved0: u32 = 0
    MsiAddress: u32 = 0
    MsiData: u32 = 0
    RsvdZ: u64 = 0
    Vector: u32 = 0
    Flags: u32 = 0
    ProcessorMask: u64 = 0


# --- messages and events --------------------------------------------------------------------------------------


class HV_INPUT_POST_MESSAGE(Struct, size=256, offsets={"MessageType": 8, "PayloadSize": 12, "Message": 16}):
    ConnectionId: u32 = 0
    Padding: u32 = 0
    MessageType: u32 = 0
    PayloadSize: u32 = 0
    Message: Annotated[bytes, Bytes(HV_MESSAGE_MAX_PAYLOAD_BYTE_COUNT)] = bytes(HV_MESSAGE_MAX_PAYLOAD_BYTE_COUNT)


class HV_INPUT_SIGNAL_EVENT(Struct, size=8, offsets={"FlagNumber": 4}):
    ConnectionId: u32 = 0
    FlagNumber: u16 = 0
    RsvdZ: u16 = 0


class HV_INPUT_POST_MESSAGE_DIRECT(Struct, size=280, offsets={"Vtl": 12, "Sint": 16, "Message": 20}):
    """As OpenVMM's hvdef: the SINT in a 32-bit word, then a whole HV_MESSAGE (the published offsets differ)."""

    PartitionId: u64 = 0
    VpIndex: u32 = 0
    Vtl: u8 = 0
    Padding0: Annotated[bytes, Bytes(3)] = bytes(3)
    Sint: u8 = 0
    Padding1: Annotated[bytes, Bytes(3)] = bytes(3)
    Message: Annotated[bytes, Bytes(HV_MESSAGE_SIZE)] = bytes(HV_MESSAGE_SIZE)
    Padding2: u32 = 0


class HV_INPUT_SIGNAL_EVENT_DIRECT(Struct, size=16, offsets={"TargetVtl": 12, "TargetSint": 13, "FlagNumber": 14}):
    TargetPartition: u64 = 0
    TargetVp: u32 = 0
    TargetVtl: u8 = 0
    TargetSint: u8 = 0
    FlagNumber: u16 = 0


class HV_OUTPUT_SIGNAL_EVENT_DIRECT(Struct, size=8):
    """`NewlySignaled`: whether the flag was clear before. Padded as OpenVMM's hvdef has it."""

    NewlySignaled: u8 = 0
    RsvdZ: Annotated[bytes, Bytes(7)] = bytes(7)


HV_EXT_OUTPUT_BOOT_ZEROED_MEMORY_SIZE: Final = 0xFF8
HV_EXT_BOOT_ZEROED_MEMORY_MAX_RANGES: Final = 255


class HV_EXT_OUTPUT_BOOT_ZEROED_MEMORY_RANGE(Struct, size=16):
    """Elements of HvExtCallGetBootZeroedMemory's output, after a 64-bit count. In pages of 4 KiB."""

    StartGpa: u64 = 0
    PageCount: u64 = 0


class HV_INPUT_NOTIFY_LONG_SPIN_WAIT(Struct, size=8):
    SpinCount: u32 = 0
    RsvdZ: u32 = 0
