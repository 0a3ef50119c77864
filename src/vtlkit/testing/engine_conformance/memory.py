"""The guest-physical map: holes, protection, and that a fault leaves no trace."""

from __future__ import annotations

from vtlkit.engine import api
from vtlkit.engine.api import Access, MemoryFault
from vtlkit.engine.scripted import ops
from vtlkit.testing.assembler import Mem
from vtlkit.testing.engine_conformance.suite import DATA, IO, Bench, Need, Running, case
from vtlkit.testing.guest_builder import RING0_STACK, STACK
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.paging import PTE_P, PTE_U, PTE_W
from vtlkit.x86.registers import GENERAL_REGISTERS

PAGE = 0x70000
RW = Access.READ | Access.WRITE
RX = Access.READ | Access.EXECUTE


def _fault(running: Running, index: int, gpa: int, access: Access, mapped: bool) -> MemoryFault:
    fault = running.run_at(MemoryFault, running.at(index))
    assert (fault.gpa, fault.access, fault.mapped) == (gpa, access, mapped)
    assert fault.vectoring is None
    assert running.engine.at_boundary
    return fault


@case()
def holes(bench: Bench) -> None:
    """Loads and stores outside the map fault, again and again, until something is mapped there."""
    running = bench.start(ops.Set(7), ops.Read(IO, 4), ops.Write(IO + 8, 2), ops.Add(IO, 4))
    for _ in range(2):
        assert _fault(running, 1, IO, Access.READ, False).size == 4
        assert running.engine.regs.rax == 7
    block = api.RamBlock(4096)
    block.view[:8] = (5).to_bytes(8, "little")
    running.engine.map_ram(IO, 4096, block, 0, Access.READ)
    assert _fault(running, 2, IO + 8, Access.WRITE, True).size == 2
    assert running.engine.regs.rax == 5
    running.engine.protect(IO, 4096, Access.ALL)
    running.run_at(api.Hlt, running.at(4))
    assert int.from_bytes(block.view[:4], "little") == 10
    assert int.from_bytes(block.view[8:10], "little") == 5


@case()
def protected_stores(bench: Bench) -> None:
    """Loads go on, a store faults without effect, and is made when the page is opened."""
    running = bench.start(ops.Read(PAGE, 4), ops.Add(PAGE, 4), ops.Write(PAGE + 0x800, 8), ops.Compute(1))
    engine = running.engine
    running.put(PAGE, 4, 21)
    engine.protect(PAGE, 4096, RX)
    _fault(running, 1, PAGE, Access.WRITE, True)
    _fault(running, 1, PAGE, Access.WRITE, True)
    assert running.read(PAGE, 4) == engine.regs.rax == 21
    engine.protect(PAGE, 4096, Access.ALL)
    engine.protect(PAGE, 4096, Access.READ)
    _fault(running, 1, PAGE, Access.WRITE, True)
    engine.protect(PAGE, 4096, RW)
    running.run_at(api.Hlt, running.at(4))
    assert (running.read(PAGE, 4), running.read(PAGE + 0x800, 8)) == (42, 21)


@case()
def hidden_pages(bench: Bench) -> None:
    """No access at all: mapped is True, and opening shows the old contents."""
    running = bench.start(ops.Write(PAGE, 4, 9), ops.Compute(1), ops.Read(PAGE, 4), ops.Read(PAGE + 4096, 4))
    engine = running.engine
    engine.protect(PAGE, 8192, Access.NONE)
    _fault(running, 0, PAGE, Access.WRITE, True)
    engine.protect(PAGE, 4096, RW)
    running.put(PAGE + 4096, 4, 77)
    _fault(running, 3, PAGE + 4096, Access.READ, True)
    assert engine.regs.rax == 9
    engine.protect(PAGE + 4096, 4096, Access.READ)
    running.run_at(api.Hlt, running.at(4))
    assert engine.regs.rax == 77


@case()
def one_page_of_many(bench: Bench) -> None:
    """Neighbours keep their rights, whatever order pages are protected and opened in."""
    pages = [PAGE + number * 4096 for number in range(8)]
    program = [ops.Write(page, 4, number + 1) for number, page in enumerate(pages)]
    running = bench.start(*program)
    engine = running.engine
    engine.protect(PAGE, 8 * 4096, Access.READ)
    for number in (3, 0, 7, 5):
        engine.protect(pages[number], 4096, Access.ALL)
    engine.protect(pages[5], 4096, Access.NONE)
    for number in range(8):
        if number in (0, 3, 7):
            continue
        _fault(running, number, pages[number], Access.WRITE, True)
        engine.protect(pages[number], 4096, RW)
    running.run_at(api.Hlt, running.at(8))
    assert [running.read(page, 4) for page in pages] == list(range(1, 9))


@case()
def unmap_and_map_elsewhere(bench: Bench) -> None:
    """A page can be taken out of RAM, backed by other RAM, and put back."""
    running = bench.start(*(ops.Vmmcall() if index % 2 else ops.Read(PAGE, 4) for index in range(6)))
    engine = running.engine
    other = api.RamBlock(8192)
    other.view[4096:4100] = b"\x22\0\0\0"
    running.put(PAGE, 4, 0x11)

    def loaded() -> int:
        engine.skip(running.run(api.Hypercall).length)
        return engine.regs.rax

    assert loaded() == 0x11
    engine.unmap(PAGE, 4096)
    _fault(running, 2, PAGE, Access.READ, False)
    engine.map_ram(PAGE, 4096, other, 4096, Access.ALL)
    assert loaded() == 0x22
    engine.unmap(PAGE, 4096)
    engine.map_ram(PAGE, 4096, running.ram, PAGE, Access.ALL)
    assert loaded() == 0x11


@case()
def accesses_across_pages(bench: Bench) -> None:
    """Into a page that is not there or not allowed: the fault names that page, and the load is not made at all."""
    edge = PAGE + 4096 - 2
    running = bench.start(ops.Set(3), ops.Read(edge, 4), ops.Write(edge, 8), ops.Read(edge, 8))
    engine = running.engine
    running.put(edge, 4, 0x44332211)
    engine.protect(PAGE + 4096, 4096, Access.NONE)
    _fault(running, 1, PAGE + 4096, Access.READ, True)
    assert engine.regs.rax == 3
    engine.protect(PAGE + 4096, 4096, Access.READ)
    _fault(running, 2, PAGE + 4096, Access.WRITE, True)
    assert engine.regs.rax == 0x44332211
    engine.protect(PAGE + 4096, 4096, Access.ALL)
    running.run_at(api.Hlt, running.at(4))
    assert engine.regs.rax == 0x44332211


@case()
def bad_ranges_are_refused(bench: Bench) -> None:
    """A caller's mistakes: sizes that are no pages, overlaps, ranges beyond the block."""
    engine = bench.start().engine
    block = api.RamBlock(4096)
    for gpa, size, offset in (
        (IO + 1, 4096, 0),
        (IO, 100, 0),
        (IO, 0, 0),
        (0, 4096, 0),
        (IO, 8192, 0),
        (IO, 4096, 4096),
    ):
        try:
            engine.map_ram(gpa, size, block, offset, Access.ALL)
        except ValueError:
            continue
        raise AssertionError(f"mapping {gpa:#x}+{size:#x} from {offset:#x} was accepted")


@case(Need.MACHINE_CODE)
def faulting_stores_of_every_kind(bench: Bench) -> None:
    """No register and no flag changes, nothing after the instruction is executed, and it works when opened."""
    forms: list[tuple[str, bytes]] = [
        ("mov [rbx], rcx", b"\x48\x89\x0b"),
        ("add [rbx], rcx", b"\x48\x01\x0b"),
        ("lock add [rbx], rcx", b"\xf0\x48\x01\x0b"),
        ("xchg [rbx], rcx", b"\x48\x87\x0b"),
        ("lock xadd [rbx], rcx", b"\xf0\x48\x0f\xc1\x0b"),
        ("cmpxchg [rbx], rcx", b"\x48\x0f\xb1\x0b"),
        ("lock cmpxchg [rbx], rcx", b"\xf0\x48\x0f\xb1\x0b"),
        ("cmpxchg16b [rbx]", b"\x48\x0f\xc7\x0b"),
        ("inc byte [rbx]", b"\xfe\x03"),
        ("shl qword [rbx], 1", b"\x48\xd1\x23"),
        ("movsq", b"\x48\xa5"),
        ("stosb", b"\xaa"),
        ("rep stosq", b"\xf3\x48\xab"),
        ("movups [rbx], xmm1", b"\x0f\x11\x0b"),
        ("fxsave [rbx]", b"\x0f\xae\x03"),
        ("fnsave [rbx]", b"\xdd\x33"),
        ("fistp qword [rbx]", b"\xdf\x3b"),
        ("fstp tword [rbx]", b"\xdb\x3b"),
        ("sgdt [rbx]", b"\x0f\x01\x03"),
        ("push rcx", b"\x51"),
        ("call +0", b"\xe8\0\0\0\0"),
        ("enter 32, 2", b"\xc8\x20\x00\x02"),
        ("pop [rbx]", b"\x8f\x03"),
        ("setc [rbx]", b"\x0f\x92\x03"),
    ]
    for name, code in forms:
        _faulting_store(bench, name, code)


def _faulting_store(bench: Bench, name: str, code: bytes) -> None:
    guest = bench.guest(name=name)
    guest.long_mode()
    a = guest.assembler()
    a.fld1()
    a.fld1()
    a.mov("eax", 0x80000000)
    a.add("eax", "eax")  # flags that the translator keeps lazily
    a.mov("r8d", DATA)
    a.label("store")
    a.raw(code)
    a.label("behind")
    a.inc("r9")
    a.inc(Mem("r8", size=8))
    a.hlt()
    guest.load(a)
    engine, regs = guest.engine, guest.engine.regs
    stack = name.split()[0] in ("push", "call", "enter")
    regs.rbx = regs.rdi = PAGE
    regs.rsi, regs.rcx, regs.rdx = DATA + 64, 3, 5
    regs.rsp = PAGE + 2048 if stack else STACK - 64
    regs.rbp = STACK - 128
    engine.protect(PAGE, 4096, Access.READ)

    def everything() -> tuple[object, ...]:
        general = tuple(getattr(regs, register) for register in REGISTERS)
        return (
            *general,
            engine.rflags,
            engine.get_fpu(),
            engine.get_sregs(),
            bytes(guest.ram.view[PAGE : PAGE + 4096]),
        )

    reason = engine.run(100)
    assert isinstance(reason, MemoryFault), (name, reason)
    assert (reason.access, reason.mapped) == (Access.WRITE, True), name
    assert PAGE <= reason.gpa < PAGE + 4096
    assert regs.rip == a.at("store"), (name, hex(regs.rip))
    assert (regs.rcx, regs.rax, regs.rdi, regs.rsi, regs.r9, guest.read(DATA, 8)) == (3, 0, PAGE, DATA + 64, 0, 0), name
    assert engine.rflags & 0x8D5 == 0x845, (name, hex(engine.rflags))
    before = everything()
    assert isinstance(engine.run(100), MemoryFault)
    assert everything() == before, name
    engine.protect(PAGE, 4096, Access.ALL)
    reason = engine.run(100)
    assert isinstance(reason, api.Hlt), (name, reason)
    assert (regs.r9, guest.read(DATA, 8)) == (1, 1), name


REGISTERS = (*GENERAL_REGISTERS, "rip")


@case(Need.MACHINE_CODE)
def fetches(bench: Bench) -> None:
    """A jump to, and a fall into, a page that permits no execution: RIP is that of the first byte not fetched."""
    guest = bench.guest()
    guest.long_mode()
    engine = guest.engine
    a = guest.assembler(base=PAGE - 16)
    a.inc(Mem(None, DATA, size=4))
    a.label("nops")
    a.raw(b"\x90" * (PAGE - a.here))
    a.nop()
    a.hlt()
    guest.load(a)
    engine.protect(PAGE, 4096, RW)
    engine.regs.rip = PAGE - 16
    reason = engine.run(100)
    assert isinstance(reason, MemoryFault)
    assert (reason.gpa, reason.access, reason.mapped) == (PAGE, Access.EXECUTE, True)
    assert engine.regs.rip == PAGE, hex(engine.regs.rip)
    assert guest.read(DATA, 4) == 1
    engine.protect(PAGE, 4096, RX)
    assert isinstance(engine.run(100), api.Hlt)
    engine.protect(PAGE, 4096, Access.NONE)
    b = guest.assembler()
    b.mov("eax", PAGE)
    b.jmp("rax")
    guest.load(b)
    engine.regs.rip = b.base
    reason = engine.run(100)
    assert isinstance(reason, MemoryFault)
    assert (reason.gpa, reason.access, reason.mapped, engine.regs.rip) == (PAGE, Access.EXECUTE, True, PAGE)


@case(Need.MACHINE_CODE)
def fetches_across_pages(bench: Bench) -> None:
    """An instruction that begins on a good page and ends on a forbidden one; one before it on the good page is done."""
    guest = bench.guest()
    guest.long_mode()
    engine = guest.engine
    a = guest.assembler(base=PAGE - 4)
    a.inc("ecx")
    a.label("straddles")
    a.mov("eax", 0x12345678)
    a.hlt()
    guest.load(a)
    for _ in range(2):
        engine.protect(PAGE, 4096, RW)
        engine.regs.rip, engine.regs.rcx = PAGE - 4, 0
        reason = engine.run(100)
        assert isinstance(reason, MemoryFault)
        assert (reason.gpa, reason.access, engine.regs.rip) == (PAGE, Access.EXECUTE, a.at("straddles"))
        assert engine.regs.rcx == 1
        engine.protect(PAGE, 4096, RX)
        assert isinstance(engine.run(100), api.Hlt)
        assert engine.regs.rax == 0x12345678


@case(Need.MACHINE_CODE)
def page_faults_of_fetches(bench: Bench) -> None:
    """The same when it is the guest's own tables that forbid it: the frame names the instruction, CR2 the page."""
    for offset in (16, 4):
        guest = bench.guest()
        guest.long_mode()
        a = guest.assembler(base=PAGE - offset)
        a.inc("ecx")
        if offset == 16:
            a.raw(b"\x90" * (PAGE - a.here))
        a.label("faults")
        a.mov("eax", 0x12345678)
        guest.load(a)
        guest.map_page(PAGE, 0)
        guest.engine.regs.rip, guest.engine.regs.rcx = PAGE - offset, 0
        assert isinstance(guest.engine.run(100), api.Hlt)
        assert guest.engine.regs.rip == guest.handler(Vector.PF)
        error, rip, *_ = guest.frame(2)
        assert (error, rip, guest.engine.get_sregs().cr2) == (0x10, a.at("faults"), PAGE)
        assert guest.engine.regs.rcx == 1


@case(Need.MACHINE_CODE)
def hidden_page_tables(bench: Bench) -> None:
    """A walk through a page that permits no reads is a violation and no page fault; opened, the access is made."""
    guest = bench.guest()
    guest.long_mode()
    engine = guest.engine
    a = guest.assembler()
    a.mov("eax", Mem(None, PAGE))
    a.hlt()
    guest.load(a)
    guest.put(PAGE, 4, 1234)
    assert isinstance(engine.run(100), api.Hlt)
    engine.regs.rip, engine.regs.rax = a.base, 0
    # Another table for the page directory's second entry, in a page that is then hidden.
    guest.put(PAGE + 0x1000 + 8 * 5, 8, PAGE | PTE_P | PTE_W | PTE_U)
    guest.put(0xA000 + 8, 8, PAGE + 0x1000 | PTE_P | PTE_W | PTE_U)
    b = guest.assembler()
    b.mov("ebx", 0x205000)
    b.label("access")
    b.mov("eax", Mem("rbx"))
    b.hlt()
    guest.load(b)
    engine.protect(PAGE + 0x1000, 4096, Access.NONE)
    reason = engine.run(100)
    assert isinstance(reason, MemoryFault), reason
    assert (reason.gpa & ~7, reason.access, reason.mapped) == (PAGE + 0x1000 + 8 * 5, Access.READ, True)
    assert reason.gva == 0x205000
    assert engine.regs.rip == b.at("access")
    engine.protect(PAGE + 0x1000, 4096, RW)
    assert isinstance(engine.run(100), api.Hlt)
    assert engine.regs.rax == 1234


@case(Need.MACHINE_CODE)
def faults_of_event_delivery(bench: Bench) -> None:
    """What delivery itself touches is subject to the map; the event comes back in `vectoring` and is not lost."""
    for target, access, allowed in (
        (RING0_STACK - 4096, Access.WRITE, Access.READ),
        (0x2000, Access.READ, Access.NONE),
    ):
        guest = bench.guest()
        guest.long_mode(cpl=3)
        engine = guest.engine
        a = guest.assembler()
        a.nop()
        a.nop()
        guest.load(a)
        engine.protect(target, 4096, allowed)
        event = api.Event(api.EventType.INTERRUPT, 0x41)
        engine.inject(event)
        reason = engine.run(10)
        assert isinstance(reason, MemoryFault), reason
        assert (reason.access, reason.mapped, reason.vectoring) == (access, True, event)
        assert reason.gpa & ~0xFFF == target
        assert (engine.regs.rip, engine.injected(), engine.cpl) == (a.base, None, 3)
        engine.protect(target, 4096, Access.ALL)
        engine.inject(event)
        assert isinstance(engine.run(10), api.Hlt)
        assert engine.regs.rip == guest.handler(0x41)
        assert guest.frame(1)[0] == a.base
