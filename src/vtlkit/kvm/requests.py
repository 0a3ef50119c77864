"""vCPU requests: bits that another task sets on a vCPU and that the vCPU handles before it enters the guest.

Mirrors `KVM_REQ_*` in include/linux/kvm_host.h and arch/x86/include/asm/kvm_host.h; the protocol is
Documentation/virt/kvm/vcpu-requests.rst and, here, docs/design/requests.md.
"""

from __future__ import annotations

import enum


class Req(enum.IntEnum):
    """Request numbers: bits of `Vcpu.requests`."""

    TLB_FLUSH = 0
    UNBLOCK = 2
    TRIPLE_FAULT = 3
    EVENT = 4
    NMI = 5
    HV_CRASH = 8
    HV_RESET = 9
    HV_STIMER = 10
    MEMORY_CHANGED = 11
    USER_INTERCEPTS = 12
    USERSPACE_KICK = 13
    """Leave `run`: kick-all (docs/design/kick.md)."""


NO_WAKEUP = frozenset({Req.TLB_FLUSH, Req.MEMORY_CHANGED})
"""Requests that may wait until the vCPU runs for another reason (KVM_REQUEST_NO_WAKEUP): a blocked one sleeps on."""
