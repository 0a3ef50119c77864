"""Interprocessor interrupts and TLB flushes that name VTLs: what the hypervisor hands on because it knows one VTL only.

TLFS, HvCallSendSyntheticClusterIpi and HvCallFlushVirtualAddressSpace and their kin. A VTL may name itself and those
below it. Flushes drop all of a target's translations, as the hypervisor's do, and obey TLB locks (`tlb_locks`); an
empty mask means all processors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import HypercallParameters, decode_flush, sparse_set
from vtlkit.vmm.vsm.targets import input_vtl

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp


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
    target = input_vtl(request.TargetVtl, level)
    if target is None or request.Flags or request.Reserved or not vector_valid:
        return HvStatus.INVALID_PARAMETER, 0
    status = _may_name(vp, level, target)
    if not status:
        vp.partition.vtls[target].vm.send_ipi(targets, request.Vector)
    return status, 0


def flush(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallFlushVirtualAddressSpace, ...List and their Ex forms. One that a TLB lock holds up is made again."""
    request = decode_flush(vp.vcpus[level].hv, call)
    if isinstance(request, HvStatus):
        return request, call.reps_done
    named = request.vtls
    if named is None:
        named = 1 << level
    levels = [target for target in range(named.bit_length()) if named >> target & 1]
    for target in reversed(levels):
        status = _may_name(vp, level, target)
        if status:
            return status, call.rep_start
    if not vp.partition.tlb_locks.flush(vp, level, levels, request.targets):
        call.retry()
    return HvStatus.SUCCESS, call.rep_count


def _may_name(vp: Vp, level: int, target: int) -> HvStatus:
    if target > level:
        return HvStatus.ACCESS_DENIED
    return HvStatus.SUCCESS if target in vp.partition.vtls else HvStatus.INVALID_PARAMETER
