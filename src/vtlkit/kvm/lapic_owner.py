"""What a local APIC and its timer ask of the vCPU they belong to: the contract that the vCPU implements.

No counterpart in KVM, whose lapic.c includes the whole of `struct kvm_vcpu`; here it is what it uses of it.
"""

from __future__ import annotations

from typing import Protocol

from vtlkit.host.api import Host
from vtlkit.kvm.requests import Req


class TimerOwner(Protocol):
    """What the timer needs of the vCPU; see `lapic.ApicOwner`."""

    @property
    def vcpu_id(self) -> int: ...

    @property
    def host(self) -> Host: ...

    def make_request(self, request: Req) -> None: ...

    def kick(self) -> None: ...

    def tsc_to_ns(self, guest_tsc: int) -> int: ...


class ApicListener(Protocol):
    """What user space's intercepts hear of a local APIC's own vCPU."""

    def eoi(self, vector: int) -> None:
        """The guest has ended an interrupt."""

    def written(self, offset: int, value: int) -> None:
        """The guest has written a register."""

    def startup(self, icr: int, dest_id: int) -> bool:
        """Whether a message that the guest sends (ICR's low half, x2APIC destination) is kept from being sent."""


class HvTimer(Protocol):
    """The vendor's way to make a VM-exit at a given time (VMX preemption timer): `set_hv_timer`, `cancel_hv_timer`."""

    def set_hv_timer(self, deadline_ns: int) -> bool:
        """Force an exit of the guest at `deadline_ns` of the host clock; False if this vCPU cannot use it."""

    def cancel_hv_timer(self) -> None:
        """Force no exit any more."""


class ApicOwner(TimerOwner, Protocol):
    """What a local APIC needs of its vCPU. Methods marked (any) are called by senders on other tasks."""

    def make_request(self, request: Req) -> None:
        """Set the request bit, ordering earlier stores before it; no kick (any)."""

    def kick(self) -> None:
        """Wake the vCPU if it blocks, force an exit if it runs guest code (`kvm_vcpu_kick`); never blocks (any)."""

    def guest_tsc(self) -> int:
        """The guest's TSC now."""

    def tsc_to_ns(self, guest_tsc: int) -> int:
        """The host time, in ns, at which the guest's TSC reads `guest_tsc`."""

    def deliver_nmi(self) -> None:
        """Queue an NMI (any). The APIC kicks afterwards; so for the three that follow."""

    def deliver_smi(self) -> None:
        """Queue an SMI (any)."""

    def deliver_init(self) -> None:
        """Queue an INIT, which forgets a SIPI that was queued before it (any)."""

    def deliver_sipi(self, vector: int) -> None:
        """Queue a start-up IPI (any)."""

    def apic_base_changed(self, old: int, new: int) -> None:
        """IA32_APICBASE went from `old` to `new`: map, move or unmap the MMIO page; update CPUID's APIC bit."""

    def eoi_ioapic(self, vector: int) -> None:
        """Broadcast the EOI of a level-triggered vector to the I/O APIC."""

    def wants_windows(self) -> bool:
        """Whether someone asks when the vCPU can take an interrupt: a lower PPR is news to him."""

    def hv_auto_eoi(self, vector: int) -> bool:
        """Whether a SynIC SINT with auto-EOI uses `vector`."""
