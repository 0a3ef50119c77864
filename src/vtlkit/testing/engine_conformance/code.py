"""Self-modifying, cross-modified and host-modified code, and engines that take turns."""

from __future__ import annotations

from vtlkit.engine import api
from vtlkit.engine.api import Access
from vtlkit.testing.assembler import Mem
from vtlkit.testing.engine_conformance.suite import DATA, IO, Bench, Need, case
from vtlkit.testing.guest_builder import CODE, STACK, Guest

FUNCTION = 0x50000


def _answer(guest: Guest, value: int, at: int = FUNCTION) -> None:
    """`mov eax, value; ret`"""
    guest.write(at, b"\xb8" + value.to_bytes(4, "little") + b"\xc3")


def _calls(guest: Guest) -> None:
    """Call FUNCTION again and again, exiting with its result in EAX."""
    a = guest.assembler()
    a.mov("ebx", FUNCTION)
    a.label("again")
    a.call("rbx")
    a.vmmcall()
    a.jmp("again")
    guest.load(a)


def _next(guest: Guest) -> int:
    reason = guest.engine.run(1000)
    assert isinstance(reason, api.Hypercall), reason
    guest.engine.skip(reason.length)
    return guest.engine.regs.rax


@case(Need.MACHINE_CODE)
def guest_modifies_its_own_code(bench: Bench) -> None:
    """A function called before, and an instruction further on in the same block."""
    guest = bench.guest()
    guest.long_mode()
    _answer(guest, 1)
    a = guest.assembler()
    a.mov("ebx", FUNCTION)
    a.call("rbx")
    a.mov("ecx", "eax")
    a.mov(Mem("rbx", 1, size=4), 2)
    a.call("rbx")
    a.mov(Mem(None, CODE + 0x40, size=1), 0x90)
    a.nop()
    a.raw(b"\x90" * (CODE + 0x40 - a.here))
    a.raw(b"\xf4")
    a.vmmcall()
    guest.load(a)
    assert isinstance(guest.engine.run(1000), api.Hypercall)
    assert (guest.engine.regs.rcx, guest.engine.regs.rax) == (1, 2)


@case(Need.MACHINE_CODE)
def host_modifies_code(bench: Bench) -> None:
    """Told of it, the engine runs the new code at its next entry, again and again."""
    guest = bench.guest()
    guest.long_mode()
    _calls(guest)
    for value in range(1, 40):
        _answer(guest, value)
        assert _next(guest) == value


@case(Need.MACHINE_CODE)
def another_engine_modifies_code(bench: Bench) -> None:
    """B has translated it, A stores to it, B sees it at its next entry; and the other way round."""
    first = bench.guest(name="first")
    second = bench.guest(first.ram, "second")
    writer = first.assembler(base=0x58000)
    writer.label("again")
    writer.mov(Mem("rsi", 1), "edx")
    writer.vmmcall()
    writer.jmp("again")
    for guest in (first, second):
        guest.long_mode()
    _answer(first, 7)
    _calls(first)
    first.load(writer)
    second.engine.regs.rsp = STACK - 0x1000
    for value in range(1, 30):
        caller, other = (first, second) if value % 2 else (second, first)
        caller.engine.regs.rip = CODE
        assert _next(caller) in (7, value - 1)
        other.engine.regs.rip, other.engine.regs.rsi, other.engine.regs.rdx = writer.base, FUNCTION, value
        _next(other)
        assert _next(caller) == value


@case(Need.MACHINE_CODE)
def code_at_two_addresses(bench: Bench) -> None:
    """RAM mapped twice: a change is seen through both."""
    guest = bench.guest()
    guest.long_mode()
    guest.engine.map_ram(IO, 4096, guest.ram, FUNCTION, Access.ALL)
    a = guest.assembler()
    a.mov("ebx", FUNCTION)
    a.mov("ecx", IO)
    a.label("again")
    a.call("rbx")
    a.mov("edx", "eax")
    a.call("rcx")
    a.vmmcall()
    a.jmp("again")
    guest.load(a)
    for value in range(1, 10):
        _answer(guest, value)
        assert _next(guest) == value == guest.engine.regs.rdx


@case(Need.MACHINE_CODE)
def code_pages_come_and_go(bench: Bench) -> None:
    """Other RAM at the same address is other code; so it is after a change of protection next to it."""
    guest = bench.guest()
    guest.long_mode()
    _calls(guest)
    _answer(guest, 1)
    assert _next(guest) == 1
    other = api.RamBlock(4096)
    other.view[:6] = b"\xb8\x02\0\0\0\xc3"
    engine = guest.engine
    engine.unmap(FUNCTION, 4096)
    engine.map_ram(FUNCTION, 4096, other, 0, Access.ALL)
    assert _next(guest) == 2
    engine.unmap(FUNCTION, 4096)
    engine.map_ram(FUNCTION, 4096, guest.ram, FUNCTION, Access.READ | Access.EXECUTE)
    assert _next(guest) == 1
    engine.protect(FUNCTION - 4096, 4096, Access.READ)
    engine.protect(FUNCTION + 4096, 4096, Access.NONE)
    assert _next(guest) == 1
    _answer(guest, 3)
    assert _next(guest) == 3
    engine.protect(FUNCTION, 4096, Access.NONE)
    engine.protect(FUNCTION, 4096, Access.ALL)
    _answer(guest, 4)
    assert _next(guest) == 4


@case(Need.MACHINE_CODE)
def code_changes_while_an_access_waits(bench: Bench) -> None:
    """A is suspended in a port exit, B changes code that A runs next: A's entry to finish the access sees it."""
    first = bench.guest(name="first")
    second = bench.guest(first.ram, "second")
    for guest in (first, second):
        guest.long_mode()
    a = first.assembler()
    a.mov("ebx", FUNCTION)
    a.label("again")
    a.in_("al", 0x60)
    a.call("rbx")
    a.vmmcall()
    a.jmp("again")
    first.load(a)
    b = first.assembler(base=0x58000)
    b.label("again")
    b.mov(Mem(None, FUNCTION + 1), "edx")
    b.vmmcall()
    b.jmp("again")
    first.load(b)
    second.engine.regs.rip = b.base
    _answer(first, 0)
    for value in range(1, 20):
        assert isinstance(first.engine.run(1000), api.PortIn)
        first.engine.complete(0)
        if value % 3:
            second.engine.regs.rdx = value
            _next(second)
        else:
            _answer(first, value)
        assert _next(first) == value


@case(Need.MACHINE_CODE)
def engines_take_turns_in_the_middle_of_accesses(bench: Bench) -> None:
    """Many engines, each suspended in another kind of exit while the others run: nobody's state is anybody else's."""
    guests = [bench.guest(name=f"vcpu{number}") for number in range(6)]
    for number, guest in enumerate(guests):
        guest.long_mode()
        guest.engine.map_exit(IO, 4096)
        a = guest.assembler()
        a.mov("ebx", IO)
        a.mov("edx", 0x100 + number)
        a.label("again")
        a.in_("eax", "dx")
        a.add("rcx", "rax")
        a.add("ecx", Mem("rbx", 8 * number))
        a.cpuid()
        a.out("dx", "eax")
        a.jmp("again")
        guest.load(a)
        guest.engine.regs.rcx = 0
    expected = [0] * len(guests)
    for turn in range(240):
        number = turn * 5 % len(guests)
        guest = guests[number]
        regs = guest.engine.regs
        reason = guest.engine.run(1000)
        if isinstance(reason, api.PortIn):
            assert reason.port == 0x100 + number
            guest.engine.complete(turn)
            expected[number] += turn
        elif isinstance(reason, api.MmioRead):
            assert reason.gpa == IO + 8 * number
            guest.engine.complete(1000 + number)
            expected[number] += 1000 + number
        elif isinstance(reason, bench.marker):
            assert regs.rcx == expected[number]
            regs.rax = 0xABC00 + number
            guest.engine.skip(2)
        else:
            assert isinstance(reason, api.PortOut)
            assert (reason.port, reason.value) == (0x100 + number, 0xABC00 + number)
    assert all(expected)


@case(Need.MACHINE_CODE)
def stores_are_seen_by_the_other(bench: Bench) -> None:
    """RAM is shared, locked instructions included."""
    first = bench.guest(name="first")
    second = bench.guest(first.ram, "second")
    a = first.assembler()
    a.label("again")
    a.lock.add(Mem(None, DATA, size=8), 3)
    a.vmmcall()
    a.jmp("again")
    for guest in (first, second):
        guest.long_mode()
    first.load(a)
    for turn in range(1, 40):
        _next((first, second)[turn % 2])
        assert first.read(DATA, 8) == second.read(DATA, 8) == 3 * turn
