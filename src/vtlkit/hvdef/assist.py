"""Overlay pages whose layout both sides know: VP assist page and reference TSC page (TLFS).

The intercept message and the return actions of the VP assist page are as in OpenVMM's hvdef.
"""

from __future__ import annotations

from typing import Annotated, Final

from vtlkit.hvdef.identifiers import HV_PAGE_SIZE
from vtlkit.layout import Array, Bytes, Struct, i64, u8, u16, u32, u64


class HV_VP_VTL_CONTROL(Struct, size=24, offsets={"VinaStatus": 4, "VtlReturnX64Rax": 8, "VtlReturnX64Rcx": 16}):
    """VtlReturn*: in a 32-bit VTL EAX, ECX and EDX are the first three 32-bit words of the two fields."""

    EntryReason: u32 = 0
    VinaStatus: u8 = 0
    ReservedZ00: u8 = 0
    ReservedZ01: u16 = 0
    VtlReturnX64Rax: u64 = 0
    VtlReturnX64Rcx: u64 = 0


HV_VINA_STATUS_ASSERTED: Final = 1 << 0


class HV_NESTED_ENLIGHTENMENTS_CONTROL(Struct, size=8):
    Features: u32 = 0
    HypercallControls: u32 = 0


HV_NESTED_FEATURE_DIRECT_HYPERCALL: Final = 1 << 0
HV_NESTED_FEATURE_VIRTUALIZATION_EXCEPTION: Final = 1 << 1
HV_NESTED_HYPERCALL_INTER_PARTITION_COMMUNICATION: Final = 1 << 0

HV_VP_ASSIST_PAGE_VTL_CONTROL: Final = 8
"""Offsets of fields that are accessed alone."""
HV_VP_ASSIST_PAGE_ENTRY_REASON: Final = 8
HV_VP_ASSIST_PAGE_VINA_STATUS: Final = 12
HV_VP_ASSIST_PAGE_VTL_RETURN_RAX: Final = 16
HV_VP_ASSIST_PAGE_VTL_RETURN_RCX: Final = 24
HV_VP_ASSIST_PAGE_INTERCEPT_MESSAGE: Final = 0x70
HV_VP_ASSIST_PAGE_RETURN_ACTIONS: Final = 0x170
HV_VP_ASSIST_PAGE_RETURN_ACTIONS_SIZE: Final = 256
HV_VP_ASSIST_PAGE_UNHALTED_TIMER_EXPIRED: Final = 56
HV_APIC_ASSIST_NO_EOI_REQUIRED: Final = 1 << 0


class HV_VP_ASSIST_PAGE(
    Struct,
    size=HV_PAGE_SIZE,
    offsets={
        "VtlControl": HV_VP_ASSIST_PAGE_VTL_CONTROL,
        "NestedEnlightenmentsControl": 32,
        "CurrentNestedVmcs": 48,
        "VirtualizationFaultInformation": 64,
        "InterceptMessage": HV_VP_ASSIST_PAGE_INTERCEPT_MESSAGE,
        "VtlReturnActions": HV_VP_ASSIST_PAGE_RETURN_ACTIONS,
    },
):
    ApicAssist: u32 = 0
    ReservedZ0: u32 = 0
    VtlControl: HV_VP_VTL_CONTROL = HV_VP_VTL_CONTROL()
    NestedEnlightenmentsControl: HV_NESTED_ENLIGHTENMENTS_CONTROL = HV_NESTED_ENLIGHTENMENTS_CONTROL()
    EnlightenVmEntry: u8 = 0
    ReservedZ1: Annotated[bytes, Bytes(7)] = bytes(7)
    CurrentNestedVmcs: u64 = 0
    SyntheticTimeUnhaltedTimerExpired: u8 = 0
    ReservedZ2: Annotated[bytes, Bytes(7)] = bytes(7)
    VirtualizationFaultInformation: Annotated[bytes, Bytes(40)] = bytes(40)
    ReservedZ3: u64 = 0
    InterceptMessage: Annotated[bytes, Bytes(256)] = bytes(256)
    VtlReturnActions: Annotated[bytes, Bytes(256)] = bytes(256)
    ReservedZBytePadding: Annotated[bytes, Bytes(3472)] = bytes(3472)


class HV_VIRTUALIZATION_FAULT_INFORMATION(Struct, size=16, offsets={"Code": 4, "Parameter1": 8}):
    Parameter0: u16 = 0
    Reserved0: u16 = 0
    Code: u32 = 0
    Parameter1: u64 = 0


class HV_VP_ASSIST_PAGE_ACTION_SIGNAL_EVENT(Struct, size=16, offsets={"FlagNumber": 14}):
    """A VTL return action: signal an event once the lower VTL is entered."""

    ActionType: u64 = 0
    TargetVp: u32 = 0
    TargetVtl: u8 = 0
    TargetSint: u8 = 0
    FlagNumber: u16 = 0


HV_VP_ASSIST_PAGE_ACTION_TYPE_SIGNAL_EVENT: Final = 1


class HV_REFERENCE_TSC_PAGE(
    Struct, size=HV_PAGE_SIZE, offsets={"TscScale": 8, "TscOffset": 16, "TimelineBias": 24, "TscMultiplier": 32}
):
    """Reference time in units of 100 ns = ((TSC * TscScale) >> 64) + TscOffset."""

    TscSequence: u32 = 0
    Reserved1: u32 = 0
    TscScale: u64 = 0
    TscOffset: i64 = 0
    TimelineBias: u64 = 0
    TscMultiplier: u64 = 0
    Reserved2: Annotated[tuple[int, ...], Array("Q", 507)] = (0,) * 507


HV_REFERENCE_TSC_SEQUENCE_INVALID: Final = 0
"""TscSequence while the page may not be used: the guest reads HV_X64_MSR_TIME_REF_COUNT."""
