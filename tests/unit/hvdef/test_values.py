"""Numbers of `vtlkit.hvdef` that the protocol depends on, and the few functions there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.hvdef import hypercall_io, hypercalls, identifiers, intercepts, msrs, register_values, synic, vsm
from vtlkit.hvdef.cpuid import HvEnlightenments, HvFeaturesEdx, HvPartitionPrivilege
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.messages import HvMessageType
from vtlkit.hvdef.registers import HvRegisterName
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vp_set import HV_VP_SET, decode_sparse_banks, encode_vp_set


@pytest.mark.tlfs("hypercalls.status")
def test_status_codes() -> None:
    codes = {
        "INVALID_HYPERCALL_CODE": 2,
        "INVALID_HYPERCALL_INPUT": 3,
        "INVALID_ALIGNMENT": 4,
        "INVALID_PARAMETER": 5,
        "ACCESS_DENIED": 6,
        "INVALID_PARTITION_STATE": 7,
        "INVALID_PARTITION_ID": 0xD,
        "INVALID_VP_INDEX": 0xE,
        "INVALID_VP_STATE": 0x15,
        "INVALID_SYNIC_STATE": 0x18,
        "INVALID_REGISTER_VALUE": 0x50,
        "INVALID_VTL_STATE": 0x51,
        "VTL_ALREADY_ENABLED": 0x86,
    }
    assert {name: HvStatus[name] for name in codes} == codes


@pytest.mark.tlfs("numbers.calls")
def test_call_codes() -> None:
    codes = {
        "FlushVirtualAddressSpace": 2,
        "FlushVirtualAddressList": 3,
        "SendSyntheticClusterIpi": 0xB,
        "ModifyVtlProtectionMask": 0xC,
        "EnablePartitionVtl": 0xD,
        "EnableVpVtl": 0xF,
        "VtlCall": 0x11,
        "VtlReturn": 0x12,
        "FlushVirtualAddressSpaceEx": 0x13,
        "FlushVirtualAddressListEx": 0x14,
        "SendSyntheticClusterIpiEx": 0x15,
        "InstallIntercept": 0x4D,
        "GetVpRegisters": 0x50,
        "SetVpRegisters": 0x51,
        "TranslateVirtualAddress": 0x52,
        "RegisterInterceptResult": 0x91,
        "UnregisterInterceptResult": 0x92,
        "AssertVirtualInterrupt": 0x94,
        "CreatePort": 0x95,
        "ConnectPort": 0x96,
        "StartVirtualProcessor": 0x99,
        "GetVpIndexFromApicId": 0x9A,
        "TranslateVirtualAddressEx": 0xAC,
        "CheckForIoIntercept": 0xAD,
        "SignalEventDirect": 0xC0,
        "PostMessageDirect": 0xC1,
        "CheckSparseGpaPageVtlAccess": 0xD4,
        "MapVpStatePage": 0xE1,
        "UnmapVpStatePage": 0xE2,
        "GetVpSetFromMda": 0xE5,
        "SetVirtualInterruptTarget": 0x11F,
    }
    assert {name: HvCallCode["HvCall" + name] for name in codes} == codes
    assert HvCallCode.HvCallGetVpRegisters in hypercalls.REP_HYPERCALLS
    assert HvCallCode.HvCallFlushVirtualAddressSpace not in hypercalls.REP_HYPERCALLS


@pytest.mark.tlfs("numbers.layouts")
def test_hypercall_input_value_has_no_unnamed_bit() -> None:
    fields = (
        hypercalls.HV_HYPERCALL_CALL_CODE,
        hypercalls.HV_HYPERCALL_FAST,
        hypercalls.HV_HYPERCALL_VARIABLE_HEADER_SIZE,
        hypercalls.HV_HYPERCALL_IS_NESTED,
        hypercalls.HV_HYPERCALL_REP_COUNT,
        hypercalls.HV_HYPERCALL_REP_START_INDEX,
    )
    assert sum(f.mask for f in fields) + hypercalls.HV_HYPERCALL_RSVD_MASK == (1 << 64) - 1
    assert hypercalls.hypercall_result(HvStatus.ACCESS_DENIED, 5) == 0x5_0000_0006


@pytest.mark.tlfs("numbers.registers")
def test_register_names() -> None:
    names = {
        "HvRegisterPendingEvent0": 0x10004,
        "HvRegisterDeliverabilityNotifications": 0x10006,
        "HvX64RegisterRax": 0x20000,
        "HvX64RegisterRflags": 0x20011,
        "HvX64RegisterCr3": 0x40002,
        "HvX64RegisterCs": 0x60001,
        "HvX64RegisterGdtr": 0x70001,
        "HvX64RegisterEfer": 0x80001,
        "HvX64RegisterHypercall": 0x90001,
        "HvRegisterVpAssistPage": 0x90013,
        "HvRegisterSint15": 0xA000F,
        "HvRegisterStimer3Count": 0xB0007,
        "HvRegisterVsmCodePageOffsets": 0xD0002,
        "HvRegisterVsmVpStatus": 0xD0003,
        "HvRegisterVsmPartitionStatus": 0xD0004,
        "HvRegisterVsmVina": 0xD0005,
        "HvRegisterVsmCapabilities": 0xD0006,
        "HvRegisterVsmPartitionConfig": 0xD0007,
        "HvRegisterVsmVpSecureConfigVtl0": 0xD0010,
        "HvRegisterVsmVpSecureConfigVtl14": 0xD001E,
        "HvRegisterVsmVpWaitForTlbLock": 0xD0020,
        "HvX64RegisterCrInterceptControl": 0xE0000,
        "HvX64RegisterCrInterceptIa32MiscEnableMask": 0xE0003,
    }
    assert {name: HvRegisterName[name] for name in names} == names
    assert len(HvRegisterName) > 300


@pytest.mark.parametrize("enum", [HvRegisterName, HvCallCode, HvStatus, HvMessageType, intercepts.HvInterceptType])
def test_no_number_has_two_names(enum: type[HvStatus]) -> None:
    assert len(enum.__members__) == len(enum)


@pytest.mark.tlfs("numbers.types")
def test_message_types() -> None:
    types = {
        "UnmappedGpa": 0x80000000,
        "GpaIntercept": 0x80000001,
        "X64IoPortIntercept": 0x80010000,
        "MsrIntercept": 0x80010001,
        "X64CpuidIntercept": 0x80010002,
        "ExceptionIntercept": 0x80010003,
        "RegisterIntercept": 0x80010006,
        "X64ApicInitSipiIntercept": 0x8001000D,
    }
    assert {name: HvMessageType["HvMessageType" + name] for name in types} == types
    assert HvMessageType["HvMessageTimerExpired"] == 0x80000010


@pytest.mark.tlfs("numbers.cpuid")
def test_privileges_and_features() -> None:
    p = HvPartitionPrivilege
    eax = [p.AccessVpRunTimeReg, p.AccessPartitionReferenceCounter, p.AccessSynicRegs, p.AccessSyntheticTimerRegs]
    eax += [p.AccessIntrCtrlRegs, p.AccessHypercallMsrs, p.AccessVpIndex, p.AccessResetReg]
    assert eax == [1 << n for n in range(8)]
    assert (p.AccessPartitionReferenceTsc, p.AccessGuestIdleReg, p.AccessFrequencyRegs) == (1 << 9, 1 << 10, 1 << 11)
    ebx = {p.PostMessages: 4, p.SignalEvents: 5, p.AccessVsm: 16, p.AccessVpRegisters: 17}
    ebx |= {p.EnableExtendedHypercalls: 20, p.StartVirtualProcessor: 21}
    assert all(privilege >> 32 == 1 << number for privilege, number in ebx.items())
    f = HvFeaturesEdx
    edx = {f.XmmRegistersForFastHypercallAvailable: 4, f.FastHypercallOutputAvailable: 15, f.DirectSyntheticTimers: 19}
    edx |= {f.RegisterPatAvailable: 20, f.RegisterBndcfgsAvailable: 21}
    assert all(feature == 1 << number for feature, number in edx.items())
    e = HvEnlightenments
    assert e.UseHypercallForRemoteFlush == 1 << 2
    assert e.UseSyntheticClusterIpi == 1 << 10
    assert e.UseExProcessorMasks == 1 << 11
    assert e.UseIntForMbecSystemCalls == 1 << 13


@pytest.mark.tlfs("numbers.layouts")
def test_vsm_register_layouts() -> None:
    assert vsm.HV_VSM_VTL_RETURN_OFFSET.mask == 0xFFF000
    assert vsm.HV_VSM_VP_ENABLED_VTL_SET.mask == 0xFFFF0000
    assert vsm.HV_VSM_PARTITION_MAXIMUM_VTL.mask == 0xF0000
    assert vsm.HV_VSM_PARTITION_MBEC_ENABLED_VTL_SET.mask == 0xFFFF00000
    assert vsm.HV_VSM_VINA_AUTO_EOI.mask == 1 << 10
    assert vsm.HV_VSM_CAPABILITIES_DR6_SHARED.mask == 1
    assert vsm.HV_VSM_CAPABILITIES_MBEC_VTL_MASK.mask == 0x1FFFE
    assert vsm.HV_VSM_CAPABILITIES_DENY_LOWER_VTL_STARTUP.mask == 1 << 17
    config = (
        vsm.HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION,
        vsm.HV_VSM_PARTITION_CONFIG_DEFAULT_VTL_PROTECTION_MASK,
        vsm.HV_VSM_PARTITION_CONFIG_ZERO_MEMORY_ON_RESET,
        vsm.HV_VSM_PARTITION_CONFIG_DENY_LOWER_VTL_STARTUP,
        vsm.HV_VSM_PARTITION_CONFIG_INTERCEPT_VP_STARTUP,
    )
    assert sum(f.mask for f in config) == vsm.HV_VSM_PARTITION_CONFIG_VALID
    assert sum(vsm.HvCrInterceptControl) == vsm.HV_CR_INTERCEPT_CONTROL_VALID
    assert vsm.HvCrInterceptControl.MsrSgxLaunchControlWrite == 1 << 24


@pytest.mark.tlfs("numbers.layouts")
def test_synic_and_timers() -> None:
    assert synic.HV_SYNIC_SINT_RESET == 0x10000
    known = sum(synic.HvStimerConfig) + synic.HV_STIMER_CONFIG_APIC_VECTOR.mask + synic.HV_STIMER_CONFIG_SINTX.mask
    assert known + synic.HV_STIMER_CONFIG_RESERVED_MASK == (1 << 64) - 1
    assert msrs.HV_X64_MSR_SINT15 - msrs.HV_X64_MSR_SINT0 == 15
    assert msrs.HV_X64_MSR_STIMER3_COUNT == 0x400000B7


@pytest.mark.tlfs("numbers.layouts")
def test_pending_exception_event() -> None:
    event = register_values.HV_X64_PENDING_EXCEPTION_EVENT(
        register_values.HV_PENDING_EVENT_PENDING.make(1),
        register_values.HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE,
        14,
        0x1234,
        0xDEAD,
    )
    value = int.from_bytes(event.pack(), "little")
    assert value == 1 | 1 << 8 | 14 << 16 | 0x1234 << 32 | 0xDEAD << 64


@pytest.mark.tlfs("numbers.types")
def test_special_identifiers() -> None:
    assert identifiers.HV_VP_INDEX_SELF == 0xFFFFFFFE
    assert identifiers.HV_ANY_VP == 0xFFFFFFFF
    assert identifiers.HV_PARTITION_ID_SELF == (1 << 64) - 1
    assert hypercall_io.HV_TRANSLATE_GVA_SHADOW_STACK == 0x400


def test_vp_set_of_the_specification() -> None:
    data = encode_vp_set([0, 5, 130])
    assert HV_VP_SET.unpack_from(data) == HV_VP_SET(0, 0x5)
    assert data[16:] == (0x21).to_bytes(8, "little") + (0x4).to_bytes(8, "little")


@given(st.sets(st.integers(0, 4095), max_size=80))
def test_vp_set_round_trip(vps: set[int]) -> None:
    data = encode_vp_set(vps)
    header = HV_VP_SET.unpack_from(data)
    banks = [int.from_bytes(data[i : i + 8], "little") for i in range(16, len(data), 8)]
    decoded = decode_sparse_banks(header.ValidBanksMask, banks)
    assert {n for n in range(4096) if decoded >> n & 1} == vps
    assert decoded == sum(1 << n for n in vps)
    with pytest.raises(ValueError):
        decode_sparse_banks(header.ValidBanksMask, [*banks, 0])


@pytest.mark.parametrize("vp", [-1, 4096])
def test_vp_set_limits(vp: int) -> None:
    with pytest.raises(ValueError):
        encode_vp_set([vp])
