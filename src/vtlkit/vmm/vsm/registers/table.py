"""What a register of HV_REGISTER_NAME is to HvCallGetVpRegisters and HvCallSetVpRegisters."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

U64: Final = 0xFFFFFFFFFFFFFFFF
VALUE_SIZE: Final = 16
"""Bytes of an HV_REGISTER_VALUE."""

Get: TypeAlias = Callable[["Vp", int, Vcpu], "int | HvStatus"]
"""(processor, VTL, vCPU) -> the value, 128 bits, or why there is none"""
Set: TypeAlias = Callable[["Vp", int, Vcpu, int], HvStatus]
"""(processor, VTL, vCPU, value): a write that is refused changes nothing"""


class Scope(enum.Enum):
    """Whose a register is: which vCPU has it, and what has to stand still while it is read or written."""

    PARTITION = enum.auto()
    """Nobody's in particular: its own lock or cells guard it, and no vCPU stands still."""
    VP = enum.auto()
    """The processor's, shared by its VTLs: the vCPU that has the shared state now."""
    VTL = enum.auto()
    """One VTL's of the processor: that VTL's vCPU."""


class Register(NamedTuple):
    """`set` None: read-only, ACCESS_DENIED. `msr`: the MSR that it is, for a guest's own instructions."""

    get: Get
    set: Set | None = None
    scope: Scope = Scope.VTL
    msr: int | None = None


def write_only(_vp: Vp, _level: int, _vcpu: Vcpu) -> HvStatus:
    """A register that is a command: there is nothing to read."""
    return HvStatus.ACCESS_DENIED
