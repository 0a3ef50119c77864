"""Intercepts that find an instruction before it has begun: ports, table loads, XSETBV, exceptions."""

from __future__ import annotations

from collections.abc import Callable

from vtlkit.engine import api
from vtlkit.engine.api import PORT_BITMAP_SIZE, Intercept
from vtlkit.engine.scripted import ops
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.testing.engine_conformance.suite import DATA, Bench, Need, case
from vtlkit.testing.guest_builder import Guest
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.msr import MSR_LSTAR
from vtlkit.x86.registers import CR4_OSXSAVE, RFLAGS_FIXED, RFLAGS_IOPL_SHIFT

_PATTERN = 0x1122334455667788
_NOWHERE = 0x7F0000001000
_OPENED = 0x5A


def _ports(*ports: int) -> bytes:
    bitmap = bytearray(PORT_BITMAP_SIZE)
    for port in ports:
        bitmap[port // 8] |= 1 << port % 8
    return bytes(bitmap)


@case(Need.COUNTS)
def an_intercepted_port_is_not_touched(bench: Bench) -> None:
    """Each direction by itself; the instruction can be tried again, skipped, or let through."""
    running = bench.start(ops.Set(_PATTERN), ops.Out(0x80, 2), ops.In(0x60, 1), ops.Out(0x60, 1), ops.Hlt())
    engine = running.engine
    assert engine.intercepts_ports
    engine.set_port_intercepts(_ports(0x60), _ports(0x81))
    for _ in range(2):
        reason = running.run_at(api.PortIntercept, running.at(1))
        assert (reason.port, reason.size, reason.write, reason.length) == (0x80, 2, True, running.length(1))
        assert (reason.string, reason.rep) == (False, False)
        assert engine.at_boundary
        assert engine.regs.rax == _PATTERN
    engine.skip(reason.length)
    reason = running.run_at(api.PortIntercept, running.at(2))
    assert (reason.port, reason.size, reason.write) == (0x60, 1, False)
    assert engine.regs.rax == _PATTERN
    engine.set_port_intercepts(None, _ports(0x81))
    running.run_at(api.PortIn, running.at(2))
    engine.complete(0x99)
    assert running.run_at(api.PortOut, running.at(3)).value == 0x99
    running.run_at(api.Hlt, running.at(4))


@case(Need.COUNTS)
def a_port_intercept_counts_as_an_instruction(bench: Bench) -> None:
    running = bench.start(ops.Compute(2), ops.Out(0x80, 1), ops.Hlt())
    running.engine.set_port_intercepts(None, _ports(0x80))
    for tried in range(3):
        running.run(api.PortIntercept, budget=3)
        assert running.engine.instructions() == 3 + tried


@case(Need.MACHINE_CODE, Need.COUNTS)
def any_byte_of_the_access_is_enough(bench: Bench) -> None:
    for port, size, intercepted, hit in (
        (0x80, 1, 0x80, True),
        (0x7F, 1, 0x80, False),
        (0x7E, 2, 0x80, False),
        (0x7F, 2, 0x80, True),
        (0x7D, 4, 0x80, True),
        (0x81, 4, 0x80, False),
        (0xFFFF, 1, 0xFFFF, True),
        (0xFFFD, 4, 0xFFFF, True),
    ):
        guest = bench.guest()
        guest.long_mode()
        guest.engine.set_port_intercepts(_ports(intercepted), _ports(intercepted))
        a = guest.assembler()
        a.in_({1: "al", 2: "ax", 4: "eax"}[size], "dx")
        guest.load(a)
        guest.engine.regs.rdx = port
        assert type(guest.engine.run(10)) is (api.PortIntercept if hit else api.PortIn), (port, size)


@case(Need.MACHINE_CODE, Need.COUNTS)
def intercepted_strings(bench: Bench) -> None:
    """A repeated string goes on with the element that was stopped; flags and memory stay."""
    for mnemonic, write in (("outsb", True), ("outsd", True), ("insw", False)):
        for repeated in (False, True):
            size = {"b": 1, "w": 2, "d": 4}[mnemonic[-1]]
            guest, a = _string(bench, mnemonic, repeated)
            engine = guest.engine
            bitmap = _ports(0x3F8)
            engine.set_port_intercepts(bitmap, bitmap)
            for _ in range(2):
                reason = engine.run(100)
                assert isinstance(reason, api.PortIntercept), reason
                assert (reason.port, reason.size, reason.write, reason.string) == (0x3F8, size, write, True)
                assert (reason.rep, reason.length) == (repeated, a.at("behind") - a.at("access"))
                regs = engine.regs
                assert (regs.rip, regs.rcx, regs.rsi, regs.rdi) == (a.at("access"), 3, DATA, DATA)
                # CMP made them: CF, PF, AF and SF.
                assert engine.rflags & 0x8D5 == 0x95
            engine.set_port_intercepts(None, None)
            assert type(engine.run(100)) is (api.PortOut if write else api.PortIn)
            engine.complete(1)
            engine.set_port_intercepts(bitmap, bitmap)
            reason = engine.run(100)
            if repeated:
                assert isinstance(reason, api.PortIntercept)
                assert engine.regs.rcx == 2
                assert (engine.regs.rsi if write else engine.regs.rdi) == DATA + size
            else:
                assert isinstance(reason, api.Hlt)


def _string(bench: Bench, mnemonic: str, repeated: bool) -> tuple[Guest, Assembler]:
    guest = bench.guest()
    guest.long_mode()
    a = guest.assembler()
    a.cmp("eax", "ebx")
    a.label("access")
    getattr(a.rep if repeated else a, mnemonic)()
    a.label("behind")
    a.hlt()
    guest.load(a)
    regs = guest.engine.regs
    regs.rax, regs.rbx, regs.rdx, regs.rcx, regs.rsi, regs.rdi = 1, 2, 0x3F8, 3, DATA, DATA
    return guest, a


@case(Need.MACHINE_CODE, Need.COUNTS)
def the_block_goes_on_where_it_was_stopped(bench: Bench) -> None:
    """What is before the access in its block is done once, what is behind it not yet; in a 16-bit loop, too."""
    guest = bench.guest()
    guest.real_mode()
    a = guest.assembler(16)
    a.label("again")
    a.inc("bx")
    a.out(0x80, "al")
    a.inc("bx")
    a.jmp("again")
    guest.load(a)
    guest.engine.set_port_intercepts(None, _ports(0x80))
    regs = guest.engine.regs
    regs.rbx = 0
    for expected in (1, 3, 5):
        for _ in range(2):
            reason = guest.engine.run(100)
            assert isinstance(reason, api.PortIntercept)
            assert regs.rbx & 0xFFFF == expected
        guest.engine.skip(2)


@case(Need.MACHINE_CODE, Need.COUNTS)
def a_refused_port_is_not_intercepted(bench: Bench) -> None:
    """Privilege is looked at first; its #GP is an exception like others."""
    for iopl, exits in ((3, api.PortIntercept), (0, api.ExceptionExit)):
        guest = bench.guest()
        guest.long_mode(cpl=3, rflags=RFLAGS_FIXED | iopl << RFLAGS_IOPL_SHIFT)
        a = guest.assembler()
        a.nop()
        a.label("access")
        a.out(0x80, "al")
        guest.load(a)
        guest.engine.set_port_intercepts(None, _ports(0x80))
        guest.engine.set_intercepts(Intercept.NONE, 1 << Vector.GP)
        reason = guest.engine.run(100)
        assert type(reason) is exits, reason
        assert guest.engine.regs.rip == a.at("access")


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def each_descriptor_table_by_itself(bench: Bench) -> None:
    for flag, name in (
        (Intercept.GDTR_WRITE, "lgdt"),
        (Intercept.IDTR_WRITE, "lidt"),
        (Intercept.LDTR_WRITE, "lldt"),
        (Intercept.TR_WRITE, None),
    ):
        guest = bench.guest()
        guest.long_mode()
        sregs = guest.engine.get_sregs()
        for table in (sregs.gdt, sregs.idt):
            at = DATA + (table is sregs.idt) * 16
            guest.put(at, 2, table.limit)
            guest.put(at + 2, 8, table.base)
        a = guest.assembler()
        a.mov("rbx", DATA)
        a.lgdt(Mem("rbx", 0))
        a.lidt(Mem("rbx", 16))
        a.xor("eax", "eax")
        a.lldt("ax")
        a.hlt()
        guest.load(a)
        guest.engine.set_intercepts(flag)
        reason = guest.engine.run(100)
        if name is None:
            assert isinstance(reason, api.Hlt)
            continue
        assert isinstance(reason, api.Other)
        assert reason.mnemonic == name
        operand = {"lgdt": DATA, "lidt": DATA + 16, "lldt": None}[name]
        assert guest.engine.operand_address() == operand
        guest.engine.set_intercepts(Intercept.NONE)
        assert isinstance(guest.engine.run(100), api.Hlt)


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def xsetbv(bench: Bench) -> None:
    """Exits where it is permitted at all, whatever it would write; without the intercept it is executed."""
    guest = bench.guest()
    guest.long_mode()
    engine = guest.engine
    a = guest.assembler()
    a.nop()
    a.label("target")
    a.xsetbv()
    a.hlt()
    guest.load(a)
    regs = engine.regs
    start = regs.rip
    regs.rax, regs.rcx, regs.rdx = 1, 0, 0
    engine.set_intercepts(Intercept.XSETBV, 1 << Vector.UD)
    undefined = engine.run(10)
    assert isinstance(undefined, api.ExceptionExit), "CR4.OSXSAVE is clear"
    assert undefined.vector == Vector.UD
    sregs = engine.get_sregs()
    sregs.cr4 |= CR4_OSXSAVE
    engine.set_sregs(sregs)
    for value in (1, 3, 0xFFFF):
        regs.rip, regs.rax = start, value
        reason = engine.run(10)
        assert isinstance(reason, api.Other)
        assert (reason.mnemonic, reason.length, regs.rip) == ("xsetbv", 3, a.at("target"))
    engine.set_intercepts(Intercept.NONE)
    engine.xcr0, regs.rip, regs.rax = 1, start, 3
    assert isinstance(engine.run(10), api.Hlt)
    assert engine.xcr0 == 3


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def an_intercepted_page_fault_leaves_cr2(bench: Bench) -> None:
    """Loads, stores, fetches, and faults of delivery; without the intercept CR2 has the address."""
    instructions: tuple[tuple[Callable[[Assembler], None], int], ...] = (
        (lambda a: a.mov("rax", Mem("rbx", 8)), _NOWHERE + 8),
        (lambda a: a.mov(Mem("rbx", 8), "rax"), _NOWHERE + 8),
        (lambda a: a.jmp("rbx"), _NOWHERE),
        (lambda a: a.push("rax"), _NOWHERE - 8),
    )
    for code, address in instructions:
        guest = bench.guest()
        guest.long_mode()
        engine = guest.engine
        a = guest.assembler()
        a.nop()
        a.label("target")
        code(a)
        guest.load(a)
        guest.write(guest.handler(Vector.PF), b"\xf4")
        sregs = engine.get_sregs()
        sregs.cr2 = 0x1234
        engine.set_sregs(sregs)
        engine.regs.rbx = _NOWHERE
        pushes = address == _NOWHERE - 8
        if pushes:
            engine.regs.rsp = _NOWHERE
        engine.set_intercepts(Intercept.NONE, 1 << Vector.PF)
        for _ in range(2):
            reason = engine.run(100)
            assert isinstance(reason, api.ExceptionExit), reason
            assert (reason.vector, reason.address) == (Vector.PF, address)
            assert engine.get_sregs().cr2 == 0x1234
            assert engine.regs.rip == (_NOWHERE if address == _NOWHERE else a.at("target"))
        if not pushes:
            engine.set_intercepts(Intercept.NONE)
            assert isinstance(engine.run(100), api.Hlt)
            assert engine.get_sregs().cr2 == address


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def a_fault_of_delivery_is_intercepted_with_the_event(bench: Bench) -> None:
    guest = bench.guest()
    guest.long_mode()
    engine = guest.engine
    guest.load(guest.assembler())
    engine.regs.rsp = _NOWHERE
    sregs = engine.get_sregs()
    sregs.cr2 = 0x1234
    engine.set_sregs(sregs)
    engine.set_intercepts(Intercept.NONE, 1 << Vector.PF)
    event = api.Event(api.EventType.INTERRUPT, 0x40)
    engine.inject(event)
    reason = engine.run(100)
    assert isinstance(reason, api.ExceptionExit)
    assert reason.vector == Vector.PF
    assert reason.vectoring == event
    assert _NOWHERE - 0x40 <= reason.address < _NOWHERE
    assert engine.get_sregs().cr2 == 0x1234


@case()
def reads_that_are_free_at_first_can_be_intercepted(bench: Bench) -> None:
    running = bench.start(ops.Set(MSR_LSTAR, "rcx"), ops.Rdmsr(), ops.Rdmsr(), ops.Hlt())
    engine = running.engine
    assert engine.free_msr_reads <= engine.native_msrs
    engine.intercept_msr(MSR_LSTAR, True, True)
    running.run_at(api.Rdmsr, running.at(1))
    engine.intercept_msr(MSR_LSTAR, False, True)
    engine.set_msr(MSR_LSTAR, _OPENED)
    running.run(api.Hlt)
    assert engine.regs.rax == _OPENED


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def software_exceptions_are_at_the_instruction(bench: Bench) -> None:
    guest = bench.guest()
    guest.long_mode()
    a = guest.assembler()
    a.nop()
    a.int3()
    guest.load(a)
    guest.engine.set_intercepts(Intercept.NONE, 1 << Vector.BP)
    for _ in range(2):
        reason = guest.engine.run(10)
        assert isinstance(reason, api.ExceptionExit)
        assert (reason.vector, guest.engine.regs.rip) == (Vector.BP, a.base + 1)
