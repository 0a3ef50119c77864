"""A vCPU's time: its TSC, and what its guest's instructions cost on a deterministic host's clock. Mirrors the TSC part
of arch/x86/kvm/x86.c (`kvm_synchronize_tsc`, `adjust_tsc_offset_guest`).

Belongs to the vCPU's task; `guest_tsc` may be called by any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vtlkit.engine.api import Engine
    from vtlkit.host.api import Host
    from vtlkit.kvm.hyperv.vcpu import HvVcpu
    from vtlkit.kvm.vm import Vm
    from vtlkit.trace.tracer import VcpuTrace

_U64: Final = 0xFFFFFFFFFFFFFFFF


class VcpuTime:
    """The part of `Vcpu` that has to do with time."""

    vm: Vm
    host: Host
    engine: Engine
    hv: HvVcpu
    trace: VcpuTrace | None
    tsc_adjust: int
    _tsc_offset: int
    clock_mark: int
    """Instructions already accounted to the host's clock."""

    def sync_clock(self, exits: int = 1) -> None:
        """Account what the engine has executed, and `exits` exits, to a deterministic host's clock.

        May let other tasks run. In real time the clock advances by itself, and the run loop looks at it.
        """
        executed = self.engine.instructions()
        if executed is None:
            return
        delta = executed - self.clock_mark
        self.clock_mark = executed
        spent = delta * self.vm.ns_per_instruction
        if self.trace is not None:
            self.trace.unsynced_exits = 0
        if self.host.deterministic:
            self.hv.account_guest_time(spent)
        self.host.consume_ns(spent + exits * self.vm.ns_per_exit)

    @property
    def tsc_offset(self) -> int:
        """What the guest's time-stamp counter has more than the host's, modulo 2**64."""
        return self._tsc_offset

    @tsc_offset.setter
    def tsc_offset(self, value: int) -> None:
        own = self.engine.read_tsc()
        if own is not None:
            self.engine.set_tsc((own + value - self._tsc_offset) & _U64)
        self._tsc_offset = value
        if own is None:
            self.engine.set_tsc(self.guest_tsc())

    def guest_tsc(self) -> int:
        """The guest's time-stamp counter."""
        own = self.engine.read_tsc()
        return (self.vm.tsc_at(self.host.now_ns()) + self._tsc_offset) & _U64 if own is None else own

    def tsc_to_ns(self, guest_tsc: int) -> int:
        """The host time at which the guest's TSC reads `guest_tsc`, rounded up."""
        own = self.engine.read_tsc()
        if own is not None:
            # The processor's counter and the host's clock drift apart: count from the present.
            ahead = (guest_tsc - own) & _U64
            return self.host.now_ns() + (0 if ahead >> 63 else -(-ahead * 1_000_000 // self.vm.tsc_khz))
        cycles = (guest_tsc - self.tsc_offset) & _U64
        if cycles >> 63:
            return 0
        return -(-cycles * 1_000_000 // self.vm.tsc_khz)

    def write_tsc(self, value: int) -> None:
        """WRMSR to the TSC: it and TSC_ADJUST move by the same amount."""
        self.write_tsc_adjust((self.tsc_adjust + value - self.guest_tsc()) & _U64, move_tsc=True)

    def write_tsc_adjust(self, value: int, *, move_tsc: bool) -> None:
        if move_tsc:
            self.tsc_offset = (self.tsc_offset + value - self.tsc_adjust) & _U64
        self.tsc_adjust = value
        if self.hv.vcpu is self.hv.hv_vm.first_vcpu():
            # The reference counter follows the first vCPU's TSC.
            self.hv.hv_vm.tsc_changed()
