"""What exits to user space of a vCPU beside that which always does: `Intercepted`, the instruction not begun.

No counterpart in KVM, whose nearest are KVM_X86_SET_MSR_FILTER and KVM_SET_GUEST_DEBUG; the TLFS calls it secure
intercepts and hands the policy to VTLs, which the hypervisor does not know. docs/design/intercepts.md has the protocol.

Shared: `wanted`, stored by user space on any task, and `applied`, stored by the vCPU's own between two instructions;
both hold immutable values. User space stores `wanted`, makes Req.USER_INTERCEPTS, then kicks; the vCPU looks at the
request before it enters the guest. `Vcpu.user_intercepts` (what is applied, None if nothing is), `traps` and the
engine's flags belong to the vCPU's task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import NO_REGISTERS, Engine, Intercept
from vtlkit.kvm import kvm_run
from vtlkit.kvm.kvm_run import KvmRun
from vtlkit.kvm.requests import Req
from vtlkit.x86 import apic as regs
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.msr import MSR_EFER
from vtlkit.x86.registers import CR4_UMIP, EFER_LMA

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_STARTUP_MODES: Final = (DeliveryMode.INIT, DeliveryMode.STARTUP)


@dataclass(frozen=True, slots=True)
class CpuidOverride:
    """EAX, EBX, ECX, EDX for one leaf: of each register, the bits in the mask replace CPUID's own."""

    values: tuple[int, int, int, int]
    masks: tuple[int, int, int, int]
    always: bool = False
    """Also over bits that follow other state (OSXSAVE, APIC, OSPKE, the size of the XSAVE area)."""

    def apply(self, registers: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        eax, ebx, ecx, edx = (
            (old & ~mask) | (value & mask) for old, value, mask in zip(registers, self.values, self.masks, strict=True)
        )
        return eax, ebx, ecx, edx


@dataclass(frozen=True, slots=True)
class UserIntercepts:
    """Immutable. Everything is off in `UserIntercepts()`."""

    port_reads: bytes | None = None
    """A bit per port, 8192 bytes, as `Engine.set_port_intercepts` takes it."""
    port_writes: bytes | None = None
    msr_reads: frozenset[int] = frozenset()
    msr_writes: Mapping[int, int | None] = field(default_factory=dict)
    """MSR -> bits of which a change is intercepted; None: every write."""
    cpuid_all: bool = False
    cpuid: frozenset[int] = frozenset()
    """Functions, with whatever index."""
    exceptions: int = 0
    """A bit per vector."""
    cr0: int = 0
    """Bits of which a change is intercepted; so `cr4`."""
    cr4: int = 0
    xcr0: bool = False
    tables: Intercept = Intercept.NONE
    """Of Intercept.DESCRIPTOR_TABLE_WRITE."""
    hypercalls: bool = False
    """All but VTL call and return, from where a hypercall may come."""
    init_sipi: bool = False
    """INIT and SIPI that the guest sends are not sent, and trap."""
    eoi: bool = False
    """EOIs of the local APIC trap when they are done."""
    apic_writes: frozenset[int] = frozenset()
    """Registers of the local APIC, by offset, whose writes trap when they are done."""
    cpuid_results: Mapping[tuple[int, int | None], CpuidOverride] = field(default_factory=dict)
    """(function, index or None for all) -> what CPUID answers instead."""
    msr_ignored_reads: frozenset[int] = frozenset()
    """MSRs that, if there is none of that number, read as zero; so writes, which do nothing."""
    msr_ignored_writes: frozenset[int] = frozenset()

    def override(self, function: int, index: int) -> CpuidOverride | None:
        """What is registered for a leaf, the one subleaf before all."""
        found = self.cpuid_results.get((function, index))
        return found if found is not None else self.cpuid_results.get((function, None))


NOTHING: Final = UserIntercepts()


class ApicTraps:
    """What a local APIC tells, of accesses by its own vCPU (`LapicCore.listener`)."""

    def __init__(self, vcpu: Vcpu, wanted: UserIntercepts) -> None:
        self._vcpu = vcpu
        self._wanted = wanted

    def eoi(self, vector: int) -> None:
        if self._wanted.eoi:
            self._trap(kvm_run.InterceptedEoi(vector))

    def written(self, offset: int, value: int) -> None:
        if offset in self._wanted.apic_writes:
            self._trap(kvm_run.InterceptedApicWrite(offset, value))

    def startup(self, icr: int, dest_id: int) -> bool:
        """Whether an INIT or SIPI is told and not sent. ICR as in x2APIC mode."""
        if not self._wanted.init_sipi or (icr & regs.APIC_MODE_MASK) >> regs.APIC_MODE_SHIFT not in _STARTUP_MODES:
            return False
        self._trap(kvm_run.InterceptedStartup(icr | dest_id << 32))
        return True

    def _trap(self, exit_: KvmRun) -> None:
        self._vcpu.user.traps.append(exit_)
        # The guest may have written to the APIC's page: it is left before its next instruction.
        self._vcpu.engine.kick()


class UserInterceptState:
    """One vCPU's: what user space wants, what is in force, and what has trapped and not been told yet."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        host, name = vcpu.host, vcpu.name
        self.wanted = host.cell(NOTHING, f"{name}-intercepts-wanted")
        self.applied = host.cell(NOTHING, f"{name}-intercepts-applied")
        self.traps: deque[KvmRun] = deque()

    def set(self, intercepts: UserIntercepts) -> None:
        """From any task: in force before the vCPU's next instruction, or soon if it is in the guest."""
        self.wanted.store(intercepts)
        self._vcpu.make_request(Req.USER_INTERCEPTS)
        self._vcpu.kick_running()

    def behind(self) -> bool:
        """Whether what was last set is not in force yet. From any task."""
        return self.wanted.load() is not self.applied.load()

    def apply(self) -> None:
        """Take over what is wanted. The vCPU's task; the engine is at a boundary."""
        vcpu, wanted = self._vcpu, self.wanted.load()
        before = self.applied.load()
        vcpu.user_intercepts = None if wanted is NOTHING else wanted
        engine = vcpu.engine
        for index in (before.msr_reads ^ wanted.msr_reads) & engine.free_msr_reads:
            engine.intercept_msr(index, index in wanted.msr_reads, True)
        if (before.port_reads, before.port_writes) != (wanted.port_reads, wanted.port_writes):
            engine.set_port_intercepts(wanted.port_reads, wanted.port_writes)
        traps = wanted.eoi or wanted.init_sipi or wanted.apic_writes
        vcpu.apic.listener = ApicTraps(vcpu, wanted) if traps else None
        vcpu.update_intercepts()
        self.applied.store(wanted)
        if vcpu.guest_mode:
            # L1's wishes are in force, too.
            vcpu.nested.apply_intercepts()

    def reset(self) -> None:
        """RESET or INIT: what the guest did before it is nobody's any more. What is intercepted stays."""
        self.traps.clear()


def engine_intercepts(vcpu: Vcpu) -> None:
    """Tell the engine what exits: what always does, what follows guest state, and what user space wants.

    UMIP and NPIEP are enforced by intercepting what they forbid, SMSW among it, a read of CR0. Outside long mode SMSW
    is emulated always, as the embedded CPU stores 16 bits of 32.
    """
    engine: Engine = vcpu.engine
    intercepts = vcpu.vendor.intercepts
    if vcpu.pauses_alone:
        intercepts &= ~Intercept.PAUSE
    if vcpu.hv.npiep:
        intercepts |= Intercept.DESCRIPTOR_TABLE_READ
    if engine.cr4 & CR4_UMIP:
        intercepts |= Intercept.DESCRIPTOR_TABLE_READ | Intercept.CR_READ
    elif not engine.get_msr(MSR_EFER) & EFER_LMA:
        intercepts |= Intercept.CR_READ
    exceptions, moves = 0, NO_REGISTERS
    if vcpu.guest_mode:
        more, exceptions, moves = vcpu.nested.engine_wants()
        intercepts |= more
    wanted = vcpu.user_intercepts
    if wanted is not None:
        intercepts |= wanted.tables
        exceptions |= wanted.exceptions
    engine.set_intercepts(intercepts, exceptions, moves)
