"""What a partition may use of the Hyper-V interface, as one integer: leaf 0x40000003's EAX, EBX and, above them, EDX.

Mirrors `cpuid_cache` and `hv_check_msr_access` of arch/x86/kvm/hyperv.c, with enforcement always on: what CPUID does
not offer is #GP for an MSR, ACCESS_DENIED for a hypercall and #UD for XMM parameters.
"""

from __future__ import annotations

from typing import Final

from vtlkit.hvdef.cpuid import HvFeaturesEdx, HvPartitionPrivilege

_EBX_SHIFT = 32
_EDX_SHIFT = 64


def privilege_bits(eax: int, ebx: int, edx: int) -> int:
    """The integer for these registers of leaf 0x40000003."""
    return eax | ebx << _EBX_SHIFT | edx << _EDX_SHIFT


def feature(bit: HvFeaturesEdx) -> int:
    """A feature of EDX in that integer; privileges (EAX and EBX) stand for themselves."""
    return int(bit) << _EDX_SHIFT


XMM_INPUT: Final = feature(HvFeaturesEdx.XmmRegistersForFastHypercallAvailable)
FAST_OUTPUT: Final = feature(HvFeaturesEdx.FastHypercallOutputAvailable)
GUEST_CRASH: Final = feature(HvFeaturesEdx.GuestCrashRegsAvailable)
EXTENDED_GVA_RANGES: Final = int(HvPartitionPrivilege.EnableExtendedGvaRangesForFlushVirtualAddressList)
