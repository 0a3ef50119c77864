"""HvCallFlushVirtualAddressSpace, ...List and their Ex forms: flush the TLBs of a set of virtual processors (mirrors
`kvm_hv_flush_tlb` in arch/x86/kvm/hyperv.c).

A target flushes its whole TLB before it runs its next guest instruction after the kick: address space and list only
say how little would do. Like KVM, an empty mask is taken for all processors (a Windows guest relies on it); flushing
too much is always allowed. A flush for other VTLs exits to user space.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.hypercall_io import (
    HV_FLUSH_ALL_PROCESSORS,
    HV_FLUSH_ALL_VIRTUAL_ADDRESS_SPACES,
    HV_FLUSH_NON_GLOBAL_MAPPINGS_ONLY,
    HV_FLUSH_USE_EXTENDED_RANGE_FORMAT,
    HV_FLUSH_USE_TARGET_VTL,
)
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv.parameters import Hypercall
from vtlkit.kvm.hyperv.privileges import EXTENDED_GVA_RANGES
from vtlkit.kvm.hyperv.vp_set import ALL_VPS, sparse_set
from vtlkit.kvm.requests import Req

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.vcpu import HvVcpu

_SPACE: Final = struct.Struct("<QQQ")
_SPACE_EX: Final = struct.Struct("<QQQQ")
_COMMON: Final = HV_FLUSH_ALL_PROCESSORS | HV_FLUSH_ALL_VIRTUAL_ADDRESS_SPACES
_SPACE_FLAGS: Final = _COMMON | HV_FLUSH_NON_GLOBAL_MAPPINGS_ONLY


def flush_virtual_address_space(hv: HvVcpu, call: Hypercall) -> HvStatus | None:
    return _flush_mask(hv, call, _SPACE_FLAGS)


def flush_virtual_address_list(hv: HvVcpu, call: Hypercall) -> HvStatus | None:
    return _flush_mask(hv, call, _list_flags(hv))


def flush_virtual_address_space_ex(hv: HvVcpu, call: Hypercall) -> HvStatus | None:
    return _flush_set(hv, call, _SPACE_FLAGS)


def flush_virtual_address_list_ex(hv: HvVcpu, call: Hypercall) -> HvStatus | None:
    return _flush_set(hv, call, _list_flags(hv))


def _list_flags(hv: HvVcpu) -> int:
    return _COMMON | (HV_FLUSH_USE_EXTENDED_RANGE_FORMAT if hv.privileges & EXTENDED_GVA_RANGES else 0)


def _flush_mask(hv: HvVcpu, call: Hypercall, allowed: int) -> HvStatus | None:
    _, flags, mask = _SPACE.unpack_from(call.data)
    return _flush(hv, call, flags, allowed, mask or ALL_VPS)


def _flush_set(hv: HvVcpu, call: Hypercall, allowed: int) -> HvStatus | None:
    _, flags, set_format, valid_banks = _SPACE_EX.unpack_from(call.data)
    targets = sparse_set(call, set_format, valid_banks)
    if isinstance(targets, HvStatus):
        return targets
    return _flush(hv, call, flags, allowed, targets)


def _flush(hv: HvVcpu, call: Hypercall, flags: int, allowed: int, targets: int) -> HvStatus | None:
    if flags & HV_FLUSH_USE_TARGET_VTL:
        return None
    if flags & ~allowed:
        return HvStatus.INVALID_PARAMETER
    if flags & HV_FLUSH_ALL_PROCESSORS:
        targets = ALL_VPS
    for target in hv.hv_vm.vps(targets):
        target.vcpu.make_request(Req.TLB_FLUSH)
        if target is not hv:
            target.vcpu.kick()
    call.reps_done = call.rep_count
    return HvStatus.SUCCESS
