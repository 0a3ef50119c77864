"""What every engine must do, as functions over an adapter; `vtlkit.engine.api` is the contract that they hold it to.

A case is a function of a `Bench`: an engine under test with a guest in it. Cases whose guest is a program of
`vtlkit.engine.scripted.ops` run on every engine: the bench hands it to a scripted engine as it is and compiles it to
x86 code, one instruction each, for an engine that executes machine code. Cases about processor modes, descriptor tables
or page tables need machine code and say so; a case that an engine cannot take is skipped with the reason, not silently.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

from vtlkit.engine.api import Access, Cpuid, Engine, EngineFactory, Exit, Hypercall, Instruction, RamBlock
from vtlkit.engine.scripted import ScriptedEngine
from vtlkit.engine.scripted.core import HANDLER_RIP, HANDLER_SPACING, Script
from vtlkit.engine.scripted.ops import Op
from vtlkit.testing.engine_conformance.compiler import compile_op
from vtlkit.testing.guest_builder import CODE, FREE, RAM_SIZE, Guest

E = TypeVar("E", bound=Exit)

HANDLER_CODE: Final = FREE
"""Where handlers of programs are compiled to, HANDLER_CODE_SPACING apart."""
HANDLER_CODE_SPACING: Final = 0x80
DATA: Final = 0x60000
"""RAM that programs may use freely, up to RAM_SIZE."""
IO: Final = RAM_SIZE + 0x1000
"""A page outside RAM for exit and device ranges; the page before it and all behind it stay free."""
PLENTY: Final = 100_000
"""A budget that no case uses up."""


class Need(enum.Enum):
    """What a case asks of the engine; the value is the reason to skip it."""

    MACHINE_CODE = "executes no machine code: it has no modes, descriptor tables, page tables or translated code"
    COUNTS = "does not count instructions, so that budgets are not exact"
    CPUID = "answers CPUID without an exit"
    INTERCEPTS = "cannot be made to exit on instructions and exceptions of the hypervisor's choice"
    USER_HYPERCALL = "has a hypercall instruction that is privileged"
    THREADS = "cannot be kicked from another thread"


@dataclass(frozen=True, slots=True)
class EngineUnderTest:
    """One engine in one configuration."""

    name: str
    new_factory: Callable[[], EngineFactory]
    lacks: frozenset[Need] = frozenset()
    start_thread: Callable[[Callable[[], None]], Callable[[], None]] | None = None
    """Runs a function on another thread; what it returns waits for the end and raises what the function raised."""

    def why_not(self, case: Case) -> str | None:
        """Why the case does not apply."""
        for need in case.needs:
            if need in self.lacks or (need is Need.THREADS and self.start_thread is None):
                return f"{self.name} {need.value}"
        return None


@dataclass(frozen=True, slots=True)
class Case:
    """One promise of the contract."""

    name: str
    check: Callable[[Bench], None]
    needs: tuple[Need, ...]

    def run(self, under_test: EngineUnderTest) -> None:
        """Raises AssertionError if the engine breaks the promise."""
        bench = Bench(under_test)
        try:
            self.check(bench)
        finally:
            bench.close()


CASES: Final[list[Case]] = []


def case(*needs: Need) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Register a case; its name is the module's last part and the function's."""

    def register(check: Callable[[Bench], None]) -> Callable[[Bench], None]:
        CASES.append(Case(f"{check.__module__.rpartition('.')[2]}.{check.__name__}", check, needs))
        return check

    return register


@dataclass
class Running:
    """A program in an engine, about to execute its first instruction."""

    engine: Engine
    ram: RamBlock
    starts: list[int]
    handler_starts: dict[int, list[int]] = field(default_factory=dict)

    def at(self, index: int) -> int:
        """RIP of the program's instruction number `index`; one past the last is where it halts for good."""
        return self.starts[index]

    def length(self, index: int) -> int:
        """Bytes of an instruction."""
        return self.starts[index + 1] - self.starts[index]

    def handler_at(self, vector: int, index: int = 0) -> int:
        """RIP of an instruction of a vector's handler."""
        return self.handler_starts[vector][index]

    def run(self, kind: type[E], budget: int | None = PLENTY, **how: bool) -> E:
        """Run to the next exit, which must be a `kind`; a hypercall will do for CPUID where that does not exit."""
        reason = self.engine.run(budget, **how)
        if kind is Cpuid and type(reason) is Hypercall and not self.engine.cpuid_exits:
            return cast(E, reason)
        assert type(reason) is kind, f"{describe(reason)} at {self.engine.regs.rip:#x}, not {kind.__name__}"
        return reason

    def run_at(self, kind: type[E], rip: int, budget: int | None = PLENTY, **how: bool) -> E:
        """Run to the next exit, which must be a `kind` with RIP at `rip`."""
        reason = self.run(kind, budget, **how)
        assert self.engine.regs.rip == rip, f"{describe(reason)} at {self.engine.regs.rip:#x}, not {rip:#x}"
        return reason

    def read(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.ram.view[gpa : gpa + size], "little")

    def put(self, gpa: int, size: int, value: int) -> None:
        self.ram.view[gpa : gpa + size] = value.to_bytes(size, "little")


class Bench:
    """Makes engines and puts guests into them; closes everything at the end."""

    def __init__(self, under_test: EngineUnderTest) -> None:
        self.under_test = under_test
        self.counts = Need.COUNTS not in under_test.lacks
        self.factory = under_test.new_factory()

    @property
    def marker(self) -> type[Instruction]:
        """The exit that the builder's CPUID makes."""
        return Hypercall if Need.CPUID in self.under_test.lacks else Cpuid

    def close(self) -> None:
        self.factory.close()

    def engine(self, name: str = "vcpu0") -> Engine:
        """An engine of the machine, with nothing mapped."""
        return self.factory.create(name)

    def guest(self, ram: RamBlock | None = None, name: str = "vcpu0") -> Guest:
        """An engine with RAM and tables, for machine code."""
        return Guest(self.engine(name), ram)

    def start(
        self,
        *program: Op,
        handlers: Mapping[int, Sequence[Op]] | None = None,
        ram: RamBlock | None = None,
        name: str = "vcpu0",
    ) -> Running:
        """A new engine with RAM at 0 and `program` in it; `handlers` by vector end with IRET."""
        engine = self.engine(name)
        handlers = handlers or {}
        if isinstance(engine, ScriptedEngine):
            return _start_script(engine, program, handlers, ram)
        return _start_code(engine, program, handlers, ram)


def _start_script(
    engine: ScriptedEngine, program: Sequence[Op], handlers: Mapping[int, Sequence[Op]], ram: RamBlock | None
) -> Running:
    ram = ram or RamBlock(RAM_SIZE)
    engine.map_ram(0, RAM_SIZE, ram, 0, Access.ALL)

    def begin(operations: Sequence[Op]) -> Callable[..., Script]:
        def script(*_: Any) -> Script:
            # `yield from` would hand what is sent in to the list's iterator, which takes nothing.
            for operation in operations:  # noqa: UP028
                yield operation

        return script

    engine.programs[CODE] = begin(program)
    sregs = engine.get_sregs()
    sregs.cs.base = 0
    engine.set_sregs(sregs)
    engine.regs.rip = CODE
    starts = _offsets(program, CODE)
    handler_starts = {}
    for vector, operations in handlers.items():
        engine.handlers[vector] = begin(operations)
        handler_starts[vector] = _offsets(operations, HANDLER_RIP + vector * HANDLER_SPACING)
    return Running(engine, ram, starts, handler_starts)


def _offsets(operations: Sequence[Op], base: int) -> list[int]:
    starts = [base]
    for operation in operations:
        starts.append(starts[-1] + getattr(operation, "count", 1))
    return starts


def _start_code(
    engine: Engine, program: Sequence[Op], handlers: Mapping[int, Sequence[Op]], ram: RamBlock | None
) -> Running:
    guest = Guest(engine, ram)
    guest.long_mode()
    engine.regs.rdx = 0
    assembler = guest.assembler()
    starts = []
    for operation in program:
        starts.append(assembler.here)
        compile_op(assembler, operation)
    starts.append(assembler.here)
    assembler.label("end")
    assembler.hlt()
    assembler.jmp("end")
    guest.load(assembler)
    handler_starts: dict[int, list[int]] = {}
    for number, (vector, operations) in enumerate(handlers.items()):
        assembler = guest.assembler(base=HANDLER_CODE + number * HANDLER_CODE_SPACING)
        handler_starts[vector] = []
        for operation in operations:
            handler_starts[vector].append(assembler.here)
            compile_op(assembler, operation)
        handler_starts[vector].append(assembler.here)
        assembler.iretq()
        assert len(assembler.code()) <= HANDLER_CODE_SPACING
        guest.load(assembler)
        guest.gate(vector, assembler.base, dpl=3)
    return Running(engine, guest.ram, starts, handler_starts)


def describe(reason: Exit) -> str:
    """An exit with its fields, for messages."""
    names = [name for kind in type(reason).__mro__ for name in getattr(kind, "__slots__", ())]
    fields = ", ".join(f"{name}={_shown(getattr(reason, name))}" for name in names)
    return f"{type(reason).__name__}({fields})"


def _shown(value: object) -> str:
    return hex(value) if type(value) is int else repr(value)
