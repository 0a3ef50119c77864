"""HvCallAssertVirtualInterrupt: an interrupt message to the local APICs of the caller's VTL or of a lower one.

TLFS, HvCallAssertVirtualInterrupt, HV_INTERRUPT_CONTROL, HV_INTERRUPT_TYPE. The page names no status. Ours: another
partition than the caller's own INVALID_PARTITION_ID; a higher VTL ACCESS_DENIED; one that is not enabled
INVALID_VTL_STATE; reserved bits, vectors below 16 of fixed and lowest-priority interrupts, what does not fit 8 bits
(vector) or 32 (destination), and types other than fixed, lowest priority, NMI, INIT and SIPI INVALID_PARAMETER. A
message that no local APIC takes is lost, as on the bus: SUCCESS. INIT and SIPI do what they do when a local APIC of
that VTL sends them; where a VTL above the caller wants to be told of those they are refused, ACCESS_DENIED: the message
that it gets tells of a local APIC's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercall_io import HvInterruptType
from vtlkit.hvdef.identifiers import HV_MAX_VTLS, HV_PARTITION_ID_SELF
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import HypercallParameters
from vtlkit.vmm.vsm.intercepts.by_name import wanted_above
from vtlkit.x86.apic import DeliveryMode

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_MODES: Final[dict[int, DeliveryMode]] = {
    HvInterruptType.HvX64InterruptTypeFixed: DeliveryMode.FIXED,
    HvInterruptType.HvX64InterruptTypeLowestPriority: DeliveryMode.LOWEST,
    HvInterruptType.HvX64InterruptTypeNmi: DeliveryMode.NMI,
    HvInterruptType.HvX64InterruptTypeInit: DeliveryMode.INIT,
    HvInterruptType.HvX64InterruptTypeSipi: DeliveryMode.STARTUP,
}
_STARTUP: Final = (DeliveryMode.INIT, DeliveryMode.STARTUP)
_WITH_VECTOR: Final = (DeliveryMode.FIXED, DeliveryMode.LOWEST)
_CONTROL_BITS: Final = (
    io.HV_INTERRUPT_CONTROL_TYPE.mask
    | io.HV_INTERRUPT_CONTROL_LEVEL_TRIGGERED.mask
    | io.HV_INTERRUPT_CONTROL_LOGICAL_DESTINATION_MODE.mask
)
_MAX_VECTOR: Final = 0xFF
_MAX_DESTINATION: Final = 0xFFFFFFFF
_FIRST_VECTOR: Final = 0x10


def assert_virtual_interrupt(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """See the module."""
    request = io.HV_INPUT_ASSERT_VIRTUAL_INTERRUPT.unpack_from(call.data)
    control, vector = request.InterruptControl, request.RequestedVector
    if request.TargetPartition != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID, 0
    if request.ReservedZ0 or request.ReservedZ1 or control & ~_CONTROL_BITS or request.TargetVtl >= HV_MAX_VTLS:
        return HvStatus.INVALID_PARAMETER, 0
    mode = _MODES.get(io.HV_INTERRUPT_CONTROL_TYPE.get(control))
    if mode is None or vector > _MAX_VECTOR or request.DestinationAddress > _MAX_DESTINATION:
        return HvStatus.INVALID_PARAMETER, 0
    if mode in _WITH_VECTOR and vector < _FIRST_VECTOR:
        return HvStatus.INVALID_PARAMETER, 0
    if request.TargetVtl > level:
        return HvStatus.ACCESS_DENIED, 0
    vtl = vp.partition.vtls.get(request.TargetVtl)
    if vtl is None:
        return HvStatus.INVALID_VTL_STATE, 0
    if mode in _STARTUP and wanted_above(vp, level).init_sipi:
        return HvStatus.ACCESS_DENIED, 0
    vtl.vm.deliver_interrupt(
        mode,
        vector,
        request.DestinationAddress,
        logical=bool(io.HV_INTERRUPT_CONTROL_LOGICAL_DESTINATION_MODE.get(control)),
        level_triggered=bool(io.HV_INTERRUPT_CONTROL_LEVEL_TRIGGERED.get(control)),
    )
    return HvStatus.SUCCESS, 0
