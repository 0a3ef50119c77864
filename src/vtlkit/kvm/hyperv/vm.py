"""The Hyper-V state of one VM: guest OS identity, hypercall page, reference time, crash data, its virtual processors
(mirrors `struct kvm_hv` and the partition-wide half of arch/x86/kvm/hyperv.c).

A partition has a `Vm`, and so an `HvVm`, per VTL: what is private to a VTL is private here; the VMM gives them all one
`time_origin_ns`. A `Vm` with APIC ID groups has one per group (`kvm.namespaces`); they share `lock` and overlays.

`lock` (rank SYNIC) protects the registers here, the reference TSC page and the overlay claims. It is not held while
overlays are mapped (`overlays`). `_vps` is a cell with an immutable value: hypercalls look VPs up without the lock.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Access
from vtlkit.host.api import Cell, Lock, LockRank
from vtlkit.hvdef.msrs import (
    HV_EXPOSE_INVARIANT_TSC,
    HV_MSR_PAGE_ENABLE,
    HV_MSR_PAGE_GPA,
    HV_X64_MSR_CRASH_PARAMETERS,
    HV_X64_MSR_HYPERCALL_LOCKED,
    HV_X64_MSR_TSC_INVARIANT_CONTROL,
)
from vtlkit.hvdef.vp_set import HV_VP_SET_BANK_SIZE, HV_VP_SET_MAX_BANKS
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign, FlushInhibits, flush_inhibits
from vtlkit.kvm.hyperv.hypercall_page import CodePageOffsets, hypercall_page
from vtlkit.kvm.hyperv.layouts import VSM_CALLS
from vtlkit.kvm.hyperv.overlays import OverlayPage, Overlays, Precedence
from vtlkit.kvm.hyperv.owner import VmOwner
from vtlkit.kvm.hyperv.reference_time import ReferenceTime
from vtlkit.kvm.hyperv.vp_set import ALL_VPS

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.vcpu import HvVcpu

MAX_VPS: Final = HV_VP_SET_BANK_SIZE * HV_VP_SET_MAX_BANKS
DEFAULT_PHYSICAL_ADDRESS_BITS: Final = 36


class _Vps:
    """The virtual processors by index, and as a set."""

    __slots__ = ("by_index", "present")

    def __init__(self, by_index: Mapping[int, HvVcpu]) -> None:
        self.by_index = MappingProxyType(dict(by_index))
        self.present = sum(1 << index for index in by_index)


class HvVm:
    """Make it before the first vCPU."""

    def __init__(self, vm: VmOwner, time_origin_ns: int = 0, *, shares_memory_with: HvVm | None = None) -> None:
        """`time_origin_ns`: when reference time was 0, on the clock of `vm.kvm_clock_ns()`.

        `shares_memory_with`: another APIC ID group of the same VM. Overlays lie in memory, and so in the sight of both.
        """
        self.vm = vm
        self.lock: Lock = vm.host.lock("hv", LockRank.SYNIC) if shares_memory_with is None else shares_memory_with.lock
        self.vtl = 0
        """Which VTL user space says this VM is: only to tell calls that name the caller's own VTL from others."""
        self.user_space_calls: set[int] = set(VSM_CALLS)
        """Call codes that exit (KVM_EXIT_HYPERV). Changed before any vCPU runs."""
        self.physical_address_bits = DEFAULT_PHYSICAL_ADDRESS_BITS
        """Width of the guest's GPA space; from CPUID."""
        self.guest_os_id = 0
        self.hypercall = 0
        """HV_X64_MSR_HYPERCALL."""
        self.crash_parameters = [0] * HV_X64_MSR_CRASH_PARAMETERS
        self.crash_control = 0
        self.stored_msrs: dict[int, int] = {}
        self.debug_options: Cell[int] = vm.host.cell(0, "hv-debug-options")
        """HV_X64_MSR_DEBUG_DEVICE_OPTIONS, one register for all VTLs of a partition (`share_registers`)."""
        self.reference_time = ReferenceTime(vm, time_origin_ns)
        self.overlays: Overlays = (
            Overlays(vm.host, vm.memory, self.lock) if shares_memory_with is None else shares_memory_with.overlays
        )
        self._hypercall_page = OverlayPage(vm.memory, Precedence.HYPERCALL, Access.READ | Access.EXECUTE)
        self._code_page_offsets: CodePageOffsets | None = None
        self.flush_inhibits: FlushInhibits = (
            flush_inhibits(FlushInhibitDesign.WAITING_ON, vm.host)
            if shares_memory_with is None
            else shares_memory_with.flush_inhibits
        )
        self._vps: Cell[_Vps] = vm.host.cell(_Vps({}), "hv-vps")

    def set_flush_inhibit_design(self, design: FlushInhibitDesign) -> None:
        """How flushes of inhibited vCPUs are held up (docs/design/tlb-flush-inhibit.md). APIC ID groups that are made
        later do as group 0 does.

        Raises:
            KvmError: EINVAL, there is a vCPU already.
        """
        if self._vps.load().by_index:
            raise KvmError(errno.EINVAL, "the design of the TLB-flush inhibit is chosen before the first vCPU")
        self.flush_inhibits = flush_inhibits(design, self.vm.host)

    # --- virtual processors ---------------------------------------------------------------------------------------

    def add_vp(self, hv: HvVcpu, vp_index: int | None) -> int:
        """Enter a virtual processor; its index, which is the number of those before it unless given.

        Raises:
            KvmError: EEXIST, the index is taken; EINVAL, it is beyond 4095.
        """
        with self.lock:
            vps = self._vps.load().by_index
            index = len(vps) if vp_index is None else vp_index
            if index in vps:
                raise KvmError(errno.EEXIST, f"VP index {index} is taken")
            if not 0 <= index < MAX_VPS:
                raise KvmError(errno.EINVAL, f"VP index {index} is not below {MAX_VPS}")
            self._vps.store_release(_Vps({**vps, index: hv}))
            if self._code_page_offsets is None:
                page, self._code_page_offsets = hypercall_page(hv.vcpu.engine.hypercall_instruction)
                self._hypercall_page.write(0, page)
        return index

    def set_vp_index(self, hv: HvVcpu, index: int) -> bool:
        """Give a VP another index (HV_X64_MSR_VP_INDEX from the host); False if it is taken or beyond 4095."""
        with self.lock:
            vps = dict(self._vps.load().by_index)
            if index == hv.vp_index:
                return True
            if index in vps or not 0 <= index < MAX_VPS:
                return False
            del vps[hv.vp_index]
            vps[index] = hv
            hv.vp_index = index
            self._vps.store_release(_Vps(vps))
        return True

    def vp(self, index: int) -> HvVcpu | None:
        """The virtual processor with this index. From any task."""
        return self._vps.load_acquire().by_index.get(index)

    def vps(self, targets: int) -> Iterable[HvVcpu]:
        """Those that exist of a set: a bit per VP index, or ALL_VPS. From any task."""
        vps = self._vps.load_acquire()
        if targets == ALL_VPS:
            return vps.by_index.values()
        found = []
        targets &= vps.present
        while targets:
            lowest = targets & -targets
            found.append(vps.by_index[lowest.bit_length() - 1])
            targets ^= lowest
        return found

    # --- registers ------------------------------------------------------------------------------------------------

    def set_guest_os_id(self, value: int) -> bool:
        """Write HV_X64_MSR_GUEST_OS_ID; 0 disables the hypercall page."""
        with self.lock:
            self.guest_os_id = value
            if not value:
                self.hypercall &= ~HV_MSR_PAGE_ENABLE
            self._claim_hypercall_page()
        self.overlays.apply()
        return True

    def set_hypercall(self, value: int, *, host_initiated: bool = False) -> bool:
        """Write HV_X64_MSR_HYPERCALL; False is #GP: the register is locked, or the page beyond the GPA space."""
        with self.lock:
            if not host_initiated and self.hypercall & HV_X64_MSR_HYPERCALL_LOCKED:
                return False
            if value & HV_MSR_PAGE_ENABLE and value >> self.physical_address_bits:
                return False
            if not self.guest_os_id:
                value &= ~HV_MSR_PAGE_ENABLE
            self.hypercall = value
            self._claim_hypercall_page()
        self.overlays.apply()
        return True

    def _claim_hypercall_page(self) -> None:
        enabled = self.hypercall & HV_MSR_PAGE_ENABLE
        self.overlays.claim(self._hypercall_page, self.hypercall & HV_MSR_PAGE_GPA if enabled else None)

    def code_page_offsets(self, *, is_64bit: bool) -> int:
        """HvRegisterVsmCodePageOffsets for a VTL that runs 64-bit or 32-bit code. Needs a vCPU, for its instruction."""
        offsets = self._code_page_offsets
        assert offsets is not None, "no vCPU yet"
        return offsets.register(is_64bit=is_64bit)

    def set_reference_tsc(self, value: int) -> bool:
        """Write HV_X64_MSR_REFERENCE_TSC."""
        with self.lock:
            self.overlays.claim(self.reference_time.page, self._within(self.reference_time.set_register(value)))
        self.overlays.apply()
        return True

    def tsc_changed(self) -> None:
        """The rate or the offset of vCPU 0's TSC changed: the reference TSC page gets new parameters."""
        with self.lock:
            self.reference_time.tsc_changed()

    def set_crash_parameter(self, number: int, value: int) -> bool:
        with self.lock:
            self.crash_parameters[number] = value
        return True

    def set_stored_msr(self, index: int, value: int) -> bool:
        with self.lock:
            self.stored_msrs[index] = value
        return True

    def set_debug_options(self, value: int) -> bool:
        self.debug_options.store(value)
        return True

    def share_registers(self, other: HvVm) -> None:
        """Have the registers that all VTLs of a partition share in common with `other`. Before any vCPU runs."""
        self.debug_options = other.debug_options

    @property
    def invariant_tsc_exposed(self) -> bool:
        """The guest has asked for the invariant TSC (HV_X64_MSR_TSC_INVARIANT_CONTROL)."""
        return self.stored_msrs.get(HV_X64_MSR_TSC_INVARIANT_CONTROL, 0) & HV_EXPOSE_INVARIANT_TSC != 0

    def crash_data(self) -> tuple[int, ...]:
        """P0 to P4, then what the guest wrote to HV_X64_MSR_CRASH_CTL."""
        with self.lock:
            return (*self.crash_parameters, self.crash_control)

    def set_crash_control(self, value: int) -> None:
        with self.lock:
            self.crash_control = value

    # --- overlays and reset ---------------------------------------------------------------------------------------

    def move_overlay(self, page: OverlayPage, gpa: int | None) -> None:
        """Let a vCPU's page lie at `gpa`; nowhere if that is None or beyond the GPA space. May block; hold no lock."""
        self.overlays.move(page, self._within(gpa))

    def state_page(self) -> OverlayPage:
        """A page of zeroes for user space to place (`claim_overlay`) and fill: a VP state page."""
        return OverlayPage(self.vm.memory, Precedence.VP_STATE, Access.READ | Access.WRITE)

    def claim_overlay(self, page: OverlayPage, gpa: int | None) -> None:
        """`move_overlay` but for the mapping, which `overlays.apply` does. Never blocks."""
        with self.lock:
            self.overlays.claim(page, self._within(gpa))

    def _within(self, gpa: int | None) -> int | None:
        return None if gpa is None or gpa >> self.physical_address_bits else gpa

    def reset(self) -> None:
        """Reset of the partition: registers as at creation. Virtual processors and reference time stay."""
        with self.lock:
            self.guest_os_id = self.hypercall = self.crash_control = 0
            self.crash_parameters = [0] * HV_X64_MSR_CRASH_PARAMETERS
            self.stored_msrs = {}
            self.debug_options.store(0)
            self.reference_time.reset()
            self._claim_hypercall_page()
            self.overlays.claim(self.reference_time.page, None)
        self.overlays.apply()
