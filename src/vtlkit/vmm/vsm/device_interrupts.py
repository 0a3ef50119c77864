"""HvCallRetargetDeviceInterrupt: move an interrupt of a device that the host has assigned to other processors.

The machine has no such device: those of the PC are wired to the I/O APIC, whose entries a guest writes itself. So a
well-formed call ends in INVALID_DEVICE_ID, as it does on Hyper-V for an ID that names nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vp_set import HV_GENERIC_SET_ALL, HV_GENERIC_SET_SPARSE_4K
from vtlkit.kvm.uapi import HypercallParameters

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_FLAGS: Final = io.HV_DEVICE_INTERRUPT_TARGET_MULTICAST | io.HV_DEVICE_INTERRUPT_TARGET_PROCESSOR_SET
_WORD: Final = 8
_FIRST_VECTOR: Final = 0x10
_LAST_VECTOR: Final = 0xFF


def retarget_device_interrupt(_vp: Vp, _level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    request = io.HV_INPUT_RETARGET_DEVICE_INTERRUPT.unpack_from(call.data)
    if request.PartitionId != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID, 0
    malformed = request.Reserved0 or request.RsvdZ or request.Flags & ~_FLAGS
    if malformed or request.InterruptSource != io.HV_INTERRUPT_SOURCE_MSI:
        return HvStatus.INVALID_PARAMETER, 0
    if not _FIRST_VECTOR <= request.Vector <= _LAST_VECTOR:
        return HvStatus.INVALID_PARAMETER, 0
    header = call.variable_header
    if request.Flags & io.HV_DEVICE_INTERRUPT_TARGET_PROCESSOR_SET:
        # The set's format is where the mask would be; its valid banks and their contents are the variable header.
        valid_banks = int.from_bytes(header[:_WORD], "little")
        if len(header) != _WORD * (1 + valid_banks.bit_count()):
            return HvStatus.INVALID_HYPERCALL_INPUT, 0
        if request.ProcessorMask not in (HV_GENERIC_SET_SPARSE_4K, HV_GENERIC_SET_ALL):
            return HvStatus.INVALID_PARAMETER, 0
    elif header:
        return HvStatus.INVALID_HYPERCALL_INPUT, 0
    return HvStatus.INVALID_DEVICE_ID, 0
