"""Hypervisor CPUID leaves for a choice of features (mirrors `kvm_get_hv_cpuid`; TLFS, "Feature and Interface
Discovery"). The switches are QEMU's hv-* properties.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, fields
from typing import Final

from vtlkit.hvdef import cpuid as hv
from vtlkit.hvdef.cpuid import HvEnlightenments as Hint
from vtlkit.hvdef.cpuid import HvFeaturesEdx as Edx
from vtlkit.hvdef.cpuid import HvPartitionPrivilege as Privilege
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.hyperv.vm import DEFAULT_PHYSICAL_ADDRESS_BITS, MAX_VPS

Leaf = tuple[int, int, int, int, int]
"""(function, eax, ebx, ecx, edx)"""

_BUILD: Final = 20348
_MAJOR: Final = 10
_SPINLOCK_RETRIES: Final = 0xFFF
_MAX_LOGICAL_PROCESSORS: Final = 64
_U32: Final = 0xFFFFFFFF
_LAST_LEAF: Final = hv.HV_CPUID_FUNCTION_MS_HV_NESTED_FEATURES


@dataclass(frozen=True, slots=True)
class HvFeatures:
    """What of the interface a guest is offered. Guest OS identity, hypercall page and VP index come with any of it."""

    relaxed: bool = True
    vapic: bool = True
    vpindex: bool = True
    runtime: bool = True
    crash: bool = True
    reset: bool = True
    time: bool = True
    synic: bool = True
    frequencies: bool = True
    reenlightenment: bool = True
    guest_idle: bool = True
    tlbflush: bool = True
    tlbflush_ext: bool = True
    ipi: bool = True
    xmm_input: bool = True
    xmm_output: bool = True
    vsm: bool = False
    start_vp: bool = False
    """HvCallStartVirtualProcessor."""
    spinlocks: int = _SPINLOCK_RETRIES
    """Attempts at a lock before HvCallNotifyLongSpinWait; 0xFFFFFFFF: never."""

    def check(self) -> None:
        """Raise KvmError (EINVAL) if a feature lacks one that it stands on."""
        for name, needed in _NEEDS.items():
            for other in needed:
                if getattr(self, name) and not getattr(self, other):
                    raise KvmError(errno.EINVAL, f"hv-{_dashed(name)} needs hv-{_dashed(other)}")
        if not 0 <= self.spinlocks <= _U32:
            raise KvmError(errno.EINVAL, f"hv-spinlocks {self.spinlocks:#x} does not fit 32 bits")


_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "synic": ("vpindex",),
    "tlbflush": ("vpindex",),
    "tlbflush_ext": ("tlbflush",),
    "ipi": ("vpindex",),
    "vsm": ("synic", "vpindex"),
    "start_vp": ("vpindex",),
}

_PRIVILEGES: Final[dict[str, Privilege]] = {
    "vapic": Privilege.AccessIntrCtrlRegs,
    "vpindex": Privilege.AccessVpIndex,
    "runtime": Privilege.AccessVpRunTimeReg,
    "reset": Privilege.AccessResetReg,
    "time": Privilege.AccessPartitionReferenceCounter | Privilege.AccessPartitionReferenceTsc,
    "synic": Privilege.AccessSynicRegs,
    "frequencies": Privilege.AccessFrequencyRegs,
    "reenlightenment": Privilege.AccessReenlightenmentControls,
    "guest_idle": Privilege.AccessGuestIdleReg,
    "tlbflush_ext": Privilege.EnableExtendedGvaRangesForFlushVirtualAddressList,
    "xmm_output": Privilege.FastHypercallOutput,
    "vsm": Privilege.AccessVsm | Privilege.AccessVpRegisters,
    "start_vp": Privilege.StartVirtualProcessor,
}

_EDX: Final[dict[str, Edx]] = {
    "crash": Edx.GuestCrashRegsAvailable,
    "synic": Edx.SintPollingModeAvailable,
    "frequencies": Edx.FrequencyRegsAvailable,
    "guest_idle": Edx.GuestIdleAvailable,
    "tlbflush_ext": Edx.ExtendedGvaRangesForFlushVirtualAddressListAvailable,
    "xmm_input": Edx.XmmRegistersForFastHypercallAvailable,
    "xmm_output": Edx.FastHypercallOutputAvailable,
    "vsm": Edx.RegisterPatAvailable,
}

_HINTS: Final[dict[str, Hint]] = {
    "relaxed": Hint.UseRelaxedTiming,
    "vapic": Hint.UseApicMsrs,
    "tlbflush": Hint.UseHypercallForRemoteFlush | Hint.UseExProcessorMasks,
    "ipi": Hint.UseSyntheticClusterIpi | Hint.UseExProcessorMasks,
}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _sum(table: dict[str, Privilege] | dict[str, Edx] | dict[str, Hint], features: HvFeatures) -> int:
    bits = 0
    for name, value in table.items():
        if getattr(features, name):
            bits |= int(value)
    return bits


def feature_names() -> tuple[str, ...]:
    """Names of all switches, as the command line spells them: `hv-` and a name from here."""
    return tuple(_dashed(field.name) for field in fields(HvFeatures))


def cpuid_leaves(
    features: HvFeatures, *, physical_address_bits: int = DEFAULT_PHYSICAL_ADDRESS_BITS, max_vps: int = MAX_VPS
) -> list[Leaf]:
    """Leaves 0x40000000 to 0x4000000A. The hypervisor bit of CPUID.1:ECX is the caller's.

    Raises:
        KvmError: EINVAL, features that do not go together.
    """
    features.check()
    privileges = Privilege.AccessHypercallMsrs | _sum(_PRIVILEGES, features)
    edx = Edx.HypercallMsrLockAvailable | _sum(_EDX, features)
    address_bits = hv.HV_IMPLEMENTED_PHYSICAL_ADDRESS_BITS.make(physical_address_bits)
    leaves = {
        hv.HV_CPUID_FUNCTION_HV_VENDOR_AND_MAX_FUNCTION: (_LAST_LEAF, *hv.HV_CPUID_VENDOR_SIGNATURE),
        hv.HV_CPUID_FUNCTION_HV_INTERFACE: (hv.HV_CPUID_INTERFACE_SIGNATURE, 0, 0, 0),
        hv.HV_CPUID_FUNCTION_MS_HV_VERSION: (_BUILD, hv.HV_VERSION_MAJOR.make(_MAJOR), 0, 0),
        hv.HV_CPUID_FUNCTION_MS_HV_FEATURES: (privileges & _U32, privileges >> 32, 0, int(edx)),
        hv.HV_CPUID_FUNCTION_MS_HV_ENLIGHTENMENT_INFORMATION: (
            _sum(_HINTS, features),
            features.spinlocks,
            address_bits,
            0,
        ),
        hv.HV_CPUID_FUNCTION_MS_HV_IMPLEMENTATION_LIMITS: (max_vps, _MAX_LOGICAL_PROCESSORS, 0, 0),
    }
    first = hv.HV_CPUID_FUNCTION_HV_VENDOR_AND_MAX_FUNCTION
    return [(function, *leaves.get(function, (0, 0, 0, 0))) for function in range(first, _LAST_LEAF + 1)]
