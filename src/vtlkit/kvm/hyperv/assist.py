"""The VP assist page of one vCPU (TLFS, "Virtual Processor Assist Page"; `HV_X64_MSR_VP_ASSIST_PAGE` in hyperv.c).

Shared: the page with the guest, and with the VMM, which calls the accessors only while the vCPU does not run guest code
(it owns the fields as it owns the VTL switch). The contents are there whether or not the guest has enabled the page.
"""

from __future__ import annotations

import struct
from typing import Final

from vtlkit.engine.api import Access
from vtlkit.hvdef import assist as layout
from vtlkit.hvdef.msrs import HV_MSR_PAGE_ENABLE, HV_MSR_PAGE_GPA
from vtlkit.hvdef.vsm import HvVtlEntryReason
from vtlkit.kvm.hyperv.overlays import OverlayPage, Precedence
from vtlkit.kvm.memory import GuestMemory

_U32 = struct.Struct("<I")
_RETURN_64: Final = struct.Struct("<QQ")
_RETURN_32: Final = struct.Struct("<III")
INTERCEPT_MESSAGE_SIZE: Final = layout.HV_VP_ASSIST_PAGE_RETURN_ACTIONS - layout.HV_VP_ASSIST_PAGE_INTERCEPT_MESSAGE


class VpAssistPage:
    """Register and contents."""

    __slots__ = ("page", "register")

    def __init__(self, memory: GuestMemory) -> None:
        self.page = OverlayPage(memory, Precedence.VP_ASSIST, Access.READ | Access.WRITE)
        self.register = 0
        """HV_X64_MSR_VP_ASSIST_PAGE."""

    @property
    def enabled(self) -> bool:
        return self.register & HV_MSR_PAGE_ENABLE != 0

    def set_register(self, value: int) -> int | None:
        """Write the MSR; where the page shall lie."""
        if value & HV_MSR_PAGE_ENABLE and not self.enabled:
            # The field is the hypervisor's word to the guest: what it held before does not count any more.
            self.page.write(0, bytes(_U32.size))
        self.register = value
        return value & HV_MSR_PAGE_GPA if value & HV_MSR_PAGE_ENABLE else None

    def reset(self) -> None:
        """RESET: disabled and zero."""
        self.register = 0
        self.page.clear()

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.page.view[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.page.write(offset, data)

    @property
    def entry_reason(self) -> int:
        """HV_VTL_ENTRY_REASON of the last entry into this VTL."""
        return int(_U32.unpack_from(self.page.view, layout.HV_VP_ASSIST_PAGE_ENTRY_REASON)[0])

    def set_entry_reason(self, reason: HvVtlEntryReason) -> None:
        # A word that no code lies in, stored at every VTL switch: the engines need not hear of it.
        _U32.pack_into(self.page.view, layout.HV_VP_ASSIST_PAGE_ENTRY_REASON, reason)

    @property
    def no_eoi_required(self) -> bool:
        """The guest may end the interrupt in service by clearing this."""
        return self.page.view[0] & layout.HV_APIC_ASSIST_NO_EOI_REQUIRED != 0

    def set_no_eoi_required(self, value: bool) -> None:
        # As the entry reason: no code lies here.
        if value:
            self.page.view[0] |= layout.HV_APIC_ASSIST_NO_EOI_REQUIRED
        else:
            self.page.view[0] &= ~layout.HV_APIC_ASSIST_NO_EOI_REQUIRED

    def set_unhalted_timer_expired(self) -> None:
        """Tell the guest that its time-unhalted timer expired; it resets the field itself."""
        self.write(layout.HV_VP_ASSIST_PAGE_UNHALTED_TIMER_EXPIRED, b"\1")

    @property
    def vina_asserted(self) -> bool:
        return self.page.view[layout.HV_VP_ASSIST_PAGE_VINA_STATUS] & layout.HV_VINA_STATUS_ASSERTED != 0

    def set_vina_asserted(self, asserted: bool) -> None:
        self.write(layout.HV_VP_ASSIST_PAGE_VINA_STATUS, bytes([layout.HV_VINA_STATUS_ASSERTED if asserted else 0]))

    def return_registers_64(self) -> tuple[int, int]:
        """RAX and RCX of the lower VTL, as a 64-bit VTL left them for VTL return."""
        rax, rcx = _RETURN_64.unpack_from(self.page.view, layout.HV_VP_ASSIST_PAGE_VTL_RETURN_RAX)
        return rax, rcx

    def return_registers_32(self) -> tuple[int, int, int]:
        """EAX, ECX and EDX of the lower VTL, as a 32-bit VTL left them for VTL return."""
        eax, ecx, edx = _RETURN_32.unpack_from(self.page.view, layout.HV_VP_ASSIST_PAGE_VTL_RETURN_RAX)
        return eax, ecx, edx

    def set_intercept_message(self, message: bytes) -> None:
        """Put an intercept message into the page (entry reason HvVtlEntryIntercept)."""
        assert len(message) <= INTERCEPT_MESSAGE_SIZE
        self.write(layout.HV_VP_ASSIST_PAGE_INTERCEPT_MESSAGE, message)
