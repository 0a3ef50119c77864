"""What is the /dev/kvm engine's own: kicks from other threads, the memory it shows the kernel, what it refuses."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Final

import pytest

from tests.conformance import devkvm_here
from vtlkit.engine import api
from vtlkit.engine.api import Access, CpuidLeaf, EngineError, Intercept, RamBlock, RegisterIntercepts
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.devkvm.engine import DevKvmEngine
from vtlkit.engine.probe import HLT, flat
from vtlkit.testing.assembler import Mem
from vtlkit.testing.guest_builder import FREE, Guest
from vtlkit.x86.cpuid import CPUID_1_ECX_HYPERVISOR
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.msr import MSR_EFER
from vtlkit.x86.paging import PTE_P, PTE_U, PTE_W
from vtlkit.x86.registers import EFER_SCE

KICKS = 10_000
PATIENCE_S = 60.0
"""Without an answer for so long a kick is lost: an entry takes microseconds."""
FOR_EVER = b"\xeb\xfe"
PAGE = 0x2000


@pytest.fixture
def factory() -> Iterator[DevKvmFactory]:
    if (reason := devkvm_here.why_not()) is not None:
        pytest.skip(reason)
    made = DevKvmFactory()
    yield made
    made.close()


def _engine(factory: DevKvmFactory, code: bytes) -> DevKvmEngine:
    engine = factory.create("vcpu")
    assert isinstance(engine, DevKvmEngine)
    flat(engine, code)
    return engine


def test_no_kick_is_lost(factory: DevKvmFactory) -> None:
    """Each kick makes one run return, wherever it finds the other thread: before, in or behind KVM_RUN."""
    engine = _engine(factory, FOR_EVER)
    answered = 0
    stop = False

    def runs() -> None:
        nonlocal answered
        while not stop:
            assert type(engine.run(None)) is api.Interrupted
            answered += 1

    thread = threading.Thread(target=runs)
    thread.start()
    dice = random.Random(1)
    moved = threading.Event()
    lost = False
    try:
        for number in range(KICKS):
            # From nothing to longer than an entry takes.
            for _ in range(dice.choice((0, 0, 3, 30, 300))):
                pass
            engine.kick()
            turns = 0
            while answered <= number and not lost:
                turns += 1
                if turns > 1000:
                    moved.wait(PATIENCE_S / 1e6)
                    lost = turns > 1_000_000
            if lost:
                break
    finally:
        stop = True
        while thread.is_alive():
            engine.kick()
            thread.join(0.01)
    assert not lost, f"kick {number} was never answered"
    assert answered >= KICKS


def test_a_kick_waits_for_no_delivery(factory: DevKvmFactory) -> None:
    """What comes of a delivery the guest decides: here a fault whose handler never ends."""
    guest = Guest(factory.create("vcpu"))
    guest.long_mode()
    a = guest.assembler()
    a.label("again")
    a.out(0x80, "al")
    a.jmp("again")
    guest.load(a)
    engine = guest.engine
    assert isinstance(engine, DevKvmEngine)
    engine.run(None)
    engine.run(None, force_immediate_exit=True)
    gate = engine.get_sregs().idt.base + 0x41 * 16
    guest.ram.view[gate + 5] &= 0x7F
    handler = guest.handler(Vector.NP)
    guest.ram.view[handler : handler + len(FOR_EVER)] = FOR_EVER
    event = api.Event(api.EventType.INTERRUPT, 0x41)
    engine.inject(event)
    engine.kick()
    rip = engine.regs.rip
    exits: list[api.Exit] = []
    thread = threading.Thread(target=lambda: exits.append(engine.run(None)))
    thread.start()
    thread.join(PATIENCE_S)
    late = thread.is_alive()
    engine.kick()
    thread.join()
    assert not late
    assert type(exits[0]) is api.Interrupted
    assert engine.injected() == event
    assert engine.regs.rip == rip


def test_a_kick_before_any_run(factory: DevKvmFactory) -> None:
    engine = _engine(factory, FOR_EVER)
    engine.kick()
    assert type(engine.run(None)) is api.Interrupted


def test_protections_change_no_slot(factory: DevKvmFactory) -> None:
    """What may be said by a protection of host memory is; pages of other RAM come and go the same way."""
    engine = _engine(factory, b"\xc7\x05" + PAGE.to_bytes(4, "little") + b"\x05\0\0\0" + HLT)
    changes = engine.vcpu.map.slot_changes
    engine.protect(PAGE, 4096, Access.READ | Access.EXECUTE)
    start = engine.regs.rip
    fault = engine.run(None)
    assert isinstance(fault, api.MemoryFault)
    assert (fault.gpa, fault.size, fault.access, fault.mapped) == (PAGE, 4, Access.WRITE, True)
    assert engine.regs.rip == start
    overlay = RamBlock(4096)
    engine.unmap(PAGE, 4096)
    engine.map_ram(PAGE, 4096, overlay, 0, Access.ALL)
    assert isinstance(engine.run(None), api.Hlt)
    assert overlay.view[0] == 5
    assert engine.vcpu.map.slot_changes == changes


def test_ram_that_may_not_be_executed_is_read_and_written_for_the_guest(factory: DevKvmFactory) -> None:
    """mov dword [PAGE], 5; mov eax, [PAGE]; jmp PAGE"""
    at = PAGE.to_bytes(4, "little")
    code = b"\xc7\x05" + at + b"\x05\0\0\0" + b"\xa1" + at + b"\xb9" + at + b"\xff\xe1"
    engine = _engine(factory, code)
    engine.protect(PAGE, 4096, Access.READ | Access.WRITE)
    fault = engine.run(None)
    assert isinstance(fault, api.MemoryFault)
    assert (fault.gpa, fault.access, fault.mapped) == (PAGE, Access.EXECUTE, True)
    assert engine.regs.rax == 5
    engine.protect(PAGE, 4096, Access.ALL)
    engine.regs.rax = 0
    engine.vcpu.map.find(PAGE).block.view[PAGE] = HLT[0]  # type: ignore[union-attr]
    assert isinstance(engine.run(None), api.Hlt)


def test_such_ram_can_be_refused() -> None:
    if (reason := devkvm_here.why_not()) is not None:
        pytest.skip(reason)
    factory = DevKvmFactory(emulate_no_execute=False)
    try:
        engine = _engine(factory, HLT)
        engine.protect(PAGE, 4096, Access.READ)
        refusal = engine.run(None)
        assert isinstance(refusal, api.InternalError)
        assert "GPA 0x2000" in refusal.reason
    finally:
        factory.close()


def test_an_instruction_that_faults_twice_has_no_effect(factory: DevKvmFactory) -> None:
    """`movsd` from where nothing is: the store to RAM, which the kernel's emulator would make, is not made."""
    engine = _engine(factory, b"\xa5" + HLT)
    regs = engine.regs
    regs.rsi, regs.rdi = 0x100000, PAGE
    block = engine.vcpu.map.find(PAGE).block  # type: ignore[union-attr]
    assert block is not None
    block.view[PAGE : PAGE + 4] = b"kept"
    for _ in range(2):
        fault = engine.run(None)
        assert isinstance(fault, api.MemoryFault)
        assert (fault.gpa, fault.access, fault.mapped) == (0x100000, Access.READ, False)
        assert (regs.rsi, regs.rdi) == (0x100000, PAGE)
        engine.regs.rbx += 1  # Not the guest that was left: the access is undone, not gone on with.
    assert bytes(block.view[PAGE : PAGE + 4]) == b"kept"
    engine.map_exit(0x100000, 4096)
    assert isinstance(engine.run(None), api.MmioRead)
    engine.complete(0x64636261)
    assert isinstance(engine.run(None), api.Hlt)
    assert bytes(block.view[PAGE : PAGE + 4]) == b"abcd"


def test_a_parked_access_goes_on_where_a_device_appears(factory: DevKvmFactory) -> None:
    engine = _engine(factory, b"\xa3\0\0\x10\0" + HLT)
    start = engine.regs.rip
    engine.regs.rax = 0x11223344
    fault = engine.run(None)
    assert isinstance(fault, api.MemoryFault)
    assert (fault.gpa, fault.access, engine.regs.rip) == (0x100000, Access.WRITE, start)
    seen: list[tuple[int, int, int]] = []
    engine.map_device(0x100000, 4096, lambda _o, _s: 0, lambda *written: seen.append(written))
    assert isinstance(engine.run(None), api.Hlt)
    assert seen == [(0, 4, 0x11223344)]


def test_a_flush_sees_page_tables_that_others_changed(factory: DevKvmFactory) -> None:
    """Another engine's guest stores to tables that are in use here; the kernel hears nothing of that."""
    guest = Guest(factory.create("vcpu"))
    engine = guest.engine
    a = guest.assembler()
    a.mov("eax", Mem(None, FREE))
    a.hlt()
    guest.put(FREE, 4, 1)
    guest.put(FREE + 4096, 4, 2)
    for page, value in ((FREE, 1), (FREE + 4096, 2), (FREE, 1)):
        guest.map_page(FREE, page | PTE_P | PTE_W | PTE_U)
        engine.flush_tlb()
        guest.long_mode(cpl=3)
        guest.load(a)
        assert isinstance(engine.run(None), api.Hlt)
        assert engine.regs.rax == value


OUT_IN_OUT: Final = b"\xe6\x80\xe4\x60\xe6\x81"


@pytest.mark.parametrize("change", ["nothing", "flush", "efer"])
@pytest.mark.parametrize("code", [b"\x0f\x32", b"\x0f\x30"])
def test_an_msr_is_accessed_once_whatever_changes_meanwhile(factory: DevKvmFactory, code: bytes, change: str) -> None:
    """A second exit would have the hypervisor send an IPI twice, say."""
    engine = _engine(factory, code + HLT)
    start = engine.regs.rip
    reason = engine.run(None)
    assert isinstance(reason, api.Rdmsr | api.Wrmsr)
    engine.regs.rax, engine.regs.rdx = 0x1234, 0x5678
    if change == "flush":
        engine.flush_tlb()
    elif change == "efer":
        engine.set_msr(MSR_EFER, engine.get_msr(MSR_EFER) ^ EFER_SCE)
    engine.skip(reason.length)
    assert type(engine.run(None)) is api.Hlt
    assert (engine.regs.rip, engine.regs.rax, engine.regs.rdx) == (start + 2, 0x1234, 0x5678)


def test_ports_are_answered_without_an_exit(factory: DevKvmFactory) -> None:
    engine = _engine(factory, OUT_IN_OUT + HLT)
    written: list[tuple[int, int, int]] = []

    def write(*access: int) -> bool:
        written.append(access)  # type: ignore[arg-type]
        return True

    engine.answer_ports(lambda port, size: 0x100 | port, write)
    engine.regs.rax = 0x7F
    assert isinstance(engine.run(None), api.Hlt)
    assert written == [(0x80, 1, 0x7F), (0x81, 1, 0x60)]


def test_a_kick_from_an_answer_ends_the_run_behind_the_access(factory: DevKvmFactory) -> None:
    engine = _engine(factory, OUT_IN_OUT + HLT)
    start = engine.regs.rip

    def read(_port: int, _size: int) -> int:
        engine.kick()
        return 5

    engine.answer_ports(read, lambda *_: True)
    assert isinstance(engine.run(None), api.Interrupted)
    assert engine.at_boundary
    assert (engine.regs.rip, engine.regs.rax & 0xFF) == (start + 4, 5)
    assert isinstance(engine.run(None), api.Hlt)


def test_an_answer_that_fails_leaves_the_access_unfinished(factory: DevKvmFactory) -> None:
    engine = _engine(factory, OUT_IN_OUT + HLT)
    broken = True

    def read(_port: int, _size: int) -> int | None:
        if broken:
            raise RuntimeError("no such device")
        return None

    engine.answer_ports(read, lambda *_: True)
    with pytest.raises(RuntimeError, match="no such device"):
        engine.run(None)
    assert not engine.at_boundary
    broken = False
    engine.abandon()
    assert engine.at_boundary


def test_hypercalls_and_strings_are_never_answered_as_ports(factory: DevKvmFactory) -> None:
    """OUT 0x7E, AL is a hypercall; from EAX, or by way of DX, it is not. Of a string instruction each element exits."""
    engine = _engine(factory, b"\xe6\x7e\xe7\x7e\x66\xba\x7e\0\xee\xf3\x6e" + HLT)
    asked: list[int] = []

    def write(port: int, _size: int, _value: int) -> bool:
        asked.append(port)
        return True

    engine.answer_ports(lambda *_: None, write)
    engine.regs.rsi, engine.regs.rcx = PAGE, 2
    assert isinstance(engine.run(None), api.Hypercall)
    engine.skip(2)
    for _ in range(4):
        reason = engine.run(None)
        assert isinstance(reason, api.PortOut)
        assert reason.port == 0x7E
    assert isinstance(engine.run(None), api.Hlt)
    assert asked == []


@pytest.mark.parametrize("wanted", ["nothing", "interrupt window", "NMI window"])
def test_both_halves_of_an_access_reach_a_device(factory: DevKvmFactory, wanted: str) -> None:
    """MOVSD from device to device, twice: whatever is looked for in between, each load and store is made once."""
    engine = _engine(factory, b"\xa5\xa5" + HLT)
    seen: list[tuple[int, ...]] = []

    def read(offset: int, _size: int) -> int:
        seen.append((offset,))
        return offset + 1

    engine.map_device(0x100000, 4096, read, lambda *written: seen.append(written))
    engine.regs.rsi, engine.regs.rdi = 0x100010, 0x100020
    if wanted == "NMI window":
        engine.nmi_blocked = True
        engine.request_nmi_window(True)
    elif wanted == "interrupt window":
        engine.request_interrupt_window(True)
    assert isinstance(engine.run(None), api.Hlt)
    assert seen == [(0x10,), (0x20, 4, 0x11), (0x14,), (0x24, 4, 0x15)]


def test_a_guest_with_short_windows_alone_is_interrupted(factory: DevKvmFactory) -> None:
    """STI; NOP; CLI, for ever: the first window is found, also where the kernel misses it."""
    engine = _engine(factory, b"\xfb\x90\xfa\xff\xc0\xeb\xf9")
    engine.regs.rax = 0
    engine.request_interrupt_window(True)
    assert isinstance(engine.run(None), api.InterruptWindow)
    assert engine.interrupt_flag
    assert not engine.interrupt_shadow
    assert engine.regs.rax == 0


def test_what_kvm_cannot_intercept_is_refused(factory: DevKvmFactory) -> None:
    engine = _engine(factory, HLT)
    engine.set_intercepts(Intercept.PAUSE | Intercept.RDTSC | Intercept.CR_WRITE)
    for arguments in ((Intercept.INVLPG,), (Intercept.NONE, 1 << 14), (Intercept.NONE, 0, RegisterIntercepts(1))):
        with pytest.raises(ValueError, match="KVM has no exits"):
            engine.set_intercepts(*arguments)
    with pytest.raises(ValueError, match="cannot be intercepted"):
        engine.set_port_intercepts(bytes(8192), None)
    with pytest.raises(ValueError, match="only zero"):
        engine.set_preemption_timer(5)


def test_cpuid_is_what_the_processor_has(factory: DevKvmFactory) -> None:
    """Features that it lacks are not told; those that are the hypervisor's are."""
    engine = _engine(factory, b"\xb8\x01\0\0\0\x0f\xa2" + HLT)
    everything = [CpuidLeaf(0, 0, 1, 0, 0, 0, False), CpuidLeaf(1, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, False)]
    told = {leaf.function: leaf for leaf in engine.set_cpuid(everything)}
    assert told[1].ecx & CPUID_1_ECX_HYPERVISOR
    own = next(entry for entry in factory.capabilities.cpuid if entry.function == 1)
    assert not told[1].edx & ~own.edx & ~(1 << 9 | 1 << 28)
    assert isinstance(engine.run(None), api.Hlt)
    # Whether the guest sees more, kernels differ; OSXSAVE follows CR4.
    assert not told[1].ecx & ~(1 << 27) & ~engine.regs.rcx


def test_time_stamp_counters_agree(factory: DevKvmFactory) -> None:
    """RDTSC in the guest, and what the engine says that it reads."""
    engine = _engine(factory, b"\x0f\x31" + HLT)
    engine.set_tsc(1_000_000)
    before = engine.read_tsc()
    assert isinstance(engine.run(None), api.Hlt)
    after = engine.read_tsc()
    assert before is not None
    assert after is not None
    assert before <= engine.regs.rax | engine.regs.rdx << 32 <= after


def test_a_device_that_is_not_kvm_is_refused(tmp_path: object) -> None:
    for path, text in ((f"{tmp_path}/kvm", "there is no"), ("/dev/null", "speaks version -1")):
        with pytest.raises(EngineError, match=text):
            DevKvmFactory(path)
