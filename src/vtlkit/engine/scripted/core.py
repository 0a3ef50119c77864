"""The scripted processor itself: programs and handlers in progress, the instructions, delivery of events."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, TypeAlias

from vtlkit.engine import api
from vtlkit.engine.api import Access, Event, EventType, Exit, Intercept
from vtlkit.engine.memory_map import Kind, MemoryMap, Range
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.engine.scripted.state import State
from vtlkit.x86.exceptions import DOUBLE_FAULT, HAS_ERROR_CODE, SERIAL, SHUTDOWN, Vector, combine
from vtlkit.x86.registers import DR6_BS, RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF, RFLAGS_VM

Script: TypeAlias = Generator[Op, int, None]
Guest: TypeAlias = Callable[[Any], Script]
"""Begins a program; is given the engine."""
Handler: TypeAlias = Callable[[Any, Event], Script]
"""Begins the handler of an event; is given the engine."""

HANDLER_RIP: Final = 1 << 40
"""RIP of the first instruction of vector 0's handler; those of other vectors follow HANDLER_SPACING apart."""
HANDLER_SPACING: Final = 1 << 16

_IRET: Final = ops.Intercepted("iret")
_PARK: Final = ops.Hlt()
_IDT_ERROR: Final = 2
_EXT: Final = 1


class Leave(Exception):
    """Unwinds to `run` with the exit it is to return; never leaves the engine."""

    def __init__(self, reason: Exit) -> None:
        super().__init__(reason)
        self.reason = reason


class _Frame:
    """A generator in progress, the instruction it is at, and what IRET restores when it returns."""

    __slots__ = ("nmi", "op", "rflags", "rip", "script", "started")

    def __init__(self, script: Script, rip: int, rflags: int, nmi: bool) -> None:
        self.script = script
        self.rip = rip
        self.rflags = rflags
        self.nmi = nmi
        self.op: Op | None = None
        self.started = False


class Core:
    """Executes one instruction at a time. What leaves the engine unwinds as `Leave`."""

    def __init__(self, programs: Mapping[int, Guest], handlers: Mapping[int, Handler]) -> None:
        self.programs = dict(programs)
        """Linear address -> what begins there."""
        self.handlers = dict(handlers)
        """Vector -> what an event of that vector enters."""
        self.regs = State()
        self.memory = MemoryMap()
        self.interrupt_shadow = False
        self.nmi_blocked = False
        self.intercepts = Intercept.NONE
        self.exceptions = 0
        self.free_reads: set[int] = set()
        self.free_writes: set[int] = set()
        self.executed = 0
        self.left = 0
        self.one_at_a_time = False
        """A window is asked for: look between any two instructions, also inside `Compute`."""
        self.unfinished = False
        self.answers: list[int] = []
        self._asked = 0
        self._failure: BaseException | None = None
        self._computed = 0
        self._frames: list[_Frame] = []
        self._expected: tuple[int, int] | None = None

    # --- where the guest is ---------------------------------------------------------------------------------------

    def _position(self) -> tuple[int, int]:
        return self.regs.sregs.cs.base, self.regs.rip

    def frame(self) -> _Frame:
        """The frame that RIP belongs to; begins a program if RIP has been set to one."""
        here = self._position()
        if here != self._expected:
            program = self.programs.get(sum(here))
            if program is None:
                raise Leave(api.InternalError(f"no program begins at {sum(here):#x}"))
            self.end_scripts()
            self._frames = [_Frame(program(self), 0, 0, False)]
            self._computed = 0
            self.forget_io()
            self._expected = here
        return self._frames[-1]

    def end_scripts(self) -> None:
        """Close every generator in progress."""
        for old in self._frames:
            old.script.close()
        self._frames.clear()
        self._expected = None

    def fetch(self) -> Op:
        """The instruction at RIP."""
        frame = self.frame()
        if frame.op is None:
            try:
                if frame.started:
                    frame.op = frame.script.send(self.regs.rax)
                else:
                    frame.started = True
                    frame.op = next(frame.script)
            except StopIteration:
                frame.op = _IRET if len(self._frames) > 1 else _PARK
        return frame.op

    def move(self, length: int) -> None:
        """Go on to the next instruction."""
        frame = self.frame()
        if frame.op is not _PARK:
            frame.op = None
        self._computed = 0
        self._step(length)

    def _step(self, length: int) -> None:
        self.regs.rip += length
        self._expected = self._position()
        self.interrupt_shadow = False

    def forget_io(self) -> None:
        self.unfinished = False
        self.answers.clear()

    # --- one instruction ------------------------------------------------------------------------------------------

    def execute(self) -> None:
        """The instruction at RIP, or what an I/O exit left of it."""
        op = self.fetch()
        if type(op) is ops.Compute:
            self._compute(op)
            return
        if not self.unfinished:
            # An instruction that exits counts, each time that it is tried.
            self.executed += 1
            self.left -= 1
        self._asked = 0
        _METHODS[type(op)](self, op)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _compute(self, op: ops.Compute) -> None:
        step = min(op.count - self._computed, self.left)
        if self.one_at_a_time or self.interrupt_shadow or self.regs.rflags & RFLAGS_TF:
            step = 1
        self._computed += step
        self.executed += step
        self.left -= step
        if self._computed < op.count:
            self._step(step)
        else:
            self.move(step)
        self._trap()

    def _done(self) -> None:
        self.move(1)
        self.forget_io()
        self._trap()

    def _trap(self) -> None:
        if self.regs.rflags & RFLAGS_TF:
            self.regs.dr[4] |= DR6_BS
            self.deliver(Event(EventType.EXCEPTION, Vector.DB))

    def _set(self, op: ops.Set) -> None:
        setattr(self.regs, op.register, op.value & 0xFFFFFFFFFFFFFFFF)
        self._done()

    def _host(self, op: ops.Host) -> None:
        value = op.action()
        if value is not None:
            self.regs.rax = value
        self._done()

    def _ask(self, reason: Exit) -> int:
        """The hypervisor's answer to an I/O exit: the one given if the instruction was here before, else by leaving."""
        position = self._asked
        self._asked += 1
        if position < len(self.answers):
            return self.answers[position]
        self.answers.append(0)
        self.unfinished = True
        raise Leave(reason)

    def _load(self, value: int, size: int) -> None:
        """RAX as x86 does it: a 4-byte load clears the upper half, a shorter one leaves the rest."""
        mask = (1 << size * 8) - 1
        rax = value & mask
        self.regs.rax = rax if size >= 4 else (self.regs.rax & ~mask) | rax

    def _in(self, op: ops.In) -> None:
        self._load(self._ask(api.PortIn(op.port, op.size)), op.size)
        self._done()

    def _out(self, op: ops.Out) -> None:
        value = self.regs.rax if op.value is None else op.value
        self._ask(api.PortOut(op.port, op.size, value & ((1 << op.size * 8) - 1)))
        self._done()

    def _read_memory(self, op: ops.Read) -> None:
        self._load(self._read(op.gpa, op.size), op.size)
        self._done()

    def _write_memory(self, op: ops.Write) -> None:
        self._write(op.gpa, op.size, self.regs.rax if op.value is None else op.value)
        self._done()

    def _add(self, op: ops.Add) -> None:
        self._pieces(op.gpa, op.size, Access.READ)
        self._pieces(op.gpa, op.size, Access.WRITE)
        self._write(op.gpa, op.size, self._read(op.gpa, op.size) + self.regs.rax)
        self._done()

    def _pieces(self, gpa: int, size: int, access: Access) -> list[tuple[Range, int, int]]:
        """(range, address, size) of each page touched; a `MemoryFault` before any of them has been."""
        pieces = []
        at = gpa
        while at < gpa + size:
            length = min(gpa + size, (at | (api.PAGE_SIZE - 1)) + 1) - at
            found = self.memory.find(at)
            if found is None or access & ~found.access:
                raise Leave(api.MemoryFault(at, length, access, found is not None and found.kind is Kind.RAM))
            pieces.append((found, at, length))
            at += length
        return pieces

    def _read(self, gpa: int, size: int) -> int:
        value = 0
        for item, at, length in self._pieces(gpa, size, Access.READ):
            if item.block is not None:
                offset = item.offset + at - item.gpa
                piece = int.from_bytes(item.block.view[offset : offset + length], "little")
            elif item.kind is Kind.EXIT:
                piece = self._ask(api.MmioRead(at, length)) & ((1 << length * 8) - 1)
            else:
                assert item.read is not None
                piece = self._called(item.read, at - item.gpa, length) or 0
            value |= piece << 8 * (at - gpa)
        return value

    def _write(self, gpa: int, size: int, value: int) -> None:
        for item, at, length in self._pieces(gpa, size, Access.WRITE):
            piece = value >> 8 * (at - gpa) & ((1 << length * 8) - 1)
            if item.block is not None:
                offset = item.offset + at - item.gpa
                item.block.view[offset : offset + length] = piece.to_bytes(length, "little")
            elif item.kind is Kind.EXIT:
                self._ask(api.MmioWrite(at, length, piece))
            else:
                assert item.write is not None
                self._called(item.write, at - item.gpa, length, piece)

    def _called(self, callback: Callable[..., int | None], *arguments: int) -> int | None:
        """A device's answer. What it raises is raised when the instruction is finished: it must not be made again."""
        try:
            return callback(*arguments)
        except BaseException as error:  # noqa: BLE001 - `execute` raises it
            self._failure = error
            return None

    def _rdmsr(self, _op: ops.Rdmsr) -> None:
        index = self.regs.rcx & 0xFFFFFFFF
        if index not in self.free_reads:
            raise Leave(api.Rdmsr(1))
        self.regs.rax = self.regs.get_msr(index)
        self._done()

    def _wrmsr(self, _op: ops.Wrmsr) -> None:
        index = self.regs.rcx & 0xFFFFFFFF
        if index not in self.free_writes:
            raise Leave(api.Wrmsr(1))
        self.regs.set_msr(index, self.regs.rax)
        self._done()

    def _pause(self, _op: ops.Pause) -> None:
        if self.intercepts & Intercept.PAUSE:
            raise Leave(api.Pause(1))
        self._done()

    def _rdtsc(self, _op: ops.Rdtsc) -> None:
        if self.intercepts & Intercept.RDTSC:
            raise Leave(api.Rdtsc(1, False))
        self.regs.rax = 0
        self._done()

    def _from_control(self, op: ops.MovFromCr) -> None:
        if op.number == 8 or (op.number in (0, 4) and self.intercepts & Intercept.CR_READ):
            raise Leave(api.ControlRegister(1, op.number, 0, False))
        self.regs.rax = getattr(self.regs.sregs, f"cr{op.number}")
        self._done()

    def _to_control(self, op: ops.MovToCr) -> None:
        if op.number == 8 or (op.number in (0, 4) and self.intercepts & Intercept.CR_WRITE):
            raise Leave(api.ControlRegister(1, op.number, 0, True))
        setattr(self.regs.sregs, f"cr{op.number}", self.regs.rax)
        self._done()

    def _other(self, op: ops.Intercepted) -> None:
        if op is not _IRET or self.intercepts & Intercept.IRET:
            raise Leave(api.Other(1, op.mnemonic))
        self._iret()

    def _iret(self) -> None:
        frame = self._frames.pop()
        self.regs.rip, self.regs.rflags = frame.rip, frame.rflags
        self.nmi_blocked = False
        self.interrupt_shadow = False
        self._expected = self._position()

    def _sti(self, _op: ops.Sti) -> None:
        held = not self.regs.rflags & RFLAGS_IF
        self.regs.rflags |= RFLAGS_IF
        self._done()
        self.interrupt_shadow = held

    def _cli(self, _op: ops.Cli) -> None:
        self.regs.rflags &= ~RFLAGS_IF
        self._done()

    def _mov_ss(self, _op: ops.MovSs) -> None:
        self._done()
        self.interrupt_shadow = True

    def _int(self, op: ops.Int) -> None:
        self.deliver(Event(EventType.SOFTWARE, op.vector, instruction_length=1))

    def _fault(self, op: ops.Fault) -> None:
        if self.exceptions >> op.vector & 1:
            raise Leave(api.ExceptionExit(op.vector, op.error_code, self.regs.sregs.cr2, None))
        if op.trap:
            self.move(1)
        self.deliver(Event(EventType.EXCEPTION, op.vector, op.error_code))

    # --- events ---------------------------------------------------------------------------------------------------

    def deliver(self, event: Event) -> None:
        """Enter the event's handler. A missing one faults as a gate that is not there does: #GP, #DF, shutdown."""
        self.frame()
        current = event
        while current.vector not in self.handlers:
            exception = current.type is EventType.EXCEPTION
            combined = combine(current.vector, Vector.GP) if exception else SERIAL
            if combined is SHUTDOWN:
                raise Leave(api.Shutdown())
            if combined is DOUBLE_FAULT:
                current = Event(EventType.EXCEPTION, Vector.DF, 0)
            else:
                error = current.vector << 3 | _IDT_ERROR
                error |= 0 if current.type is EventType.SOFTWARE else _EXT
                current = Event(EventType.EXCEPTION, Vector.GP, error)
            if self.exceptions >> current.vector & 1:
                raise Leave(api.ExceptionExit(current.vector, current.error_code, 0, event))
        if current.type is EventType.SOFTWARE:
            self.move(current.instruction_length)
        elif current.type is EventType.EXCEPTION and current.error_code is None and current.vector in HAS_ERROR_CODE:
            current = Event(EventType.EXCEPTION, current.vector, 0)
        regs = self.regs
        nmi = current.type is EventType.NMI
        handler = self.handlers[current.vector](self, current)
        self._frames.append(_Frame(handler, regs.rip, regs.rflags, nmi))
        self.nmi_blocked = self.nmi_blocked or nmi
        self.interrupt_shadow = False
        regs.rflags &= ~(RFLAGS_IF | RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM)
        regs.rip = HANDLER_RIP + current.vector * HANDLER_SPACING
        self._expected = self._position()


def _exiting(reason: Exit) -> Callable[[Core, Any], None]:
    def method(_core: Core, _op: Any) -> None:
        raise Leave(reason)

    return method


_METHODS: Final[dict[type, Callable[[Core, Any], None]]] = {
    ops.Set: Core._set,
    ops.Read: Core._read_memory,
    ops.Write: Core._write_memory,
    ops.Add: Core._add,
    ops.In: Core._in,
    ops.Out: Core._out,
    ops.Host: Core._host,
    ops.Cpuid: _exiting(api.Cpuid(1)),
    ops.Hlt: _exiting(api.Hlt(1)),
    ops.Vmmcall: _exiting(api.Hypercall(1)),
    ops.Rdmsr: Core._rdmsr,
    ops.Wrmsr: Core._wrmsr,
    ops.Pause: Core._pause,
    ops.Rdtsc: Core._rdtsc,
    ops.MovFromCr: Core._from_control,
    ops.MovToCr: Core._to_control,
    ops.Intercepted: Core._other,
    ops.Sti: Core._sti,
    ops.Cli: Core._cli,
    ops.MovSs: Core._mov_ss,
    ops.Int: Core._int,
    ops.Fault: Core._fault,
}
