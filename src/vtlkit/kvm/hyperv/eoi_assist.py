"""EOI assist: an interrupt that the guest may end by clearing a bit of its VP assist page (TLFS, "EOI Assist"; mirrors
`apic_sync_pv_eoi_to_guest` and `apic_sync_pv_eoi_from_guest` of arch/x86/kvm/lapic.c).

Promise: outside guest code the local APIC is exact and the bit is clear. An EOI that would do more than clear a bit in
ISR is not skipped, or the guest is made to exit soon after.

All of this is for the vCPU's own task. What others share with it is the local APIC's IRR and the SynIC's `waiting`:
they store there, then kick; `offer` comes after the vCPU has announced that it is in the guest, and a full barrier.
Whoever comes too late for the look finds the vCPU in the guest and makes it exit. docs/design/stimer.md has the states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.vcpu import HvVcpu


class EoiAssist:
    """See the module."""

    __slots__ = ("_hv", "offered")

    def __init__(self, hv: HvVcpu) -> None:
        self._hv = hv
        self.offered = False
        """NoEoiRequired has been set for the guest that runs now: call `sync` before the local APIC is looked at."""

    def offer(self) -> None:
        """About to enter the guest: let the EOI of the highest interrupt in service go without an exit, if it may."""
        hv = self._hv
        vector = hv.vcpu.apic.private_eoi()
        if vector < 0 or hv.awaits_eoi(vector):
            return
        hv.assist.set_no_eoi_required(True)
        self.offered = True

    def sync(self) -> None:
        """Take the offer back; if the guest has made use of it, do the EOI."""
        self.offered = False
        if self._hv.assist.no_eoi_required:
            self._hv.assist.set_no_eoi_required(False)
        else:
            self._hv.vcpu.apic.set_eoi()
