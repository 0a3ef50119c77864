"""Pages of the guest-physical space that are devices of the hypervisor for one vCPU: its local APIC, the VM's I/O APIC.

Their callbacks run inside guest execution, in the vCPU's task: they account for time first, and make the guest be left
if a write has made something deliverable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import MmioRead8, MmioWrite8
from vtlkit.kvm.iobus import PortRead, PortWrite
from vtlkit.x86 import apic as apic_regs

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_PRIVATE_REGISTERS: Final = frozenset({apic_regs.APIC_TASKPRI, apic_regs.APIC_EOI, apic_regs.APIC_ICR2})
"""Registers whose writes concern neither time nor another processor: they need no look at the clock."""
_ICR: Final = apic_regs.APIC_ICR
_TIMER_REGISTERS: Final = frozenset({apic_regs.APIC_TMICT, apic_regs.APIC_LVTT, apic_regs.APIC_TDCR})


class VcpuDevices:
    """`mmu.DevicePages` of one vCPU."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self._apic_page: int | None = None
        if vcpu.trace is None:
            # A trace shows each access, and its exit.
            self._answer_ports()

    def move_apic(self, page: int | None) -> list[int]:
        """The local APIC's page is here now, or nowhere; the pages whose mapping that changes."""
        before, self._apic_page = self._apic_page, page
        return [] if before == page else [changed for changed in (before, page) if changed is not None]

    def device_pages(self) -> tuple[int, ...]:
        pages = self._vcpu.vm.mmio_bus.pages()
        return pages if self._apic_page is None else (*pages, self._apic_page)

    def device_at(self, page: int) -> tuple[MmioRead8, MmioWrite8] | None:
        if page == self._apic_page:
            return self._apic_read, self._apic_writer()
        device = self._vcpu.vm.mmio_bus.at(page)
        if device is None:
            return None
        read, write = device
        sync_clock = self._vcpu.sync_clock

        def synced_read(offset: int, size: int) -> int:
            sync_clock()
            self._leave_for_timer()
            return read(offset, size)

        def synced_write(offset: int, size: int, value: int) -> None:
            sync_clock()
            self._leave_for_timer()
            write(offset, size, value)
            self._look_at_requests()

        return synced_read, synced_write

    def _apic_read(self, offset: int, size: int) -> int:
        assist = self._vcpu.hv.eoi_assist
        if assist.offered:
            assist.sync()
        self._vcpu.sync_clock()
        self._leave_for_timer()
        return self._vcpu.apic.mmio_read(offset, size)

    def _apic_writer(self) -> MmioWrite8:
        vcpu = self._vcpu
        write, requests, assist = vcpu.apic.mmio_write, vcpu.requests.load, vcpu.hv.eoi_assist

        def apic_write(offset: int, size: int, value: int) -> None:
            if assist.offered:
                # The guest may have ended an interrupt since it was entered.
                assist.sync()
            if offset not in _PRIVATE_REGISTERS:
                vcpu.sync_clock()
                self._leave_for_timer()
            write(offset, size, value)
            if offset in _TIMER_REGISTERS:
                # The slice was chosen before this timer was set.
                vcpu.engine.kick()
            elif requests() or (offset == _ICR and vcpu.pauses_alone):
                vcpu.engine.kick()

        return apic_write

    # --- ports ------------------------------------------------------------------------------------------------------

    def _answer_ports(self) -> None:
        """Have the engine ask here about ports before it exits, if it can. Only engines that count no instructions do:
        there is no time to account for."""
        vcpu = self._vcpu
        statistics, bus, assist = vcpu.statistics, vcpu.vm.port_bus, vcpu.hv.eoi_assist
        look_at_requests = self._look_at_requests

        def answering(port: int) -> tuple[PortRead, PortWrite] | None:
            if vcpu.user_intercepts is not None or vcpu.guest_mode:
                return None
            device = bus.ports.get(port) or bus.others
            if device is not None:
                if assist.offered:
                    assist.sync()
                statistics.answered_ports += 1
            return device

        def port_read(port: int, size: int) -> int | None:
            device = answering(port)
            if device is None:
                return None
            value = device[0](port, size)
            look_at_requests()
            return value

        def port_write(port: int, size: int, value: int) -> bool:
            device = answering(port)
            if device is None:
                return False
            device[1](port, size, value)
            look_at_requests()
            return True

        vcpu.engine.answer_ports(port_read, port_write)

    # --- leaving the guest ------------------------------------------------------------------------------------------

    def _leave_for_timer(self) -> None:
        """The clock has moved on by more than the guest's instructions, which are all that a timer counts which is an
        exit: have it loaded anew. (On hardware every such access is an exit.)"""
        if self._vcpu.apic.timer.hv_timer_in_use:
            self._vcpu.engine.kick()

    def _look_at_requests(self) -> None:
        """Leave the guest if a write from inside it made a request: every one of them has something to do. Or if it may
        have woken another vCPU, which the guest would spin for without an exit."""
        if self._vcpu.requests.load() or self._vcpu.pauses_alone:
            self._vcpu.engine.kick()
