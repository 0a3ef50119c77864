"""What the embedded engine does beyond the common suite: its start-up checks, threads, and Unicorn's own corners."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from vtlkit.engine import api
from vtlkit.engine.api import Access, Cpuid, EngineError, Interrupted, MemoryFault, RamBlock
from vtlkit.engine.unicorn import UnicornFactory, selfcheck, state
from vtlkit.engine.unicorn.engine import UnicornEngine
from vtlkit.testing.assembler import Mem
from vtlkit.testing.guest_builder import CODE, Guest
from vtlkit.x86.paging import PTE_P, PTE_W

DATA = 0x60000
IO = 0x101000
PATIENCE_S = 5.0
"""After so long a run that does not end is ended otherwise, and the test has failed."""


@pytest.fixture(params=[True, False], ids=["counted", "free"])
def factory(request: pytest.FixtureRequest) -> Iterator[UnicornFactory]:
    made = UnicornFactory(counting=request.param)
    yield made
    made.close()


def _guest(factory: UnicornFactory) -> Guest:
    guest = Guest(factory.create("vcpu0"))
    guest.long_mode()
    return guest


@pytest.mark.parametrize(
    "name",
    ["_CPU_POINTER", "_ENV_POINTER", "_DECREMENTER_POINTER", "_HOOK_INSERT", "_NESTED_LEVEL"],
)
def test_state_that_lies_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    factory = UnicornFactory()
    monkeypatch.setattr(state, name, getattr(state, name) + 8)
    with pytest.raises(EngineError):
        factory.create("vcpu0")


def test_state_that_lies_a_little_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The header of the saved copy is memory that nobody initialised: it may be what stands before the state, zeros."""
    factory = UnicornFactory()
    real = state._saved_context
    header = 32
    monkeypatch.setattr(state, "_saved_context", lambda lib, handle: bytes(header) + real(lib, handle)[header:])
    factory.create("vcpu0")
    monkeypatch.setattr(state, "_ENV_POINTER", state._DECREMENTER_POINTER)
    with pytest.raises(EngineError):
        factory.create("vcpu1")


def test_behaviour_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "_checked", set())
    monkeypatch.setattr(UnicornEngine, "kick", lambda self: None)
    with pytest.raises(EngineError, match="kick"):
        UnicornFactory()
    monkeypatch.undo()
    UnicornFactory().close()


def test_closing_on_another_thread_is_safe(factory: UnicornFactory) -> None:
    """The frames of a suspended access belong to the thread that ran it; neither side may be pulled from under it."""
    engines = []

    def body() -> None:
        for code in (b"\xe4\x60", b"\x0f\xa2", b"\xf4"):
            guest = _guest(factory)
            guest.write(CODE, code)
            guest.engine.run(100)
            engines.append(guest.engine)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    for engine in engines:
        engine.close()
        engine.close()


def test_running_on_two_threads_is_refused(factory: UnicornFactory) -> None:
    guest = _guest(factory)
    guest.write(CODE, b"\x0f\xa2")
    thread = threading.Thread(target=guest.engine.run, args=(100,))
    thread.start()
    thread.join()
    with pytest.raises(EngineError, match="thread"):
        guest.engine.run(100)


def test_threads_take_turns() -> None:
    """Two engines increment one word with LOCK and without: neither loses an increment to the other."""
    factory = UnicornFactory(counting=False, threaded=True)
    first = Guest(factory.create("first"))
    second = Guest(factory.create("second"), first.ram)
    a = first.assembler()
    a.mov("ecx", 200_000)
    a.label("again")
    a.lock.inc(Mem(None, DATA, size=8))
    a.dec("ecx")
    a.jne("again")
    a.hlt()

    def body(guest: Guest) -> None:
        while not isinstance(guest.engine.run(None), api.Hlt):
            pass

    for guest in (first, second):
        guest.long_mode()
    first.load(a)
    threads = [threading.Thread(target=body, args=(guest,)) for guest in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first.read(DATA, 8) == 400_000


def test_a_faulting_store_leaves_what_follows_alone(factory: UnicornFactory) -> None:
    """The rest of the block can neither load, store, nor touch a device or a port while the fault is on its way out."""
    guest = _guest(factory)
    touched: list[str] = []

    def read(_offset: int, _size: int) -> int:
        touched.append("read")
        return 0

    def write(_offset: int, _size: int, _value: int) -> None:
        touched.append("write")

    guest.engine.map_device(IO, 4096, read, write)
    guest.engine.protect(DATA, 4096, Access.READ)
    for following in (
        b"\xff\x04\x25\x00\x10\x06\x00",
        b"\x89\x0b",
        b"\x8b\x0b",
        b"\xe6\x80",
        b"\xe4\x80",
        b"\x0f\x22\xd8",
    ):
        a = guest.assembler()
        a.mov("ebx", IO)
        a.label("store")
        a.raw(b"\x0f\xae\x04\x25" + DATA.to_bytes(4, "little"))  # fxsave [DATA]: many stores, by a helper
        a.raw(following)
        a.hlt()
        guest.load(a)
        guest.engine.regs.rip = CODE
        reason = guest.engine.run(100)
        assert isinstance(reason, MemoryFault)
        assert guest.engine.regs.rip == a.at("store")
        assert guest.read(DATA + 0x1000, 4) == 0
    assert touched == []


def test_a_kick_during_a_fault_is_not_lost(factory: UnicornFactory) -> None:
    """Put aside while the fault is on its way out, taken up again."""
    guest = _guest(factory)
    guest.engine.map_device(IO, 4096, lambda offset, size: guest.engine.kick() or 7, lambda *_: None)
    guest.engine.protect(DATA, 4096, Access.READ)
    a = guest.assembler()
    a.mov("esi", IO)
    a.mov("edi", DATA)
    a.movsd()
    a.hlt()
    guest.load(a)
    assert isinstance(guest.engine.run(100), MemoryFault)
    guest.engine.protect(DATA, 4096, Access.ALL)
    assert isinstance(guest.engine.run(100), api.Interrupted)


class _HeldUp:
    """A lock whose holder is held up before it lets go for the first time, while `meanwhile` happens."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._meanwhile: Callable[[], None] | None = meanwhile

    def acquire(self, blocking: bool = True) -> bool:
        return self._lock.acquire(blocking)

    def release(self) -> None:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def test_a_kick_that_meets_another_is_not_lost() -> None:
    """The first kick has been answered, and its kicker not come back from it: the second wants an exit of its own."""
    factory = UnicornFactory()
    guest = _guest(factory)
    a = guest.assembler()
    a.label("again")
    a.inc("ecx")
    a.jmp("again")
    guest.load(a)
    engine = guest.engine
    begun = engine.regs.rcx

    def meanwhile() -> None:
        assert isinstance(engine.run(100), Interrupted)
        assert engine.regs.rcx == begun
        engine.kick()

    setattr(engine, "_alive", _HeldUp(meanwhile))  # noqa: B010 - a stand-in
    engine.kick()
    assert isinstance(engine.run(100), Interrupted)
    assert engine.regs.rcx == begun
    assert isinstance(engine.run(100), Interrupted)
    assert engine.regs.rcx == begun + 50
    factory.close()


def test_a_forced_exit_that_meets_a_kick_is_forced() -> None:
    """A kicker whose kick has been answered still holds what kickers take."""
    factory = UnicornFactory(counting=False)
    guest = _guest(factory)
    a = guest.assembler()
    a.mov("ecx", 0)
    a.out(0x80, "al")
    a.jmp("again")
    a.label("again")
    a.inc("ecx")
    a.jmp("again")
    guest.load(a)
    engine = guest.engine
    assert isinstance(engine, UnicornEngine)
    assert isinstance(engine.run(None), api.PortOut)
    held, alive = threading.Event(), engine._alive

    def end_it_all_the_same() -> None:
        if not held.wait(PATIENCE_S):
            alive.release()
            engine.kick()

    assert alive.acquire()
    rescue = threading.Thread(target=end_it_all_the_same)
    rescue.start()
    assert isinstance(engine.run(None, force_immediate_exit=True), Interrupted)
    held.set()
    rescue.join()
    assert engine.regs.rcx == 0
    alive.release()
    factory.close()


def test_device_writes_of_every_width_pass_values(factory: UnicornFactory) -> None:
    values: list[tuple[int, int, int]] = []
    guest = _guest(factory)
    guest.engine.map_device(IO, 4096, lambda *_: 0, lambda *access: values.append(access))
    a = guest.assembler()
    a.mov("ebx", IO)
    a.mov("rax", 0xFEDCBA9876543210)
    for offset, register in ((0, "al"), (8, "ax"), (16, "eax"), (24, "rax")):
        a.mov(Mem("rbx", offset), register)
    a.hlt()
    guest.load(a)
    assert isinstance(guest.engine.run(100), api.Hlt)
    assert values == [(0, 1, 0x10), (8, 2, 0x3210), (16, 4, 0x76543210), (24, 8, 0xFEDCBA9876543210)]


def test_a_loaded_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vtlkit.engine.unicorn import binding

    monkeypatch.setattr(binding, "SUPPORTED", (2, 0))
    binding.library.cache_clear()
    try:
        with pytest.raises(EngineError, match=r"2\.1"):
            binding.library()
    finally:
        binding.library.cache_clear()


@pytest.mark.parametrize("suspended", [False, True])
def test_a_closed_engine_keeps_no_memory_alive(suspended: bool) -> None:
    factory = UnicornFactory()
    engine = factory.create("closed")
    block = RamBlock(4096)
    block.view[:5] = b"\x90\x0f\xa2\x90\xf4"
    engine.map_ram(0, 4096, block, 0, Access.ALL)
    engine.map_exit(4096, 4096)
    sregs = engine.get_sregs()
    sregs.cs.selector = sregs.cs.base = 0
    engine.set_sregs(sregs)
    engine.regs.rip = 0
    if suspended:
        assert type(engine.run(10)) is Cpuid
    else:
        assert type(engine.run(1)) is Interrupted
    memory = weakref.ref(block)
    del block
    engine.close()
    gc.collect()
    assert memory() is None, "while the engine itself is still referred to"
    closed = weakref.ref(engine)
    del engine
    factory.close()
    gc.collect()
    assert closed() is None


def test_an_operand_where_the_map_permits_no_access_is_a_memory_fault(factory: UnicornFactory) -> None:
    guest = _guest(factory)
    engine = guest.engine
    guest.write(CODE, b"\x0f\x01\x23")  # SMSW [RBX]
    engine.set_intercepts(api.Intercept.CR_READ)
    engine.map_exit(IO, 4096)
    engine.protect(DATA, 4096, Access.READ)
    for gpa, mapped in ((IO, False), (DATA, True)):
        guest.map_page(gpa, gpa | PTE_P | PTE_W)
        engine.regs.rbx = gpa + 8
        assert type(engine.run(5)) is api.Other
        fault = engine.store_operand(0x33, 2)
        assert isinstance(fault, MemoryFault)
        assert (fault.gpa, fault.gva, fault.size, fault.access) == (gpa + 8, gpa + 8, 2, Access.WRITE)
        assert fault.mapped == mapped
        loaded = engine.load_operand16()
        if mapped:
            assert loaded == 0
        else:
            assert isinstance(loaded, MemoryFault)
            assert loaded.access == Access.READ


@pytest.mark.parametrize("guest_may_write", [False, True], ids=["told", "compared"])
def test_code_that_changed_while_another_engine_ran_is_translated_anew(
    factory: UnicornFactory, guest_may_write: bool
) -> None:
    """What no guest may write is looked at only when the host says that it wrote; all else after every switch."""
    block = RamBlock(4096)
    block.view[:2] = b"\x0f\xa2"  # CPUID
    engines = [factory.create(f"vcpu{number}") for number in range(2)]
    for engine in engines:
        engine.map_ram(0, 4096, block, 0, Access.READ | Access.EXECUTE)
        sregs = engine.get_sregs()
        sregs.cs.selector = sregs.cs.base = 0
        engine.set_sregs(sregs)
    if guest_may_write:
        engines[1].protect(0, 4096, Access.ALL)
    for engine in engines:
        engine.regs.rip = 0
        assert type(engine.run(5)) is Cpuid
    block.view[:2] = b"\x0f\x32"  # RDMSR
    if not guest_may_write:
        engines[0].memory_written(0, 2)
    engines[0].regs.rip = 0
    assert type(engines[0].run(5)) is api.Rdmsr
