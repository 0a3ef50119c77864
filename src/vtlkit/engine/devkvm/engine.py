"""The host's /dev/kvm as the CPU of one vCPU: see docs/design/devkvm.md.

The class is built in layers, each on what is below it: `vcpu` (the kernel's objects), `loop` (entering and leaving),
`exits` (what exits mean), and here registers, events and the memory map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from vtlkit.engine.api import (
    NO_REGISTERS,
    CpuidLeaf,
    Engine,
    Event,
    EventType,
    Intercept,
    MemoryFault,
    PortBitmap,
    RegisterIntercepts,
)
from vtlkit.engine.decode import MAX_LENGTH, length
from vtlkit.engine.devkvm import abi
from vtlkit.engine.devkvm.abi import FS, GS
from vtlkit.engine.devkvm.exits import HYPERCALL
from vtlkit.engine.devkvm.live import REGS_END
from vtlkit.engine.devkvm.loop import Pending
from vtlkit.engine.devkvm.processor import SharedTime, kernel_entries, offered
from vtlkit.engine.devkvm.system import Capabilities
from vtlkit.engine.devkvm.vcpu import FREE_MSR_READS, NATIVE_MSRS
from vtlkit.engine.devkvm.windows import Windows
from vtlkit.engine.mapped import MappedMemory
from vtlkit.x86 import msr
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import DR6_BS, RFLAGS_FIXED, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF, Sregs

FPU_SIZE: Final = 512
_BASES: Final = {msr.MSR_FS_BASE: FS, msr.MSR_GS_BASE: GS}
_KERNELS_OWN: Final = (
    Intercept.PAUSE
    | Intercept.RDTSC
    | Intercept.CR_READ
    | Intercept.CR_WRITE
    | Intercept.XSETBV
    | Intercept.RDPMC
    | Intercept.DESCRIPTOR_TABLE_READ
)
"""What the kernel and the processor do by themselves as the hypervisor would have it: no need to exit."""


class DevKvmEngine(Windows, MappedMemory):
    """See `vtlkit.engine.api.Engine` for the contract."""

    hypercall_instruction: ClassVar[bytes] = HYPERCALL
    native_msrs: ClassVar[frozenset[int]] = NATIVE_MSRS
    free_msr_reads: ClassVar[frozenset[int]] = FREE_MSR_READS
    cpuid_exits = False
    intercepts_instructions = False
    intercepts_ports = False
    counts_preemption_timer = False

    def __init__(self, system: int, capabilities: Capabilities, name: str, time: SharedTime) -> None:
        super().__init__(system, capabilities, name)
        self._offered = capabilities.cpuid
        self._time = time
        self._tsc_offset: int | None = None
        # The first exit fills the page with the registers of a vCPU that has been reset.
        self._finish()
        self.set_sregs(Sregs.reset())
        for index in FREE_MSR_READS:
            self.intercept_msr(index, False, True)

    # --- execution --------------------------------------------------------------------------------------------------

    def set_preemption_timer(self, ticks: int | None) -> None:
        if ticks:
            raise ValueError("KVM's preemption timer is not to be had from user space: only zero, a forced exit")
        self._timer_zero = ticks == 0

    def instructions(self) -> None:
        return None

    @property
    def at_boundary(self) -> bool:
        return self._pending is not Pending.IO

    def abandon(self) -> None:
        if self._pending is Pending.IO:
            self._elements_end = 0
            self._shown = self._true = self._bytes[abi.RUN_SYNC : REGS_END]
            self._undo()
        elif self._pending is not None:
            self._resume_undone()
        self._event = None
        self._kicked = False

    def _resume_undone(self) -> None:
        if self._pending is Pending.PARKED:
            self._undo()
        else:
            self._skip_resumed()

    def skip(self, length: int) -> None:
        assert self.at_boundary, "the engine finishes an I/O instruction itself"
        self._show_rip(self.regs.rip + length)
        if self._live.shadow:
            self._live.shadow = 0
        flags = self.regs.rflags
        if flags & (RFLAGS_RF | RFLAGS_TF):
            self.regs.rflags = flags & ~RFLAGS_RF
            if flags & RFLAGS_TF:
                registers = self.vcpu.get_debugregs()
                registers.dr6 |= DR6_BS
                self.vcpu.set_debugregs(registers)
                self.inject(Event(EventType.EXCEPTION, Vector.DB))

    def code_bits(self) -> int:
        return self.code.bits()

    def instruction_bytes(self, size: int = 16) -> bytes:
        return self.code.fetch(size)

    def instruction_length(self, code: bytes) -> int:
        return length(code[:MAX_LENGTH], self.code.bits())

    def store_operand(self, value: int, size: int) -> Event | MemoryFault | None:
        return self.code.operand().store(value, size)

    def load_operand16(self) -> int | Event | MemoryFault:
        return self.code.operand().load16()

    def operand_address(self) -> int | None:
        return self.code.operand().address()

    # --- events -----------------------------------------------------------------------------------------------------

    def inject(self, event: Event) -> None:
        assert self._event is None, f"{self._event} is injected already, {event} on top"
        assert self.at_boundary, "an event cannot be injected into an unfinished I/O instruction"
        self._event = event

    def injected(self) -> Event | None:
        return self._event

    def cancel_injection(self) -> Event | None:
        event, self._event = self._event, None
        return event

    def request_interrupt_window(self, wanted: bool) -> None:
        if wanted and not self._interrupt_window:
            self._crowded += 1
        self._interrupt_window = wanted

    def request_nmi_window(self, wanted: bool) -> None:
        self._nmi_window = wanted

    @property
    def interrupt_shadow(self) -> bool:
        return bool(self._live.shadow)

    @interrupt_shadow.setter
    def interrupt_shadow(self, value: bool) -> None:
        # Blocking by STI is a state that processors accept with RFLAGS.IF only.
        kind = abi.SHADOW_STI if self.regs.rflags & RFLAGS_IF else abi.SHADOW_MOV_SS
        self._live.shadow = kind if value else 0

    @property
    def nmi_blocked(self) -> bool:
        return self._live.nmi_masked

    @nmi_blocked.setter
    def nmi_blocked(self, value: bool) -> None:
        self._live.nmi_masked = value

    # --- intercepts -------------------------------------------------------------------------------------------------

    def set_intercepts(
        self, intercepts: Intercept, exceptions: int = 0, moves: RegisterIntercepts = NO_REGISTERS
    ) -> None:
        if exceptions or moves != NO_REGISTERS or intercepts & ~_KERNELS_OWN:
            names = intercepts & ~_KERNELS_OWN or "exceptions or single registers"
            raise ValueError(f"KVM has no exits for user space of {names}")

    def intercept_msr(self, index: int, read: bool, write: bool) -> None:
        self.vcpu.open_msr(index, not read, not write)

    def set_port_intercepts(self, reads: PortBitmap | None, writes: PortBitmap | None) -> None:
        if reads is not None or writes is not None:
            raise ValueError("KVM exits for a port access when it has begun: it cannot be intercepted before")

    # --- registers --------------------------------------------------------------------------------------------------

    @property
    def rflags(self) -> int:
        return self.regs.rflags

    @rflags.setter
    def rflags(self, value: int) -> None:
        self.regs.rflags = value | RFLAGS_FIXED

    def get_sregs(self) -> Sregs:
        return self._live.get_sregs()

    def set_sregs(self, sregs: Sregs) -> None:
        assert self.at_boundary, "system registers cannot change in an unfinished I/O instruction"
        self._live.set_sregs(sregs)

    def set_control_registers(self, cr0: int, cr4: int, efer: int) -> None:
        assert self.at_boundary, "control registers cannot change in an unfinished I/O instruction"
        sregs = self._live.sregs
        sregs.cr0, sregs.cr4, sregs.efer = cr0, cr4, efer
        self._live.dirty |= abi.SYNC_SREGS

    @property
    def cpl(self) -> int:
        return self._live.cpl

    @property
    def cr0(self) -> int:
        return self._live.sregs.cr0

    @property
    def cr4(self) -> int:
        return self._live.sregs.cr4

    def get_msr(self, index: int) -> int:
        if index in _BASES:
            return self._live.segments[_BASES[index]].base
        if index == msr.MSR_EFER:
            return self._live.sregs.efer
        return self.vcpu.get_msr(index)

    def set_msr(self, index: int, value: int) -> None:
        if index in _BASES:
            self._live.segments[_BASES[index]].base = value
            self._live.dirty |= abi.SYNC_SREGS
        elif index == msr.MSR_EFER:
            self._live.sregs.efer = value
            self._live.dirty |= abi.SYNC_SREGS
        else:
            self.vcpu.set_msr(index, value)

    def get_fpu(self) -> bytes:
        return self.vcpu.get_fpu()

    def set_fpu(self, image: bytes) -> None:
        if len(image) != FPU_SIZE:
            raise ValueError(f"an FXSAVE image has {FPU_SIZE} bytes, not {len(image)}")
        self.vcpu.set_fpu(image)

    def get_debugregs(self) -> tuple[int, int, int, int, int, int]:
        registers = self.vcpu.get_debugregs()
        first, second, third, fourth = registers.db
        return first, second, third, fourth, registers.dr6, registers.dr7

    def set_debugregs(self, values: tuple[int, int, int, int, int, int]) -> None:
        *breakpoints, dr6, dr7 = values
        self.vcpu.set_debugregs(abi.DebugRegs(tuple(breakpoints), dr6, dr7))

    @property
    def xcr0(self) -> int:
        return self.vcpu.get_xcr0()

    @xcr0.setter
    def xcr0(self, value: int) -> None:
        self.vcpu.set_xcr0(value)

    @property
    def pkru(self) -> int:
        return self._live.pkru

    @pkru.setter
    def pkru(self, value: int) -> None:
        self._live.pkru = value

    def copy_shared_state(self, source: Engine) -> None:
        assert isinstance(source, DevKvmEngine)
        assert self.at_boundary
        assert source.at_boundary
        regs, theirs = self.regs, source.regs
        kept = regs.rsp, regs.rip, regs.rflags
        at = abi.RUN_SYNC
        self._bytes[at:REGS_END] = source._bytes[at:REGS_END]
        regs.rsp, regs.rip, regs.rflags = kept
        assert theirs is not regs
        if self._live.sregs.cr2 != source._live.sregs.cr2:
            self._live.sregs.cr2 = source._live.sregs.cr2
            self._live.dirty |= abi.SYNC_SREGS
        source.vcpu.shared.fetch(source.vcpu.fd)
        self.vcpu.shared.take(self.vcpu.fd, source.vcpu.shared)
        self._live.pkru = source._live.pkru

    # --- the processor's own ----------------------------------------------------------------------------------------

    def set_cpuid(self, leaves: Sequence[CpuidLeaf]) -> Sequence[CpuidLeaf]:
        told = offered(leaves, self._offered)
        self.vcpu.set_cpuid(kernel_entries(told))
        return told

    def set_apic_base(self, value: int) -> None:
        self._live.sregs.apic_base = self._live.apic_base = value
        self._live.dirty |= abi.SYNC_SREGS

    def set_tsc(self, value: int) -> None:
        self._tsc_offset = self._time.set_tsc(self.vcpu, value)

    def read_tsc(self) -> int | None:
        offset = self._tsc_offset
        return None if offset is None else self._time.read_tsc(offset)

    def share_task_priority(self, get: Callable[[], int], put: Callable[[int], None]) -> None:
        self._get_cr8, self._put_cr8 = get, put

    # --- memory -----------------------------------------------------------------------------------------------------

    def memory_written(self, gpa: int, size: int) -> None:
        """Nothing: the processor sees what is written."""

    def flush_tlb(self) -> None:
        self._flush = True

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.vcpu.close()
