"""The partition's reference time: the counter MSR and the reference TSC page (TLFS, "Reference Counter"; the TSC page
of arch/x86/kvm/hyperv.c).

Promise: while the page is enabled the counter is computed from the TSC by the page's own formula, so a guest that reads
page and counter at one TSC value sees one time. Disabling the page never turns the counter back.

`_parameters` is a cell that holds an immutable value: vCPUs read the counter without a lock. Register, page contents
and `_sequence` are protected by the lock of the `HvVm`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from vtlkit.engine.api import Access
from vtlkit.host.api import Cell
from vtlkit.hvdef.assist import HV_REFERENCE_TSC_PAGE, HV_REFERENCE_TSC_SEQUENCE_INVALID
from vtlkit.hvdef.msrs import HV_MSR_PAGE_ENABLE, HV_MSR_PAGE_GPA
from vtlkit.kvm.hyperv.overlays import OverlayPage, Precedence
from vtlkit.kvm.hyperv.owner import VcpuOwner, VmOwner

REFERENCE_TICK_NS: Final = 100
_TICKS_PER_MS: Final = 10_000
_SCALE_SHIFT: Final = 64
_U64: Final = (1 << 64) - 1
_FAR_CYCLES: Final = 1 << 61
NEVER_NS: Final = 1 << 62
"""A host time that does not come: 146 years."""
_MAX_SEQUENCE: Final = 0xFFFFFFFF
_SEQUENCE = struct.Struct("<I")
_SCALE_AND_OFFSET = struct.Struct("<Qq")
_SCALE_OFFSET = HV_REFERENCE_TSC_PAGE.OFFSETS["TscScale"]


class ReferenceTime:
    """Reference time of one VM, in units of 100 ns since `origin_ns` of the partition's clock."""

    __slots__ = ("_first", "_floor", "_origin_ns", "_parameters", "_sequence", "_vm", "page", "register")

    def __init__(self, vm: VmOwner, origin_ns: int, first: Callable[[], VcpuOwner]) -> None:
        """`first`: the vCPU whose TSC the page is about, for good; asked for once the page is enabled."""
        self._vm = vm
        self._first = first
        self._origin_ns = origin_ns
        self._parameters: Cell[tuple[int, int] | None] = vm.host.cell(None, "hv-reference-tsc")
        """(scale, offset) while the page is enabled and usable."""
        self._floor: Cell[int] = vm.host.cell(0, "hv-reference-floor")
        self._sequence = HV_REFERENCE_TSC_SEQUENCE_INVALID
        self.register = 0
        """HV_X64_MSR_REFERENCE_TSC."""
        self.page = OverlayPage(vm.memory, Precedence.REFERENCE_TSC, Access.READ)

    def counter(self) -> int:
        """HV_X64_MSR_TIME_REF_COUNT now. From any task."""
        parameters = self._parameters.load_acquire()
        if parameters is None:
            return max(self._elapsed(), self._floor.load())
        scale, offset = parameters
        return ((self._tsc() * scale >> _SCALE_SHIFT) + offset) & _U64

    def host_ns(self, count: int) -> int:
        """The host time, in ns, at which the counter comes to read `count` (the present if it does already).

        It may be later if the parameters change meanwhile. From any task.
        """
        now = self._vm.host.now_ns()
        parameters = self._parameters.load_acquire()
        if parameters is None:
            return max(now, now + self._origin_ns + count * REFERENCE_TICK_NS - self._vm.kvm_clock_ns())
        scale, offset = parameters
        vcpu = self._first()
        tsc = -(-((count - offset) << _SCALE_SHIFT) // scale)
        cycles = tsc - vcpu.guest_tsc()
        if cycles <= 0:
            return now
        # The TSC's phase against the clock is the vCPU's to know; it counts modulo 2^64, and back at half of that.
        return NEVER_NS if cycles >= _FAR_CYCLES else vcpu.tsc_to_ns(tsc & _U64)

    def _elapsed(self) -> int:
        return (self._vm.kvm_clock_ns() - self._origin_ns) // REFERENCE_TICK_NS

    def _tsc(self) -> int:
        return self._first().guest_tsc()

    def set_register(self, value: int) -> int | None:
        """Write the MSR, the lock being held; where the page shall lie."""
        self._invalidate()
        self.register = value
        if not value & HV_MSR_PAGE_ENABLE:
            return None
        self._publish()
        return value & HV_MSR_PAGE_GPA

    def tsc_changed(self) -> None:
        """The TSC's rate or offset changed: publish new parameters, time going on. The lock is held."""
        if self.register & HV_MSR_PAGE_ENABLE:
            self._parameters.store_release(None)
            self._publish()

    def reset(self) -> None:
        """Disable the page and zero it; time goes on. The lock is held."""
        self._invalidate()
        self.register = 0
        self.page.clear()
        self._sequence = HV_REFERENCE_TSC_SEQUENCE_INVALID

    def _invalidate(self) -> None:
        if self._parameters.load() is not None:
            self._floor.store(self.counter())
            self._parameters.store_release(None)

    def _publish(self) -> None:
        """Fill the page: invalid sequence number, parameters, valid one, in this order, as guests may be reading it."""
        smp_wmb = self._vm.host.smp_wmb
        self.page.write(0, _SEQUENCE.pack(HV_REFERENCE_TSC_SEQUENCE_INVALID))
        scale = (_TICKS_PER_MS << _SCALE_SHIFT) // self._vm.tsc_khz
        if scale > _U64:
            # A TSC slower than the counter has no scale: the guest reads the MSR.
            return
        now = max(self._elapsed(), self._floor.load())
        offset = now - (self._tsc() * scale >> _SCALE_SHIFT)
        smp_wmb()
        self.page.write(_SCALE_OFFSET, _SCALE_AND_OFFSET.pack(scale, offset))
        smp_wmb()
        self._sequence = self._sequence + 1 if self._sequence < _MAX_SEQUENCE - 1 else 1
        self.page.write(0, _SEQUENCE.pack(self._sequence))
        self._parameters.store_release((scale, offset))
