"""Memory-mapped I/O: exit ranges and device ranges, every way an instruction can touch them."""

from __future__ import annotations

from collections.abc import Callable

from vtlkit.engine import api
from vtlkit.engine.api import Engine, Exit
from vtlkit.engine.scripted import ops
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.testing.engine_conformance.suite import DATA, IO, Bench, Need, case
from vtlkit.testing.guest_builder import Guest
from vtlkit.x86.registers import RFLAGS_DF, RFLAGS_FIXED


class Memory:
    """A device that is memory: answers exits or callbacks, and remembers the accesses."""

    def __init__(self) -> None:
        self.data = bytearray(range(256)) * 16
        self.log: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append(("read", offset, size))
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("write", offset, size))
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def serve(self, engine: Engine) -> Exit:
        """Run until something else than an access to the exit range happens."""
        while True:
            reason = engine.run(10_000)
            if isinstance(reason, api.MmioRead):
                engine.complete(self.read(reason.gpa - IO, reason.size))
            elif isinstance(reason, api.MmioWrite):
                self.write(reason.gpa - IO, reason.size, reason.value)
            else:
                return reason


@case()
def exits_of_loads_and_stores(bench: Bench) -> None:
    """Address, size and value, RIP at the instruction; the answer is merged as a load from RAM would be."""
    for size in (1, 2, 4, 8):
        running = bench.start(
            ops.Set(0x1122334455667788),
            ops.Write(IO + 0x10, size),
            ops.Read(IO + 0x20, size),
            ops.Write(DATA, 8),
        )
        engine = running.engine
        engine.map_exit(IO, 4096)
        write = running.run_at(api.MmioWrite, running.at(1))
        assert not engine.at_boundary
        mask = (1 << 8 * size) - 1
        assert (write.gpa, write.size, write.value) == (IO + 0x10, size, 0x1122334455667788 & mask)
        read = running.run_at(api.MmioRead, running.at(2))
        assert (read.gpa, read.size) == (IO + 0x20, size)
        assert engine.regs.rax == 0x1122334455667788
        engine.complete(0xFFEEDDCCBBAA9988)
        running.run_at(api.Hlt, running.at(4))
        kept = 0 if size >= 4 else 0x1122334455667788 & ~mask
        assert running.read(DATA, 8) == kept | (0xFFEEDDCCBBAA9988 & mask)


@case()
def exits_of_a_read_modify_write(bench: Bench) -> None:
    """Two exits, one instruction: the store has what was answered to the load, and is made once."""
    running = bench.start(ops.Set(5), ops.Add(IO, 4), ops.Compute(1))
    engine = running.engine
    engine.map_exit(IO, 4096)
    running.run_at(api.MmioRead, running.at(1))
    engine.complete(37)
    write = running.run_at(api.MmioWrite, running.at(1))
    assert (write.gpa, write.size, write.value) == (IO, 4, 42)
    running.run_at(api.Hlt, running.at(3))


@case()
def devices_are_called(bench: Bench) -> None:
    """Offsets count from the range's start; nothing exits."""
    running = bench.start(
        ops.Set(0xAABBCCDD), ops.Write(IO + 0x123, 1), ops.Write(IO + 0x204, 4), ops.Read(IO + 0xFF8, 8), ops.Add(IO, 2)
    )
    device = Memory()
    running.engine.map_device(IO, 4096, device.read, device.write)
    running.run_at(api.Hlt, running.at(5))
    assert device.log == [
        ("write", 0x123, 1),
        ("write", 0x204, 4),
        ("read", 0xFF8, 8),
        ("read", 0, 2),
        ("write", 0, 2),
    ]
    assert device.data[0x204:0x208] == b"\xdd\xcc\xbb\xaa"


@case()
def ranges_come_and_go(bench: Bench) -> None:
    """Mapping over a range in use is refused; unmapping leaves a hole; a new range may follow."""
    running = bench.start(ops.Read(IO, 4), ops.Cpuid(), ops.Read(IO, 4))
    engine = running.engine
    fault = running.run_at(api.MemoryFault, running.at(0))
    assert (fault.gpa, fault.mapped) == (IO, False)
    engine.map_exit(IO, 4096)
    try:
        engine.map_exit(IO, 4096)
    except ValueError:
        pass
    else:
        raise AssertionError("a range was mapped twice")
    running.run_at(api.MmioRead, running.at(0))
    running.run_at(api.Cpuid, running.at(1))
    engine.skip(running.length(1))
    engine.unmap(IO, 4096)
    running.run_at(api.MemoryFault, running.at(2))
    device = Memory()
    engine.map_device(IO, 4096, device.read, device.write)
    running.run_at(api.Hlt, running.at(3))
    assert device.log == [("read", 0, 4)]


@case()
def a_callback_that_raises(bench: Bench) -> None:
    """The exception comes out of `run`; the instruction is finished, and the engine goes on."""
    running = bench.start(ops.Read(IO, 4), ops.Compute(2), ops.Write(IO, 4), ops.Compute(2))
    calls: list[str] = []

    def fail_read(_offset: int, _size: int) -> int:
        calls.append("read")
        raise ZeroDivisionError("device read")

    def fail_write(_offset: int, _size: int, _value: int) -> None:
        calls.append("write")
        raise ZeroDivisionError("device write")

    running.engine.map_device(IO, 4096, fail_read, fail_write)
    raised = 0
    for _ in range(10):
        try:
            reason = running.engine.run(1000)
        except ZeroDivisionError:
            raised += 1
            continue
        if isinstance(reason, api.Hlt):
            break
    assert running.engine.regs.rip == running.at(4)
    assert calls == ["read", "write"]
    assert raised in ((2,) if bench.counts else (1, 2))


def _nothing(_guest: Guest) -> None:
    pass


def _both(bench: Bench, build: Callable[[Assembler], None], prepare: Callable[[Guest], None]) -> tuple[Memory, Guest]:
    """Run code against exits, against a device and against RAM: all must end in the same state."""
    ends = []
    for backing in ("exit", "device", "ram"):
        guest = bench.guest()
        guest.long_mode()
        a = guest.assembler()
        build(a)
        a.hlt()
        guest.load(a)
        memory = Memory()
        engine = guest.engine
        ram = api.RamBlock(4096)
        if backing == "exit":
            engine.map_exit(IO, 4096)
        elif backing == "device":
            engine.map_device(IO, 4096, memory.read, memory.write)
        else:
            ram.view[:] = memory.data
            engine.map_ram(IO, 4096, ram, 0, api.Access.ALL)
        engine.regs.rbx = IO
        prepare(guest)
        reason = memory.serve(engine)
        assert isinstance(reason, api.Hlt), reason
        regs = engine.regs
        data = bytes(memory.data) if backing != "ram" else bytes(ram.view)
        state = (regs.rax, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rsp, engine.rflags)
        ends.append((data, bytes(guest.ram.view[DATA : DATA + 4096]), state))
        if backing == "exit":
            exits, log = guest, memory
    assert ends[0][2] == ends[2][2], ([hex(v) for v in ends[0][2]], [hex(v) for v in ends[2][2]])
    assert ends[0] == ends[2]
    assert ends[1] == ends[2]
    return log, exits


@case(Need.MACHINE_CODE)
def read_modify_write_forms(bench: Bench) -> None:
    """Arithmetic, exchange, compare-exchange (both outcomes), with and without LOCK: as on RAM, flags included."""

    def build(a: Assembler) -> None:
        at = Mem("rbx", 0x40, size=4)
        a.mov("eax", 0x43424140)
        a.mov("ecx", 0x01020304)
        a.lock.cmpxchg(at, "ecx")
        a.pushfq()
        a.cmpxchg(at, "ecx")
        a.pushfq()
        a.xchg(at, "edx")
        a.lock.add(at, "ecx")
        a.pushfq()
        a.inc(Mem("rbx", 0x51, size=1))
        a.lock.xadd(Mem("rbx", 0x60, size=8), "rcx")
        a.neg(Mem("rbx", 0x70, size=2))
        a.bts(Mem("rbx", 0x80, size=4), 3)
        a.shl(Mem("rbx", 0x90, size=8), 3)
        a.adc(Mem("rbx", 0x98, size=4), 7)

    log, _ = _both(bench, build, _nothing)
    assert log.log[:4] == [("read", 0x40, 4), ("write", 0x40, 4), ("read", 0x40, 4), ("write", 0x40, 4)]


@case(Need.MACHINE_CODE)
def stack_and_wide_accesses(bench: Bench) -> None:
    """PUSH, POP and CALL on a stack in an I/O range, 16-byte loads and stores, FXSAVE-sized ones."""

    def build(a: Assembler) -> None:
        a.mov("rsi", "rsp")
        a.lea("rsp", Mem("rbx", 0x200))
        a.push("rbx")
        a.push(Mem("rbx", 8, size=8))
        a.pop("rdx")
        a.call("inside")
        a.label("inside")
        a.pop("rcx")
        a.mov("rsp", "rsi")
        a.movdqu("xmm0", Mem("rbx", 0x300))
        a.movdqu(Mem("rbx", 0x330), "xmm0")
        a.movdqu(Mem(None, DATA), "xmm0")

    _both(bench, build, _nothing)


@case(Need.MACHINE_CODE)
def unaligned_accesses(bench: Bench) -> None:
    """Bytes end up as on RAM, whatever accesses the engine makes of them."""

    def build(a: Assembler) -> None:
        a.mov("eax", Mem("rbx", 0x41))
        a.mov("rcx", Mem("rbx", 0x103))
        a.mov(Mem("rbx", 0x205), "rcx")
        a.mov(Mem("rbx", 0x307), "eax")
        a.mov("dx", Mem("rbx", 0x401))
        a.add(Mem("rbx", 0x503), "ecx")

    _both(bench, build, _nothing)


@case(Need.MACHINE_CODE)
def string_moves(bench: Bench) -> None:
    """From, to and within an I/O range, forwards and backwards, and comparisons that stop early."""
    for backwards in (False, True):

        def build(a: Assembler) -> None:
            for source, target in (("io", "ram"), ("ram", "io"), ("io", "io2")):
                for mnemonic in ("movsb", "movsw", "movsd", "movsq"):
                    _point(a, "rsi", source)
                    _point(a, "rdi", target)
                    a.mov("ecx", 5)
                    getattr(a.rep, mnemonic)()
            _point(a, "rdi", "io")
            a.mov("ecx", 3)
            a.rep.stosd()
            _point(a, "rsi", "io")
            a.lodsq()
            _point(a, "rsi", "io")
            _point(a, "rdi", "io2")
            a.mov("ecx", 9)
            a.rep.cmpsb()

        def prepare(guest: Guest, flags: int = RFLAGS_DF if backwards else 0) -> None:
            guest.engine.rflags = RFLAGS_FIXED | flags
            guest.ram.view[DATA : DATA + 256] = bytes(range(255, -1, -1))

        _both(bench, build, prepare)


def _point(a: Assembler, register: str, where: str) -> None:
    a.mov(register, {"io": IO + 0x100, "io2": IO + 0x400, "ram": DATA + 0x80}[where])


@case(Need.MACHINE_CODE)
def flags_survive_an_access(bench: Bench) -> None:
    """Arithmetic flags from before the access are there during the exit and after it."""
    guest = bench.guest()
    guest.long_mode()
    guest.engine.map_exit(IO, 4096)
    a = guest.assembler()
    a.mov("ebx", IO)
    a.mov("eax", 0xFFFFFFFF)
    a.add("eax", 1)
    a.mov("ecx", Mem("rbx"))
    a.pushfq()
    a.pop("rdx")
    a.hlt()
    guest.load(a)
    assert isinstance(guest.engine.run(100), api.MmioRead)
    during = guest.engine.rflags
    assert during & 0x8D5 == 0x55, hex(during)
    guest.engine.complete(1)
    assert isinstance(guest.engine.run(100), api.Hlt)
    assert guest.engine.regs.rdx & 0x8D5 == 0x55
    assert guest.engine.regs.rcx == 1
