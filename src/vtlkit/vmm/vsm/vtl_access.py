"""HvCallCheckSparseGpaPageVtlAccess: what higher VTLs would say to an access, before it is made.

The TLFS names the call only; its layout is that of OpenVMM's hvdef. It is for emulating in a higher VTL what a lower
one did: a VTL asks about those below it. Memory that is no RAM nobody can protect: there is nothing against the access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Access
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.identifiers import GPA_LIMIT, HV_PAGE_SIZE, HV_PARTITION_ID_SELF
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import (
    HV_MAP_GPA_KERNEL_EXECUTABLE,
    HV_MAP_GPA_READABLE,
    HV_MAP_GPA_USER_EXECUTABLE,
    HV_MAP_GPA_WRITABLE,
)
from vtlkit.kvm.uapi import HypercallParameters
from vtlkit.vmm.vsm.targets import input_vtl

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_ACCESS: Final = {
    HV_MAP_GPA_READABLE: Access.READ,
    HV_MAP_GPA_WRITABLE: Access.WRITE,
    HV_MAP_GPA_KERNEL_EXECUTABLE: Access.EXECUTE,
    HV_MAP_GPA_USER_EXECUTABLE: Access.EXECUTE,
}
_ALL: Final = sum(_ACCESS)


def check_sparse_gpa_page_vtl_access(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """A result for each page: SUCCESS, or the VTL that would get the intercept and what it denies."""
    request = io.HV_INPUT_CHECK_SPARSE_GPA_PAGE_VTL_ACCESS.unpack_from(call.data)
    start = call.rep_start
    if request.PartitionId != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID, start
    target = input_vtl(request.TargetVtl, level)
    malformed = request.Reserved0 or request.Reserved1 or request.DesiredAccess & ~_ALL or not request.DesiredAccess
    if target is None or malformed:
        return HvStatus.INVALID_PARAMETER, start
    if target >= level:
        return HvStatus.ACCESS_DENIED, start
    for index in range(start, call.rep_count):
        gpa = int.from_bytes(call.element(index), "little") * HV_PAGE_SIZE
        if gpa >= GPA_LIMIT:
            return HvStatus.INVALID_PARAMETER, index
        result = _result(vp, target, gpa, request.DesiredAccess)
        call.write_element(index, result.to_bytes(8, "little"))
    return HvStatus.SUCCESS, call.rep_count


def _result(vp: Vp, target: int, gpa: int, desired: int) -> int:
    partition = vp.partition
    wanted = Access.NONE
    for flag, access in _ACCESS.items():
        if desired & flag:
            wanted |= access
    with partition.lock:
        setter = partition.denier(target, gpa, wanted)
        if setter is None:
            return io.HV_CHECK_VTL_ACCESS_SUCCESS
        permitted = partition.vtls[setter].protections[target].at(gpa)
    denied = sum(flag for flag, access in _ACCESS.items() if desired & flag and not access & permitted)
    return (
        io.HV_CHECK_VTL_ACCESS_RESULT_CODE.make(io.HV_CHECK_VTL_ACCESS_MEMORY_INTERCEPT)
        | io.HV_CHECK_VTL_ACCESS_DENIED_ACCESS.make(denied)
        | io.HV_CHECK_VTL_ACCESS_INTERCEPTING_VTL.make(setter)
    )
