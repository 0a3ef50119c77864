"""Which virtual processors a hypercall names: masks, sparse sets, and the VTL they are to run in (TLFS, HV_VP_SET,
HV_INPUT_VTL; `sparse_set_to_vcpu_mask` in arch/x86/kvm/hyperv.c).

A set is an integer with a bit per VP index; -1 is all of them.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vp_set import HV_GENERIC_SET_ALL, HV_GENERIC_SET_SPARSE_4K, decode_sparse_banks
from vtlkit.hvdef.vsm import HV_INPUT_VTL_RESERVED_MASK, HV_INPUT_VTL_TARGET_VTL, HV_INPUT_VTL_USE_TARGET_VTL
from vtlkit.kvm.hyperv.parameters import Hypercall

ALL_VPS: Final = -1
_BANK_SIZE = 8


class TargetVtl(enum.Enum):
    """What an HV_INPUT_VTL names, seen from the caller's VTL."""

    OWN = enum.auto()
    OTHER = enum.auto()
    INVALID = enum.auto()


def target_vtl(input_vtl: int, own_vtl: int) -> TargetVtl:
    """Decode an HV_INPUT_VTL byte; without a target it means the caller's own VTL."""
    if input_vtl & HV_INPUT_VTL_RESERVED_MASK:
        return TargetVtl.INVALID
    if not input_vtl & HV_INPUT_VTL_USE_TARGET_VTL.mask or HV_INPUT_VTL_TARGET_VTL.get(input_vtl) == own_vtl:
        return TargetVtl.OWN
    return TargetVtl.OTHER


def sparse_set(call: Hypercall, set_format: int, valid_banks: int) -> int | HvStatus:
    """The set whose banks are the call's variable header, which has a word per valid bank in every format."""
    header = call.variable_header
    if valid_banks.bit_count() * _BANK_SIZE != len(header):
        return HvStatus.INVALID_HYPERCALL_INPUT
    if set_format == HV_GENERIC_SET_ALL:
        return ALL_VPS
    if set_format != HV_GENERIC_SET_SPARSE_4K:
        return HvStatus.INVALID_PARAMETER
    return decode_sparse_banks(valid_banks, struct.unpack(f"<{len(header) // _BANK_SIZE}Q", header))
