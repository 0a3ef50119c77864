"""What each scripted instruction does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from vtlkit.engine import api
from vtlkit.engine.api import Access, Event, EventType, Exit, Intercept, touches_port
from vtlkit.engine.memory_map import Kind, Range
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.core import IRET, Core, Leave
from vtlkit.engine.scripted.ops import Op
from vtlkit.x86.registers import RFLAGS_IF

_OPTIONAL: Final = {
    "iret": Intercept.IRET,
    "lgdt": Intercept.GDTR_WRITE,
    "lidt": Intercept.IDTR_WRITE,
    "lldt": Intercept.LDTR_WRITE,
    "ltr": Intercept.TR_WRITE,
    "pushf": Intercept.PUSHF,
    "popf": Intercept.POPF,
    "invd": Intercept.INVALIDATE_CACHES,
    "wbinvd": Intercept.INVALIDATE_CACHES,
}
"""`ops.Intercepted` that do not always exit; the tables that they would load are not there."""


class Instructions(Core):
    """One method for each kind of operation. What leaves the engine unwinds as `Leave`."""

    def _perform(self, op: Op) -> None:
        METHODS[type(op)](self, op)

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

    def _look_at_port(self, port: int, size: int, write: bool) -> None:
        if not self.unfinished and touches_port(self.port_intercepts[write], port, size):
            raise Leave(api.PortIntercept(1, port, size, write, False, False))

    def _in(self, op: ops.In) -> None:
        self._look_at_port(op.port, op.size, False)
        self._load(self._ask(api.PortIn(op.port, op.size)), op.size)
        self._done()

    def _out(self, op: ops.Out) -> None:
        self._look_at_port(op.port, op.size, True)
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
            found = self._map.find(at)
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
        wanted = op.number in (0, 4) and self.intercepts & Intercept.CR_READ
        if op.number == 8 or wanted or self.moves.cr_read >> op.number & 1:
            raise Leave(api.ControlRegister(1, op.number, 0, False))
        self.regs.rax = getattr(self.regs.sregs, f"cr{op.number}")
        self._done()

    def _to_control(self, op: ops.MovToCr) -> None:
        wanted = op.number in (0, 4) and self.intercepts & Intercept.CR_WRITE
        if op.number == 8 or wanted or self.moves.cr_write >> op.number & 1:
            raise Leave(api.ControlRegister(1, op.number, 0, True))
        setattr(self.regs.sregs, f"cr{op.number}", self.regs.rax)
        self._done()

    def _other(self, op: ops.Intercepted) -> None:
        wanted = _OPTIONAL.get(op.mnemonic)
        if wanted is None or self.intercepts & wanted:
            raise Leave(api.Other(1, op.mnemonic))
        if op is IRET:
            self._iret()
        else:
            self._done()

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
        if self.intercepts & Intercept.SOFTWARE_INTERRUPT:
            raise Leave(api.Other(1, "int"))
        self.deliver(Event(EventType.SOFTWARE, op.vector, instruction_length=1))

    def _fault(self, op: ops.Fault) -> None:
        if self.exceptions >> op.vector & 1:
            raise Leave(api.ExceptionExit(op.vector, op.error_code, self.regs.sregs.cr2, None))
        if op.trap:
            self.move(1)
        self.deliver(Event(EventType.EXCEPTION, op.vector, op.error_code))


def _exiting(reason: Exit) -> Callable[[Instructions, Any], None]:
    def method(_core: Instructions, _op: Any) -> None:
        raise Leave(reason)

    return method


METHODS: Final[dict[type, Callable[[Instructions, Any], None]]] = {
    ops.Set: Instructions._set,
    ops.Read: Instructions._read_memory,
    ops.Write: Instructions._write_memory,
    ops.Add: Instructions._add,
    ops.In: Instructions._in,
    ops.Out: Instructions._out,
    ops.Host: Instructions._host,
    ops.Cpuid: _exiting(api.Cpuid(1)),
    ops.Hlt: _exiting(api.Hlt(1)),
    ops.Vmmcall: _exiting(api.Hypercall(1)),
    ops.Rdmsr: Instructions._rdmsr,
    ops.Wrmsr: Instructions._wrmsr,
    ops.Pause: Instructions._pause,
    ops.Rdtsc: Instructions._rdtsc,
    ops.MovFromCr: Instructions._from_control,
    ops.MovToCr: Instructions._to_control,
    ops.Intercepted: Instructions._other,
    ops.Sti: Instructions._sti,
    ops.Cli: Instructions._cli,
    ops.MovSs: Instructions._mov_ss,
    ops.Int: Instructions._int,
    ops.Fault: Instructions._fault,
}
