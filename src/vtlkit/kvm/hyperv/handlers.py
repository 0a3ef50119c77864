"""Who answers a hypercall in the hypervisor: one small function per call code, in a table.

A handler gets the decoded call, its parameters checked and read, and returns the status; None hands the call to user
space. A rep call's handler sets `reps_done`, and may stop early with SUCCESS. One that must wait makes the vCPU wait
and sets `reissue`. None raises for anything that a guest does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv import ipi, tlb_flush, translate_gva
from vtlkit.kvm.hyperv.parameters import Hypercall

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.vcpu import HvVcpu

Handler: TypeAlias = "Callable[[HvVcpu, Hypercall], HvStatus | None]"


def notify_long_spin_wait(hv: HvVcpu, _call: Hypercall) -> HvStatus:
    """The guest waits for a lock whose holder may not be running: let others run (`kvm_vcpu_on_spin`)."""
    hv.vcpu.host.relax()
    return HvStatus.SUCCESS


HANDLERS: Final[Mapping[int, Handler]] = {
    Call.HvCallFlushVirtualAddressSpace: tlb_flush.flush_virtual_addresses,
    Call.HvCallFlushVirtualAddressList: tlb_flush.flush_virtual_addresses,
    Call.HvCallNotifyLongSpinWait: notify_long_spin_wait,
    Call.HvCallSendSyntheticClusterIpi: ipi.send_synthetic_cluster_ipi,
    Call.HvCallFlushVirtualAddressSpaceEx: tlb_flush.flush_virtual_addresses,
    Call.HvCallFlushVirtualAddressListEx: tlb_flush.flush_virtual_addresses,
    Call.HvCallTranslateVirtualAddress: translate_gva.translate_own_address,
    Call.HvCallTranslateVirtualAddressEx: translate_gva.translate_own_address,
    Call.HvCallSendSyntheticClusterIpiEx: ipi.send_synthetic_cluster_ipi_ex,
}
