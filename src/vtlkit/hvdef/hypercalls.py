"""Hypercall codes, the hypercall input value and the hypercall result value (TLFS, "Hypercall Interface").

Codes that the published list leaves out are those of OpenVMM's hvdef.
"""

from __future__ import annotations

import enum
from typing import Final

from vtlkit.layout import Bits


class HvCallCode(enum.IntEnum):
    """Call codes; those from 0x8000 are extended hypercalls."""

    HvCallSwitchVirtualAddressSpace = 0x0001
    HvCallFlushVirtualAddressSpace = 0x0002
    HvCallFlushVirtualAddressList = 0x0003
    HvCallNotifyLongSpinWait = 0x0008
    HvCallInvokeHypervisorDebugger = 0x000A
    HvCallSendSyntheticClusterIpi = 0x000B
    HvCallModifyVtlProtectionMask = 0x000C
    HvCallEnablePartitionVtl = 0x000D
    HvCallEnableVpVtl = 0x000F
    HvCallVtlCall = 0x0011
    HvCallVtlReturn = 0x0012
    HvCallFlushVirtualAddressSpaceEx = 0x0013
    HvCallFlushVirtualAddressListEx = 0x0014
    HvCallSendSyntheticClusterIpiEx = 0x0015
    HvCallCreatePartition = 0x0040
    HvCallInitializePartition = 0x0041
    HvCallFinalizePartition = 0x0042
    HvCallDeletePartition = 0x0043
    HvCallGetPartitionProperty = 0x0044
    HvCallSetPartitionProperty = 0x0045
    HvCallGetNextChildPartition = 0x0047
    HvCallDepositMemory = 0x0048
    HvCallWithdrawMemory = 0x0049
    HvCallGetMemoryBalance = 0x004A
    HvCallMapGpaPages = 0x004B
    HvCallUnmapGpaPages = 0x004C
    HvCallInstallIntercept = 0x004D
    HvCallCreateVp = 0x004E
    HvCallDeleteVp = 0x004F
    HvCallGetVpRegisters = 0x0050
    HvCallSetVpRegisters = 0x0051
    HvCallTranslateVirtualAddress = 0x0052
    HvCallDeletePort = 0x0058
    HvCallDisconnectPort = 0x005B
    HvCallPostMessage = 0x005C
    HvCallSignalEvent = 0x005D
    HvCallUnmapStatsPage = 0x006D
    HvCallMapSparseGpaPages = 0x006E
    HvCallOutputDebugCharacter = 0x0071
    HvCallGetSystemProperty = 0x007B
    HvCallRetargetDeviceInterrupt = 0x007E
    HvCallNotifyPartitionEvent = 0x0087
    HvCallModifySparseGpaPages = 0x0090
    HvCallRegisterInterceptResult = 0x0091
    HvCallUnregisterInterceptResult = 0x0092
    HvCallAssertVirtualInterrupt = 0x0094
    HvCallCreatePort = 0x0095
    HvCallConnectPort = 0x0096
    HvCallStartVirtualProcessor = 0x0099
    HvCallGetVpIndexFromApicId = 0x009A
    HvCallTranslateVirtualAddressEx = 0x00AC
    HvCallCheckForIoIntercept = 0x00AD
    HvCallFlushGuestPhysicalAddressSpace = 0x00AF
    HvCallFlushGuestPhysicalAddressList = 0x00B0
    HvCallSignalEventDirect = 0x00C0
    HvCallPostMessageDirect = 0x00C1
    HvCallCheckSparseGpaPageVtlAccess = 0x00D4
    HvCallAcceptGpaPages = 0x00D9
    HvCallModifySparseGpaPageHostVisibility = 0x00DB
    HvCallMapVpStatePage = 0x00E1
    HvCallUnmapVpStatePage = 0x00E2
    HvCallGetVpSetFromMda = 0x00E5
    HvCallGetVpCpuidValues = 0x00F4
    HvCallRestorePartitionTime = 0x0103
    HvCallMemoryMappedIoRead = 0x0106
    HvCallMemoryMappedIoWrite = 0x0107
    HvCallSetPartitionPropertyEx = 0x010A
    HvCallInstallInterceptEx = 0x0110
    HvCallPinGpaPageRanges = 0x0112
    HvCallUnpinGpaPageRanges = 0x0113
    HvCallQuerySparseGpaPageHostVisibility = 0x011C
    HvCallSetVirtualInterruptTarget = 0x011F
    HvCallMapStatsPage2 = 0x0131
    HvExtCallQueryCapabilities = 0x8001
    HvExtCallGetBootZeroedMemory = 0x8002
    HvExtCallMemoryHeatHint = 0x8003
    HvExtCallEpfSetup = 0x8004
    HvExtCallMemoryHeatHintAsync = 0x8006
    HvCallVbsVmCallReport = 0xC001


REP_HYPERCALLS: Final = frozenset(
    {
        HvCallCode.HvCallFlushVirtualAddressList,
        HvCallCode.HvCallModifyVtlProtectionMask,
        HvCallCode.HvCallFlushVirtualAddressListEx,
        HvCallCode.HvCallDepositMemory,
        HvCallCode.HvCallWithdrawMemory,
        HvCallCode.HvCallMapGpaPages,
        HvCallCode.HvCallUnmapGpaPages,
        HvCallCode.HvCallGetVpRegisters,
        HvCallCode.HvCallSetVpRegisters,
        HvCallCode.HvCallMapSparseGpaPages,
        HvCallCode.HvCallModifySparseGpaPages,
        HvCallCode.HvCallGetVpIndexFromApicId,
        HvCallCode.HvCallFlushGuestPhysicalAddressList,
        HvCallCode.HvCallCheckSparseGpaPageVtlAccess,
        HvCallCode.HvCallModifySparseGpaPageHostVisibility,
        HvCallCode.HvCallGetVpCpuidValues,
        HvCallCode.HvCallInstallInterceptEx,
        HvCallCode.HvCallPinGpaPageRanges,
        HvCallCode.HvCallUnpinGpaPageRanges,
        HvCallCode.HvCallQuerySparseGpaPageHostVisibility,
    }
)
"""Calls with a list of elements: they need a rep count, all others a zero one (else INVALID_HYPERCALL_INPUT)."""

HV_HYPERCALL_CALL_CODE: Final = Bits(0, 16)
HV_HYPERCALL_FAST: Final = Bits(16)
HV_HYPERCALL_VARIABLE_HEADER_SIZE: Final = Bits(17, 10)
"""In units of 8 bytes."""
HV_HYPERCALL_IS_NESTED: Final = Bits(31)
HV_HYPERCALL_REP_COUNT: Final = Bits(32, 12)
HV_HYPERCALL_REP_START_INDEX: Final = Bits(48, 12)
HV_HYPERCALL_RSVD_MASK: Final = 0xF000_F000_7800_0000
"""Bits of the input value that must be zero."""

HV_HYPERCALL_RESULT_STATUS: Final = Bits(0, 16)
HV_HYPERCALL_REP_COMPLETED: Final = Bits(32, 12)

HV_HYPERCALL_FAST_INPUT_REGISTERS_SIZE: Final = 16
"""Input bytes of a fast hypercall in RDX and R8."""
HV_HYPERCALL_FAST_XMM_SIZE: Final = 112
"""Input and output bytes of a fast hypercall in RDX, R8 and XMM0 to XMM5."""
HV_HYPERCALL_PARAMETER_ALIGNMENT: Final = 8

HV_EXT_CALL_BASE: Final = 0x8000
HV_EXT_CAPABILITY_GET_BOOT_ZEROED_MEMORY: Final = 1 << 0
HV_EXT_CAPABILITY_MEMORY_HEAT_HINT: Final = 1 << 1
HV_EXT_CAPABILITY_EPF_SETUP: Final = 1 << 2
HV_EXT_CAPABILITY_SCHEDULER_ASSIST_SETUP: Final = 1 << 3
HV_EXT_CAPABILITY_MEMORY_HEAT_HINT_ASYNC: Final = 1 << 4


def hypercall_result(status: int, reps_completed: int = 0) -> int:
    """The hypercall result value."""
    return status | reps_completed << 32
