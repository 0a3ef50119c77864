"""What is the /dev/kvm engine's own: kicks from other threads, the memory it shows the kernel, what it refuses."""

from __future__ import annotations

import random
import threading

import pytest

from tests.conformance import devkvm_here
from tests.unit.engine.devkvm.kvm_rig import FOR_EVER, PAGE, PATIENCE_S, flat_engine
from vtlkit.engine import api
from vtlkit.engine.api import Access, CpuidLeaf, EngineError, Intercept, RamBlock, RegisterIntercepts
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.probe import HLT
from vtlkit.testing.assembler import Mem
from vtlkit.testing.guest_builder import FREE, Guest
from vtlkit.x86.cpuid import CPUID_1_ECX_HYPERVISOR
from vtlkit.x86.paging import PTE_P, PTE_U, PTE_W

KICKS = 10_000


def test_no_kick_is_lost(factory: DevKvmFactory) -> None:
    """Each kick makes one run return, wherever it finds the other thread: before, in or behind KVM_RUN."""
    engine = flat_engine(factory, FOR_EVER)
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


def test_a_kick_before_any_run(factory: DevKvmFactory) -> None:
    engine = flat_engine(factory, FOR_EVER)
    engine.kick()
    assert type(engine.run(None)) is api.Interrupted


def test_protections_change_no_slot(factory: DevKvmFactory) -> None:
    """What may be said by a protection of host memory is; pages of other RAM come and go the same way."""
    engine = flat_engine(factory, b"\xc7\x05" + PAGE.to_bytes(4, "little") + b"\x05\0\0\0" + HLT)
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
    engine = flat_engine(factory, code)
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
        engine = flat_engine(factory, HLT)
        engine.protect(PAGE, 4096, Access.READ)
        refusal = engine.run(None)
        assert isinstance(refusal, api.InternalError)
        assert "GPA 0x2000" in refusal.reason
    finally:
        factory.close()


def test_an_instruction_that_faults_twice_has_no_effect(factory: DevKvmFactory) -> None:
    """`movsd` from where nothing is: the store to RAM, which the kernel's emulator would make, is not made."""
    engine = flat_engine(factory, b"\xa5" + HLT)
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
    engine = flat_engine(factory, b"\xa3\0\0\x10\0" + HLT)
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


@pytest.mark.parametrize("wanted", ["nothing", "interrupt window", "NMI window"])
def test_both_halves_of_an_access_reach_a_device(factory: DevKvmFactory, wanted: str) -> None:
    """MOVSD from device to device, twice: whatever is looked for in between, each load and store is made once."""
    engine = flat_engine(factory, b"\xa5\xa5" + HLT)
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
    engine = flat_engine(factory, b"\xfb\x90\xfa\xff\xc0\xeb\xf9")
    engine.regs.rax = 0
    engine.request_interrupt_window(True)
    assert isinstance(engine.run(None), api.InterruptWindow)
    assert engine.interrupt_flag
    assert not engine.interrupt_shadow
    assert engine.regs.rax == 0


def test_what_kvm_cannot_intercept_is_refused(factory: DevKvmFactory) -> None:
    engine = flat_engine(factory, HLT)
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
    engine = flat_engine(factory, b"\xb8\x01\0\0\0\x0f\xa2" + HLT)
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
    engine = flat_engine(factory, b"\x0f\x31" + HLT)
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
