"""HvCallSendSyntheticClusterIpi and its Ex form: a fixed interrupt to a set of virtual processors (mirrors
`kvm_hv_send_ipi` in arch/x86/kvm/hyperv.c).

Within the caller's VTL the interrupt goes straight to the targets' local APICs; for another VTL the call exits to user
space, which knows where that is. VP indices that do not exist are ignored, as by KVM.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.hypercall_io import HV_IPI_HIGH_VECTOR, HV_IPI_LOW_VECTOR
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv.parameters import Hypercall
from vtlkit.kvm.hyperv.vp_set import TargetVtl, sparse_set, target_vtl
from vtlkit.x86.apic import DeliveryMode

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.vcpu import HvVcpu

# HV_INPUT_SEND_SYNTHETIC_CLUSTER_IPI(_EX), flags and reserved bytes as one number
_CLUSTER_IPI: Final = struct.Struct("<IBBHQ")
_CLUSTER_IPI_EX: Final = struct.Struct("<IBBHQQ")


def send_synthetic_cluster_ipi(hv: HvVcpu, call: Hypercall) -> HvStatus | None:
    vector, input_vtl, flags, reserved, mask = _CLUSTER_IPI.unpack(call.data)
    return _send(hv, vector, input_vtl, flags | reserved, mask)


def send_synthetic_cluster_ipi_ex(hv: HvVcpu, call: Hypercall) -> HvStatus | None:
    vector, input_vtl, flags, reserved, set_format, valid_banks = _CLUSTER_IPI_EX.unpack_from(call.data)
    targets = sparse_set(call, set_format, valid_banks)
    if isinstance(targets, HvStatus):
        return targets
    return _send(hv, vector, input_vtl, flags | reserved, targets)


def _send(hv: HvVcpu, vector: int, input_vtl: int, reserved: int, targets: int) -> HvStatus | None:
    vtl = target_vtl(input_vtl, hv.hv_vm.vtl)
    if vtl is TargetVtl.INVALID or reserved or not HV_IPI_LOW_VECTOR <= vector <= HV_IPI_HIGH_VECTOR:
        return HvStatus.INVALID_PARAMETER
    if vtl is TargetVtl.OTHER:
        return None
    for target in hv.hv_vm.vps(targets):
        target.vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)
    return HvStatus.SUCCESS
