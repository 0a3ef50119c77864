"""What the Hyper-V interface asks of the vCPU and the VM it belongs to: the contract that `Vcpu` and `Vm` implement.

No counterpart in KVM, whose hyperv.c includes the whole of `struct kvm_vcpu`; here it is what it uses of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from vtlkit.engine.api import Engine
from vtlkit.host.api import Host
from vtlkit.kvm.lapic import LocalApic
from vtlkit.kvm.memory import GuestMemory
from vtlkit.kvm.requests import Req
from vtlkit.kvm.statistics import VcpuStatistics
from vtlkit.kvm.translate import TranslateAccess, TranslateFlags, Translation

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.vcpu import HvVcpu
    from vtlkit.kvm.hyperv.vm import HvVm
    from vtlkit.trace.tracer import VcpuTrace


class VcpuOwner(Protocol):
    """The vCPU. Methods marked (any) are called from any task, all others from the task that runs the vCPU."""

    @property
    def vcpu_id(self) -> int: ...

    @property
    def host(self) -> Host: ...

    @property
    def vm(self) -> VmOwner: ...

    @property
    def hv(self) -> HvVcpu: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def apic(self) -> LocalApic: ...

    @property
    def statistics(self) -> VcpuStatistics: ...

    @property
    def trace(self) -> VcpuTrace | None: ...

    def is_64bit(self) -> bool:
        """CS.L and EFER.LMA."""

    def cpl(self) -> int: ...

    def protected_mode(self) -> bool:
        """CR0.PE."""

    def queue_exception(self, vector: int, error_code: int | None = None) -> None:
        """Deliver an exception at the current instruction before the guest goes on."""

    def skip_instruction(self, length: int) -> None:
        """Move RIP past the instruction that exited."""

    def make_request(self, request: Req) -> None:
        """Set the request bit, ordering earlier stores before it; no kick (any)."""

    def kick(self) -> None:
        """Wake the vCPU if it blocks, force an exit if it runs guest code; never blocks (any)."""

    def request_tlb_flush(self) -> None:
        """Drop cached translations before the guest runs on; never blocks (any)."""

    def update_intercepts(self) -> None:
        """`HvVcpu.npiep` changed: what of it needs intercepts is to exit from now on."""

    def may_run_on_old_translations(self) -> bool:
        """Whether guest code may still execute under translations that `request_tlb_flush` was to drop (any)."""

    def translate2(self, gva: int, access: TranslateAccess, flags: TranslateFlags = TranslateFlags.NONE) -> Translation:
        """KVM_TRANSLATE2 in the vCPU's present context."""

    def get_msr(self, index: int) -> int | None:
        """An MSR as user space reads it; None if there is no such."""

    def suspend(self) -> None:
        """Sleep at the instruction that exited until UNBLOCK, a signal, or an event for this vCPU."""

    def guest_tsc(self) -> int:
        """The guest's TSC now (any)."""

    def tsc_to_ns(self, guest_tsc: int) -> int:
        """The host time, in ns, at which the guest's TSC reads `guest_tsc`; 0 if it is 2^63 cycles away (any)."""


class VmOwner(Protocol):
    """The VM."""

    @property
    def host(self) -> Host: ...

    @property
    def vcpus(self) -> Sequence[VcpuOwner]:
        """In order of creation."""

    @property
    def memory(self) -> GuestMemory: ...

    @property
    def hv(self) -> HvVm: ...

    @property
    def tsc_khz(self) -> int: ...

    def kvm_clock_ns(self) -> int:
        """Nanoseconds of guest time, on the same clock for all VMs of a partition."""
