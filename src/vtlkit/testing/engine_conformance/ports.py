"""Port I/O: exits, answers, strings, privilege."""

from __future__ import annotations

from vtlkit.engine import api
from vtlkit.engine.scripted import ops
from vtlkit.testing.assembler import Assembler
from vtlkit.testing.engine_conformance.suite import DATA, Bench, Need, case
from vtlkit.testing.guest_builder import IO_BITMAP, TSS, TSS_LIMIT, Guest
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_DF, RFLAGS_FIXED, RFLAGS_IOPL_SHIFT, RFLAGS_RF

_OLD = 0x1122334455667788


@case()
def every_size(bench: Bench) -> None:
    """IN merges into RAX as x86 does; OUT has the low bytes of RAX, no more."""
    merged = {1: 0x1122334455667799, 2: 0x112233445566AA99, 4: 0xCCBBAA99}
    for size, after in merged.items():
        running = bench.start(ops.Set(_OLD), ops.Out(0x80, size), ops.In(0x60, size), ops.Hlt())
        engine = running.engine
        out = running.run(api.PortOut)
        assert (out.port, out.size, out.value) == (0x80, size, _OLD & ((1 << 8 * size) - 1))
        read = running.run(api.PortIn)
        assert (read.port, read.size, engine.at_boundary) == (0x60, size, False)
        assert engine.regs.rax == _OLD
        engine.complete(0xFFEEDDCCBBAA99)
        running.run_at(api.Hlt, running.at(3))
        assert engine.at_boundary
        assert engine.regs.rax == after, hex(engine.regs.rax)


@case()
def many_in_a_row(bench: Bench) -> None:
    """Instructions that follow each other directly exit one by one and keep their answers apart."""
    program = [ops.In(0x10 + number, 1) if number % 2 else ops.Out(0x10 + number, 1) for number in range(20)]
    running = bench.start(ops.Set(0), *program)
    for number in range(20):
        if number % 2:
            assert running.run(api.PortIn).port == 0x10 + number
            running.engine.complete(number)
        else:
            out = running.run(api.PortOut)
            assert (out.port, out.value) == (0x10 + number, number - 1 if number else 0)
    running.run_at(api.Hlt, running.at(21))


@case()
def answered_from_inside(bench: Bench) -> None:
    """Somebody offers to answer accesses without an exit: an engine may ask, and the guest sees no difference."""
    running = bench.start(ops.Set(_OLD), ops.Out(0x80, 1), ops.In(0x60, 2), ops.Out(0x99, 2), ops.Hlt())
    engine = running.engine
    seen: list[tuple[int, ...]] = []

    def write(port: int, size: int, value: int) -> bool:
        if port == 0x80:
            seen.append((port, size, value))
        return port == 0x80

    def read(port: int, size: int) -> int:
        seen.append((port, size))
        return 0x12345

    engine.answer_ports(read, write)
    while not isinstance(reason := engine.run(1000), api.Hlt):
        if isinstance(reason, api.PortIn):
            engine.complete(read(reason.port, reason.size))
        else:
            assert isinstance(reason, api.PortOut)
            if not write(reason.port, reason.size, reason.value):
                # What nobody answers always exits.
                seen.append((reason.port, reason.size, reason.value, 1))
    assert seen == [(0x80, 1, _OLD & 0xFF), (0x60, 2), (0x99, 2, 0x2345, 1)]
    assert engine.regs.rip == running.at(4)


@case(Need.COUNTS)
def rip_is_at_the_instruction(bench: Bench) -> None:
    running = bench.start(ops.Compute(3), ops.Out(0x80, 1), ops.Compute(1), ops.In(0x60, 1))
    running.run_at(api.PortOut, running.at(1))
    running.run_at(api.PortIn, running.at(3))


@case(Need.COUNTS)
def interrupt_window_asked_for_while_unfinished(bench: Bench) -> None:
    """It opens right behind the instruction."""
    running = bench.start(ops.Sti(), ops.Compute(1), ops.Out(0x80, 1), ops.Compute(3))
    running.run(api.PortOut)
    running.engine.request_interrupt_window(True)
    running.run_at(api.InterruptWindow, running.at(3))


@case(Need.MACHINE_CODE)
def window_in_an_endless_loop(bench: Bench) -> None:
    """Blocks that jump to each other for ever are left for a window that was asked for in a port exit."""
    guest = bench.guest()
    guest.long_mode()
    a = guest.assembler()
    a.sti()
    a.nop()
    a.out(0x80, "al")
    a.label("for_ever")
    a.inc("rcx")
    a.jmp("for_ever")
    guest.load(a)
    assert isinstance(guest.engine.run(10**9), api.PortOut)
    guest.engine.request_interrupt_window(True)
    assert isinstance(guest.engine.run(10**9), api.InterruptWindow)


@case(Need.MACHINE_CODE)
def string_output(bench: Bench) -> None:
    """OUTS, plain and repeated, forwards and backwards: an exit for each element."""
    for mnemonic, size in (("outsb", 1), ("outsw", 2), ("outsd", 4)):
        for backwards in (False, True):
            guest = bench.guest()
            guest.long_mode(rflags=RFLAGS_FIXED | (RFLAGS_DF if backwards else 0))
            for index in range(4):
                guest.put(DATA + index * size, size, 0x11111111 * (index + 1) & ((1 << 8 * size) - 1))
            a = guest.assembler()
            getattr(a, mnemonic)()
            getattr(a.rep, mnemonic)()
            a.hlt()
            guest.load(a)
            engine = guest.engine
            start = DATA + (3 * size if backwards else 0)
            engine.regs.rsi, engine.regs.rcx, engine.regs.rdx = start, 3, 0x3F8
            values = []
            while isinstance(reason := engine.run(1000), api.PortOut):
                assert (reason.port, reason.size) == (0x3F8, size)
                values.append(reason.value & 0xF)
            assert isinstance(reason, api.Hlt)
            assert values == ([4, 3, 2, 1] if backwards else [1, 2, 3, 4])
            assert engine.regs.rcx == 0
            assert engine.regs.rsi == start + (-4 if backwards else 4) * size


@case(Need.MACHINE_CODE)
def string_input(bench: Bench) -> None:
    """INS, plain and repeated, forwards and backwards: memory holds the answers."""
    for mnemonic, size in (("insb", 1), ("insw", 2), ("insd", 4)):
        for backwards in (False, True):
            guest = bench.guest()
            guest.long_mode(rflags=RFLAGS_FIXED | (RFLAGS_DF if backwards else 0))
            a = guest.assembler()
            getattr(a, mnemonic)()
            getattr(a.rep, mnemonic)()
            a.hlt()
            guest.load(a)
            engine = guest.engine
            start = DATA + (3 * size if backwards else 0)
            engine.regs.rdi, engine.regs.rcx, engine.regs.rdx = start, 3, 0x1F0
            answered = 0
            while isinstance(reason := engine.run(1000), api.PortIn):
                assert (reason.port, reason.size) == (0x1F0, size)
                answered += 1
                engine.complete(0x10101010 * answered)
            assert isinstance(reason, api.Hlt)
            assert answered == 4
            elements = [guest.read(DATA + index * size, size) & 0xFF for index in range(4)]
            assert elements == ([0x40, 0x30, 0x20, 0x10] if backwards else [0x10, 0x20, 0x30, 0x40])
            assert engine.regs.rcx == 0
            assert engine.regs.rdi == start + (-4 if backwards else 4) * size


@case(Need.MACHINE_CODE)
def repeated_strings_can_be_interrupted(bench: Bench) -> None:
    """Between two elements the registers say how far it got, and RIP is still at the instruction."""
    guest = bench.guest()
    guest.long_mode()
    a = guest.assembler()
    a.rep.outsb()
    a.hlt()
    guest.load(a)
    engine = guest.engine
    engine.regs.rsi, engine.regs.rcx, engine.regs.rdx = DATA, 5, 0x80
    for left in (5, 4, 3):
        assert isinstance(engine.run(1000), api.PortOut)
        assert engine.regs.rcx == left
    assert isinstance(engine.run(1000, force_immediate_exit=True), api.Interrupted)
    assert engine.at_boundary
    assert (engine.regs.rcx, engine.regs.rsi, engine.regs.rip) == (2, DATA + 3, a.base)


def _allow(guest: Guest, port: int) -> None:
    at = TSS + IO_BITMAP + port // 8
    guest.put(at, 1, guest.read(at, 1) & ~(1 << port % 8))


def _user_port_access(
    bench: Bench, rflags: int, emit: str, port: int, size: int, *allowed: int
) -> tuple[Guest, Assembler]:
    guest = bench.guest()
    guest.long_mode(cpl=3, rflags=rflags)
    for number in allowed:
        _allow(guest, number)
    register = {1: "al", 2: "ax", 4: "eax"}[size]
    a = guest.assembler()
    a.inc("ebx")
    a.label("access")
    if emit == "in":
        a.in_(register, "dx")
    else:
        a.out("dx", register)
    a.label("behind")
    a.inc("ebx")
    a.inc("ebx")
    guest.load(a)
    regs = guest.engine.regs
    regs.rax, regs.rbx, regs.rdx = _OLD, 0, port
    return guest, a


@case(Need.MACHINE_CODE)
def granted_ports(bench: Bench) -> None:
    """By IOPL, or by every bit that the access covers in the TSS's bitmap."""
    by_iopl = RFLAGS_FIXED | 3 << RFLAGS_IOPL_SHIFT
    for rflags, port, size, allowed in (
        (by_iopl, 0x80, 1, ()),
        (RFLAGS_FIXED, 0x80, 1, (0x80,)),
        (RFLAGS_FIXED, 0x3FF, 1, (0x3FF,)),
        (RFLAGS_FIXED, 0x87, 2, (0x87, 0x88)),
        (RFLAGS_FIXED, 0x3FE, 4, (0x3FE, 0x3FF, 0x400, 0x401)),
    ):
        guest, _ = _user_port_access(bench, rflags, "out", port, size, *allowed)
        reason = guest.engine.run(10)
        assert isinstance(reason, api.PortOut), (port, size, reason)
        assert (reason.port, reason.size) == (port, size)


@case(Need.MACHINE_CODE, Need.COUNTS)
def denied_ports(bench: Bench) -> None:
    """#GP(0) with RIP at the instruction and every register as before; what follows has not been executed."""
    for emit in ("in", "out"):
        for port, size, allowed in (
            (0x80, 1, ()),
            (0x87, 2, (0x87,)),
            (0x87, 2, (0x88,)),
            (0x3FE, 4, (0x3FE, 0x3FF, 0x400)),
            (0xFFF8, 1, ()),
        ):
            guest, a = _user_port_access(bench, RFLAGS_FIXED | 2 << RFLAGS_IOPL_SHIFT, emit, port, size, *allowed)
            _denied(guest, a, port)


def _denied(guest: Guest, a: Assembler, port: int) -> None:
    engine = guest.engine
    reason = engine.run(100)
    assert isinstance(reason, api.Interrupted | api.Hlt), (port, reason)
    if isinstance(reason, api.Interrupted):
        reason = engine.run(100)
        assert isinstance(reason, api.Hlt)
    assert engine.regs.rip == guest.handler(Vector.GP)
    error, rip, _, rflags, *_ = guest.frame(6)
    assert (error, rip) == (0, a.at("access")), (hex(error), hex(rip), port)
    assert rflags & RFLAGS_RF
    assert (engine.regs.rax, engine.regs.rbx, engine.regs.rdx) == (_OLD, 1, port)


@case(Need.MACHINE_CODE, Need.COUNTS)
def ports_beyond_the_bitmap_are_denied(bench: Bench) -> None:
    """A TSS too short, or a bitmap that begins behind its end."""
    for limit, base in ((0x67, IO_BITMAP), (IO_BITMAP + 0x80 // 8, IO_BITMAP), (TSS_LIMIT, 0xFFFF), (0x50, IO_BITMAP)):
        guest, a = _user_port_access(bench, RFLAGS_FIXED, "out", 0x80, 1, 0x80)
        sregs = guest.engine.get_sregs()
        sregs.tr.limit = limit
        guest.engine.set_sregs(sregs)
        guest.put(TSS + 0x66, 2, base)
        _denied(guest, a, 0x80)


@case(Need.MACHINE_CODE, Need.COUNTS)
def denied_string_input_leaves_memory_alone(bench: Bench) -> None:
    """Neither registers nor memory behind the instruction change; the whole rest of the block is undone."""
    guest = bench.guest()
    guest.long_mode(cpl=3)
    a = guest.assembler()
    a.label("access")
    a.rep.outsb()
    a.inc("ebx")
    guest.load(a)
    regs = guest.engine.regs
    regs.rax, regs.rbx, regs.rdx, regs.rcx, regs.rsi = _OLD, 1, 0x80, 3, DATA
    _denied(guest, a, 0x80)
    assert (regs.rcx, regs.rsi) == (3, DATA)


@case(Need.MACHINE_CODE, Need.COUNTS)
def virtual_8086_ports_go_by_the_bitmap(bench: Bench) -> None:
    """IOPL does not matter there."""
    for allowed in (True, False):
        guest = bench.guest()
        guest.virtual_8086(rflags=RFLAGS_FIXED | 3 << RFLAGS_IOPL_SHIFT)
        if allowed:
            _allow(guest, 0x80)
        a = guest.assembler(16)
        a.out(0x80, "al")
        guest.load(a)
        reason = guest.engine.run(10)
        if allowed:
            assert isinstance(reason, api.PortOut)
        else:
            reason = guest.engine.run(10) if isinstance(reason, api.Interrupted) else reason
            assert isinstance(reason, api.Hlt)
            assert guest.engine.regs.rip == guest.handler(Vector.GP)
            assert guest.frame(3, 4)[:2] == (0, 0)
