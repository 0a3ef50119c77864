"""Event delivery in long mode: frames, stacks, privilege, error codes, double and triple faults."""

from __future__ import annotations

from vtlkit.engine import api
from vtlkit.engine.api import Event, EventType, Exit, Intercept
from vtlkit.testing.assembler import Mem
from vtlkit.testing.engine_conformance.suite import Bench, Need, case
from vtlkit.testing.guest_builder import (
    CODE,
    CONFORMING,
    GDT,
    IDT,
    IST_STACK,
    KERNEL_CODE32,
    KERNEL_CODE64,
    KERNEL_DATA,
    RING0_STACK,
    STACK,
    TRAP_GATE,
    TSS,
    USER_CODE64,
    USER_DATA,
    Guest,
)
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_FIXED, RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF

_NON_CANONICAL = 0x8000_0000_0000_0000 >> 8
_EXT = 1
_IDT = 2


def _start(bench: Bench, cpl: int = 0, rflags: int = RFLAGS_FIXED | RFLAGS_IF, code: bytes = b"\x90\x90\x90") -> Guest:
    guest = bench.guest()
    guest.long_mode(cpl, rflags)
    guest.write(CODE, code)
    return guest


def _inject(guest: Guest, event: Event) -> Exit:
    guest.engine.inject(event)
    return guest.engine.run(100)


def _arrived(guest: Guest, vector: int, reason: Exit) -> None:
    engine = guest.engine
    assert isinstance(reason, api.Hlt), (vector, reason, hex(engine.regs.rip))
    assert engine.regs.rip == guest.handler(vector), (vector, (engine.regs.rip - guest.handler(0)) / 16)


@case(Need.MACHINE_CODE)
def same_privilege(bench: Bench) -> None:
    """The frame on the aligned old stack; IF, TF and NT off; CS loaded."""
    for slack in (0, 8, 15):
        guest = _start(bench, rflags=RFLAGS_FIXED | RFLAGS_IF | RFLAGS_NT)
        guest.engine.regs.rsp = STACK - slack
        _arrived(guest, 0x41, _inject(guest, Event(EventType.INTERRUPT, 0x41)))
        assert guest.engine.regs.rsp == ((STACK - slack) & ~15) - 40
        assert guest.frame(5) == (CODE, KERNEL_CODE64, 0x4202, STACK - slack, KERNEL_DATA)
        assert guest.engine.rflags & (RFLAGS_IF | RFLAGS_NT | RFLAGS_TF) == 0
        assert guest.engine.cpl == 0


@case(Need.MACHINE_CODE)
def trap_gates_keep_interrupts_on(bench: Bench) -> None:
    guest = _start(bench)
    guest.gate(0x41, kind=TRAP_GATE)
    _arrived(guest, 0x41, _inject(guest, Event(EventType.INTERRUPT, 0x41)))
    assert guest.engine.rflags & RFLAGS_IF


@case(Need.MACHINE_CODE, Need.USER_HYPERCALL)
def inner_privilege(bench: Bench) -> None:
    """RSP0 from the TSS, a null SS of the new privilege level, and IRETQ back to user code with its flags."""
    guest = _start(bench, cpl=3)
    guest.write(CODE, b"\x0f\x05\x90")
    a = guest.assembler(base=CODE + 0x800)
    a.vmmcall()
    a.iretq()
    guest.load(a)
    guest.gate(0x41, a.base)
    engine = guest.engine
    assert isinstance(_inject(guest, Event(EventType.INTERRUPT, 0x41)), api.Hypercall)
    assert engine.cpl == 0
    assert engine.regs.rsp == RING0_STACK - 40
    assert guest.frame(5) == (CODE, USER_CODE64, 0x202, STACK, USER_DATA)
    sregs = engine.get_sregs()
    assert (sregs.cs.selector, sregs.ss.selector) == (KERNEL_CODE64, 0)
    guest.write(CODE, b"\x0f\x01\xd9\x90")
    engine.skip(len(engine.hypercall_instruction))
    assert isinstance(engine.run(100), api.Hypercall)
    assert (engine.cpl, engine.regs.rip, engine.regs.rsp) == (3, CODE, STACK)
    assert engine.rflags & RFLAGS_IF


@case(Need.MACHINE_CODE)
def interrupt_stack_table(bench: Bench) -> None:
    """IST replaces the stack at any privilege."""
    for cpl in (0, 3):
        guest = _start(bench, cpl)
        guest.gate(0x41, ist=1)
        _arrived(guest, 0x41, _inject(guest, Event(EventType.INTERRUPT, 0x41)))
        assert guest.engine.regs.rsp == IST_STACK - 40
        assert guest.frame(4)[3] == STACK


@case(Need.MACHINE_CODE)
def error_codes_and_resume_flag(bench: Bench) -> None:
    """Exceptions that have an error code push it, zero if none was given; RF is set in the saved flags of faults."""
    for vector, error_code, pushed, rf in (
        (Vector.DE, None, None, True),
        (Vector.DB, None, None, False),
        (Vector.BP, None, None, False),
        (Vector.UD, None, None, True),
        (Vector.TS, 0x28, 0x28, True),
        (Vector.GP, None, 0, True),
        (Vector.PF, 0x1F, 0x1F, True),
        (Vector.MF, None, None, True),
        (Vector.AC, 0, 0, True),
        (Vector.DF, None, 0, False),
        (Vector.MC, None, None, False),
    ):
        guest = _start(bench)
        _arrived(guest, vector, _inject(guest, Event(EventType.EXCEPTION, vector, error_code)))
        frame = guest.frame(6)
        if pushed is not None:
            assert frame[0] == pushed, vector
            frame = frame[1:]
        assert frame[0] == CODE
        assert bool(frame[2] & RFLAGS_RF) is rf, vector
        assert not guest.engine.rflags & RFLAGS_RF


@case(Need.MACHINE_CODE)
def software_interrupts_ask_for_privilege(bench: Bench) -> None:
    """INT n, INT3 from user code: a gate's DPL decides; #GP names the vector and RIP is at the instruction."""
    for code, vector, length in ((b"\xcd\x80", 0x80, 2), (b"\xcd\x06", 0x06, 2), (b"\xcc", 3, 1), (b"\xcd\x03", 3, 2)):
        guest = _start(bench, cpl=3, code=code)
        _arrived(guest, Vector.GP, guest.engine.run(100))
        assert guest.frame(2) == (vector << 3 | _IDT, CODE)
        guest = _start(bench, cpl=3, code=code)
        guest.gate(vector, dpl=3)
        _arrived(guest, vector, guest.engine.run(100))
        assert guest.frame(1)[0] == CODE + length
        # What is injected as a software interrupt is the same instruction, seen from outside.
        guest = _start(bench, cpl=3)
        guest.gate(vector, dpl=3)
        _arrived(guest, vector, _inject(guest, Event(EventType.SOFTWARE, vector, instruction_length=length)))
        assert guest.frame(1)[0] == CODE + length
    guest = _start(bench, cpl=3)
    _arrived(guest, Vector.GP, _inject(guest, Event(EventType.SOFTWARE, 0x80, instruction_length=2)))
    assert guest.frame(2) == (0x80 << 3 | _IDT, CODE)


@case(Need.MACHINE_CODE)
def hardware_events_do_not_ask(bench: Bench) -> None:
    """A gate of DPL 0 is open to interrupts and exceptions from user code."""
    guest = _start(bench, cpl=3, code=b"\x0f\x0b")
    _arrived(guest, Vector.UD, guest.engine.run(100))
    assert guest.frame(3)[:2] == (CODE, USER_CODE64)


@case(Need.MACHINE_CODE)
def gates_that_are_wrong(bench: Bench) -> None:
    """Not present, of no known type, beyond the limit: the error code names the gate, EXT says that it was no INT n."""
    event = Event(EventType.INTERRUPT, 0x41)
    error = 0x41 << 3 | _IDT | _EXT
    guest = _start(bench)
    guest.gate(0x41, present=False)
    _arrived(guest, Vector.NP, _inject(guest, event))
    assert guest.frame(2) == (error, CODE)
    guest = _start(bench)
    guest.gate(0x41, kind=6)
    _arrived(guest, Vector.GP, _inject(guest, event))
    assert guest.frame(2) == (error, CODE)
    guest = _start(bench)
    sregs = guest.engine.get_sregs()
    sregs.idt.limit = 0x41 * 16 + 14
    guest.engine.set_sregs(sregs)
    _arrived(guest, Vector.GP, _inject(guest, event))
    assert guest.frame(2) == (error, CODE)
    guest = _start(bench, code=b"\xcd\x41")
    guest.gate(0x41, present=False)
    _arrived(guest, Vector.NP, guest.engine.run(100))
    assert guest.frame(2) == (0x41 << 3 | _IDT, CODE)


@case(Need.MACHINE_CODE)
def selectors_that_are_wrong(bench: Bench) -> None:
    """Null, beyond the GDT, data, not 64-bit, not present."""
    for selector, vector, error in (
        (0, Vector.GP, _EXT),
        (0xF8, Vector.GP, 0xF8 | _EXT),
        (KERNEL_DATA, Vector.GP, KERNEL_DATA | _EXT),
        (KERNEL_CODE32, Vector.GP, KERNEL_CODE32 | _EXT),
        (USER_CODE64, Vector.GP, USER_CODE64 & ~3 | _EXT),
    ):
        guest = _start(bench)
        guest.gate(0x41, selector=selector)
        _arrived(guest, vector, _inject(guest, Event(EventType.INTERRUPT, 0x41)))
        assert guest.frame(2) == (error, CODE), hex(selector)
    guest = _start(bench)
    guest.put(GDT + 0x58, 8, guest.read(GDT + KERNEL_CODE64, 8) & ~(1 << 47))
    guest.gate(0x41, selector=0x58)
    sregs = guest.engine.get_sregs()
    sregs.gdt.limit = 0x5F
    guest.engine.set_sregs(sregs)
    _arrived(guest, Vector.NP, _inject(guest, Event(EventType.INTERRUPT, 0x41)))
    assert guest.frame(2) == (0x58 | _EXT, CODE)


@case(Need.MACHINE_CODE)
def conforming_handlers_keep_the_privilege(bench: Bench) -> None:
    guest = _start(bench, cpl=3)
    guest.gate(0x41, selector=CONFORMING)
    a = guest.assembler(base=guest.handler(0x41))
    a.vmmcall()
    guest.load(a)
    assert isinstance(_inject(guest, Event(EventType.INTERRUPT, 0x41)), api.Hypercall)
    assert guest.engine.cpl == 3
    assert guest.engine.get_sregs().cs.selector == CONFORMING | 3
    assert guest.engine.regs.rsp == STACK - 40


@case(Need.MACHINE_CODE)
def stacks_that_are_wrong(bench: Bench) -> None:
    """Not mapped: #PF with its address; not canonical: #SS. Both on a stack that works, the first event forgotten."""
    guest = _start(bench, cpl=3)
    guest.put(TSS + 4, 8, 0x7F_0000_0000)
    for vector in (Vector.PF, Vector.SS):
        guest.gate(vector, ist=1)
    _arrived(guest, Vector.PF, _inject(guest, Event(EventType.INTERRUPT, 0x41)))
    error, rip, *_ = guest.frame(2)
    assert (error, rip) == (2, CODE)
    assert guest.engine.get_sregs().cr2 >> 12 == (0x7F_0000_0000 - 40) >> 12
    guest = _start(bench, cpl=3)
    guest.put(TSS + 4, 8, _NON_CANONICAL)
    guest.gate(Vector.SS, ist=1)
    _arrived(guest, Vector.SS, _inject(guest, Event(EventType.INTERRUPT, 0x41)))
    assert guest.frame(2)[1] == CODE


@case(Need.MACHINE_CODE)
def double_faults(bench: Bench) -> None:
    """Contributory after contributory or page fault, page fault after page fault; anything else is delivered itself."""
    for first, expected in (
        (Vector.DE, Vector.DF),
        (Vector.TS, Vector.DF),
        (Vector.GP, Vector.DF),
        (Vector.PF, Vector.DF),
        (Vector.UD, Vector.NP),
        (Vector.DB, Vector.NP),
    ):
        guest = _start(bench)
        guest.gate(first, present=False)
        _arrived(guest, expected, _inject(guest, Event(EventType.EXCEPTION, first, None)))
        error, rip, *_ = guest.frame(2)
        assert rip == CODE
        assert error == (0 if expected == Vector.DF else first << 3 | _IDT | _EXT)
    # A page fault while a page fault is delivered, and one while a general protection fault is.
    for first, expected in ((Vector.PF, Vector.DF), (Vector.GP, Vector.PF)):
        guest = _start(bench)
        guest.engine.regs.rsp = 0x7F_0000_0000
        guest.gate(Vector.DF, ist=1)
        guest.gate(Vector.PF, ist=0 if first == Vector.PF else 1)
        _arrived(guest, expected, _inject(guest, Event(EventType.EXCEPTION, first, 0)))


@case(Need.MACHINE_CODE)
def double_faults_of_instructions(bench: Bench) -> None:
    """The same, begun by an instruction; and the next exception is not counted as a second one."""
    guest = _start(bench, code=b"\x48\x8b\x03\x90")  # mov rax, [rbx]
    guest.gate(Vector.PF, present=False)
    guest.engine.regs.rbx = 0x7F_0000_0000
    _arrived(guest, Vector.DF, guest.engine.run(100))
    assert guest.frame(2) == (0, CODE)
    for _ in range(3):
        guest.engine.regs.rip, guest.engine.regs.rsp = CODE, STACK
        guest.gate(Vector.PF)
        _arrived(guest, Vector.PF, guest.engine.run(100))


@case(Need.MACHINE_CODE)
def triple_fault(bench: Bench) -> None:
    """An exception during a double fault ends in Shutdown, by instruction and by injection."""
    guest = _start(bench, code=b"\x0f\x0b")
    sregs = guest.engine.get_sregs()
    sregs.idt.limit = 0
    guest.engine.set_sregs(sregs)
    assert isinstance(guest.engine.run(100), api.Shutdown)
    guest = _start(bench)
    guest.gate(Vector.DF, present=False)
    assert isinstance(_inject(guest, Event(EventType.EXCEPTION, Vector.DF, 0)), api.Shutdown)


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def intercepted_exceptions_of_delivery(bench: Bench) -> None:
    """What delivery raises exits if intercepted, and says which event was on its way."""
    guest = _start(bench)
    guest.gate(0x41, present=False)
    guest.engine.set_intercepts(Intercept.NONE, 1 << Vector.NP)
    event = Event(EventType.INTERRUPT, 0x41)
    reason = _inject(guest, event)
    assert isinstance(reason, api.ExceptionExit)
    assert (reason.vector, reason.error_code, reason.vectoring) == (Vector.NP, 0x41 << 3 | _IDT | _EXT, event)
    assert guest.engine.regs.rip == CODE
    guest = _start(bench, code=b"\xcd\x41")
    guest.gate(0x41, present=False)
    guest.engine.set_intercepts(Intercept.NONE, 1 << Vector.NP)
    reason = guest.engine.run(100)
    assert isinstance(reason, api.ExceptionExit)
    assert reason.vectoring == Event(EventType.SOFTWARE, 0x41, None, 2)
    assert guest.engine.regs.rip == CODE


@case(Need.MACHINE_CODE)
def single_stepping(bench: Bench) -> None:
    """TF traps behind each instruction, the handler runs without, IRETQ turns it on again."""
    guest = _start(bench)
    a = guest.assembler()
    a.inc("ebx")
    a.inc("ebx")
    a.mov("ecx", Mem(None, 0x60000))
    a.inc("ebx")
    a.hlt()
    guest.load(a)
    b = guest.assembler(base=CODE + 0x800)
    b.inc("r15d")
    b.inc("r15d")
    b.vmmcall()
    b.iretq()
    guest.load(b)
    guest.gate(Vector.DB, b.base)
    engine = guest.engine
    engine.regs.rbx = 0
    engine.rflags |= RFLAGS_TF
    rips = []
    while isinstance(reason := engine.run(100), api.Hypercall):
        rips.append(guest.frame(1)[0] - CODE)
        assert engine.get_debugregs()[4] & 1 << 14
        engine.skip(reason.length)
    assert isinstance(reason, api.Hlt)
    assert rips == [2, 4, 11, 13]
    assert engine.regs.rbx == 3


@case(Need.MACHINE_CODE)
def tables_are_read_as_supervisor(bench: Bench) -> None:
    """Delivery from user code reads IDT, GDT and TSS though their pages are the supervisor's."""
    guest = _start(bench, cpl=3)
    for page in (GDT, IDT, TSS, RING0_STACK - 4096):
        guest.map_page(page & ~0xFFF, (page & ~0xFFF) | 3)
    _arrived(guest, 0x41, _inject(guest, Event(EventType.INTERRUPT, 0x41)))


@case(Need.MACHINE_CODE)
def accessed_bit_of_the_code_segment(bench: Bench) -> None:
    """Delivery sets it in the GDT."""
    guest = _start(bench)
    guest.put(GDT + KERNEL_CODE64, 8, guest.read(GDT + KERNEL_CODE64, 8) & ~(1 << 40))
    _arrived(guest, 0x41, _inject(guest, Event(EventType.INTERRUPT, 0x41)))
    assert guest.read(GDT + KERNEL_CODE64, 8) & 1 << 40
