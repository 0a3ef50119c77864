"""What the translator calls back, and how that becomes an exit or an event delivered.

In the interrupt hook no translated block is running: all state may change, and an exit may switch away. Belongs to the
vCPU's task.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from vtlkit.engine.api import (
    PAGE_SIZE,
    Access,
    ControlRegister,
    Cpuid,
    Event,
    EventType,
    ExceptionExit,
    Exit,
    Hlt,
    Hypercall,
    Interrupted,
    InterruptWindow,
    MemoryFault,
    NmiWindow,
    Other,
    Pause,
    Rdmsr,
    Rdtsc,
    Shutdown,
    Wrmsr,
)
from vtlkit.engine.decode import MAX_LENGTH, decode
from vtlkit.engine.linear import GuestFault, PhysicalFault
from vtlkit.engine.unicorn import binding
from vtlkit.engine.unicorn.binding import (
    EdgeCallback,
    Hook,
    InCallback,
    InstructionCallback,
    InterruptCallback,
    InvalidCallback,
    MemoryCallback,
    MemoryEvent,
    OutCallback,
)
from vtlkit.engine.unicorn.code import UndefinedInstruction
from vtlkit.engine.unicorn.controls import mnemonic_of
from vtlkit.engine.unicorn.fast_calls import syscall, sysenter
from vtlkit.engine.unicorn.io import InputOutput
from vtlkit.engine.unicorn.memory import Kind
from vtlkit.engine.unicorn.state import (
    CC_OP_EFLAGS,
    HF_INHIBIT_IRQ,
    INTERRUPT_NMI,
    INTERRUPT_VIRQ,
)
from vtlkit.x86.exceptions import HAS_ERROR_CODE, Vector
from vtlkit.x86.paging import SUPERVISOR
from vtlkit.x86.svm import EXCEPTION_BASE, SvmExit

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.factory import UnicornFactory
    from vtlkit.engine.unicorn.instance import Instance

INTERRUPTED: Final = Interrupted()
_INTERRUPT_WINDOW: Final = InterruptWindow()
_NMI_WINDOW: Final = NmiWindow()
_SHUTDOWN: Final = Shutdown()
_CPUID: Final = {n: Cpuid(n) for n in range(1, MAX_LENGTH + 1)}
_HLT: Final = {n: Hlt(n) for n in range(1, MAX_LENGTH + 1)}
_RDMSR: Final = {n: Rdmsr(n) for n in range(1, MAX_LENGTH + 1)}
_WRMSR: Final = {n: Wrmsr(n) for n in range(1, MAX_LENGTH + 1)}
_HYPERCALL: Final = {n: Hypercall(n) for n in range(1, MAX_LENGTH + 1)}
_PAUSE: Final = {n: Pause(n) for n in range(1, MAX_LENGTH + 1)}
_RDTSC: Final = {n: Rdtsc(n, False) for n in range(1, MAX_LENGTH + 1)}
_RDTSCP: Final = {n: Rdtsc(n, True) for n in range(1, MAX_LENGTH + 1)}

_PLAIN_EXITS: Final[dict[int, dict[int, Any]]] = {
    0x100 + SvmExit.CPUID: _CPUID,
    0x100 + SvmExit.HLT: _HLT,
    0x100 + SvmExit.VMMCALL: _HYPERCALL,
    0x100 + SvmExit.PAUSE: _PAUSE,
}

_EXCEPTIONS: Final = range(0x100 + EXCEPTION_BASE, 0x100 + EXCEPTION_BASE + 32)
_PAGE_FAULTS: Final = (Vector.PF, 0x100 + EXCEPTION_BASE + Vector.PF)
"""As an exception, and as the intercept that it is where the hypervisor has asked for page faults."""
_BETWEEN_INSTRUCTIONS: Final = frozenset(
    0x100 + code for code in (SvmExit.SMI, SvmExit.NMI, SvmExit.VINTR, EXCEPTION_BASE + Vector.DB)
)
"""Hook numbers that come when no instruction is in progress. In all others (a page fault of a fetch apart, which comes
from no place in translated code) counting has had the arithmetic flags computed, and Unicorn lost the note of it."""


class Hooks(InputOutput):
    """The hooks but those for I/O."""

    def __init__(self, factory: UnicornFactory, name: str) -> None:
        super().__init__(factory, name)
        self._fault: tuple[int, int, int] | None = None
        self._lone = -1
        self._install_hooks()

    def _install_hooks(self) -> None:
        lib, handle = self._lib, self._handle
        self._callbacks = (
            InterruptCallback(self._on_interrupt),
            InvalidCallback(self._on_invalid),
            InCallback(self._on_in),
            OutCallback(self._on_out),
            MemoryCallback(self._on_memory),
            EdgeCallback(self._on_edge),
            InstructionCallback(self._on_syscall),
            InstructionCallback(self._on_sysenter),
        )
        interrupt, invalid, port_in, port_out, memory, edge, on_syscall, on_sysenter = self._callbacks
        lib.hook_add(handle, Hook.INTR, interrupt)
        lib.hook_add(handle, Hook.INSN_INVALID, invalid)
        lib.hook_add(handle, Hook.INSN, port_in, binding.UC_X86_INS_IN)
        lib.hook_add(handle, Hook.INSN, port_out, binding.UC_X86_INS_OUT)
        lib.hook_add(handle, Hook.INSN, on_syscall, binding.UC_X86_INS_SYSCALL)
        lib.hook_add(handle, Hook.INSN, on_sysenter, binding.UC_X86_INS_SYSENTER)
        violations = (
            Hook.MEM_READ_UNMAPPED
            | Hook.MEM_WRITE_UNMAPPED
            | Hook.MEM_FETCH_UNMAPPED
            | Hook.MEM_READ_PROT
            | Hook.MEM_WRITE_PROT
            | Hook.MEM_FETCH_PROT
        )
        lib.hook_add(handle, violations, memory)
        lib.hook_add(handle, Hook.EDGE_GENERATED, edge)

    # --- interrupts and intercepts ------------------------------------------------------------------------------------

    def _on_interrupt(self, _uc: int, number: int, _data: int) -> None:
        self._unfinished = False
        if self._undo is not None:
            self._hold_requests()
            return
        try:
            exits = _PLAIN_EXITS.get(number)
            if exits is not None:
                if self._counting:
                    self._cc_op.value = CC_OP_EFLAGS
                self._caller.switch(exits[self._length()])
                return
            if (
                self._counting
                and number not in _BETWEEN_INSTRUCTIONS
                and (number not in _PAGE_FAULTS or self.regs.retaddr)
            ):
                self._cc_op.value = CC_OP_EFLAGS
            reason = self._exit_of(number)
            if reason is None and self._counting and (number < 0x100 or number in _EXCEPTIONS):
                # What was delivered counts as an instruction: a guest that only ever faults uses up its slice too.
                self._counter.value += 1
                if self._counter.value > self._count.value:
                    reason = INTERRUPTED
            if reason is not None:
                self._caller.switch(reason)
        except (GuestFault, PhysicalFault, UndefinedInstruction) as fault:
            self._guarded(partial(self._refuse, fault))
        except BaseException as error:  # noqa: BLE001 - C frames cannot carry it; `run` raises it
            self._fail(error)

    def _refuse(self, fault: GuestFault | PhysicalFault | UndefinedInstruction) -> None:
        """The instruction that exited cannot be read, or is none: it faults, as a processor's fetch would have.

        It could be executed so far because the instance still had an old translation of its page, or knows an encoding
        that no processor has.
        """
        self.flush_tlb()
        if isinstance(fault, PhysicalFault):
            reason: Exit | None = MemoryFault(fault.gpa, fault.size, fault.access, fault.mapped, fault.gva)
        else:
            reason = self._raise(*self._event_of(fault))
        if reason is not None:
            self._caller.switch(reason)

    @staticmethod
    def _event_of(fault: GuestFault | UndefinedInstruction) -> tuple[Event, int]:
        if isinstance(fault, UndefinedInstruction):
            return Event(EventType.EXCEPTION, Vector.UD), 0
        return Event(EventType.EXCEPTION, fault.vector, fault.error_code), fault.address

    def _exit_of(self, number: int) -> Exit | None:
        """The exit that an interrupt-hook number stands for; None if it was handled here."""
        code = number - 0x100
        if code == SvmExit.MSR:
            return _WRMSR[self._length()] if self.regs.error_code else _RDMSR[self._length()]
        if code < 0:
            return self._unintercepted(number)
        if EXCEPTION_BASE <= code < EXCEPTION_BASE + 32:
            return self._exception(code - EXCEPTION_BASE, self._controls.fault_address())
        if code == SvmExit.SMI:
            if self._counting and self._counter.value > self._count.value:
                # The limit has ended the run or is about to: one kick is one exit.
                self._request_low.value = 0
                return None
            self._forget_kick()
            return INTERRUPTED
        if code == SvmExit.VINTR:
            if self._behind_shadow:
                self._behind_shadow = False
                self._request_high.value &= ~(INTERRUPT_VIRQ >> 8) | self._window_too
                return _NMI_WINDOW
            self._request_high.value &= ~(INTERRUPT_VIRQ >> 8)
            return _INTERRUPT_WINDOW
        if code == SvmExit.NMI:
            self._request_high.value &= ~(INTERRUPT_NMI >> 8)
            if self.regs.hflags & HF_INHIBIT_IRQ and self._pass_shadow():
                return None
            return _NMI_WINDOW
        return self._rarer_exit(code)

    def _rarer_exit(self, code: int) -> Exit:
        if code == SvmExit.RDTSC:
            decoded = self._decoded()
            return (_RDTSCP if decoded.mnemonic == "rdtscp" else _RDTSC)[decoded.length]
        if code == SvmExit.SHUTDOWN:
            return _SHUTDOWN
        if code < EXCEPTION_BASE:
            decoded = self._decoded()
            write = bool(code & 0x10)
            if decoded.register < 0:
                # CLTS and LMSW change CR0 without naming it.
                return Other(decoded.length, decoded.mnemonic)
            return ControlRegister(decoded.length, decoded.register, decoded.gpr, write)
        name = mnemonic_of(code)
        decoded = self._decoded()
        return Other(decoded.length, name or decoded.mnemonic)

    # --- exceptions ---------------------------------------------------------------------------------------------------

    def _unintercepted(self, number: int) -> Exit | None:
        """A software interrupt, or a page fault that nobody has asked for: CR2 is set then."""
        state = self.regs
        state.old_exception = -1
        if state.exception_is_int:
            return self._software(number)
        return self._exception(number, state.cr[2])

    def _software(self, vector: int) -> Exit | None:
        """INT n, INT3 or INTO; RIP is past it."""
        state = self.regs
        # Left set it would move RIP at the next intercept too.
        state.exception_is_int = 0
        event = self._software_interrupt(vector)
        if self._software_exits and event.instruction_length > 1:
            state.rip -= event.instruction_length
            return Other(event.instruction_length, "int")
        if event.instruction_length == 1 and self.exception_intercepts >> vector & 1:
            state.rip -= 1
            return ExceptionExit(vector, None, 0, None)
        return self._delivery.deliver(event)

    def _software_interrupt(self, vector: int) -> Event:
        before = self.linear.fetch(self._linear_rip() - 1, 1)
        single = (vector == Vector.BP and before == b"\xcc") or (vector == Vector.OF and before == b"\xce")
        return Event(EventType.SOFTWARE, vector, instruction_length=1 if single else 2)

    def _exception(self, vector: int, address: int) -> Exit | None:
        """`address` is that of a page fault, and counts for nothing else."""
        state = self.regs
        state.old_exception = -1
        error_code = state.error_code if vector in HAS_ERROR_CODE else None
        if vector == Vector.PF:
            fault = self._hidden_table_fault(address)
            if fault is not None:
                return fault
            if self._alone(not state.retaddr and (address ^ self._linear_rip()) >= PAGE_SIZE):
                return None
        elif vector == Vector.UD and self._skip_int1():
            vector = Vector.DB
        elif vector == Vector.GP and not error_code:
            if self._xsetbv_exits and (length := self._xsetbv()):
                return Other(length, "xsetbv")
            if self._alone(self._before_hole()):
                return None
        return self._raise(Event(EventType.EXCEPTION, vector, error_code), address if vector == Vector.PF else 0)

    def _skip_int1(self) -> bool:
        """Whether the invalid instruction is INT1 (ICEBP), which the translator does not know; it is skipped then.

        It raises #DB behind itself, whatever the gate's DPL is, and DR6 stays: no breakpoint is the cause.
        """
        decoded = decode(self.instruction_bytes(MAX_LENGTH), self._bits())
        if decoded is None or decoded.mnemonic != "int1":
            return False
        self.regs.rip += decoded.length
        self.interrupt_shadow = False
        return True

    def _alone(self, ahead: bool) -> bool:
        """Whether to execute the instruction at RIP in a block of its own before its fault is believed.

        A block is translated as a whole, across the end of a page too. A fetch from the next page that faults then is
        not yet the fault of the instruction that RIP is at, if that one lies in the page before (`ahead`).
        """
        rip = self._linear_rip()
        if not ahead or self._lone == rip:
            self._lone = -1
            return False
        self._lone = rip
        self._live.next_flags.value = 1
        return True

    def _hidden_table_fault(self, gva: int) -> Exit | None:
        """A page fault because a page table lies where the map forbids reads is that violation instead."""
        if not self._map.hides:
            return None
        try:
            self.linear.translate(gva, SUPERVISOR)
        except PhysicalFault as fault:
            return MemoryFault(fault.gpa, fault.size, fault.access, True, gva) if fault.mapped else None
        except GuestFault:
            return None
        return None

    def _on_invalid(self, _uc: int, _data: int) -> bool:
        # Only INT 6 comes here: #UD itself is intercepted.
        def deliver() -> None:
            state = self.regs
            state.rip = state.exception_next_eip
            reason = self._software(Vector.UD)
            if reason is not None:
                self._caller.switch(reason)

        self._guarded(deliver)
        return True

    # --- others -------------------------------------------------------------------------------------------------------

    def _on_syscall(self, _uc: int, _data: int) -> None:
        self._fast_call(syscall)

    def _on_sysenter(self, _uc: int, _data: int) -> None:
        self._fast_call(sysenter)

    def _fast_call(self, execute: Callable[[Instance, int], Event | None]) -> None:
        if self._undo is not None:
            return
        try:
            event = execute(self, self._length())
            if event is not None:
                self._raise_after(event)
        except (GuestFault, UndefinedInstruction) as fault:
            self._raise_after(*self._event_of(fault))
        except BaseException as error:  # noqa: BLE001 - C frames cannot carry it; `run` raises it
            self._fail(error)

    def _on_memory(self, _uc: int, kind: int, address: int, size: int, _value: int, _data: int) -> bool:
        if self._fault is None and self._undo is None:
            self._fault = (kind, address, size)
            if kind not in (MemoryEvent.FETCH_UNMAPPED, MemoryEvent.FETCH_PROT):
                # Behind a store the instruction goes on.
                self._note_flags()
                self._cut_short()
        return False

    def _memory_fault(self, kind: int, address: int, size: int) -> Exit | None:
        if kind in (MemoryEvent.READ_UNMAPPED, MemoryEvent.READ_PROT):
            access = Access.READ
        elif kind in (MemoryEvent.WRITE_UNMAPPED, MemoryEvent.WRITE_PROT):
            access = Access.WRITE
        else:
            access = Access.EXECUTE
            if self._alone(self._elsewhere(address)):
                return None
        item = self._map.find(address)
        return MemoryFault(address, size, access, item is not None and item.kind is Kind.RAM)

    def _elsewhere(self, gpa: int) -> bool:
        """Whether a fetch from `gpa` is from another page than the first byte of the instruction at RIP."""
        try:
            return self.linear.translate(self._linear_rip(), SUPERVISOR) ^ gpa >= PAGE_SIZE
        except (GuestFault, PhysicalFault):
            return False

    def _on_edge(
        self, _uc: int, block: ctypes._Pointer[binding.TranslationBlock], _previous: object, _data: int
    ) -> None:
        try:
            self._note_code(block[0].pc, block[0].size)
        except BaseException as error:  # noqa: BLE001 - C frames cannot carry it; `run` raises it
            self._fail(error)
