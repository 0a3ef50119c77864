"""Whom a hypercall names: a processor, a VTL (TLFS, HV_VP_INDEX, HV_VTL, HV_INPUT_VTL)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.hvdef.identifiers import HV_VP_INDEX_SELF
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
