"""The embedded engine: one Unicorn instance as the CPU of one vCPU.

The guest runs in emulated SVM guest mode that is entered once and never left: the translator's own intercept checks
turn CPUID, HLT, MSR accesses and the rest into calls of the interrupt hook with the state precise at the instruction.
The instance runs in a greenlet of its own. A hook that must exit switches to the greenlet that called `run` and stays
suspended, C frames included, until the next `run` switches back: an exit neither stops nor restarts the translator.

Where it stays suspended decides what may be touched. In the interrupt hook no translated block is running and all state
may change. In an I/O hook (port or memory-mapped) the rest of the block still runs afterwards, so registers may be read
only: `at_boundary` says which of the two it is.

Shared with other tasks: `kick` stores to the interrupt request's low byte, which the vCPU's task answers by clearing
it, and then to the word that makes running code look at it: the instruction limit where instructions are counted, else
the decrementer's high half. Everything else belongs to the vCPU's task.

A running block must never be left in the middle of an instruction whose store is done: it would be executed twice. So
counted runs are ended through the limit only, which is looked at between instructions, and blocks that are not counted
are translated without Unicorn's look at the decrementer behind every access. What then cannot be left at once, because
an access is forbidden or a port denied, is made harmless and undone: see `_cut_short`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from greenlet import error as GreenletError
from greenlet import getcurrent, greenlet

from vtlkit.engine.api import (
    PAGE_SIZE,
    Access,
    ControlRegister,
    Cpuid,
    Engine,
    EngineError,
    Event,
    EventType,
    ExceptionExit,
    Exit,
    Hlt,
    Hypercall,
    Intercept,
    InternalError,
    Interrupted,
    InterruptWindow,
    MemoryFault,
    MmioRead,
    MmioRead8,
    MmioWrite,
    MmioWrite8,
    NmiWindow,
    Other,
    Pause,
    PortIn,
    PortOut,
    RamBlock,
    Rdmsr,
    Rdtsc,
    Shutdown,
    Wrmsr,
)
from vtlkit.engine.unicorn import binding, registers
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
from vtlkit.engine.unicorn.codepages import TranslatedCode
from vtlkit.engine.unicorn.controls import (
    EMPTY_TABLE_GPA,
    EXCEPTION_BASE,
    MSR_PERMISSION_GPA,
    VMCB_GPA,
    ControlPages,
    SvmExit,
    intercept_words,
    mnemonic_of,
)
from vtlkit.engine.unicorn.decode import MAX_LENGTH, Decoded, decode, length
from vtlkit.engine.unicorn.delivery import CS, Delivery
from vtlkit.engine.unicorn.fast_calls import syscall, sysenter
from vtlkit.engine.unicorn.linear import GuestFault, LinearMemory, PhysicalFault
from vtlkit.engine.unicorn.memory import CHUNK, GuestPhysicalMap, Kind, Range
from vtlkit.engine.unicorn.operands import Operand
from vtlkit.engine.unicorn.state import (
    CC_FLAGS,
    CC_OP_EFLAGS,
    CONTEXT_BYTES,
    HF2_GIF,
    HF2_NMI,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HF_GUEST,
    HF_INHIBIT_IRQ,
    INTERRUPT_NMI,
    INTERRUPT_SMI,
    INTERRUPT_VIRQ,
    CpuState,
    locate,
)
from vtlkit.x86.exceptions import HAS_ERROR_CODE, Vector
from vtlkit.x86.paging import SUPERVISOR, is_canonical
from vtlkit.x86.registers import (
    CR0_PE,
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    DR6_BS,
    RFLAGS_DF,
    RFLAGS_FIXED,
    RFLAGS_IF,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VM,
    Sregs,
)

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.factory import UnicornFactory

_IOPL_SHIFT: Final = 12
_INTERRUPTED: Final = Interrupted()
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

_NO_CHAIN: Final = 0xFFFF

_PLAIN_EXITS: Final[dict[int, dict[int, Any]]] = {
    0x100 + SvmExit.CPUID: _CPUID,
    0x100 + SvmExit.HLT: _HLT,
    0x100 + SvmExit.VMMCALL: _HYPERCALL,
    0x100 + SvmExit.PAUSE: _PAUSE,
}
_WORD: Final = 8

_BETWEEN_INSTRUCTIONS: Final = frozenset(
    0x100 + code for code in (SvmExit.SMI, SvmExit.NMI, SvmExit.VINTR, EXCEPTION_BASE + Vector.DB)
)
"""Hook numbers that come when no instruction is in progress. In all others (a page fault of a fetch apart, which comes
from no place in translated code) counting has had the arithmetic flags computed, and Unicorn lost the note of it."""

_STRANDED: Final[list[UnicornEngine]] = []
"""Closed while suspended in a hook of another thread: C frames that only that thread can leave still use them."""


class UnicornEngine(Engine):
    """See `vtlkit.engine.api.Engine` for the contract."""

    hypercall_instruction: ClassVar[bytes] = b"\x0f\x01\xd9"
    """VMMCALL: an intercepted instruction in SVM guest mode, at any CPL."""
    native_msrs: ClassVar[frozenset[int]] = registers.NATIVE_MSRS
    regs: CpuState

    def __init__(self, factory: UnicornFactory, name: str) -> None:
        self._factory = factory
        self._physical = factory.physical
        self._lib = factory.lib
        self.name = name
        handle = ctypes.c_void_p()
        lib = self._lib
        lib.check(lib.open(binding.UC_ARCH_X86, binding.UC_MODE_64, ctypes.byref(handle)), "an instance")
        assert handle.value is not None
        self._handle = handle.value
        self._closed = False
        lib.check(lib.ctl(self._handle, binding.CTL_USE_EXITS, 1, 0), "exit points")
        no_exits = (ctypes.c_uint64 * 1)()
        lib.check(lib.ctl(self._handle, binding.CTL_EXITS, ctypes.addressof(no_exits), 0), "no exit points")
        self._live = locate(lib, self._handle)
        self._request_low = ctypes.c_uint8.from_address(ctypes.addressof(self._live.interrupt_request))
        self._request_high = ctypes.c_uint8.from_address(ctypes.addressof(self._live.interrupt_request) + 1)
        self._count, self._counter = self._live.count, self._live.counter
        self._live.no_exit_request.value = not factory.counts_instructions()
        self.regs = self._live.state
        self._bind_words()
        self._controls = ControlPages()
        self._map = GuestPhysicalMap(lib, self._handle, self.regs)
        self._controls.map(lib, self._handle)
        registers.enable_features(self.regs)
        self.linear = LinearMemory(self.regs, self._map, registers.MAXPHYADDR)
        self._delivery = Delivery(self)
        self.exception_intercepts = 0
        self._event: Event | None = None
        self._counting = factory.counts_instructions()
        self._executed = 0
        self._limit = 0
        self._kicked = False
        self._chores = False
        self._answer = 0
        self._unfinished = False
        self._failure: BaseException | None = None
        self._fault: tuple[int, int, int] | None = None
        self._deferred: Event | None = None
        self._undo: bytes | None = None
        self._counted = 0
        self._held_low = self._held_high = 0
        self._behind_shadow = False
        self._window_too = 0
        self._lone = -1
        self._inside = False
        self._unwinding = False
        self._lengths: dict[int, tuple[int, int, ctypes.c_uint64, int, int, int]] = {}
        self._code: dict[int, TranslatedCode] = {}
        self._host_wrote = False
        self._code_moved = False
        self._caller: greenlet = getcurrent()
        self._cpu: greenlet | None = None
        self._install_hooks()
        registers.set_sregs(self, Sregs.reset())
        self.regs.vm_vmcb = VMCB_GPA
        self.regs.hflags2 |= HF2_GIF
        self.regs.old_exception = -1
        self.set_intercepts(Intercept.NONE)
        for msr in registers.READ_NATIVELY:
            self.intercept_msr(msr, False, True)

    def _bind_words(self) -> None:
        """Views of what every exit needs, without the detour over the structure."""
        address = self._env = ctypes.addressof(self.regs)
        self._rip = ctypes.c_uint64.from_address(address + CpuState.rip.offset)
        self._eflags = ctypes.c_uint64.from_address(address + CpuState.eflags.offset)
        self._hflags = ctypes.c_uint32.from_address(address + CpuState.hflags.offset)
        self._cc_op = ctypes.c_uint32.from_address(address + CpuState.cc_op.offset)
        self._cr0 = ctypes.c_uint64.from_address(address + CpuState.cr.offset)
        self._cr3 = ctypes.c_uint64.from_address(address + CpuState.cr.offset + 3 * 8)

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

    # --- execution ------------------------------------------------------------------------------------------------

    def run(self, budget: int | None, *, force_immediate_exit: bool = False) -> Exit:
        if self._unfinished or self._kicked or force_immediate_exit or self._event is not None:
            early = self._before_entry(budget, force_immediate_exit)
            if early is not None:
                return early
        if self._physical is None:
            return self._enter(budget)
        return self._take_turn(budget)

    def _before_entry(self, budget: int | None, force_immediate_exit: bool) -> Exit | None:
        """What comes before the next instruction; an exit if that is all."""
        if self._unfinished:
            if force_immediate_exit or self._request_high.value:
                return self._finish_instruction(budget, force_immediate_exit)
            return None
        event = self._event
        if event is not None:
            self._event = None
            if event.type is EventType.SOFTWARE:
                self.regs.rip += event.instruction_length
            interrupted = self._delivery.deliver(event)
            if interrupted is not None:
                return interrupted
        if force_immediate_exit or self._kicked:
            if budget is not None and self._counting:
                self._set_budget(budget)
            self._forget_kick()
            return _INTERRUPTED
        return None

    def _finish_instruction(self, budget: int | None, force_immediate_exit: bool) -> Exit:
        """Run to the end of an unfinished I/O instruction; where instructions are not counted, to the end of its block.

        Needed too for a window that was asked for meanwhile: whether it is open is looked at between chains of blocks
        only, and the chain that the suspended block belongs to may be endless.
        """
        if not self._counting:
            if force_immediate_exit:
                self.kick()
            self._live.decrementer.value = _NO_CHAIN
            return self._take_turn(budget)
        if budget is None:
            budget = self._limit - self._live.counter.value
        reason = self._take_turn(0)
        self._set_budget(budget)
        if force_immediate_exit or reason is not _INTERRUPTED or self._unfinished or self._kicked:
            return reason
        return self._take_turn(None)

    def _take_turn(self, budget: int | None) -> Exit:
        physical = self._physical
        if physical is None:
            return self._enter(budget)
        physical.acquire(self)
        try:
            return self._enter(budget)
        finally:
            physical.release(self)

    def _enter(self, budget: int | None) -> Exit:
        if budget is not None and self._counting:
            self._limit = self._counter.value + budget
            self._count.value = self._limit
        if self._chores or self._factory.last_entered is not self:
            self._do_chores()
        self._caller = getcurrent()
        cpu = self._cpu
        if cpu is None:
            cpu = self._cpu = greenlet(self._loop)
        try:
            result: Exit = cpu.switch()
        except GreenletError as error:
            raise EngineError(f"{self.name} runs on the thread that it was first run on: {error}") from error
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return result

    def _do_chores(self) -> None:
        """What is seldom needed before an entry."""
        self._chores = False
        factory = self._factory
        if factory.last_entered is not self or self._host_wrote:
            self._forget_changed_code()
        factory.last_entered = self
        if self._code_moved:
            self._code_moved = False
            self._code.clear()
            self._lib.check(self._lib.ctl(self._handle, binding.CTL_TB_FLUSH, 0, 0), "a flush of translated code")
        if self._behind_shadow:
            self._behind_shadow = False
            self._request_high.value |= INTERRUPT_NMI >> 8
        if self._counting:
            self._count.value = self._limit
        if self._kicked:
            self._end_soon()

    def _set_budget(self, budget: int) -> None:
        """Count up to `budget` from here; a suspended block goes on from where it is."""
        self._limit = self._counter.value + budget
        self._count.value = self._limit

    def _end_soon(self) -> None:
        """Make running code stop: before the next instruction where they are counted, else before the next block."""
        self._chores = True
        if self._counting:
            self._count.value = 0
        else:
            self._live.decrementer.value = _NO_CHAIN

    def _loop(self) -> None:
        """The engine's greenlet: start the translator, say why it stopped, again."""
        lib, handle, live = self._lib, self._handle, self._live
        state = self.regs
        while True:
            state.hflags |= HF_GUEST
            self._fault = None
            if self._counting:
                # Starting resets the counter: carry on with what is left.
                executed = live.counter.value
                live.counter.value = 0
                self._executed += executed
                self._limit -= executed
                if self._limit <= 0:
                    self._forget_kick()
                    self._caller.switch(_INTERRUPTED)
                    continue
            # Outside the translator QEMU keeps all flags in this field; the engine always has the form used inside.
            state.eflags = self.rflags
            self._inside = True
            error = lib.emu_start(handle, state.rip, 0, 0, self._limit)
            self._inside = False
            self.rflags = state.eflags
            self._unfinished = False
            reason = self._stopped(error)
            if reason is not None:
                self._caller.switch(reason)

    def _stopped(self, error: int) -> Exit | None:
        """Why the translator came back on its own; None if it is to go on."""
        limited = False
        if self._undo is not None:
            self._restore()
        elif self._fault is None and self._counter.value > self._count.value:
            # The limit is noticed when the next instruction has been counted.
            self._counter.value -= 1
            limited = True
        if self._deferred is not None:
            event, self._deferred = self._deferred, None
            return self._delivery.deliver(event)
        if self._fault is not None:
            kind, address, size = self._fault
            self._fault = None
            return self._memory_fault(kind, address, size)
        if self._behind_shadow and not error:
            self._behind_shadow = False
            self._request_high.value |= INTERRUPT_NMI >> 8
            if not self._kicked:
                return None
        if error:
            return InternalError(f"Unicorn stopped: {self._lib.describe(error)} at RIP {self.regs.rip:#x}")
        if limited or self._kicked or self._unwinding or self._failure is not None:
            self._forget_kick()
            return _INTERRUPTED
        # A change of the memory map that takes rights away from the page that RIP is in stops the translator, too.
        return None

    def _cut_short(self) -> None:
        """Undo, when the translator stops, whatever the present instruction and its block still do.

        A hook cannot leave translated code. Until the block has ended no access can succeed, as every translation is
        gone and an empty page table is in force, and the registers are then set back to what they are now.
        """
        state, live = self.regs, self._live
        self._undo = ctypes.string_at(ctypes.addressof(state), CONTEXT_BYTES)
        self._counted = live.counter.value
        self._hold_requests()
        state.cr[0] |= CR0_PG
        state.cr[3] = EMPTY_TABLE_GPA
        state.cr[4] &= ~CR4_PAE
        self.flush_tlb()

    def _restore(self) -> None:
        undo, self._undo = self._undo, None
        assert undo is not None
        ctypes.memmove(ctypes.addressof(self.regs), undo, CONTEXT_BYTES)
        self._live.counter.value = self._counted
        if self._held_low:
            self.kick()
        self._request_high.value |= self._held_high
        self._held_low = self._held_high = 0

    def _hold_requests(self) -> None:
        """Put aside kicks and windows: the translator would serve them before it stops, again and again."""
        self._held_low |= self._request_low.value
        self._held_high |= self._request_high.value
        self._request_low.value = self._request_high.value = 0

    def kick(self) -> None:
        self._request_low.value = INTERRUPT_SMI
        self._kicked = True
        self._end_soon()

    def _forget_kick(self) -> None:
        """One is answered. In this order: a kick that comes in between is answered once more and not lost."""
        self._kicked = False
        self._request_low.value = 0

    def instructions(self) -> int | None:
        if not self._counting:
            return None
        return self._executed + int(self._counter.value)

    def complete(self, value: int) -> None:
        self._answer = value

    @property
    def at_boundary(self) -> bool:
        return not self._unfinished

    def abandon(self) -> None:
        if self._unfinished:
            self._unwind()
        self._event = None
        self._forget_kick()

    def _unwind(self) -> None:
        """Return from the suspended hook and through the C frames below it, without effect on guest or devices."""
        assert self._cpu is not None
        if self._undo is None:
            self._cut_short()
        self._answer = 0
        self._unwinding = True
        self._lib.emu_stop(self._handle)
        self._caller = getcurrent()
        self._cpu.switch()
        self._unwinding = False

    def skip(self, length: int) -> None:
        rip = self._rip.value + length
        hflags = self._hflags.value
        self._rip.value = rip if hflags & HF_CS64 else rip & 0xFFFFFFFF
        if hflags & HF_INHIBIT_IRQ:
            self._hflags.value = hflags & ~HF_INHIBIT_IRQ
        eflags = self._eflags.value
        if eflags & (RFLAGS_TF | RFLAGS_RF):
            state = self.regs
            state.eflags = eflags & ~RFLAGS_RF
            if eflags & RFLAGS_TF:
                state.dr[6] |= DR6_BS
                self.inject(Event(EventType.EXCEPTION, Vector.DB))

    # --- hooks ----------------------------------------------------------------------------------------------------

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run hook code; an exception is kept for `run` to raise and the translator is stopped."""
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - C frames cannot carry it; `run` raises it
            self._failure = error
            self._lib.emu_stop(self._handle)

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
            if self._counting and number not in _BETWEEN_INSTRUCTIONS and (number != Vector.PF or self.regs.retaddr):
                self._cc_op.value = CC_OP_EFLAGS
            reason = self._exit_of(number)
            if reason is not None:
                self._caller.switch(reason)
        except BaseException as error:  # noqa: BLE001 - C frames cannot carry it; `run` raises it
            self._failure = error
            self._lib.emu_stop(self._handle)

    def _exit_of(self, number: int) -> Exit | None:
        """The exit that an interrupt-hook number stands for; None if it was handled here."""
        code = number - 0x100
        if code == SvmExit.MSR:
            return _WRMSR[self._length()] if self.regs.error_code else _RDMSR[self._length()]
        if code < 0:
            return self._unintercepted(number)
        if EXCEPTION_BASE <= code < EXCEPTION_BASE + 32:
            return self._exception(code - EXCEPTION_BASE)
        if code == SvmExit.SMI:
            if self._counting and self._counter.value > self._count.value:
                # The limit has ended the run or is about to: one kick is one exit.
                self._request_low.value = 0
                return None
            self._forget_kick()
            return _INTERRUPTED
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

    def _pass_shadow(self) -> bool:
        """Let the instruction that the interrupt shadow covers be executed, then look at NMIs again; whether it can be.

        The translator lets NMIs through in a shadow. Where instructions are counted the run is limited to one. Else the
        window for interrupts, which does wait for the end of a shadow, stands in; it takes RFLAGS.IF, and without it
        (MOV SS with interrupts off) the shadow is given up.
        """
        live = self._live
        self._window_too = self._request_high.value & (INTERRUPT_VIRQ >> 8)
        if self._counting:
            live.count.value = min(live.count.value, live.counter.value + 1)
        elif self.regs.eflags & RFLAGS_IF:
            self._request_high.value |= INTERRUPT_VIRQ >> 8
        else:
            self.interrupt_shadow = False
            return False
        self._behind_shadow = self._chores = True
        return True

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

    def _unintercepted(self, number: int) -> Exit | None:
        """A software interrupt, or a page fault (never intercepted in the instance, so that CR2 is set)."""
        state = self.regs
        state.old_exception = -1
        if state.exception_is_int:
            return self._software(number)
        return self._exception(number)

    def _software(self, vector: int) -> Exit | None:
        """INT n, INT3 or INTO; RIP is past it."""
        state = self.regs
        # Left set it would move RIP at the next intercept too.
        state.exception_is_int = 0
        event = self._software_interrupt(vector)
        if event.instruction_length == 1 and self.exception_intercepts >> vector & 1:
            state.rip -= 1
            return ExceptionExit(vector, None, 0, None)
        return self._delivery.deliver(event)

    def _software_interrupt(self, vector: int) -> Event:
        before = self.linear.fetch(self._linear_rip() - 1, 1)
        single = (vector == Vector.BP and before == b"\xcc") or (vector == Vector.OF and before == b"\xce")
        return Event(EventType.SOFTWARE, vector, instruction_length=1 if single else 2)

    def _exception(self, vector: int) -> Exit | None:
        state = self.regs
        state.old_exception = -1
        error_code = state.error_code if vector in HAS_ERROR_CODE else None
        address = 0
        if vector == Vector.PF:
            address = state.cr[2]
            fault = self._hidden_table_fault(address)
            if fault is not None:
                return fault
            if self._alone(not state.retaddr and (address ^ self._linear_rip()) >= PAGE_SIZE):
                return None
        elif vector == Vector.UD and self._skip_int1():
            vector = Vector.DB
        elif vector == Vector.GP and not error_code and self._alone(self._before_hole()):
            return None
        if self.exception_intercepts >> vector & 1:
            return ExceptionExit(vector, error_code, address, None)
        return self._delivery.deliver(Event(EventType.EXCEPTION, vector, error_code))

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

    def _before_hole(self) -> bool:
        """Whether RIP is in the last page below the addresses that are not canonical."""
        state = self.regs
        if not state.hflags & HF_CS64:
            return False
        la57 = bool(state.cr[4] & CR4_LA57)
        return is_canonical(state.rip, la57) and not is_canonical(state.rip + 4096, la57)

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

    def _on_in(self, _uc: int, port: int, size: int, _data: int) -> int:
        if self._undo is not None or self._io_denied(port, size):
            return 0
        self._note_flags()
        self._unfinished = True
        self._caller.switch(PortIn(port, size))
        return self._answer

    def _on_out(self, _uc: int, port: int, size: int, value: int, _data: int) -> None:
        if self._undo is not None or self._io_denied(port, size):
            return
        self._note_flags()
        self._unfinished = True
        self._caller.switch(PortOut(port, size, value & ((1 << size * 8) - 1)))

    def _io_denied(self, port: int, size: int) -> bool:
        """Check I/O privilege, which the translator does not; arrange for #GP if it is denied.

        Where instructions are not counted, RIP is that of the block: the translator does not tell a port hook more.
        """
        if not self._cr0.value & CR0_PE:
            return False
        eflags = self._eflags.value
        if not eflags & RFLAGS_VM and (self._hflags.value & HF_CPL) <= eflags >> _IOPL_SHIFT & 3:
            return False
        state = self.regs
        try:
            if not self._io_bitmap_denies(port, size):
                return False
            event = Event(EventType.EXCEPTION, Vector.GP, 0)
        except GuestFault as fault:
            state.cr[2] = fault.address if fault.vector == Vector.PF else state.cr[2]
            event = Event(EventType.EXCEPTION, fault.vector, fault.error_code)
        except PhysicalFault:
            event = Event(EventType.EXCEPTION, Vector.GP, 0)
        self._raise_after(event)
        return True

    def _raise_after(self, event: Event) -> None:
        """Deliver `event` instead of the present instruction, from a hook inside translated code."""
        self._deferred = event
        self._note_flags()
        self._cut_short()
        self._lib.emu_stop(self._handle)

    def _on_syscall(self, _uc: int, _data: int) -> None:
        self._fast_call(syscall)

    def _on_sysenter(self, _uc: int, _data: int) -> None:
        self._fast_call(sysenter)

    def _fast_call(self, execute: Callable[[UnicornEngine, int], Event | None]) -> None:
        if self._undo is not None:
            return
        try:
            event = execute(self, self._length())
            if event is not None:
                self._raise_after(event)
        except BaseException as error:  # noqa: BLE001 - C frames cannot carry it; `run` raises it
            self._failure = error
            self._lib.emu_stop(self._handle)

    def _io_bitmap_denies(self, port: int, size: int) -> bool:
        state = self.regs
        tr = state.tr
        if (tr.flags >> 8) & 0xF not in (9, 11) or tr.limit < 0x67:
            return True
        base = int.from_bytes(self.linear.read(tr.base + 0x66, 2), "little") + port // 8
        if base + 1 > tr.limit:
            return True
        bits = int.from_bytes(self.linear.read(tr.base + base, 2), "little") >> (port & 7)
        return bool(bits & ((1 << size) - 1))

    def _on_memory(self, _uc: int, kind: int, address: int, size: int, _value: int, _data: int) -> bool:
        if self._fault is None and self._undo is None:
            self._fault = (kind, address, size)
            if kind not in (MemoryEvent.FETCH_UNMAPPED, MemoryEvent.FETCH_PROT):
                # Behind a store the instruction goes on.
                self._note_flags()
                self._cut_short()
        return False

    def _note_flags(self) -> None:
        """In an access of an instruction: see `_BETWEEN_INSTRUCTIONS`."""
        if self._counting:
            self.regs.cc_op = CC_OP_EFLAGS

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

    def _find_instruction(self) -> None:
        """Set RIP and the flags as of the present access."""
        if self._counting:
            self.regs.cc_op = CC_OP_EFLAGS
        else:
            self._lib.restore_state(self._live.cpu, self._live.io_pc.value, False)

    def _mmio_read(self, gpa: int, size: int) -> int:
        if self._undo is not None:
            return 0
        self._find_instruction()
        self._unfinished = True
        self._caller.switch(MmioRead(gpa, size))
        return self._answer

    def _mmio_write(self, gpa: int, size: int, value: int) -> None:
        if self._undo is not None:
            return
        self._find_instruction()
        self._unfinished = True
        self._caller.switch(MmioWrite(gpa, size, value & ((1 << size * 8) - 1)))

    def _on_edge(
        self, _uc: int, block: ctypes._Pointer[binding.TranslationBlock], _previous: object, _data: int
    ) -> None:
        try:
            self._note_code(block[0].pc, block[0].size)
        except BaseException as error:  # noqa: BLE001 - C frames cannot carry it; `run` raises it
            self._failure = error
            self._lib.emu_stop(self._handle)

    # --- code -----------------------------------------------------------------------------------------------------

    def _note_code(self, address: int, size: int) -> None:
        """Remember that bytes at a linear address have been translated."""
        try:
            gpa = self.linear.translate(address, SUPERVISOR)
        except (GuestFault, PhysicalFault):
            return
        found = self._map.ram(gpa, Access.NONE)
        if found is None:
            return
        block, offset = found
        first = min(size, 4096 - offset % 4096)
        known = self._code.get(id(block))
        if known is None:
            known = self._code[id(block)] = TranslatedCode(block)
        known.add(offset, first)
        if first < size:
            self._note_code(address + first, size - first)

    def _forget_changed_code(self) -> None:
        self._host_wrote = False
        for known in self._code.values():
            for offset, data in known.changed():
                self._drop_translations(known.block, offset, len(data))

    def _drop_translations(self, block: RamBlock, offset: int, size: int) -> None:
        def visit(item: Range) -> None:
            if item.block is not block or not item.visible:
                return
            low = max(offset, item.offset)
            high = min(offset + size, item.offset + (item.end - item.gpa))
            if low < high:
                self._lib.drop_translations(self._handle, item.gpa + (low - item.offset), high - low)

        self._map.each(visit)

    def memory_written(self, gpa: int, size: int) -> None:
        self._host_wrote = self._chores = True

    # --- instructions ---------------------------------------------------------------------------------------------

    def _linear_rip(self) -> int:
        state = self.regs
        if state.hflags & HF_CS64:
            return int(state.rip)
        return int(state.rip + state.segs[CS].base) & 0xFFFFFFFF

    def _bits(self) -> int:
        hflags = self.regs.hflags
        return 64 if hflags & HF_CS64 else 32 if hflags & HF_CS32 else 16

    def _length(self) -> int:
        """Length of the instruction at RIP. Remembered by address and checked against the bytes that lie there now."""
        rip = self._rip.value
        hflags = self._hflags.value
        if not hflags & HF_CS64:
            rip = (rip + self.regs.segs[CS].base) & 0xFFFFFFFF
        known = self._lengths.get(rip)
        if known is not None:
            cr3, mode, code, mask, expected, size = known
            if code.value & mask == expected and cr3 == self._cr3.value and mode == hflags & (HF_CS64 | HF_CS32):
                return size
        return self._decode_length(rip)

    def _decode_length(self, rip: int) -> int:
        code = self.linear.fetch(rip, MAX_LENGTH)
        size = length(code, self._bits())
        if not size:
            raise EngineError(f"instruction at {rip:#x} exited but does not decode: {code.hex()}")
        found = self._map.ram(self.linear.translate(rip, SUPERVISOR), Access.NONE)
        if found is not None and rip % PAGE_SIZE + size <= PAGE_SIZE and size <= _WORD:
            block, offset = found
            if offset + _WORD <= block.size:
                # The factory keeps the block for as long as there are engines.
                self._factory.view_index(block)
                view = ctypes.c_uint64.from_address(block.address + offset)
                mask = (1 << 8 * size) - 1
                mode = self._hflags.value & (HF_CS64 | HF_CS32)
                self._lengths[rip] = (self._cr3.value, mode, view, mask, view.value & mask, size)
        return size

    def _decoded(self) -> Decoded:
        rip = self._linear_rip()
        code = self.linear.fetch(rip, MAX_LENGTH)
        decoded = decode(code, self._bits())
        if decoded is None:
            raise EngineError(f"instruction at {rip:#x} exited but does not decode: {code.hex()}")
        return decoded

    def code_bits(self) -> int:
        return self._bits()

    def instruction_length(self, code: bytes) -> int:
        return length(code, self._bits())

    def store_operand(self, value: int, size: int) -> Event | None:
        return Operand(self).store(value, size)

    def load_operand16(self) -> int | Event:
        return Operand(self).load16()

    def instruction_bytes(self, size: int = 16) -> bytes:
        """Up to `size` bytes at RIP, fewer where they cannot be fetched."""
        try:
            return self.linear.fetch(self._linear_rip(), size)
        except (GuestFault, PhysicalFault):
            return b""

    # --- events ---------------------------------------------------------------------------------------------------

    def inject(self, event: Event) -> None:
        assert self._event is None, f"{self._event} is injected already, {event} on top"
        assert not self._unfinished, "an event cannot be injected into an unfinished I/O instruction"
        self._event = event

    def injected(self) -> Event | None:
        return self._event

    def cancel_injection(self) -> Event | None:
        event, self._event = self._event, None
        return event

    def request_interrupt_window(self, wanted: bool) -> None:
        if wanted:
            self._request_high.value |= INTERRUPT_VIRQ >> 8
        else:
            self._request_high.value &= ~(INTERRUPT_VIRQ >> 8)

    def request_nmi_window(self, wanted: bool) -> None:
        if self._behind_shadow:
            self._behind_shadow = False
            self._request_high.value &= ~(INTERRUPT_VIRQ >> 8) | self._window_too
        if wanted:
            self._request_high.value |= INTERRUPT_NMI >> 8
        else:
            self._request_high.value &= ~(INTERRUPT_NMI >> 8)

    @property
    def interrupt_shadow(self) -> bool:
        return bool(self.regs.hflags & HF_INHIBIT_IRQ)

    @interrupt_shadow.setter
    def interrupt_shadow(self, value: bool) -> None:
        self.regs.hflags = (self.regs.hflags & ~HF_INHIBIT_IRQ) | (HF_INHIBIT_IRQ if value else 0)

    @property
    def nmi_blocked(self) -> bool:
        return bool(self.regs.hflags2 & HF2_NMI)

    @nmi_blocked.setter
    def nmi_blocked(self, value: bool) -> None:
        self.regs.hflags2 = (self.regs.hflags2 & ~HF2_NMI) | (HF2_NMI if value else 0)

    def set_intercepts(self, intercepts: Intercept, exceptions: int = 0) -> None:
        words = intercept_words(intercepts)
        state = self.regs
        state.intercept = words.instructions
        state.intercept_cr_read = words.cr_read
        state.intercept_cr_write = words.cr_write
        state.intercept_dr_read = words.dr_read
        state.intercept_dr_write = words.dr_write
        # All exceptions but #PF come as intercepts: the instance then keeps no half-delivered exception of its own.
        state.intercept_exceptions = 0xFFFFFFFF & ~(1 << Vector.PF)
        self.exception_intercepts = exceptions

    def intercept_msr(self, index: int, read: bool, write: bool) -> None:
        self._controls.intercept_msr(index, read, write)

    # --- registers ------------------------------------------------------------------------------------------------

    @property
    def rflags(self) -> int:
        state = self.regs
        # Where instructions are counted, old arithmetic flags lie about in this field.
        flags = int(state.eflags) & ~(CC_FLAGS | RFLAGS_DF) | RFLAGS_FIXED | (RFLAGS_DF if state.df < 0 else 0)
        if state.cc_op == CC_OP_EFLAGS:
            return flags | (int(state.cc_src) & CC_FLAGS)
        return flags | (self._lib.arithmetic_flags(self._env, state.cc_op) & CC_FLAGS)

    @rflags.setter
    def rflags(self, value: int) -> None:
        state = self.regs
        state.cc_src = value & CC_FLAGS
        state.cc_op = CC_OP_EFLAGS
        state.df = -1 if value & RFLAGS_DF else 1
        state.eflags = (value & ~(CC_FLAGS | RFLAGS_DF)) | RFLAGS_FIXED

    def change_rflags(self, *, clear: int) -> None:
        """Clear flags that are not arithmetic ones."""
        self.regs.eflags &= ~clear

    def update_hflags(self, cpl: int | None = None) -> None:
        """Recompute what the translator keys on after a change of segments or control registers."""
        registers.update_hflags(self.regs, cpl)

    def get_sregs(self) -> Sregs:
        return registers.get_sregs(self.regs)

    def set_sregs(self, sregs: Sregs) -> None:
        assert not self._unfinished, "system registers cannot change in an unfinished I/O instruction"
        registers.set_sregs(self, sregs)

    @property
    def cpl(self) -> int:
        return int(self.regs.hflags & HF_CPL)

    @property
    def cr0(self) -> int:
        return int(self.regs.cr[0])

    @property
    def cr4(self) -> int:
        return int(self.regs.cr[4])

    def get_msr(self, index: int) -> int:
        return registers.get_msr(self.regs, index)

    def set_msr(self, index: int, value: int) -> None:
        if registers.set_msr(self.regs, index, value):
            self.flush_tlb()

    def get_fpu(self) -> bytes:
        return registers.get_fpu(self.regs)

    def set_fpu(self, image: bytes) -> None:
        registers.set_fpu(self.regs, image)

    def get_debugregs(self) -> tuple[int, int, int, int, int, int]:
        dr = self.regs.dr
        return dr[0], dr[1], dr[2], dr[3], dr[6], dr[7]

    def set_debugregs(self, values: tuple[int, int, int, int, int, int]) -> None:
        dr = self.regs.dr
        for number, value in zip((0, 1, 2, 3, 6, 7), values, strict=True):
            dr[number] = value

    @property
    def xcr0(self) -> int:
        return int(self.regs.xcr0)

    @xcr0.setter
    def xcr0(self, value: int) -> None:
        self.regs.xcr0 = value

    def copy_shared_state(self, source: Engine) -> None:
        assert isinstance(source, UnicornEngine)
        assert not self._unfinished
        assert not source._unfinished
        if registers.copy_shared_state(self.regs, source.regs):
            self.flush_tlb()

    # --- memory ---------------------------------------------------------------------------------------------------

    def map_ram(self, gpa: int, size: int, block: RamBlock, offset: int, access: Access) -> None:
        assert not self._unfinished, "the map cannot change in an unfinished I/O instruction"
        self._factory.view_index(block)
        self._map.map_ram(gpa, size, block, offset, access)

    def map_exit(self, gpa: int, size: int) -> None:
        self._map.map_io(
            gpa,
            size,
            Kind.EXIT,
            lambda offset, length: self._mmio_read(gpa + offset, length),
            lambda offset, length, value: self._mmio_write(gpa + offset, length, value),
        )

    def map_device(self, gpa: int, size: int, read: MmioRead8, write: MmioWrite8) -> None:
        def guarded_read(offset: int, length: int) -> int:
            if self._undo is not None:
                return 0
            try:
                return read(offset, length)
            except BaseException as error:  # noqa: BLE001 - C frames cannot carry it; `run` raises it
                self._failure = error
                self.kick()
                return 0

        def guarded_write(offset: int, length: int, value: int) -> None:
            if self._undo is not None:
                return
            try:
                write(offset, length, value)
            except BaseException as error:  # noqa: BLE001 - C frames cannot carry it; `run` raises it
                self._failure = error
                self.kick()

        self._map.map_io(gpa, size, Kind.DEVICE, guarded_read, guarded_write)

    def unmap(self, gpa: int, size: int) -> None:
        assert not self._unfinished, "the map cannot change in an unfinished I/O instruction"
        self._forget_moved_code(gpa, size)
        self._map.unmap(gpa, size)

    def protect(self, gpa: int, size: int, access: Access) -> None:
        assert not self._unfinished, "the map cannot change in an unfinished I/O instruction"
        self._forget_moved_code(gpa, size)
        self._map.protect(gpa, size, access)

    def _forget_moved_code(self, gpa: int, size: int) -> None:
        """A change of the map may give memory another address inside Unicorn, by which it finds translated code."""
        for known in self._code.values():
            found = self._map.ram(gpa, Access.NONE)
            if (
                found is None
                or found[0] is not known.block
                or known.overlaps(found[1] - CHUNK, found[1] + size + CHUNK)
            ):
                self._code_moved = self._chores = True

    def flush_tlb(self) -> None:
        self._lib.check(self._lib.ctl(self._handle, binding.CTL_TLB_FLUSH, 0, 0), "a TLB flush")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._inside:
            # The C frames below a suspended hook must return before the instance is freed.
            try:
                self._unwind()
            except GreenletError:
                _STRANDED.append(self)
                return
        self._lib.check(self._lib.close(self._handle), "closing an instance")


assert MSR_PERMISSION_GPA > VMCB_GPA
