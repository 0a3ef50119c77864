"""Numbers that guests are compiled with, each against the published one: MSRs, CPUID bits, call codes, types, codes."""

from __future__ import annotations

import enum

import pytest

from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef import identifiers, msrs
from vtlkit.hvdef.cpuid import HvEnlightenments, HvFeaturesEdx, HvPartitionPrivilege
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.intercepts import (
    HV_INTERCEPT_ACCESS_MASK_EXECUTE,
    HV_INTERCEPT_ACCESS_MASK_READ,
    HV_INTERCEPT_ACCESS_MASK_WRITE,
    HvInterceptType,
)
from vtlkit.hvdef.messages import HvCacheType, HvInterceptAccessType, HvMessageType
from vtlkit.hvdef.registers import HvRegisterName
from vtlkit.hvdef.vsm import HvCrInterceptControl, HvVtlEntryReason

MSR_NUMBERS = {
    "GUEST_OS_ID": 0x40000000,
    "HYPERCALL": 0x40000001,
    "VP_INDEX": 0x40000002,
    "RESET": 0x40000003,
    "VP_RUNTIME": 0x40000010,
    "TIME_REF_COUNT": 0x40000020,
    "REFERENCE_TSC": 0x40000021,
    "TSC_FREQUENCY": 0x40000022,
    "APIC_FREQUENCY": 0x40000023,
    "NPIEP_CONFIG": 0x40000040,
    "EOI": 0x40000070,
    "ICR": 0x40000071,
    "TPR": 0x40000072,
    "VP_ASSIST_PAGE": 0x40000073,
    "SCONTROL": 0x40000080,
    "SVERSION": 0x40000081,
    "SIEFP": 0x40000082,
    "SIMP": 0x40000083,
    "EOM": 0x40000084,
    "SINT0": 0x40000090,
    "SINT15": 0x4000009F,
    "STIMER0_CONFIG": 0x400000B0,
    "STIMER0_COUNT": 0x400000B1,
    "STIMER3_COUNT": 0x400000B7,
    "GUEST_IDLE": 0x400000F0,
    "DEBUG_DEVICE_OPTIONS": 0x400000FF,
    "CRASH_P0": 0x40000100,
    "CRASH_P4": 0x40000104,
    "CRASH_CTL": 0x40000105,
    "REENLIGHTENMENT_CONTROL": 0x40000106,
    "TSC_EMULATION_CONTROL": 0x40000107,
    "TSC_EMULATION_STATUS": 0x40000108,
    "STIME_UNHALTED_TIMER_CONFIG": 0x40000114,
    "STIME_UNHALTED_TIMER_COUNT": 0x40000115,
    "TSC_INVARIANT_CONTROL": 0x40000118,
}


@pytest.mark.tlfs("numbers.msrs")
def test_msrs() -> None:
    assert {name: getattr(msrs, "HV_X64_MSR_" + name) for name in MSR_NUMBERS} == MSR_NUMBERS


BITS: list[tuple[type[enum.IntFlag], int, dict[str, int]]] = [
    (
        HvPartitionPrivilege,
        0,
        {
            "AccessVpRunTimeReg": 0,
            "AccessPartitionReferenceCounter": 1,
            "AccessSynicRegs": 2,
            "AccessSyntheticTimerRegs": 3,
            "AccessIntrCtrlRegs": 4,
            "AccessHypercallMsrs": 5,
            "AccessVpIndex": 6,
            "AccessResetReg": 7,
            "AccessPartitionReferenceTsc": 9,
            "AccessGuestIdleReg": 10,
            "AccessFrequencyRegs": 11,
        },
    ),
    (
        HvPartitionPrivilege,
        32,
        {
            "PostMessages": 4,
            "SignalEvents": 5,
            "CreatePort": 6,
            "ConnectPort": 7,
            "AccessVsm": 16,
            "AccessVpRegisters": 17,
            "EnableExtendedHypercalls": 20,
            "StartVirtualProcessor": 21,
        },
    ),
    (
        HvFeaturesEdx,
        0,
        {
            "XmmRegistersForFastHypercallAvailable": 4,
            "FastHypercallOutputAvailable": 15,
            "DirectSyntheticTimers": 19,
            "RegisterPatAvailable": 20,
            "RegisterBndcfgsAvailable": 21,
        },
    ),
    (
        HvEnlightenments,
        0,
        {
            "UseHypercallForRemoteFlush": 2,
            "UseSyntheticClusterIpi": 10,
            "UseExProcessorMasks": 11,
            "UseIntForMbecSystemCalls": 13,
        },
    ),
]


@pytest.mark.tlfs("numbers.cpuid")
@pytest.mark.parametrize(("flags", "shift", "bits"), BITS, ids=["eax", "ebx", "edx", "hints"])
def test_cpuid_bits(flags: type[enum.IntFlag], shift: int, bits: dict[str, int]) -> None:
    assert {name: int(flags[name]) for name in bits} == {name: 1 << shift + bit for name, bit in bits.items()}


CR_INTERCEPT_CONTROL = [
    "Cr0Write",
    "Cr4Write",
    "XCr0Write",
    "IA32MiscEnableRead",
    "IA32MiscEnableWrite",
    "MsrLstarRead",
    "MsrLstarWrite",
    "MsrStarRead",
    "MsrStarWrite",
    "MsrCstarRead",
    "MsrCstarWrite",
    "ApicBaseMsrRead",
    "ApicBaseMsrWrite",
    "MsrEferRead",
    "MsrEferWrite",
    "GdtrWrite",
    "IdtrWrite",
    "LdtrWrite",
    "TrWrite",
    "MsrSysenterCsWrite",
    "MsrSysenterEipWrite",
    "MsrSysenterEspWrite",
    "MsrSfmaskWrite",
    "MsrTscAuxWrite",
    "MsrSgxLaunchControlWrite",
]
"""In the order of their bits."""


@pytest.mark.tlfs("numbers.layouts")
def test_cr_intercept_control() -> None:
    assert {flag.name: int(flag) for flag in HvCrInterceptControl} == {
        name: 1 << bit for bit, name in enumerate(CR_INTERCEPT_CONTROL)
    }


@pytest.mark.tlfs("numbers.calls")
def test_call_codes_of_ports_extended_calls_and_devices() -> None:
    codes = {
        "HvCallNotifyLongSpinWait": 0x8,
        "HvCallDeletePort": 0x58,
        "HvCallDisconnectPort": 0x5B,
        "HvCallPostMessage": 0x5C,
        "HvCallSignalEvent": 0x5D,
        "HvCallRetargetDeviceInterrupt": 0x7E,
        "HvCallFlushGuestPhysicalAddressSpace": 0xAF,
        "HvCallFlushGuestPhysicalAddressList": 0xB0,
        "HvExtCallQueryCapabilities": 0x8001,
        "HvExtCallGetBootZeroedMemory": 0x8002,
    }
    assert {name: HvCallCode[name] for name in codes} == codes


TYPES: list[tuple[type[enum.IntEnum], str, dict[str, int]]] = [
    (
        HvInterceptType,
        "HvInterceptType",
        {
            "X64IoPort": 0x0,
            "X64Msr": 0x1,
            "X64Cpuid": 0x2,
            "Exception": 0x3,
            "X64GlobalCpuid": 0x6,
            "X64ApicSmi": 0x7,
            "Hypercall": 0x8,
            "X64ApicInitSipi": 0x9,
            "X64ApicWrite": 0xB,
            "UnknownSynicConnection": 0xD,
            "X64ApicEoi": 0xE,
            "RetargetInterruptWithUnknownDeviceId": 0xF,
            "X64ExceptionTrap": 0x10,
            "X64IoPortRange": 0x11,
        },
    ),
    (
        HvMessageType,
        "HvMessage",
        {
            "TypeUnmappedGpa": 0x80000000,
            "TypeGpaIntercept": 0x80000001,
            "TimerExpired": 0x80000010,
            "TypeHypercallIntercept": 0x80000050,
            "TypeX64IoPortIntercept": 0x80010000,
            "TypeMsrIntercept": 0x80010001,
            "TypeX64CpuidIntercept": 0x80010002,
            "TypeExceptionIntercept": 0x80010003,
            "TypeX64ApicEoi": 0x80010004,
            "TypeRegisterIntercept": 0x80010006,
            "TypeX64ApicInitSipiIntercept": 0x8001000D,
            "TypeX64ApicWriteIntercept": 0x8001000E,
        },
    ),
    (
        io.HvTranslateGvaResultCode,
        "HvTranslateGva",
        {
            "Success": 0,
            "PageNotPresent": 1,
            "PrivilegeViolation": 2,
            "InvalidPageTableFlags": 3,
            "GpaUnmapped": 4,
            "GpaNoReadAccess": 5,
            "GpaNoWriteAccess": 6,
            "GpaIllegalOverlayAccess": 7,
            "Intercept": 8,
            "GpaUnaccepted": 9,
        },
    ),
    (
        HvCacheType,
        "HvCacheType",
        {"Uncached": 0, "WriteCombining": 1, "WriteThrough": 4, "WriteProtected": 5, "WriteBack": 6},
    ),
    (HvInterceptAccessType, "HvInterceptAccess", {"Read": 0, "Write": 1, "Execute": 2}),
    (HvVtlEntryReason, "HvVtlEntry", {"Reserved": 0, "VtlCall": 1, "Interrupt": 2, "Intercept": 3}),
]


@pytest.mark.tlfs("numbers.types")
@pytest.mark.parametrize(("numbers", "prefix", "expected"), TYPES, ids=[each[1] for each in TYPES])
def test_types_and_codes(numbers: type[enum.IntEnum], prefix: str, expected: dict[str, int]) -> None:
    assert {name: numbers[prefix + name] for name in expected} == expected


@pytest.mark.tlfs("numbers.types")
def test_intercept_access_masks() -> None:
    masks = HV_INTERCEPT_ACCESS_MASK_READ, HV_INTERCEPT_ACCESS_MASK_WRITE, HV_INTERCEPT_ACCESS_MASK_EXECUTE
    assert masks == (1, 2, 4)


REGISTERS = {
    "HvRegisterPendingEvent0": 0x10004,
    "HvRegisterPendingEvent1": 0x10005,
    "HvRegisterDeliverabilityNotifications": 0x10006,
    "HvRegisterPendingEvent2": 0x10008,
    "HvRegisterPendingEvent3": 0x10009,
    "HvRegisterVpAssistPage": 0x90013,
    "HvRegisterVsmCodePageOffsets": 0xD0002,
    "HvRegisterVsmVpStatus": 0xD0003,
    "HvRegisterVsmPartitionStatus": 0xD0004,
    "HvRegisterVsmVina": 0xD0005,
    "HvRegisterVsmCapabilities": 0xD0006,
    "HvRegisterVsmPartitionConfig": 0xD0007,
    "HvRegisterVsmVpWaitForTlbLock": 0xD0020,
    "HvX64RegisterCrInterceptControl": 0xE0000,
    "HvX64RegisterCrInterceptCr0Mask": 0xE0001,
    "HvX64RegisterCrInterceptCr4Mask": 0xE0002,
    "HvX64RegisterCrInterceptIa32MiscEnableMask": 0xE0003,
    **{f"HvRegisterVsmVpSecureConfigVtl{vtl}": 0xD0010 + vtl for vtl in range(15)},
    **{f"HvRegisterSint{sint}": 0xA0000 + sint for sint in range(16)},
}


@pytest.mark.tlfs("numbers.registers")
def test_registers_of_vsm() -> None:
    assert {name: HvRegisterName[name] for name in REGISTERS} == REGISTERS


GROUPS: dict[tuple[int, str], str] = {
    (0x20000, "HvX64Register"): "Rax Rcx Rdx Rbx Rsp Rbp Rsi Rdi R8 R9 R10 R11 R12 R13 R14 R15 Rip Rflags",
    (0x30000, "HvX64RegisterXmm"): "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
    (0x30010, "HvX64RegisterFpMmx"): "0 1 2 3 4 5 6 7",
    (0x30018, "HvX64Register"): "FpControlStatus XmmControlStatus",
    (0x40000, "HvX64Register"): "Cr0 Cr2 Cr3 Cr4 Cr8 Xfem",
    (0x50000, "HvX64RegisterDr"): "0 1 2 3 6 7",
    (0x60000, "HvX64Register"): "Es Cs Ss Ds Fs Gs Ldtr Tr",
    (0x70000, "HvX64Register"): "Idtr Gdtr",
    (
        0x80000,
        "HvX64Register",
    ): "Tsc Efer KernelGsBase ApicBase Pat SysenterCs SysenterEip SysenterEsp Star Lstar Cstar "
    "Sfmask InitialApicId MsrMtrrCap MsrMtrrDefType",
    (0x80010, "HvX64RegisterMsrMtrrPhysBase"): "0 1 2 3 4 5 6 7 8 9 A B C D E F",
    (0x80040, "HvX64RegisterMsrMtrrPhysMask"): "0 1 2 3 4 5 6 7 8 9 A B C D E F",
    (0x80070, "HvX64RegisterMsrMtrrFix"): "64k00000 16k80000 16kA0000 4kC0000 4kC8000 4kD0000 4kD8000 4kE0000 4kE8000 "
    "4kF0000 4kF8000",
    (0x8007B, "HvX64RegisterTscAux"): "",
    (0x90002, "HvRegister"): "GuestOsId VpIndex TimeRefCount",
    (0x90010, "HvX64RegisterSynthetic"): "Eoi Icr Tpr",
    (0xA0010, "HvRegister"): "Scontrol Sversion Sifp Sipp Eom Sirbp",
    (0xB0000, "HvRegisterStimer"): "0Config 0Count 1Config 1Count 2Config 2Count 3Config 3Count",
}
"""(first number, prefix) of names that follow each other."""


@pytest.mark.tlfs("numbers.registers")
@pytest.mark.parametrize(("first", "prefix"), GROUPS, ids=[f"{first:#x}" for first, _ in GROUPS])
def test_groups_of_registers(first: int, prefix: str) -> None:
    names = [prefix + name for name in GROUPS[first, prefix].split(" ")]
    assert [HvRegisterName[name] for name in names] == list(range(first, first + len(names)))


@pytest.mark.tlfs("numbers.types")
def test_vtls_and_processors() -> None:
    assert (identifiers.HV_NUM_VTLS, identifiers.HV_MAX_VTLS, identifiers.HV_VTL_ALL) == (2, 16, 0xF)
    # -1 in the eight bits of an HV_VTL.
    assert identifiers.HV_INVALID_VTL == 0xFF
    assert (identifiers.HV_VP_INDEX_SELF, identifiers.HV_ANY_VP) == (0xFFFFFFFE, 0xFFFFFFFF)
    assert (io.HV_IPI_LOW_VECTOR, io.HV_IPI_HIGH_VECTOR) == (0x10, 0xFF)
