"""Hypervisor CPUID leaves for a choice of features (mirrors `kvm_get_hv_cpuid`; TLFS, "Feature and Interface
Discovery").

Promise: a bit is set if what it announces is there, and for nothing else; the tests hold each one against the MSRs,
hypercalls and tables that it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vtlkit.hvdef import cpuid as hv
from vtlkit.hvdef.cpuid import HvEnlightenments as Hint
from vtlkit.hvdef.cpuid import HvFeaturesEdx as Edx
from vtlkit.hvdef.cpuid import HvHardwareFeatures as Hardware
from vtlkit.hvdef.cpuid import HvPartitionPrivilege as Privilege
from vtlkit.kvm.hyperv.features import VENDOR_ID_BYTES, HvFeatures
from vtlkit.kvm.hyperv.vm import DEFAULT_PHYSICAL_ADDRESS_BITS, MAX_VPS

Leaf = tuple[int, int, int, int, int]
"""(function, eax, ebx, ecx, edx)"""

_U32: Final = 0xFFFFFFFF
_LAST_LEAF: Final = hv.HV_CPUID_FUNCTION_MS_HV_NESTED_FEATURES

_PRIVILEGES: Final[Mapping[str, Privilege]] = {
    "vapic": Privilege.AccessIntrCtrlRegs,
    "vpindex": Privilege.AccessVpIndex,
    "runtime": Privilege.AccessVpRunTimeReg,
    "reset": Privilege.AccessResetReg,
    "time": Privilege.AccessPartitionReferenceCounter | Privilege.AccessPartitionReferenceTsc,
    "synic": Privilege.AccessSynicRegs,
    "stimer": Privilege.AccessSyntheticTimerRegs,
    "frequencies": Privilege.AccessFrequencyRegs,
    "reenlightenment": Privilege.AccessReenlightenmentControls,
    "tsc_invariant": Privilege.AccessTscInvariantControls,
    "guest_idle": Privilege.AccessGuestIdleReg,
    "tlbflush_ext": Privilege.EnableExtendedGvaRangesForFlushVirtualAddressList,
    "xmm_output": Privilege.FastHypercallOutput,
    "ports": Privilege.PostMessages | Privilege.SignalEvents | Privilege.CreatePort | Privilege.ConnectPort,
    "extended_hypercalls": Privilege.EnableExtendedHypercalls,
    "vsm": Privilege.AccessVsm | Privilege.AccessVpRegisters,
    "start_vp": Privilege.StartVirtualProcessor,
}

_EDX: Final[Mapping[str, Edx]] = {
    "crash": Edx.GuestCrashRegsAvailable,
    "synic": Edx.SintPollingModeAvailable,
    "stimer": Edx.SyntheticTimeUnhaltedTimerAvailable,
    "stimer_direct": Edx.DirectSyntheticTimers,
    "frequencies": Edx.FrequencyRegsAvailable,
    "guest_idle": Edx.GuestIdleAvailable,
    "npiep": Edx.Npiep1Available,
    "tlbflush_ext": Edx.ExtendedGvaRangesForFlushVirtualAddressListAvailable,
    "xmm_input": Edx.XmmRegistersForFastHypercallAvailable,
    "xmm_output": Edx.FastHypercallOutputAvailable,
    "vsm": Edx.RegisterPatAvailable | Edx.TranslateGvaFlagsAvailable | Edx.ApicEoiInterceptAvailable,
}

_HINTS: Final[Mapping[str, Hint]] = {
    "relaxed": Hint.UseRelaxedTiming,
    "vapic": Hint.UseApicMsrs,
    "tlbflush": Hint.UseHypercallForRemoteFlush | Hint.UseExProcessorMasks,
    "ipi": Hint.UseSyntheticClusterIpi | Hint.UseExProcessorMasks,
    "avic": Hint.DeprecateAutoEoi,
}

_HARDWARE: Final = Hardware.MsrBitmapsInUse | Hardware.SecondLevelAddressTranslationInUse
"""What the engines do for every guest: only MSRs of the bitmap exit, and guest-physical addresses are translated."""


def _sum(table: Mapping[str, int], features: HvFeatures) -> int:
    bits = 0
    for name, value in table.items():
        if getattr(features, name):
            bits |= int(value)
    return bits


def cpuid_leaves(
    features: HvFeatures, *, physical_address_bits: int = DEFAULT_PHYSICAL_ADDRESS_BITS, max_vps: int = MAX_VPS
) -> list[Leaf]:
    """Leaves 0x40000000 to 0x4000000A. The hypervisor bit of CPUID.1:ECX is the caller's.

    Raises:
        KvmError: EINVAL, features that do not go together.
    """
    features.check()
    privileges = int(Privilege.AccessHypercallMsrs) | _sum(_PRIVILEGES, features)
    edx = Edx.HypercallMsrLockAvailable | _sum(_EDX, features)
    if features.vsm and features.tlbflush:
        edx |= Edx.CrossVtlFlushAvailable
    hints = _sum(_HINTS, features)
    address_bits = hv.HV_IMPLEMENTED_PHYSICAL_ADDRESS_BITS.make(physical_address_bits)
    leaves = {
        hv.HV_CPUID_FUNCTION_HV_VENDOR_AND_MAX_FUNCTION: (_LAST_LEAF, *_vendor(features.vendor_id)),
        hv.HV_CPUID_FUNCTION_HV_INTERFACE: (hv.HV_CPUID_INTERFACE_SIGNATURE, 0, 0, 0),
        hv.HV_CPUID_FUNCTION_MS_HV_VERSION: _version(features),
        hv.HV_CPUID_FUNCTION_MS_HV_FEATURES: (privileges & _U32, privileges >> 32, 0, int(edx)),
        hv.HV_CPUID_FUNCTION_MS_HV_ENLIGHTENMENT_INFORMATION: (hints, features.spinlocks, address_bits, 0),
        # Logical processors and interrupt remapping are not the guest's business: 0 is "not exposed".
        hv.HV_CPUID_FUNCTION_MS_HV_IMPLEMENTATION_LIMITS: (max_vps, 0, 0, 0),
        hv.HV_CPUID_FUNCTION_MS_HV_HARDWARE_FEATURES: (int(_HARDWARE), 0, 0, 0),
    }
    first = hv.HV_CPUID_FUNCTION_HV_VENDOR_AND_MAX_FUNCTION
    return [(function, *leaves.get(function, (0, 0, 0, 0))) for function in range(first, _LAST_LEAF + 1)]


def _vendor(text: str) -> tuple[int, int, int]:
    padded = text.encode("ascii").ljust(VENDOR_ID_BYTES, b"\0")
    ebx, ecx, edx = (int.from_bytes(padded[at : at + 4], "little") for at in range(0, VENDOR_ID_BYTES, 4))
    return ebx, ecx, edx


def _version(features: HvFeatures) -> tuple[int, int, int, int]:
    version = hv.HV_VERSION_MAJOR.make(features.version_id_major) | hv.HV_VERSION_MINOR.make(features.version_id_minor)
    service = hv.HV_VERSION_SERVICE_BRANCH.make(features.version_id_sbranch)
    service |= hv.HV_VERSION_SERVICE_NUMBER.make(features.version_id_snumber)
    return features.version_id_build, version, features.version_id_spack, service
