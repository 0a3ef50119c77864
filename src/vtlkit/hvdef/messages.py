"""SynIC messages: header, types and intercept payloads (TLFS, HV_MESSAGE; payloads as in OpenVMM's hvdef)."""

from __future__ import annotations

import enum
from typing import Annotated, Final

from vtlkit.hvdef.vsm import HV_X64_SEGMENT_REGISTER
from vtlkit.layout import Array, Bits, Bytes, Struct, u8, u16, u32, u64

HV_MESSAGE_TYPE_HYPERVISOR_MASK: Final = 0x80000000
HV_MESSAGE_SIZE: Final = 256
HV_MESSAGE_MAX_PAYLOAD_BYTE_COUNT: Final = 240
HV_MESSAGE_FLAG_MESSAGE_PENDING: Final = 1 << 0


class HvMessageType(enum.IntEnum):
    """HV_MESSAGE_TYPE."""

    HvMessageTypeNone = 0x00000000
    HvMessageTypeUnmappedGpa = 0x80000000
    HvMessageTypeGpaIntercept = 0x80000001
    HvMessageTypeUnacceptedGpa = 0x80000003
    HvMessageTypeGpaAttributeIntercept = 0x80000004
    HvMessageTypeEnablePartitionVtlIntercept = 0x80000005
    HvMessageTimerExpired = 0x80000010
    HvMessageTypeInvalidVpRegisterValue = 0x80000020
    HvMessageTypeUnrecoverableException = 0x80000021
    HvMessageTypeUnsupportedFeature = 0x80000022
    HvMessageTypeTlbPageSizeMismatch = 0x80000023
    HvMessageTypeIommuFault = 0x80000024
    HvMessageTypeOpaqueIntercept = 0x8000003F
    HvMessageTypeEventLogBufferComplete = 0x80000040
    HvMessageTypeHypercallIntercept = 0x80000050
    HvMessageTypeSynicEventIntercept = 0x80000060
    HvMessageTypeSynicSintIntercept = 0x80000061
    HvMessageTypeSynicSintDeliverable = 0x80000062
    HvMessageTypeAsyncCallCompletion = 0x80000070
    HvMessageInsufficientMemory = 0x80000071
    HvMessageTypeSchedulerVpSignalBitset = 0x80000100
    HvMessageTypeSchedulerVpSignalPair = 0x80000101
    HvMessageTypeX64IoPortIntercept = 0x80010000
    HvMessageTypeMsrIntercept = 0x80010001
    HvMessageTypeX64CpuidIntercept = 0x80010002
    HvMessageTypeExceptionIntercept = 0x80010003
    HvMessageTypeX64ApicEoi = 0x80010004
    HvMessageTypeX64IommuPrq = 0x80010005
    HvMessageTypeRegisterIntercept = 0x80010006
    HvMessageTypeX64Halt = 0x80010007
    HvMessageTypeX64InterruptionDeliverable = 0x80010008
    HvMessageTypeX64SipiIntercept = 0x80010009
    HvMessageTypeX64RdtscIntercept = 0x8001000A
    HvMessageTypeX64ApicSmiIntercept = 0x8001000B
    HvMessageTypeX64ApicInitSipiIntercept = 0x8001000D
    HvMessageTypeX64ApicWriteIntercept = 0x8001000E
    HvMessageTypeX64ProxyInterruptIntercept = 0x8001000F
    HvMessageTypeX64IsolationCtrlRegIntercept = 0x80010010
    HvMessageTypeX64SnpGuestRequestIntercept = 0x80010011
    HvMessageTypeX64ExceptionTrapIntercept = 0x80010012
    HvMessageTypeX64SevVmgexitIntercept = 0x80010013
    HvMessageTypeX64MsrListIntercept = 0x80010015


class HV_MESSAGE_HEADER(Struct, size=16, offsets={"MessageFlags": 5, "Sender": 8}):
    """`Sender` is the sender's partition ID (intercepts), the port ID (posted messages) or 0 (timers)."""

    MessageType: u32 = 0
    PayloadSize: u8 = 0
    MessageFlags: u8 = 0
    Reserved: u16 = 0
    Sender: u64 = 0


class HV_MESSAGE(Struct, size=HV_MESSAGE_SIZE, offsets={"Payload": 16}):
    """One slot of the message page; only `Header.PayloadSize` bytes of the payload count."""

    Header: HV_MESSAGE_HEADER = HV_MESSAGE_HEADER()
    Payload: Annotated[bytes, Bytes(HV_MESSAGE_MAX_PAYLOAD_BYTE_COUNT)] = bytes(HV_MESSAGE_MAX_PAYLOAD_BYTE_COUNT)


def make_message(message_type: int, payload: bytes, sender: int = 0) -> HV_MESSAGE:
    """A message around `payload` (at most 240 bytes; `struct.error` beyond when it is packed)."""
    padded = payload.ljust(HV_MESSAGE_MAX_PAYLOAD_BYTE_COUNT, b"\0")
    return HV_MESSAGE(HV_MESSAGE_HEADER(message_type, len(payload), Sender=sender), padded)


class HvInterceptAccessType(enum.IntEnum):
    """HV_INTERCEPT_ACCESS_TYPE."""

    HvInterceptAccessRead = 0
    HvInterceptAccessWrite = 1
    HvInterceptAccessExecute = 2


HV_INTERCEPT_INSTRUCTION_LENGTH: Final = Bits(0, 4)
"""With HV_INTERCEPT_CR8 one byte of the header."""
HV_INTERCEPT_CR8: Final = Bits(4, 4)

# HV_X64_VP_EXECUTION_STATE
HV_EXECUTION_STATE_CPL: Final = Bits(0, 2)
HV_EXECUTION_STATE_CR0_PE: Final = Bits(2)
HV_EXECUTION_STATE_CR0_AM: Final = Bits(3)
HV_EXECUTION_STATE_EFER_LMA: Final = Bits(4)
HV_EXECUTION_STATE_DEBUG_ACTIVE: Final = Bits(5)
HV_EXECUTION_STATE_INTERRUPTION_PENDING: Final = Bits(6)
HV_EXECUTION_STATE_VTL: Final = Bits(7, 4)
HV_EXECUTION_STATE_ENCLAVE_MODE: Final = Bits(11)
HV_EXECUTION_STATE_INTERRUPT_SHADOW: Final = Bits(12)
HV_EXECUTION_STATE_VIRTUALIZATION_FAULT_ACTIVE: Final = Bits(13)


class HV_X64_INTERCEPT_MESSAGE_HEADER(
    Struct,
    size=0x28,
    offsets={
        "InstructionLengthCr8": 4,
        "InterceptAccessType": 5,
        "ExecutionState": 6,
        "Cs": 8,
        "Rip": 0x18,
        "Rflags": 0x20,
    },
):
    VpIndex: u32 = 0
    InstructionLengthCr8: u8 = 0
    InterceptAccessType: u8 = 0
    ExecutionState: u16 = 0
    Cs: HV_X64_SEGMENT_REGISTER = HV_X64_SEGMENT_REGISTER()
    Rip: u64 = 0
    Rflags: u64 = 0


class HvCacheType(enum.IntEnum):
    """HV_CACHE_TYPE."""

    HvCacheTypeUncached = 0
    HvCacheTypeWriteCombining = 1
    HvCacheTypeWriteThrough = 4
    HvCacheTypeWriteProtected = 5
    HvCacheTypeWriteBack = 6


HV_MEMORY_ACCESS_INFO_GVA_VALID: Final = 1 << 0
HV_MEMORY_ACCESS_INFO_GVA_GPA_VALID: Final = 1 << 1
HV_MEMORY_ACCESS_INFO_HYPERCALL_OUTPUT_PENDING: Final = 1 << 2
HV_MEMORY_ACCESS_INFO_TLB_LOCKED: Final = 1 << 3

_HEADER: Final = HV_X64_INTERCEPT_MESSAGE_HEADER()
_SEGMENT: Final = HV_X64_SEGMENT_REGISTER()


class HV_X64_MEMORY_INTERCEPT_MESSAGE(
    Struct,
    size=0xF0,
    offsets={
        "CacheType": 0x28,
        "InstructionByteCount": 0x2C,
        "MemoryAccessInfo": 0x2D,
        "GuestVirtualAddress": 0x30,
        "GuestPhysicalAddress": 0x38,
        "InstructionBytes": 0x40,
        "Ds": 0x50,
        "Ss": 0x60,
        "Gprs": 0x70,
    },
):
    """Payload of HvMessageTypeGpaIntercept and HvMessageTypeUnmappedGpa, the long form.

    `Gprs`: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    """

    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
    CacheType: u32 = 0
    InstructionByteCount: u8 = 0
    MemoryAccessInfo: u8 = 0
    TprPriority: u8 = 0
    Reserved: u8 = 0
    GuestVirtualAddress: u64 = 0
    GuestPhysicalAddress: u64 = 0
    InstructionBytes: Annotated[bytes, Bytes(16)] = bytes(16)
    Ds: HV_X64_SEGMENT_REGISTER = _SEGMENT
    Ss: HV_X64_SEGMENT_REGISTER = _SEGMENT
    Gprs: Annotated[tuple[int, ...], Array("Q", 16)] = (0,) * 16


HV_IO_ACCESS_INFO_ACCESS_SIZE: Final = Bits(0, 3)
HV_IO_ACCESS_INFO_STRING_OP: Final = Bits(3)
HV_IO_ACCESS_INFO_REP_PREFIX: Final = Bits(4)


class HV_X64_IO_PORT_INTERCEPT_MESSAGE(
    Struct, size=0x80, offsets={"PortNumber": 0x28, "Rax": 0x30, "InstructionBytes": 0x38, "Ds": 0x48, "Rcx": 0x68}
):
    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
    PortNumber: u16 = 0
    AccessInfo: u8 = 0
    InstructionByteCount: u8 = 0
    Reserved: u32 = 0
    Rax: u64 = 0
    InstructionBytes: Annotated[bytes, Bytes(16)] = bytes(16)
    Ds: HV_X64_SEGMENT_REGISTER = _SEGMENT
    Es: HV_X64_SEGMENT_REGISTER = _SEGMENT
    Rcx: u64 = 0
    Rsi: u64 = 0
    Rdi: u64 = 0


class HV_X64_MSR_INTERCEPT_MESSAGE(Struct, size=0x40, offsets={"MsrNumber": 0x28, "Rdx": 0x30}):
    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
    MsrNumber: u32 = 0
    Reserved: u32 = 0
    Rdx: u64 = 0
    Rax: u64 = 0


class HV_X64_CPUID_INTERCEPT_MESSAGE(Struct, size=0x68, offsets={"Rax": 0x28, "DefaultResultRax": 0x48}):
    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
    Rax: u64 = 0
    Rcx: u64 = 0
    Rdx: u64 = 0
    Rbx: u64 = 0
    DefaultResultRax: u64 = 0
    DefaultResultRcx: u64 = 0
    DefaultResultRdx: u64 = 0
    DefaultResultRbx: u64 = 0


HV_EXCEPTION_INFO_ERROR_CODE_VALID: Final = 1 << 0
HV_EXCEPTION_INFO_SOFTWARE_EXCEPTION: Final = 1 << 1


class HV_X64_EXCEPTION_INTERCEPT_MESSAGE(
    Struct,
    size=0xF0,
    offsets={
        "ExceptionVector": 0x28,
        "ErrorCode": 0x2C,
        "ExceptionParameter": 0x30,
        "InstructionBytes": 0x40,
        "Gprs": 0x70,
    },
):
    """`ExceptionParameter`: CR2 of a page fault, the new DR6 bits of #DB. `Gprs` as in the memory intercept."""

    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
    ExceptionVector: u16 = 0
    ExceptionInfo: u8 = 0
    InstructionByteCount: u8 = 0
    ErrorCode: u32 = 0
    ExceptionParameter: u64 = 0
    Reserved: u64 = 0
    InstructionBytes: Annotated[bytes, Bytes(16)] = bytes(16)
    Ds: HV_X64_SEGMENT_REGISTER = _SEGMENT
    Ss: HV_X64_SEGMENT_REGISTER = _SEGMENT
    Gprs: Annotated[tuple[int, ...], Array("Q", 16)] = (0,) * 16


HV_REGISTER_INTERCEPT_IS_MEMORY_OP: Final = 1 << 0


class HV_X64_REGISTER_INTERCEPT_MESSAGE(Struct, size=0x40, offsets={"RegisterName": 0x2C, "AccessInfo": 0x30}):
    """`AccessInfo`: 16 bytes; the value to be written, or (IS_MEMORY_OP) the operand's address in the first eight."""

    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
    Flags: u8 = 0
    Reserved: u8 = 0
    Reserved2: u16 = 0
    RegisterName: u32 = 0
    AccessInfo: Annotated[bytes, Bytes(16)] = bytes(16)


class HV_X64_HYPERCALL_INTERCEPT_MESSAGE(Struct, size=0xD0, offsets={"Rax": 0x28, "XmmRegisters": 0x60, "Flags": 0xC0}):
    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
    Rax: u64 = 0
    Rbx: u64 = 0
    Rcx: u64 = 0
    Rdx: u64 = 0
    R8: u64 = 0
    Rsi: u64 = 0
    Rdi: u64 = 0
    XmmRegisters: Annotated[bytes, Bytes(96)] = bytes(96)
    Flags: u32 = 0
    Reserved: Annotated[tuple[int, ...], Array("I", 3)] = (0, 0, 0)


class HV_X64_SIPI_INTERCEPT_MESSAGE(Struct, size=0x30, offsets={"TargetVpIndex": 0x28}):
    """A SIPI that the sender's hypervisor leaves to the parent."""

    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
    TargetVpIndex: u32 = 0
    InterruptVector: u32 = 0


class HV_X64_APIC_INIT_SIPI_INTERCEPT_MESSAGE(Struct, size=0x30, offsets={"ApicIcr": 0x28}):
    """An INIT or SIPI about to be sent; ICR as written. No published page defines it: header and ICR, as in the
    context that the Windows Hypervisor Platform API passes for the same exit."""

    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
    ApicIcr: u64 = 0


class HV_X64_APIC_WRITE_INTERCEPT_MESSAGE(Struct, size=0x38, offsets={"ApicRegister": 0x28, "WriteValue": 0x30}):
    """A register of the local APIC that has been written. No published page defines it: header, the register's offset
    and the value, as in the context that the Windows Hypervisor Platform API passes for the same exit."""

    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
    ApicRegister: u32 = 0
    Reserved: u32 = 0
    WriteValue: u64 = 0


class HV_X64_APIC_EOI_MESSAGE(Struct, size=8):
    VpIndex: u32 = 0
    InterruptVector: u32 = 0


class HV_X64_INTERRUPTION_DELIVERABLE_MESSAGE(Struct, size=0x30, offsets={"DeliverableType": 0x28}):
    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
    DeliverableType: u8 = 0
    Reserved: Annotated[bytes, Bytes(7)] = bytes(7)


class HV_X64_SYNIC_SINT_DELIVERABLE_MESSAGE(Struct, size=0x30, offsets={"DeliverableSints": 0x28}):
    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
    DeliverableSints: u16 = 0
    Reserved1: u16 = 0
    Reserved2: u32 = 0


class HV_X64_UNRECOVERABLE_EXCEPTION_MESSAGE(Struct, size=0x28):
    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER


class HV_X64_HALT_MESSAGE(Struct, size=0x28):
    Header: HV_X64_INTERCEPT_MESSAGE_HEADER = _HEADER
