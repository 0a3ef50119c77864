"""An engine whose guest is a Python generator, one yielded operation per instruction (`ops`).

It keeps the whole contract of `vtlkit.engine.api` where that speaks of exits, windows, injection, kicks, budgets,
memory and unfinished I/O, so that the run loop above cannot tell it from a processor. It has no page tables, segments
or descriptor tables: addresses are guest-physical, and an event enters the handler registered for its vector instead of
a gate. It asks nobody for the time and makes no choice of its own: a run is a function of the script, of what the
hypervisor does, and of what `Host` actions return.

Execution starts at linear address CS.base + RIP: `programs` says which generator function begins there. Setting RIP or
CS to the beginning of a program, as INIT and SIPI do, begins it; a RIP that is neither that nor where the guest was is
an `InternalError` exit. A program that returns halts for good; a handler that returns executes IRET.

Shared with other tasks: the kick flag, one store on each side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from vtlkit.engine.api import (
    NO_REGISTERS,
    Engine,
    Event,
    EventType,
    Exit,
    Intercept,
    Interrupted,
    InterruptWindow,
    MemoryFault,
    NmiWindow,
    PortBitmap,
    PreemptionTimer,
    RegisterIntercepts,
    instructions_in,
)
from vtlkit.engine.mapped import MappedMemory
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.core import Guest, Handler, Leave
from vtlkit.engine.scripted.instructions import Instructions
from vtlkit.engine.scripted.state import FPU_SIZE, NATIVE_MSRS, State
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import DR6_BS, EFER_LMA, RFLAGS_FIXED, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF, Sregs

_INTERRUPTED: Final = Interrupted()
_PREEMPTION_TIMER: Final = PreemptionTimer()
_INTERRUPT_WINDOW: Final = InterruptWindow()
_NMI_WINDOW: Final = NmiWindow()


class ScriptedEngine(Instructions, MappedMemory):
    """See `vtlkit.engine.api.Engine` for the contract and the module for what is different."""

    hypercall_instruction: ClassVar[bytes] = b"\x0f\x01\xd9"
    native_msrs: ClassVar[frozenset[int]] = NATIVE_MSRS
    free_msr_reads: ClassVar[frozenset[int]] = frozenset()
    intercepts_ports = True
    counts_preemption_timer = True
    regs: State

    def __init__(self, name: str, programs: Mapping[int, Guest], handlers: Mapping[int, Handler]) -> None:
        super().__init__(programs, handlers)
        self.name = name
        self._event: Event | None = None
        self._kicked = False
        self._timer_at: int | None = None
        """How many instructions have been executed when the preemption timer has run down."""
        self._interrupt_window = False
        self._nmi_window = False
        self._closed = False

    # --- execution ------------------------------------------------------------------------------------------------

    def run(self, budget: int | None, *, force_immediate_exit: bool = False) -> Exit:
        assert not self._closed, "the engine is closed"
        if budget is not None:
            self.left = budget
        timer = self._timer_at
        if timer is None:
            return self._run(force_immediate_exit)
        begin, left = self.executed, self.left
        self.left = min(left, max(timer - begin, 0))
        reason = self._run(force_immediate_exit)
        self.left = left - (self.executed - begin)
        return reason

    def _run(self, force_immediate_exit: bool) -> Exit:
        try:
            if self.unfinished:
                self.execute()
            elif self._event is not None:
                event, self._event = self._event, None
                self.deliver(event)
            while not (self._kicked or force_immediate_exit or self.left <= 0):
                self._look_for_windows()
                self.execute()
        except Leave as left:
            return left.reason
        if self._timer_at is not None and self.executed >= self._timer_at and not self._kicked:
            return _PREEMPTION_TIMER
        self._kicked = False
        return _INTERRUPTED

    def _look_for_windows(self) -> None:
        if self._nmi_window and not self.nmi_blocked and not self.interrupt_shadow:
            self.request_nmi_window(False)
            raise Leave(_NMI_WINDOW)
        if self._interrupt_window and self.regs.rflags & RFLAGS_IF and not self.interrupt_shadow:
            self.request_interrupt_window(False)
            raise Leave(_INTERRUPT_WINDOW)

    def kick(self) -> None:
        self._kicked = True

    def set_preemption_timer(self, ticks: int | None) -> None:
        self._timer_at = None if ticks is None else self.executed + instructions_in(ticks, self.instruction_cycles)

    def instructions(self) -> int:
        return self.executed

    def complete(self, value: int) -> None:
        assert self.unfinished, "no instruction waits for a value"
        self.answers[-1] = value

    @property
    def at_boundary(self) -> bool:
        return not self.unfinished

    def abandon(self) -> None:
        self.forget_io()
        # What was under way is over, also if the registers are set to where it began.
        self.end_scripts()
        self._event = None
        self._kicked = False

    def skip(self, length: int) -> None:
        assert not self.unfinished, "the engine finishes an I/O instruction itself"
        self.move(length)
        flags = self.regs.rflags
        self.regs.rflags = flags & ~RFLAGS_RF
        if flags & RFLAGS_TF:
            self.regs.dr[4] |= DR6_BS
            self.inject(Event(EventType.EXCEPTION, Vector.DB))

    def code_bits(self) -> int:
        sregs = self.regs.sregs
        if sregs.efer & EFER_LMA and sregs.cs.long:
            return 64
        return 32 if sregs.cs.db else 16

    def instruction_bytes(self, size: int = 16) -> bytes:
        """None: a script is not in guest memory."""
        return b""

    def instruction_length(self, code: bytes) -> int:
        """1: every instruction is one byte long."""
        return 1 if code else 0

    def store_operand(self, value: int, size: int) -> Event | MemoryFault | None:
        """The operand is RAX."""
        self.regs.rax = value & ((1 << 8 * size) - 1)
        return None

    def operand_address(self) -> int | None:
        """RAX, for the instructions that have an operand in memory."""
        op = self.fetch()
        memory = isinstance(op, ops.Intercepted) and op.mnemonic in ("lgdt", "lidt")
        return self.regs.rax if memory else None

    def load_operand16(self) -> int | Event | MemoryFault:
        """The operand is RAX."""
        return self.regs.rax & 0xFFFF

    # --- events ---------------------------------------------------------------------------------------------------

    def inject(self, event: Event) -> None:
        assert self._event is None, f"{self._event} is injected already, {event} on top"
        assert not self.unfinished, "an event cannot be injected into an unfinished I/O instruction"
        self._event = event

    def injected(self) -> Event | None:
        return self._event

    def cancel_injection(self) -> Event | None:
        event, self._event = self._event, None
        return event

    def request_interrupt_window(self, wanted: bool) -> None:
        self._interrupt_window = wanted
        self.one_at_a_time = self._interrupt_window or self._nmi_window

    def request_nmi_window(self, wanted: bool) -> None:
        self._nmi_window = wanted
        self.one_at_a_time = self._interrupt_window or self._nmi_window

    def set_intercepts(
        self, intercepts: Intercept, exceptions: int = 0, moves: RegisterIntercepts = NO_REGISTERS
    ) -> None:
        self.intercepts = intercepts
        self.exceptions = exceptions
        self.moves = moves

    def set_port_intercepts(self, reads: PortBitmap | None, writes: PortBitmap | None) -> None:
        self.port_intercepts = reads, writes

    def intercept_msr(self, index: int, read: bool, write: bool) -> None:
        if index not in NATIVE_MSRS and not (read and write):
            raise ValueError(f"MSR {index:#x} does not live in the engine: it always exits")
        (self.free_reads.discard if read else self.free_reads.add)(index)
        (self.free_writes.discard if write else self.free_writes.add)(index)

    # --- registers ------------------------------------------------------------------------------------------------

    @property
    def rflags(self) -> int:
        return self.regs.rflags

    @rflags.setter
    def rflags(self, value: int) -> None:
        self.regs.rflags = value | RFLAGS_FIXED

    @property
    def xcr0(self) -> int:
        return self.regs.xcr0

    @xcr0.setter
    def xcr0(self, value: int) -> None:
        self.regs.xcr0 = value

    @property
    def pkru(self) -> int:
        return self.regs.pkru

    @pkru.setter
    def pkru(self, value: int) -> None:
        self.regs.pkru = value

    def get_sregs(self) -> Sregs:
        sregs = self.regs.sregs.copy()
        sregs.cr8 = sregs.apic_base = 0
        return sregs

    def set_sregs(self, sregs: Sregs) -> None:
        assert not self.unfinished, "system registers cannot change in an unfinished I/O instruction"
        self.regs.sregs = sregs.copy()

    @property
    def cpl(self) -> int:
        return self.regs.sregs.ss.dpl if self.regs.sregs.cr0 & 1 else 0

    @property
    def cr0(self) -> int:
        return self.regs.sregs.cr0

    @property
    def cr4(self) -> int:
        return self.regs.sregs.cr4

    def get_msr(self, index: int) -> int:
        return self.regs.get_msr(index)

    def set_msr(self, index: int, value: int) -> None:
        self.regs.set_msr(index, value)

    def get_fpu(self) -> bytes:
        return self.regs.fpu

    def set_fpu(self, image: bytes) -> None:
        if len(image) != FPU_SIZE:
            raise ValueError(f"an FXSAVE image has {FPU_SIZE} bytes, not {len(image)}")
        self.regs.fpu = bytes(image)

    def get_debugregs(self) -> tuple[int, int, int, int, int, int]:
        first, second, third, fourth, dr6, dr7 = self.regs.dr
        return first, second, third, fourth, dr6, dr7

    def set_debugregs(self, values: tuple[int, int, int, int, int, int]) -> None:
        self.regs.dr[:] = values

    def copy_shared_state(self, source: Engine) -> None:
        assert isinstance(source, ScriptedEngine)
        assert not self.unfinished
        assert not source.unfinished
        self.regs.copy_shared(source.regs)

    # --- memory ---------------------------------------------------------------------------------------------------

    def memory_written(self, gpa: int, size: int) -> None:
        """Nothing: a script is not in guest memory."""

    def flush_tlb(self) -> None:
        """Nothing: addresses are not translated."""

    def close(self) -> None:
        self._closed = True
        self.end_scripts()


class ScriptedFactory:
    """`EngineFactory` of the scripted engine: every vCPU may begin every program of the machine."""

    name = "scripted"

    def __init__(self, programs: Mapping[int, Guest], handlers: Mapping[int, Handler] | None = None) -> None:
        self._programs = programs
        self._handlers = handlers or {}
        self._engines: list[ScriptedEngine] = []

    def create(self, vcpu_name: str) -> ScriptedEngine:
        engine = ScriptedEngine(vcpu_name, self._programs, self._handlers)
        self._engines.append(engine)
        return engine

    def counts_instructions(self) -> bool:
        return True

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
