"""Layouts of the synthetic registers that describe events and suspension (TLFS; pending events as OpenVMM's hvdef).

A register value has HV_REGISTER_VALUE_SIZE bytes; shorter registers are zero-extended.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

from vtlkit.layout import Array, Bits, Struct, u8, u16, u32, u64

HV_REGISTER_VALUE_SIZE: Final = 16


class HvX64PendingEventType(enum.IntEnum):
    """EventType of HvRegisterPendingEvent0 to 3 (HV_X64_PENDING_EVENT_TYPE)."""

    HvX64PendingEventException = 0
    HvX64PendingEventMemoryIntercept = 1
    HvX64PendingEventNestedMemoryIntercept = 2
    HvX64PendingEventVirtualizationFault = 3
    HvX64PendingEventHypercallOutput = 4
    HvX64PendingEventExtInt = 5
    HvX64PendingEventShadowIpt = 6


HV_PENDING_EVENT_PENDING: Final = Bits(0)
HV_PENDING_EVENT_TYPE: Final = Bits(1, 3)


class HV_X64_PENDING_EXCEPTION_EVENT(Struct, size=16, offsets={"Vector": 2, "ErrorCode": 4, "ExceptionParameter": 8}):
    """`Header`: pending 0, type 3:1. `Flags`: bit 0 says that there is an error code."""

    Header: u8 = 0
    Flags: u8 = 0
    Vector: u16 = 0
    ErrorCode: u32 = 0
    ExceptionParameter: u64 = 0


HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE: Final = 1 << 0


class HV_X64_PENDING_EXTINT_EVENT(Struct, size=16):
    Header: u8 = 0
    Vector: u8 = 0
    Reserved0: u16 = 0
    Reserved1: u32 = 0
    Reserved2: u64 = 0


class HV_X64_PENDING_EVENT(Struct, size=32):
    """The two registers of one pending event, as HvCallTranslateVirtualAddressEx reports it."""

    Reg0: Annotated[tuple[int, ...], Array("Q", 2)] = (0, 0)
    Reg1: Annotated[tuple[int, ...], Array("Q", 2)] = (0, 0)


class HV_X64_PENDING_MEMORY_INTERCEPT_EVENT(Struct, size=32, offsets={"GuestLinearAddress": 8}):
    """`AccessFlags`: bit 0 GuestLinearAddress is valid, bit 1 an access to a GPA rather than of the page walk."""

    Header: u8 = 0
    TargetVtl: u8 = 0
    AccessType: u8 = 0
    AccessFlags: u8 = 0
    Reserved2: u32 = 0
    GuestLinearAddress: u64 = 0
    GuestPhysicalAddress: u64 = 0
    Reserved3: u64 = 0


HV_PENDING_MEMORY_INTERCEPT_GLA_VALID: Final = 1 << 0
"""In `AccessFlags`."""


class HvX64PendingInterruptionType(enum.IntEnum):
    HvX64PendingInterrupt = 0
    HvX64PendingNmi = 2
    HvX64PendingException = 3
    HvX64PendingSoftwareInterrupt = 4
    HvX64PendingPrivilegedSoftwareException = 5
    HvX64PendingSoftwareException = 6


# HvRegisterPendingInterruption
HV_PENDING_INTERRUPTION_PENDING: Final = Bits(0)
HV_PENDING_INTERRUPTION_TYPE: Final = Bits(1, 3)
HV_PENDING_INTERRUPTION_DELIVER_ERROR_CODE: Final = Bits(4)
HV_PENDING_INTERRUPTION_INSTRUCTION_LENGTH: Final = Bits(5, 4)
HV_PENDING_INTERRUPTION_NESTED_EVENT: Final = Bits(9)
HV_PENDING_INTERRUPTION_VECTOR: Final = Bits(16, 16)
HV_PENDING_INTERRUPTION_ERROR_CODE: Final = Bits(32, 32)

# HvRegisterInterruptState
HV_INTERRUPT_STATE_INTERRUPT_SHADOW: Final = 1 << 0
HV_INTERRUPT_STATE_NMI_MASKED: Final = 1 << 1

# HvRegisterDeliverabilityNotifications
HV_DELIVERABILITY_NMI_NOTIFICATION: Final = Bits(0)
HV_DELIVERABILITY_INTERRUPT_NOTIFICATION: Final = Bits(1)
HV_DELIVERABILITY_INTERRUPT_PRIORITY: Final = Bits(2, 4)
HV_DELIVERABILITY_SINTS: Final = Bits(48, 16)

# HvRegisterInternalActivityState
HV_INTERNAL_ACTIVITY_STARTUP_SUSPEND: Final = 1 << 0
HV_INTERNAL_ACTIVITY_HALT_SUSPEND: Final = 1 << 1
HV_INTERNAL_ACTIVITY_IDLE_SUSPEND: Final = 1 << 2

# HvRegisterInstructionEmulationHints
HV_EMULATION_HINTS_PARTITION_SECURE_VTL_ENABLED: Final = 1 << 0
HV_EMULATION_HINTS_MBEC_USER_EXECUTE_CONTROL: Final = 1 << 1

# HvRegisterExplicitSuspend, HvRegisterInterceptSuspend
HV_SUSPEND_SUSPENDED: Final = 1 << 0


class HV_X64_FP_REGISTER(Struct, size=16):
    """`SignExponent`: biased exponent 14:0, sign 15."""

    Mantissa: u64 = 0
    SignExponent: u64 = 0


class HV_X64_FP_CONTROL_STATUS_REGISTER(Struct, size=16, offsets={"LastFpOp": 6, "LastFpRip": 8}):
    FpControl: u16 = 0
    FpStatus: u16 = 0
    FpTag: u8 = 0
    Reserved: u8 = 0
    LastFpOp: u16 = 0
    LastFpRip: u64 = 0


class HV_X64_XMM_CONTROL_STATUS_REGISTER(Struct, size=16, offsets={"XmmStatusControl": 8}):
    LastFpRdp: u64 = 0
    XmmStatusControl: u32 = 0
    XmmStatusControlMask: u32 = 0
