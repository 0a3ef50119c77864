"""HvCallFlushVirtualAddressSpace, ...List and their Ex forms: flush the TLBs of a set of virtual processors (mirrors
`kvm_hv_flush_tlb` in arch/x86/kvm/hyperv.c).

Promise: when the call completes, no target executes under a translation from before it, and no target was inhibited
when it completed. A target that is inhibited suspends the caller on the instruction (`flush_inhibit`;
docs/design/tlb-flush-inhibit.md has the races), which is executed again when the inhibit is cleared.

A target flushes its whole TLB: address space and list only say how little would do. Like KVM, an empty mask is taken
for all processors (a Windows guest relies on it); flushing too much is always allowed. A flush that names VTLs exits to
user space, which decodes it with the same `decode_flush`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.hypercall_io import (
    HV_FLUSH_ALL_PROCESSORS,
    HV_FLUSH_ALL_VIRTUAL_ADDRESS_SPACES,
    HV_FLUSH_NON_GLOBAL_MAPPINGS_ONLY,
    HV_FLUSH_TARGET_VTLS,
    HV_FLUSH_USE_EXTENDED_RANGE_FORMAT,
    HV_FLUSH_USE_TARGET_VTL,
    HV_GVA_RANGE_EX_LARGE_PAGE,
    HV_GVA_RANGE_EX_LARGE_RESERVED_MASK,
)
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv.parameters import Hypercall
from vtlkit.kvm.hyperv.privileges import EXTENDED_GVA_RANGES
from vtlkit.kvm.hyperv.vp_set import ALL_VPS, sparse_set

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.vcpu import HvVcpu

_MASK: Final = struct.Struct("<QQQ")
_SET: Final = struct.Struct("<QQQQ")
_COMMON: Final = (
    HV_FLUSH_ALL_PROCESSORS | HV_FLUSH_ALL_VIRTUAL_ADDRESS_SPACES | HV_FLUSH_USE_TARGET_VTL | HV_FLUSH_TARGET_VTLS.mask
)
_LISTS: Final = (Call.HvCallFlushVirtualAddressList, Call.HvCallFlushVirtualAddressListEx)
_SETS: Final = (Call.HvCallFlushVirtualAddressSpaceEx, Call.HvCallFlushVirtualAddressListEx)


@dataclass(frozen=True, slots=True)
class FlushRequest:
    """What a flush hypercall asks for."""

    targets: int
    """A bit per VP index, or ALL_VPS."""
    vtls: int | None
    """A bit per VTL that it names; None: it names none, which is the caller's own."""


def decode_flush(hv: HvVcpu, call: Hypercall) -> FlushRequest | HvStatus:
    """Check a flush hypercall of this vCPU; a malformed range leaves its number in `reps_done`."""
    if call.code in _SETS:
        _, flags, set_format, valid_banks = _SET.unpack_from(call.data)
        named = sparse_set(call, set_format, valid_banks)
        if isinstance(named, HvStatus):
            return named
        targets = named
    else:
        _, flags, mask = _MASK.unpack_from(call.data)
        targets = mask or ALL_VPS
    is_list = call.code in _LISTS
    if not is_list:
        allowed = _COMMON | HV_FLUSH_NON_GLOBAL_MAPPINGS_ONLY
    elif hv.privileges & EXTENDED_GVA_RANGES:
        allowed = _COMMON | HV_FLUSH_USE_EXTENDED_RANGE_FORMAT
    else:
        allowed = _COMMON
    vtls = HV_FLUSH_TARGET_VTLS.get(flags)
    uses_vtls = flags & HV_FLUSH_USE_TARGET_VTL != 0
    if flags & ~allowed or uses_vtls != (vtls != 0):
        return HvStatus.INVALID_PARAMETER
    if is_list and flags & HV_FLUSH_USE_EXTENDED_RANGE_FORMAT and not _ranges_valid(call):
        return HvStatus.INVALID_PARAMETER
    if flags & HV_FLUSH_ALL_PROCESSORS:
        targets = ALL_VPS
    return FlushRequest(targets, vtls if uses_vtls else None)


def _ranges_valid(call: Hypercall) -> bool:
    """Whether no range in extended format has reserved bits set. Any address is valid: beyond the space is nothing."""
    for index in range(call.rep_start, call.rep_count):
        gva_range = int.from_bytes(call.element(index), "little")
        if HV_GVA_RANGE_EX_LARGE_PAGE.get(gva_range) and gva_range & HV_GVA_RANGE_EX_LARGE_RESERVED_MASK:
            call.reps_done = index
            return False
    return True


def flush_virtual_addresses(hv: HvVcpu, call: Hypercall) -> HvStatus | None:
    """All four calls."""
    request = decode_flush(hv, call)
    if isinstance(request, HvStatus):
        return request
    if request.vtls is not None:
        return None
    targets = list(hv.hv_vm.vps(request.targets))
    if not hv.flush_inhibit.flush(call, targets):
        return HvStatus.SUCCESS
    for target in targets:
        while target is not hv and target.vcpu.may_run_on_old_translations():
            hv.vcpu.host.relax()
    call.reps_done = call.rep_count
    return HvStatus.SUCCESS
