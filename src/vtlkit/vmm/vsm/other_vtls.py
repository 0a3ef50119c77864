"""Interprocessor interrupts and TLB flushes that name VTLs: what the hypervisor hands on because it knows one VTL only.

TLFS, HvCallSendSyntheticClusterIpi and HvCallFlushVirtualAddressSpace and their kin. A VTL may name itself and those
below it. Flushes drop all of a target's translations, as the hypervisor's do; an empty mask means all processors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HV_INPUT_VTL_RESERVED_MASK, HV_INPUT_VTL_TARGET_VTL, HV_INPUT_VTL_USE_TARGET_VTL
from vtlkit.kvm.uapi import ALL_VPS, HypercallParameters, sparse_set

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_SPACE_FLAGS: Final = (
    io.HV_FLUSH_ALL_PROCESSORS
    | io.HV_FLUSH_ALL_VIRTUAL_ADDRESS_SPACES
    | io.HV_FLUSH_NON_GLOBAL_MAPPINGS_ONLY
    | io.HV_FLUSH_USE_TARGET_VTL
    | io.HV_FLUSH_TARGET_VTLS.mask
)
_LIST_FLAGS: Final = (_SPACE_FLAGS & ~io.HV_FLUSH_NON_GLOBAL_MAPPINGS_ONLY) | io.HV_FLUSH_USE_EXTENDED_RANGE_FORMAT
_FLAGS: Final[dict[int, int]] = {
    HvCallCode.HvCallFlushVirtualAddressSpace: _SPACE_FLAGS,
    HvCallCode.HvCallFlushVirtualAddressSpaceEx: _SPACE_FLAGS,
    HvCallCode.HvCallFlushVirtualAddressList: _LIST_FLAGS,
    HvCallCode.HvCallFlushVirtualAddressListEx: _LIST_FLAGS,
}


def send_ipi(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallSendSyntheticClusterIpi and its Ex form."""
    request = io.HV_INPUT_SEND_SYNTHETIC_CLUSTER_IPI.unpack_from(call.data)
    targets: int | HvStatus = request.ProcessorMask
    if call.code == HvCallCode.HvCallSendSyntheticClusterIpiEx:
        processors = io.HV_INPUT_SEND_SYNTHETIC_CLUSTER_IPI_EX.unpack_from(call.data).ProcessorSet
        targets = sparse_set(call, processors.Format, processors.ValidBanksMask)
    if isinstance(targets, HvStatus):
        return targets, 0
    vector_valid = io.HV_IPI_LOW_VECTOR <= request.Vector <= io.HV_IPI_HIGH_VECTOR
    if request.TargetVtl & HV_INPUT_VTL_RESERVED_MASK or request.Flags or request.Reserved or not vector_valid:
        return HvStatus.INVALID_PARAMETER, 0
    target = level
    if HV_INPUT_VTL_USE_TARGET_VTL.get(request.TargetVtl):
        target = HV_INPUT_VTL_TARGET_VTL.get(request.TargetVtl)
    status = _may_name(vp, level, target)
    if not status:
        vp.partition.vtls[target].vm.send_ipi(targets, request.Vector)
    return status, 0


def flush(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallFlushVirtualAddressSpace, ...List and their Ex forms."""
    request = io.HV_INPUT_FLUSH_VIRTUAL_ADDRESS_SPACE.unpack_from(call.data)
    flags = request.Flags
    targets: int | HvStatus = request.ProcessorMask or ALL_VPS
    if call.code in (HvCallCode.HvCallFlushVirtualAddressSpaceEx, HvCallCode.HvCallFlushVirtualAddressListEx):
        processors = io.HV_INPUT_FLUSH_VIRTUAL_ADDRESS_SPACE_EX.unpack_from(call.data).ProcessorSet
        targets = sparse_set(call, processors.Format, processors.ValidBanksMask)
    if isinstance(targets, HvStatus):
        return targets, call.rep_start
    if flags & ~_FLAGS[call.code]:
        return HvStatus.INVALID_PARAMETER, call.rep_start
    named = io.HV_FLUSH_TARGET_VTLS.get(flags)
    levels = [target for target in range(named.bit_length()) if named >> target & 1]
    if not flags & io.HV_FLUSH_USE_TARGET_VTL or not levels:
        return HvStatus.INVALID_PARAMETER, call.rep_start
    for target in reversed(levels):
        status = _may_name(vp, level, target)
        if status:
            return status, call.rep_start
    if flags & io.HV_FLUSH_ALL_PROCESSORS:
        targets = ALL_VPS
    for target in levels:
        vp.partition.vtls[target].vm.flush_tlbs(targets)
    return HvStatus.SUCCESS, call.rep_count


def _may_name(vp: Vp, level: int, target: int) -> HvStatus:
    if target > level:
        return HvStatus.ACCESS_DENIED
    return HvStatus.SUCCESS if target in vp.partition.vtls else HvStatus.INVALID_PARAMETER
