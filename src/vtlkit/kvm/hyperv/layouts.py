"""The shape of every hypercall that somebody here answers: sizes of its parameters, and the privilege it needs.

Counterpart: the hypercall reference pages of the TLFS. Data only; who answers a call is in `handlers` and in
`HvVm.user_space_calls`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef import intercepts, ports
from vtlkit.hvdef.cpuid import HvPartitionPrivilege as Privilege
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.register_values import HV_REGISTER_VALUE_SIZE
from vtlkit.hvdef.vp_set import HV_VP_SET, HV_VP_SET_MAX_BANKS
from vtlkit.kvm.hyperv.privileges import CLUSTER_IPI, EX_MASKS, LONG_SPIN_WAIT, REMOTE_FLUSH

_U32 = 4
_U64 = 8
_VP_SET = HV_VP_SET.SIZE + HV_VP_SET_MAX_BANKS * _U64
"""A VP set with every bank. (The TLFS's 4104 bytes would fit no page.)"""


@dataclass(frozen=True, slots=True)
class HypercallLayout:
    """Sizes in bytes: of the fixed parts, and of one list element for a rep call."""

    input_size: int = 0
    output_size: int = 0
    rep: bool = False
    input_element: int = 0
    output_element: int = 0
    variable_header: bool = False
    """A variable header (a VP set's banks) may follow the fixed part."""
    vtl_switch: bool = False
    """VTL call or return: no parameters, no result, and #UD for what other calls answer with a status."""
    privilege: int = 0
    """Bits of `privileges`, all of which the partition needs."""


LAYOUTS: Final[Mapping[int, HypercallLayout]] = {
    Call.HvCallFlushVirtualAddressSpace: HypercallLayout(
        io.HV_INPUT_FLUSH_VIRTUAL_ADDRESS_SPACE.SIZE, privilege=REMOTE_FLUSH
    ),
    Call.HvCallFlushVirtualAddressList: HypercallLayout(
        io.HV_INPUT_FLUSH_VIRTUAL_ADDRESS_SPACE.SIZE, rep=True, input_element=_U64, privilege=REMOTE_FLUSH
    ),
    Call.HvCallNotifyLongSpinWait: HypercallLayout(io.HV_INPUT_NOTIFY_LONG_SPIN_WAIT.SIZE, privilege=LONG_SPIN_WAIT),
    Call.HvCallSendSyntheticClusterIpi: HypercallLayout(
        io.HV_INPUT_SEND_SYNTHETIC_CLUSTER_IPI.SIZE, privilege=CLUSTER_IPI
    ),
    Call.HvCallModifyVtlProtectionMask: HypercallLayout(
        io.HV_INPUT_MODIFY_VTL_PROTECTION_MASK.SIZE, rep=True, input_element=_U64, privilege=Privilege.AccessVsm
    ),
    Call.HvCallEnablePartitionVtl: HypercallLayout(
        io.HV_INPUT_ENABLE_PARTITION_VTL.SIZE, privilege=Privilege.AccessVsm
    ),
    Call.HvCallEnableVpVtl: HypercallLayout(io.HV_INPUT_ENABLE_VP_VTL.SIZE, privilege=Privilege.AccessVsm),
    Call.HvCallVtlCall: HypercallLayout(vtl_switch=True, privilege=Privilege.AccessVsm),
    Call.HvCallVtlReturn: HypercallLayout(vtl_switch=True, privilege=Privilege.AccessVsm),
    Call.HvCallFlushVirtualAddressSpaceEx: HypercallLayout(
        io.HV_INPUT_FLUSH_VIRTUAL_ADDRESS_SPACE_EX.SIZE, variable_header=True, privilege=REMOTE_FLUSH | EX_MASKS
    ),
    Call.HvCallFlushVirtualAddressListEx: HypercallLayout(
        io.HV_INPUT_FLUSH_VIRTUAL_ADDRESS_SPACE_EX.SIZE,
        rep=True,
        input_element=_U64,
        variable_header=True,
        privilege=REMOTE_FLUSH | EX_MASKS,
    ),
    Call.HvCallSendSyntheticClusterIpiEx: HypercallLayout(
        io.HV_INPUT_SEND_SYNTHETIC_CLUSTER_IPI_EX.SIZE, variable_header=True, privilege=CLUSTER_IPI | EX_MASKS
    ),
    Call.HvCallGetVpRegisters: HypercallLayout(
        io.HV_INPUT_GET_VP_REGISTERS.SIZE,
        rep=True,
        input_element=_U32,
        output_element=HV_REGISTER_VALUE_SIZE,
        privilege=Privilege.AccessVpRegisters,
    ),
    Call.HvCallSetVpRegisters: HypercallLayout(
        io.HV_INPUT_SET_VP_REGISTERS.SIZE,
        rep=True,
        input_element=io.HV_REGISTER_ASSOC.SIZE,
        privilege=Privilege.AccessVpRegisters,
    ),
    Call.HvCallTranslateVirtualAddress: HypercallLayout(
        io.HV_INPUT_TRANSLATE_VIRTUAL_ADDRESS.SIZE,
        io.HV_OUTPUT_TRANSLATE_VIRTUAL_ADDRESS.SIZE,
        privilege=Privilege.AccessVpRegisters,
    ),
    Call.HvCallTranslateVirtualAddressEx: HypercallLayout(
        io.HV_INPUT_TRANSLATE_VIRTUAL_ADDRESS.SIZE,
        io.HV_OUTPUT_TRANSLATE_VIRTUAL_ADDRESS_EX.SIZE,
        privilege=Privilege.AccessVpRegisters,
    ),
    Call.HvCallStartVirtualProcessor: HypercallLayout(
        io.HV_INPUT_START_VIRTUAL_PROCESSOR.SIZE, privilege=Privilege.StartVirtualProcessor
    ),
    Call.HvCallGetVpIndexFromApicId: HypercallLayout(
        io.HV_INPUT_GET_VP_INDEX_FROM_APIC_ID.SIZE, rep=True, input_element=_U32, output_element=_U32
    ),
    Call.HvCallGetVpSetFromMda: HypercallLayout(io.HV_INPUT_GET_VP_SET_FROM_MDA.SIZE, _VP_SET),
    Call.HvCallCheckSparseGpaPageVtlAccess: HypercallLayout(
        io.HV_INPUT_CHECK_SPARSE_GPA_PAGE_VTL_ACCESS.SIZE,
        rep=True,
        input_element=_U64,
        output_element=_U64,
        privilege=Privilege.AccessVsm,
    ),
    Call.HvCallRetargetDeviceInterrupt: HypercallLayout(
        io.HV_INPUT_RETARGET_DEVICE_INTERRUPT.SIZE, variable_header=True
    ),
    Call.HvCallCreatePort: HypercallLayout(ports.HV_INPUT_CREATE_PORT.SIZE, privilege=Privilege.CreatePort),
    Call.HvCallDeletePort: HypercallLayout(ports.HV_INPUT_DELETE_PORT.SIZE, privilege=Privilege.CreatePort),
    Call.HvCallConnectPort: HypercallLayout(ports.HV_INPUT_CONNECT_PORT.SIZE, privilege=Privilege.ConnectPort),
    Call.HvCallDisconnectPort: HypercallLayout(ports.HV_INPUT_DISCONNECT_PORT.SIZE, privilege=Privilege.ConnectPort),
    Call.HvCallPostMessage: HypercallLayout(io.HV_INPUT_POST_MESSAGE.SIZE, privilege=Privilege.PostMessages),
    Call.HvCallSignalEvent: HypercallLayout(io.HV_INPUT_SIGNAL_EVENT.SIZE, privilege=Privilege.SignalEvents),
    Call.HvCallPostMessageDirect: HypercallLayout(
        io.HV_INPUT_POST_MESSAGE_DIRECT.SIZE, privilege=Privilege.PostMessages
    ),
    Call.HvCallSignalEventDirect: HypercallLayout(
        io.HV_INPUT_SIGNAL_EVENT_DIRECT.SIZE,
        io.HV_OUTPUT_SIGNAL_EVENT_DIRECT.SIZE,
        privilege=Privilege.SignalEvents,
    ),
    Call.HvCallAssertVirtualInterrupt: HypercallLayout(io.HV_INPUT_ASSERT_VIRTUAL_INTERRUPT.SIZE),
    Call.HvExtCallQueryCapabilities: HypercallLayout(output_size=_U64, privilege=Privilege.EnableExtendedHypercalls),
    Call.HvExtCallGetBootZeroedMemory: HypercallLayout(
        output_size=io.HV_EXT_OUTPUT_BOOT_ZEROED_MEMORY_SIZE, privilege=Privilege.EnableExtendedHypercalls
    ),
    Call.HvCallInstallIntercept: HypercallLayout(
        intercepts.HV_INPUT_INSTALL_INTERCEPT.SIZE, privilege=Privilege.AccessVsm
    ),
    Call.HvCallRegisterInterceptResult: HypercallLayout(
        intercepts.HV_INPUT_REGISTER_INTERCEPT_RESULT.SIZE + intercepts.HV_REGISTER_X64_CPUID_RESULT_PARAMETERS.SIZE,
        privilege=Privilege.AccessVsm,
    ),
    Call.HvCallUnregisterInterceptResult: HypercallLayout(
        intercepts.HV_INPUT_REGISTER_INTERCEPT_RESULT.SIZE + intercepts.HV_UNREGISTER_X64_CPUID_RESULT_PARAMETERS.SIZE,
        privilege=Privilege.AccessVsm,
    ),
    Call.HvCallCheckForIoIntercept: HypercallLayout(
        intercepts.HV_INPUT_CHECK_FOR_IO_INTERCEPT.SIZE, 1, privilege=Privilege.AccessVsm
    ),
    Call.HvCallMapVpStatePage: HypercallLayout(
        io.HV_INPUT_MAP_VP_STATE_PAGE.SIZE, _U64, privilege=Privilege.AccessVsm | Privilege.AccessVpRegisters
    ),
    Call.HvCallUnmapVpStatePage: HypercallLayout(
        io.HV_INPUT_UNMAP_VP_STATE_PAGE.SIZE, privilege=Privilege.AccessVsm | Privilege.AccessVpRegisters
    ),
}

VSM_CALLS: Final = frozenset(
    {
        Call.HvCallModifyVtlProtectionMask,
        Call.HvCallEnablePartitionVtl,
        Call.HvCallEnableVpVtl,
        Call.HvCallVtlCall,
        Call.HvCallVtlReturn,
        Call.HvCallGetVpRegisters,
        Call.HvCallSetVpRegisters,
        Call.HvCallTranslateVirtualAddress,
        Call.HvCallTranslateVirtualAddressEx,
        Call.HvCallStartVirtualProcessor,
        Call.HvCallGetVpIndexFromApicId,
        Call.HvCallGetVpSetFromMda,
        Call.HvCallCheckSparseGpaPageVtlAccess,
        Call.HvCallRetargetDeviceInterrupt,
        Call.HvCallCreatePort,
        Call.HvCallDeletePort,
        Call.HvCallConnectPort,
        Call.HvCallDisconnectPort,
        Call.HvCallPostMessage,
        Call.HvCallSignalEvent,
        Call.HvCallPostMessageDirect,
        Call.HvCallSignalEventDirect,
        Call.HvCallAssertVirtualInterrupt,
        Call.HvExtCallQueryCapabilities,
        Call.HvExtCallGetBootZeroedMemory,
        Call.HvCallInstallIntercept,
        Call.HvCallRegisterInterceptResult,
        Call.HvCallUnregisterInterceptResult,
        Call.HvCallCheckForIoIntercept,
        Call.HvCallMapVpStatePage,
        Call.HvCallUnmapVpStatePage,
    }
)
"""Calls about VTLs, ports and the machine's memory, of which only user space knows: it answers them."""
