"""Whom a hypercall names: a processor, a VTL (TLFS, HV_VP_INDEX, HV_VTL, HV_INPUT_VTL)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HV_INPUT_VTL_RESERVED_MASK, HV_INPUT_VTL_TARGET_VTL, HV_INPUT_VTL_USE_TARGET_VTL

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp


def input_vtl(value: int, level: int) -> int | None:
    """The VTL that an HV_INPUT_VTL byte names, the caller's if it names none; None if it is malformed."""
    if value & HV_INPUT_VTL_RESERVED_MASK:
        return None
    if HV_INPUT_VTL_USE_TARGET_VTL.get(value):
        return HV_INPUT_VTL_TARGET_VTL.get(value)
    return level


def plain_vtl(value: int) -> int | None:
    """The VTL of a byte that is a plain number to the TLFS and an HV_INPUT_VTL to some guests; None if malformed."""
    return None if value & HV_INPUT_VTL_RESERVED_MASK else HV_INPUT_VTL_TARGET_VTL.get(value)


def refusal(vp: Vp, level: int, target: int | None) -> HvStatus:
    """Why the caller may not name an enabled VTL, its own or a lower one; SUCCESS if it may."""
    if target is None:
        return HvStatus.INVALID_PARAMETER
    if target > level:
        return HvStatus.ACCESS_DENIED
    return HvStatus.SUCCESS if target in vp.partition.vtls else HvStatus.INVALID_VTL_STATE


def target_vp(vp: Vp, index: int) -> Vp | None:
    """The processor of a VP index, HV_VP_INDEX_SELF included."""
    if index == HV_VP_INDEX_SELF:
        return vp
    vps = vp.partition.vps
    return vps[index] if index < len(vps) else None


def processor_and_vtl(
    vp: Vp, level: int, partition_id: int, index: int, vtl: int, *, malformed: bool = False
) -> tuple[HvStatus, Vp, int]:
    """(status, processor, VTL) of a call about an enabled VTL, the caller's or a lower one, of some processor.

    `vtl` is an HV_INPUT_VTL; `malformed` says that something else in the input is not as it must be.
    """
    if partition_id != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID, vp, 0
    other = target_vp(vp, index)
    if other is None:
        return HvStatus.INVALID_VP_INDEX, vp, 0
    target = input_vtl(vtl, level)
    if target is None or malformed:
        return HvStatus.INVALID_PARAMETER, vp, 0
    if target > level:
        return HvStatus.ACCESS_DENIED, vp, 0
    if target not in other.vcpus:
        return HvStatus.INVALID_VTL_STATE, vp, 0
    return HvStatus.SUCCESS, other, target
