"""Intercepts that a higher VTL or the parent installs: types, parameters, inputs (TLFS, HV_INTERCEPT_TYPE)."""

from __future__ import annotations

import enum
from typing import Final

from vtlkit.layout import Bits, Struct, u8, u16, u32, u64

HV_INTERCEPT_ACCESS_MASK_READ: Final = 1 << 0
HV_INTERCEPT_ACCESS_MASK_WRITE: Final = 1 << 1
HV_INTERCEPT_ACCESS_MASK_EXECUTE: Final = 1 << 2


class HvInterceptType(enum.IntEnum):
    """HV_INTERCEPT_TYPE (x64)."""

    HvInterceptTypeX64IoPort = 0x0
    HvInterceptTypeX64Msr = 0x1
    HvInterceptTypeX64Cpuid = 0x2
    HvInterceptTypeException = 0x3
    HvInterceptTypeX64GlobalCpuid = 0x6
    HvInterceptTypeX64ApicSmi = 0x7
    HvInterceptTypeHypercall = 0x8
    HvInterceptTypeX64ApicInitSipi = 0x9
    HvInterceptTypeX64ApicWrite = 0xB
    HvInterceptTypeUnknownSynicConnection = 0xD
    HvInterceptTypeX64ApicEoi = 0xE
    HvInterceptTypeRetargetInterruptWithUnknownDeviceId = 0xF
    HvInterceptTypeX64ExceptionTrap = 0x10
    HvInterceptTypeX64IoPortRange = 0x11


class HV_INPUT_INSTALL_INTERCEPT(Struct, size=24, offsets={"InterceptType": 12, "InterceptParameter": 16}):
    """`InterceptParameter`: port, MSR or CPUID index, exception vector, APIC write mask, or a port range."""

    PartitionId: u64 = 0
    AccessType: u32 = 0
    InterceptType: u32 = 0
    InterceptParameter: u64 = 0


HV_INTERCEPT_PARAMETER_PORT_BASE: Final = Bits(0, 16)
HV_INTERCEPT_PARAMETER_PORT_END: Final = Bits(16, 16)


class HV_REGISTER_X64_CPUID_RESULT_PARAMETERS(
    Struct, size=44, offsets={"SubleafSpecific": 8, "Eax": 12, "EdxMask": 40}
):
    """The leaf to override and, per register, a value and the mask of its bits that replace the default."""

    InputEax: u32 = 0
    InputEcx: u32 = 0
    SubleafSpecific: u8 = 0
    AlwaysOverride: u8 = 0
    Padding: u16 = 0
    Eax: u32 = 0
    EaxMask: u32 = 0
    Ebx: u32 = 0
    EbxMask: u32 = 0
    Ecx: u32 = 0
    EcxMask: u32 = 0
    Edx: u32 = 0
    EdxMask: u32 = 0


class HV_UNREGISTER_X64_CPUID_RESULT_PARAMETERS(Struct, size=12, offsets={"SubleafSpecific": 8}):
    """The leaf, as it was registered. No published page defines it: the input half of the registration."""

    InputEax: u32 = 0
    InputEcx: u32 = 0
    SubleafSpecific: u8 = 0
    AlwaysOverride: u8 = 0
    Padding: u16 = 0


class HV_UNREGISTER_X64_MSR_RESULT_PARAMETERS(Struct, size=8):
    MsrIndex: u32 = 0
    AccessType: u32 = 0


class HV_REGISTER_X64_MSR_RESULT_PARAMETERS(Struct, size=12):
    MsrIndex: u32 = 0
    AccessType: u32 = 0
    Action: u32 = 0


class HvUnimplementedMsrAction(enum.IntEnum):
    HvUnimplementedMsrActionFault = 0
    HvUnimplementedMsrActionIgnoreWriteReadZero = 1


class HV_INPUT_REGISTER_INTERCEPT_RESULT(Struct, size=16, offsets={"VpIndex": 8, "InterceptType": 12}):
    """The parameters of the type follow; also the fixed part of HvCallUnregisterInterceptResult."""

    PartitionId: u64 = 0
    VpIndex: u32 = 0
    InterceptType: u32 = 0


class HV_INPUT_CHECK_FOR_IO_INTERCEPT(Struct, size=18, offsets={"TargetVtl": 12, "Port": 14, "IsWrite": 17}):
    """Output: one byte, whether the access would be intercepted."""

    PartitionId: u64 = 0
    VpIndex: u32 = 0
    TargetVtl: u8 = 0
    Padding: u8 = 0
    Port: u16 = 0
    Size: u8 = 0
    IsWrite: u8 = 0
