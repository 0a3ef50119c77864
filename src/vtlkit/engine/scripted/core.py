"""The scripted processor itself: programs and handlers in progress, the instructions, delivery of events."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, TypeAlias

from vtlkit.engine import api
from vtlkit.engine.api import NO_REGISTERS, Event, EventType, Exit, Intercept, PortBitmap
from vtlkit.engine.memory_map import MemoryMap
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

IRET: Final = ops.Intercepted("iret")
"""What a handler that returns executes."""
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

    __slots__ = ("computed", "nmi", "op", "rflags", "rip", "script", "started")

    def __init__(self, script: Script, rip: int, rflags: int, nmi: bool) -> None:
        self.script = script
        self.rip = rip
        self.rflags = rflags
        self.nmi = nmi
        self.op: Op | None = None
        self.computed = 0
        """How much of a `Compute` is done."""
        self.started = False


class Core:
    """Executes one instruction at a time. What leaves the engine unwinds as `Leave`."""

    def __init__(self, programs: Mapping[int, Guest], handlers: Mapping[int, Handler]) -> None:
        self.programs = dict(programs)
        """Linear address -> what begins there."""
        self.handlers = dict(handlers)
        """Vector -> what an event of that vector enters."""
        self.regs = State()
        self._map = MemoryMap()
        self.interrupt_shadow = False
        self.nmi_blocked = False
        self.intercepts = Intercept.NONE
        self.exceptions = 0
        self.moves = NO_REGISTERS
        self.port_intercepts: tuple[PortBitmap | None, PortBitmap | None] = (None, None)
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
        self._frames: list[_Frame] = []
        self._expected: tuple[int, int] | None = None
        self.nested = False
        """The hypervisor changes between programs that go on where they were: those left are kept."""
        self._kept: dict[tuple[int, int], list[_Frame]] = {}

    # --- where the guest is ---------------------------------------------------------------------------------------

    def _position(self) -> tuple[int, int]:
        return self.regs.sregs.cs.base, self.regs.rip

    def frame(self) -> _Frame:
        """The frame that RIP belongs to; begins a program if RIP has been set to one."""
        here = self._position()
        if here != self._expected and not self._go_on(here):
            program = self.programs.get(sum(here))
            if program is None:
                raise Leave(api.InternalError(f"no program begins at {sum(here):#x}"))
            if not self.nested:
                self.end_scripts()
            self._frames = [_Frame(program(self), 0, 0, False)]
            self.forget_io()
            self._expected = here
        return self._frames[-1]

    def _go_on(self, here: tuple[int, int]) -> bool:
        """Of nested programs: keep the one that is left, go on with the one that was left at `here`.

        One instruction further it goes on behind the instruction that it was left at: its hypervisor has done that.
        """
        if not self.nested:
            return False
        if self._frames and self._expected is not None:
            self._kept[self._expected] = self._frames
            self._frames, self._expected = [], None
        frames = self._kept.pop(here, None)
        if frames is None:
            frames = self._kept.pop((here[0], here[1] - 1), None)
            if frames is None:
                return False
            frames[-1].op = None
            frames[-1].computed = 0
        self._frames, self._expected = frames, here
        return True

    def end_scripts(self) -> None:
        """Close every generator in progress."""
        for frames in (self._frames, *self._kept.values()):
            for old in frames:
                old.script.close()
            frames.clear()
        self._kept.clear()
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
                frame.op = IRET if len(self._frames) > 1 else _PARK
        return frame.op

    def move(self, length: int) -> None:
        """Go on to the next instruction."""
        frame = self.frame()
        if frame.op is not _PARK:
            frame.op = None
        frame.computed = 0
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
        self._perform(op)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _perform(self, op: Op) -> None:
        raise NotImplementedError

    def _compute(self, op: ops.Compute) -> None:
        frame = self._frames[-1]
        step = min(op.count - frame.computed, self.left)
        if self.one_at_a_time or self.interrupt_shadow or self.regs.rflags & RFLAGS_TF:
            step = 1
        frame.computed += step
        self.executed += step
        self.left -= step
        if frame.computed < op.count:
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

    def _iret(self) -> None:
        frame = self._frames.pop()
        self.regs.rip, self.regs.rflags = frame.rip, frame.rflags
        self.nmi_blocked = False
        self.interrupt_shadow = False
        self._expected = self._position()

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
