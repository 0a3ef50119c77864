"""Which virtual processors a local APIC's ID or an interrupt's destination means.

TLFS, HvCallGetVpIndexFromApicId and HvCallGetVpSetFromMda. Nothing is changed and no processor stands still for it:
destinations are those of the moment, as an interrupt sent now would find them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vp_set import encode_vp_set
from vtlkit.kvm.uapi import HypercallParameters
from vtlkit.vmm.vsm.targets import plain_vtl, refusal

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_DESTINATION_MAX: Final = 0xFFFFFFFF


def get_vp_index_from_apic_id(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallGetVpIndexFromApicId: the ID that the processor was made with, the same in all its VTLs."""
    request = io.HV_INPUT_GET_VP_INDEX_FROM_APIC_ID.unpack_from(call.data)
    start = call.rep_start
    if request.PartitionId != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID, start
    status = refusal(vp, level, plain_vtl(request.TargetVtl))
    if status:
        return status, start
    by_apic_id = {other.vcpus[0].apic.apic_id: other.index for other in vp.partition.vps}
    for index in range(start, call.rep_count):
        found = by_apic_id.get(int.from_bytes(call.element(index), "little"))
        if found is None:
            return HvStatus.INVALID_PARAMETER, index
        call.write_element(index, found.to_bytes(4, "little"))
    return HvStatus.SUCCESS, call.rep_count


def get_vp_set_from_mda(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallGetVpSetFromMda: whom the local APICs of a VTL would have take an interrupt; an empty set is no error."""
    request = io.HV_INPUT_GET_VP_SET_FROM_MDA.unpack_from(call.data)
    if request.TargetPartition != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID, 0
    malformed = request.LogicalDestinationMode > 1 or any(request.Reserved)
    if malformed or request.DestinationAddress > _DESTINATION_MAX:
        return HvStatus.INVALID_PARAMETER, 0
    target = plain_vtl(request.TargetVtl)
    status = refusal(vp, level, target)
    if status:
        return status, 0
    assert target is not None
    targets = vp.partition.vtls[target].vm.destinations(
        request.DestinationAddress, logical=bool(request.LogicalDestinationMode)
    )
    call.write_output(encode_vp_set(targets).ljust(call.output_size, b"\0"))
    return HvStatus.SUCCESS, 0
