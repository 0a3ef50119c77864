"""What a partition may use of the Hyper-V interface, as one integer: leaf 0x40000003's EAX, EBX and EDX, leaf
0x40000004's EAX, and whether its EBX offers HvCallNotifyLongSpinWait, from the lowest bit up.

Mirrors `cpuid_cache`, `hv_check_msr_access` and `hv_check_hypercall_access` of arch/x86/kvm/hyperv.c, with enforcement
always on: what CPUID does not offer is #GP for an MSR, ACCESS_DENIED for a hypercall and #UD for XMM parameters.
"""

from __future__ import annotations

from typing import Final

from vtlkit.hvdef.cpuid import (
    HV_NEVER_NOTIFY_LONG_SPIN_WAIT,
    HvEnlightenments,
    HvFeaturesEdx,
    HvPartitionPrivilege,
)

_EBX_SHIFT = 32
_EDX_SHIFT = 64
_HINT_SHIFT = 96
LONG_SPIN_WAIT: Final = 1 << 128


def privilege_bits(eax: int, ebx: int, edx: int, hints: int = 0, spin_attempts: int = 0) -> int:
    """The integer for these registers of leaf 0x40000003, and EAX and EBX of leaf 0x40000004."""
    bits = eax | ebx << _EBX_SHIFT | edx << _EDX_SHIFT | hints << _HINT_SHIFT
    return bits | LONG_SPIN_WAIT if spin_attempts not in (0, HV_NEVER_NOTIFY_LONG_SPIN_WAIT) else bits


def feature(bit: HvFeaturesEdx) -> int:
    """A feature of EDX in that integer; privileges (EAX and EBX) stand for themselves."""
    return int(bit) << _EDX_SHIFT


def hint(bit: HvEnlightenments) -> int:
    """A recommendation in that integer: a hypercall that is recommended to nobody is offered to nobody."""
    return int(bit) << _HINT_SHIFT


XMM_INPUT: Final = feature(HvFeaturesEdx.XmmRegistersForFastHypercallAvailable)
FAST_OUTPUT: Final = feature(HvFeaturesEdx.FastHypercallOutputAvailable)
DIRECT_TIMERS: Final = feature(HvFeaturesEdx.DirectSyntheticTimers)
UNHALTED_TIMER: Final = feature(HvFeaturesEdx.SyntheticTimeUnhaltedTimerAvailable)
GUEST_CRASH: Final = feature(HvFeaturesEdx.GuestCrashRegsAvailable)
NPIEP: Final = feature(HvFeaturesEdx.Npiep1Available)
EXTENDED_GVA_RANGES: Final = int(HvPartitionPrivilege.EnableExtendedGvaRangesForFlushVirtualAddressList)
EX_MASKS: Final = hint(HvEnlightenments.UseExProcessorMasks)
REMOTE_FLUSH: Final = hint(HvEnlightenments.UseHypercallForRemoteFlush)
CLUSTER_IPI: Final = hint(HvEnlightenments.UseSyntheticClusterIpi)
