"""Event delivery in real mode, 16- and 32-bit protected mode and virtual-8086 mode."""

from __future__ import annotations

from vtlkit.engine import api
from vtlkit.engine.api import Event, EventType, Exit
from vtlkit.testing.engine_conformance.suite import Bench, Need, case
from vtlkit.testing.guest_builder import (
    CODE,
    DATA,
    GDT,
    INTERRUPT_GATE_16,
    KERNEL_CODE16,
    KERNEL_CODE32,
    KERNEL_DATA,
    KERNEL_DATA16,
    RING0_STACK,
    STACK,
    TRAP_GATE,
    TSS,
    USER_CODE32,
    USER_DATA,
    Guest,
)
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_AC, RFLAGS_FIXED, RFLAGS_IF, RFLAGS_NT, RFLAGS_TF, RFLAGS_VM

IRQ = Event(EventType.INTERRUPT, 0x41)
_ON = RFLAGS_FIXED | RFLAGS_IF


def _inject(guest: Guest, event: Event) -> Exit:
    guest.engine.inject(event)
    return guest.engine.run(100)


def _arrived(guest: Guest, vector: int, reason: Exit) -> None:
    assert isinstance(reason, api.Hlt), (vector, reason)
    linear = guest.engine.regs.rip + guest.engine.get_sregs().cs.base
    assert linear == guest.handler(vector), (vector, hex(linear))


@case(Need.MACHINE_CODE)
def real_mode(bench: Bench) -> None:
    """Three words; IF, TF and AC off; INT n and an interrupt the same; IRET back."""
    for software in (True, False):
        guest = bench.guest()
        guest.real_mode(_ON | RFLAGS_AC)
        a = guest.assembler(16)
        a.int_(0x41)
        a.vmmcall()
        guest.load(a)
        b = guest.assembler(16)
        b.cpuid()
        b.iret()
        guest.write(guest.handler(0x41), b.code())
        engine = guest.engine
        if not software:
            engine.regs.rip = 2
            engine.inject(IRQ)
        assert isinstance(engine.run(100), bench.marker)
        assert (engine.get_sregs().cs.base, engine.regs.rip) == (0, guest.handler(0x41))
        assert engine.regs.rsp == 0x8000 - 6
        assert guest.frame(3, 2) == (2, CODE >> 4, _ON & 0xFFFF)
        assert engine.rflags & (RFLAGS_IF | RFLAGS_TF | RFLAGS_AC) == 0
        engine.skip(2)
        assert isinstance(engine.run(100), api.Hypercall)
        assert (engine.regs.rip, engine.regs.rsp, engine.get_sregs().cs.selector) == (2, 0x8000, CODE >> 4)
        assert engine.rflags & RFLAGS_IF


@case(Need.MACHINE_CODE)
def real_mode_stack_wraps(bench: Bench) -> None:
    """SP goes round within its segment."""
    guest = bench.guest()
    guest.real_mode(_ON)
    guest.engine.regs.rsp = 2
    _arrived(guest, 0x41, _inject(guest, IRQ))
    assert guest.engine.regs.rsp == 0xFFFC
    assert guest.read(DATA, 2) == _ON
    assert guest.read(DATA + 0xFFFE, 2) == CODE >> 4


@case(Need.MACHINE_CODE)
def real_mode_table_limit(bench: Bench) -> None:
    """A vector beyond the table is a double fault's worth of trouble; with no room for that either, shutdown."""
    guest = bench.guest()
    guest.real_mode(_ON)
    sregs = guest.engine.get_sregs()
    sregs.idt.limit = 0x41 * 4 + 2
    guest.engine.set_sregs(sregs)
    _arrived(guest, Vector.GP, _inject(guest, IRQ))
    sregs = guest.engine.get_sregs()
    sregs.idt.limit = 0
    guest.engine.set_sregs(sregs)
    assert isinstance(_inject(guest, IRQ), api.Shutdown)


@case(Need.MACHINE_CODE)
def protected_32_same_privilege(bench: Bench) -> None:
    """EFLAGS, CS, EIP on the old stack, the error code on top; interrupt and trap gates."""
    for kind, stays_on in ((14, False), (TRAP_GATE, True)):
        guest = bench.guest()
        guest.protected_mode(rflags=_ON | RFLAGS_NT)
        guest.gate(0x41, kind=kind)
        _arrived(guest, 0x41, _inject(guest, IRQ))
        assert guest.engine.regs.rsp == STACK - 12
        assert guest.frame(3, 4) == (CODE, KERNEL_CODE32, _ON | RFLAGS_NT)
        assert bool(guest.engine.rflags & RFLAGS_IF) is stays_on
        assert not guest.engine.rflags & RFLAGS_NT
    guest = bench.guest()
    guest.protected_mode()
    _arrived(guest, Vector.GP, _inject(guest, Event(EventType.EXCEPTION, Vector.GP, 0x1234)))
    assert guest.frame(3, 4)[:2] == (0x1234, CODE)


@case(Need.MACHINE_CODE, Need.USER_HYPERCALL)
def protected_32_inner_privilege(bench: Bench) -> None:
    """SS:ESP from the TSS, the old one on the new stack, IRET back."""
    guest = bench.guest()
    guest.protected_mode(cpl=3, rflags=_ON)
    guest.write(CODE, b"\x0f\x01\xd9")
    a = guest.assembler(32, CODE + 0x800)
    a.cpuid()
    a.iretd()
    guest.load(a)
    guest.gate(0x41, a.base)
    engine = guest.engine
    assert isinstance(_inject(guest, IRQ), bench.marker)
    assert (engine.cpl, engine.regs.rsp) == (0, RING0_STACK - 20)
    assert guest.frame(5, 4) == (CODE, USER_CODE32, _ON, STACK, USER_DATA)
    assert engine.get_sregs().ss.selector == KERNEL_DATA
    engine.skip(2)
    assert isinstance(engine.run(100), api.Hypercall)
    assert (engine.cpl, engine.regs.rip, engine.regs.rsp) == (3, CODE, STACK)


@case(Need.MACHINE_CODE)
def protected_32_software(bench: Bench) -> None:
    """INT n, INT3 and INTO by the gate's DPL."""
    for code, vector in ((b"\xcd\x80", 0x80), (b"\xcc", Vector.BP), (b"\xce", Vector.OF)):
        for dpl in (0, 3):
            guest = bench.guest()
            guest.protected_mode(cpl=3, rflags=_ON | 1 << 11)
            guest.write(CODE, code)
            guest.gate(vector, dpl=dpl)
            reason = guest.engine.run(100)
            _arrived(guest, vector if dpl else Vector.GP, reason)
            if dpl:
                assert guest.frame(1, 4)[0] == CODE + len(code)
            else:
                assert guest.frame(2, 4) == (vector << 3 | 2, CODE)


@case(Need.MACHINE_CODE)
def sixteen_bit_gates(bench: Bench) -> None:
    """A 286 gate pushes words; 16-bit code and stack segments have bases and 64 KiB."""
    guest = bench.guest()
    guest.protected_mode(rflags=_ON)
    guest.gate(0x41, kind=INTERRUPT_GATE_16)
    _arrived(guest, 0x41, _inject(guest, IRQ))
    assert guest.engine.regs.rsp == STACK - 6
    assert guest.frame(3, 2) == (CODE & 0xFFFF, KERNEL_CODE32, _ON)
    guest = bench.guest()
    guest.protected_mode(rflags=_ON, bits=16)
    guest.gate(0x41, selector=KERNEL_CODE16)
    guest.engine.regs.rsp = 0xABCD_0004
    _arrived(guest, 0x41, _inject(guest, IRQ))
    assert guest.engine.regs.rsp == 0xABCD_FFF8
    assert guest.read(DATA, 4) == _ON
    assert guest.read(DATA + 0xFFF8, 4) == 0
    assert guest.read(DATA + 0xFFFC, 4) == KERNEL_CODE16
    assert guest.engine.get_sregs().ss.selector == KERNEL_DATA16


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def task_state_that_is_wrong(bench: Bench) -> None:
    """The inner stack's selector: null, of another privilege, read-only, not present; and a TSS too short."""
    for selector, vector, error in (
        (0, Vector.TS, 1),
        (USER_DATA, Vector.TS, USER_DATA & ~3 | 1),
        (0x58, Vector.SS, 0x59),
    ):
        guest = bench.guest()
        guest.protected_mode(cpl=3, rflags=_ON)
        guest.put(GDT + 0x58, 8, guest.read(GDT + KERNEL_DATA, 8) & ~(1 << 47))
        guest.put(TSS + 8, 4, selector)
        guest.gate(vector, selector=KERNEL_CODE32)
        # The handler of the fault needs an inner stack as well: it fails alike, and so does the double fault's.
        guest.engine.set_intercepts(api.Intercept.NONE, 1 << vector)
        reason = _inject(guest, IRQ)
        assert isinstance(reason, api.ExceptionExit), (hex(selector), reason)
        assert (reason.vector, reason.error_code, reason.vectoring) == (vector, error, IRQ)
        guest.engine.set_intercepts(api.Intercept.NONE)
        assert isinstance(_inject(guest, IRQ), api.Shutdown)


@case(Need.MACHINE_CODE)
def task_gates_are_refused(bench: Bench) -> None:
    """Hardware task switches are not there: the exit says so."""
    guest = bench.guest()
    guest.protected_mode()
    guest.gate(0x41, kind=5)
    reason = _inject(guest, IRQ)
    assert isinstance(reason, api.InternalError)
    assert "task" in reason.reason


@case(Need.MACHINE_CODE)
def virtual_8086(bench: Bench) -> None:
    """Nine words, the data segments null in the handler, VM off, and IRET back into virtual-8086 mode."""
    guest = bench.guest()
    guest.virtual_8086(_ON)
    guest.write(CODE, b"\x90\xf4")
    a = guest.assembler(32, DATA + 0x9000)
    a.cpuid()
    a.iretd()
    guest.load(a)
    guest.gate(0x41, a.base)
    engine = guest.engine
    selectors = [getattr(engine.get_sregs(), name).selector for name in ("es", "ds", "fs", "gs")]
    assert isinstance(_inject(guest, IRQ), bench.marker)
    assert (engine.cpl, engine.regs.rsp) == (0, RING0_STACK - 36)
    assert guest.frame(5, 4) == (0, CODE >> 4, _ON | RFLAGS_VM, 0x8000, DATA >> 4)
    assert [guest.read(RING0_STACK - 16 + 4 * index, 4) for index in range(4)] == selectors
    sregs = engine.get_sregs()
    assert [getattr(sregs, name).selector for name in ("es", "ds", "fs", "gs")] == [0] * 4
    assert not engine.rflags & RFLAGS_VM
    engine.skip(2)
    # HLT is privileged there: #GP, delivered from virtual-8086 mode again.
    _arrived(guest, Vector.GP, engine.run(100))
    error, eip, cs, eflags, *_ = guest.frame(6, 4)
    assert (error, eip, cs) == (0, 1, CODE >> 4)
    assert eflags & RFLAGS_VM


@case(Need.MACHINE_CODE)
def virtual_8086_software_interrupts(bench: Bench) -> None:
    """By IOPL: 3 goes through the gate, less is #GP(0)."""
    for iopl in (3, 0):
        guest = bench.guest()
        guest.virtual_8086(_ON | iopl << 12)
        guest.write(CODE, b"\xcd\x80")
        guest.gate(0x80, dpl=3)
        reason = guest.engine.run(100)
        if iopl == 3:
            _arrived(guest, 0x80, reason)
            assert guest.frame(1, 4)[0] == 2
        else:
            _arrived(guest, Vector.GP, reason)
            assert guest.frame(2, 4) == (0, 0)


@case(Need.MACHINE_CODE)
def modes_in_turn(bench: Bench) -> None:
    """One engine through all modes: nothing of one is left in the next."""
    guest = bench.guest()
    for _ in range(2):
        for enter, bits in (
            (guest.real_mode, 16),
            (guest.protected_mode, 32),
            (guest.long_mode, 64),
            (guest.virtual_8086, 16),
        ):
            enter()
            a = guest.assembler(bits)
            a.mov("eax", 0x11223344)
            a.mov("ebx", "eax")
            a.vmmcall()
            guest.load(a)
            guest.engine.regs.rax = guest.engine.regs.rbx = 0
            reason = guest.engine.run(100)
            assert isinstance(reason, api.Hypercall), (bits, reason)
            assert guest.engine.regs.rbx == 0x11223344
            assert guest.engine.code_bits() == bits
