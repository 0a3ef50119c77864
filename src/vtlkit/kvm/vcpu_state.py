"""A vCPU's registers and CPUID as user space reads and writes them: KVM's GET and SET ioctls.

Mirrors the register half of `kvm_vcpu_ioctl`. The vCPU does not run meanwhile: the caller is its task, outside `run`,
or holds its mutex.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import CpuidLeaf
from vtlkit.kvm.cpuid import CpuidEntry, CpuidTable
from vtlkit.kvm.errors import require_boundary
from vtlkit.kvm.events import PENDING_SIPI, EventQueue
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.kvm.user_intercepts import NOTHING, UserIntercepts, UserInterceptState
from vtlkit.x86 import cpuid as cpuid_bits
from vtlkit.x86.registers import GENERAL_REGISTERS, RFLAGS_FIXED, Regs, Sregs

if TYPE_CHECKING:
    from vtlkit.engine.api import Engine
    from vtlkit.kvm.hyperv.vcpu import HvVcpu
    from vtlkit.kvm.lapic import LocalApic
    from vtlkit.kvm.msrs import Msrs
    from vtlkit.kvm.vcpu import Vcpu

_HYPERVISOR_LEAVES: Final = 4
_REGISTERS: Final = (*GENERAL_REGISTERS, "rip")


class VcpuState:
    """The part of `Vcpu` that user space saves, restores and sets up."""

    engine: Engine
    apic: LocalApic
    hv: HvVcpu
    msrs: Msrs
    events: EventQueue
    user: UserInterceptState
    cpuid: CpuidTable
    mp_state: MpState

    def make_request(self, request: Req) -> None:
        raise NotImplementedError

    def update_intercepts(self) -> None:
        raise NotImplementedError

    def get_regs(self) -> Regs:
        """KVM_GET_REGS."""
        regs = self.engine.regs
        result = Regs(*(getattr(regs, name) for name in _REGISTERS))
        result.rflags = self.engine.rflags
        return result

    def set_regs(self, regs: Regs) -> None:
        """KVM_SET_REGS. A queued exception is dropped, as KVM does."""
        self.put_regs(regs)
        self.events.exception = None

    def put_regs(self, regs: Regs) -> None:
        """The general registers alone."""
        require_boundary(self.engine)
        live = self.engine.regs
        for name in _REGISTERS:
            setattr(live, name, getattr(regs, name))
        self.engine.rflags = regs.rflags | RFLAGS_FIXED
        self.make_request(Req.EVENT)

    def copy_shared_state(self, source: Vcpu) -> None:
        """Take what all VTLs of a processor share from the vCPU of another VTL; neither runs, both are between two
        instructions."""
        self.engine.copy_shared_state(source.engine)
        self.msrs.shared = source.msrs.shared
        self.hv.runtime_ns = source.hv.runtime_ns

    def get_sregs(self) -> Sregs:
        """KVM_GET_SREGS."""
        sregs = self.engine.get_sregs()
        sregs.cr8 = self.apic.get_tpr()
        sregs.apic_base = self.apic.get_base()
        return sregs

    def set_sregs(self, sregs: Sregs) -> None:
        """KVM_SET_SREGS."""
        require_boundary(self.engine)
        self.engine.set_sregs(sregs)
        self.update_intercepts()
        if sregs.apic_base:
            self.apic.set_base(sregs.apic_base, True)
        self.apic.set_tpr(sregs.cr8)

    def set_cpuid2(self, entries: list[CpuidEntry]) -> None:
        """KVM_SET_CPUID2."""
        told = self.engine.set_cpuid([CpuidLeaf(*astuple(entry)) for entry in entries])
        entries = [CpuidEntry(*leaf) for leaf in told]
        self.cpuid = CpuidTable(entries)
        leaves = [(entry.function, entry.eax, entry.ebx, entry.ecx, entry.edx) for entry in entries]
        self.hv.set_cpuid(leaf for leaf in leaves if leaf[0] >> 28 == _HYPERVISOR_LEAVES)
        self.apic.cpuid_changed(
            x2apic=self.cpuid.has(1, "ecx", cpuid_bits.CPUID_1_ECX_X2APIC),
            tsc_deadline=self.cpuid.has(1, "ecx", cpuid_bits.CPUID_1_ECX_TSC_DEADLINE),
            maxphyaddr=self.cpuid.maxphyaddr(),
        )

    def set_user_intercepts(self, intercepts: UserIntercepts | None) -> None:
        """What is to leave `run` as `Intercepted`; in force before the next instruction. From any task."""
        self.user.set(NOTHING if intercepts is None else intercepts)

    def get_mp_state(self) -> MpState:
        return self.mp_state

    def set_mp_state(self, state: MpState) -> None:
        """KVM_SET_MP_STATE. SIPI_RECEIVED is INIT_RECEIVED with a SIPI in the latch, as in KVM."""
        if state is MpState.SIPI_RECEIVED:
            state = MpState.INIT_RECEIVED
            self.events.apic_events.set(PENDING_SIPI)
        self.mp_state = state
        self.make_request(Req.EVENT)

    def get_msr(self, index: int) -> int | None:
        """KVM_GET_MSRS for one register; None if it does not exist."""
        return self.msrs.get(index, host_initiated=True)

    def start_runnable(self) -> None:
        """User space has loaded a start state: the vCPU is running, whatever start-up protocol its kind has."""
        self.mp_state = MpState.RUNNABLE

    def set_msr(self, index: int, value: int) -> bool:
        """KVM_SET_MSRS for one register; False if it was refused."""
        return self.msrs.set(index, value, host_initiated=True)

    def set_guest_msr(self, index: int, value: int) -> bool:
        """Set one register by the rules of the guest's own WRMSR; False if that would be #GP. It does not trap."""
        with self.apic.unheard():
            return self.msrs.set(index, value)
