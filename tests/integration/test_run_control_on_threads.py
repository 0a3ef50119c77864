"""Kicks, requests, waits, changes of memory, and state: vCPUs on real threads, on the embedded CPU and on /dev/kvm.

Guests of a few instructions count what they do; what they have counted must be exact, whatever interrupts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.conformance import devkvm_here
from vtlkit.engine.api import PAGE_SIZE, Access, EngineFactory, RamBlock
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.uapi import (
    Intr,
    Io,
    IrqWindowOpen,
    KickDesign,
    Kvm,
    KvmRun,
    MemoryFault,
    MemoryRegion,
    MpState,
    Vcpu,
    WaitResult,
    WaitType,
    Windows,
    windows_request,
)
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.testing.guest_builder import CODE, FREE, RAM_SIZE, Guest
from vtlkit.x86.apic import APIC_EOI, APIC_SPIV, APIC_SPIV_APIC_ENABLED, DeliveryMode
from vtlkit.x86.msr import APIC_BASE_MSR, MSR_IA32_APICBASE, X2APIC_ENABLE
from vtlkit.x86.registers import Regs

PATIENCE_NS: Final = 60_000_000_000
"""After which a test that does not end is given up: no promise on speed."""
COUNT: Final = FREE
"""What the guest counts, 8 bytes a processor."""
TAKEN: Final = FREE + 0x100
"""Interrupts that its handler has seen, 8 bytes a processor."""
PAGE: Final = FREE + 0x10000
HANDLER: Final = CODE + 0x8000
VECTOR: Final = 0x61
DONE: Final = 0x80
ANSWERS: Final = 0x90


def _engines(name: str) -> EngineFactory:
    if name == "unicorn":
        return UnicornFactory(counting=False, threaded=True)
    if (reason := devkvm_here.why_not()) is not None:
        pytest.skip(reason)
    return DevKvmFactory()


@pytest.fixture(params=["unicorn", "kvm"])
def engines(request: pytest.FixtureRequest) -> Iterator[EngineFactory]:
    factory = _engines(request.param)
    yield factory
    factory.close()


class World:
    """A VM whose processors run `program`: RDI is where each counts, R15 where its handler does."""

    def __init__(self, engines: EngineFactory, program: Callable[[Assembler], None], cpus: int = 1) -> None:
        self.host = ThreadHost()
        self.vm = Kvm(self.host, engines).create_vm()
        self.vcpus = [self.vm.create_vcpu(number) for number in range(cpus)]
        self.ram = RamBlock(RAM_SIZE)
        self.vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, self.ram))
        self.ram.view[:] = Guest(self.vcpus[0].engine, map_ram=False).ram.view
        self.over = False
        for vcpu in self.vcpus:
            vcpu.set_cpuid2(self.vm.get_supported_cpuid())
            guest = Guest(vcpu.engine, self.ram, map_ram=False)
            guest.long_mode()
            guest.gate(VECTOR, HANDLER)
            guest.load(handler())
            code = guest.assembler()
            program(code)
            guest.load(code)
            regs = vcpu.engine.regs
            regs.rdi, regs.r15 = COUNT + 8 * vcpu.vcpu_id, TAKEN + 8 * vcpu.vcpu_id
            base = vcpu.get_msr(MSR_IA32_APICBASE)
            assert base is not None
            assert vcpu.set_msr(MSR_IA32_APICBASE, base | X2APIC_ENABLE)
            assert vcpu.set_msr(APIC_BASE_MSR + (APIC_SPIV >> 4), APIC_SPIV_APIC_ENABLED | 0xFF)
            vcpu.start_runnable()

    @property
    def vcpu(self) -> Vcpu:
        return self.vcpus[0]

    def word(self, address: int) -> int:
        return self.ram.words(8)[address // 8]

    def counts(self) -> list[int]:
        return [self.word(COUNT + 8 * vcpu.vcpu_id) for vcpu in self.vcpus]

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.host.relax()

    def guests_go_on(self) -> None:
        """Every guest counts further."""
        before = self.counts()
        self.until(lambda: all(now > old for now, old in zip(self.counts(), before, strict=True)))

    def interrupt(self, vcpu: Vcpu) -> None:
        vcpu.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False)

    def run(self, *tasks: Callable[[], None]) -> None:
        """Each on a thread of its own, to its end."""
        left = list(range(len(tasks)))
        with self.host as host:
            for number, task in enumerate(tasks):
                host.spawn(self._counted(task, left, number), f"task{number}")
            host.run(host.now_ns() + PATIENCE_NS)
            hanging = list(left)
            self.finish()
        assert not hanging, f"tasks that hang: {hanging}"

    @staticmethod
    def _counted(task: Callable[[], None], left: list[int], number: int) -> Callable[[], None]:
        def body() -> None:
            task()
            left.remove(number)

        return body

    def finish(self) -> None:
        """Have every processor's task end."""
        self.over = True
        for vcpu in self.vcpus:
            vcpu.signal()

    def processor(
        self, vcpu: Vcpu, handle: Callable[[KvmRun], None] | None = None, on_intr: Callable[[], None] = lambda: None
    ) -> Callable[[], None]:
        """A task that runs it until `finish`; exits go to `handle`, or must not come."""

        def body() -> None:
            while not self.over:
                exit_ = vcpu.run()
                if isinstance(exit_, Intr):
                    on_intr()
                    vcpu.wait_until_resumed()
                else:
                    assert handle is not None, f"{vcpu.name}: {exit_}"
                    handle(exit_)

        return body

    def processors(self) -> list[Callable[[], None]]:
        return [self.processor(vcpu) for vcpu in self.vcpus]


def handler() -> Assembler:
    """Counts, and ends the interrupt by the x2APIC's EOI."""
    a = Assembler(64, HANDLER)
    for register in ("rax", "rcx", "rdx"):
        a.push(register)
    a.inc(Mem("r15", size=8))
    a.mov("ecx", APIC_BASE_MSR + (APIC_EOI >> 4))
    a.xor("eax", "eax")
    a.xor("edx", "edx")
    a.wrmsr()
    for register in ("rdx", "rcx", "rax"):
        a.pop(register)
    a.iretq()
    return a


def spins(a: Assembler) -> None:
    a.label("again")
    a.inc(Mem("rdi", size=8))
    a.jmp("again")


def spins_with_interrupts_on(a: Assembler) -> None:
    a.sti()
    spins(a)


def halts(a: Assembler) -> None:
    a.label("again")
    a.sti()
    a.hlt()
    a.cli()
    a.inc(Mem("rdi", size=8))
    a.jmp("again")


# --- kicks and requests -----------------------------------------------------------------------------------------------


def test_every_signal_ends_a_run(engines: EngineFactory) -> None:
    world = World(engines, spins)
    rounds, intrs = 100, 0

    def seen() -> None:
        nonlocal intrs
        intrs += 1

    def kicker() -> None:
        for number in range(rounds):
            if number % 2:
                world.guests_go_on()
            before = intrs
            world.vcpu.signal()
            world.until(lambda: intrs > before)  # noqa: B023 - looked at before the next round
        world.finish()

    world.run(world.processor(world.vcpu, on_intr=seen), kicker)
    assert intrs >= rounds


def test_requests_are_seen_by_a_guest_that_never_exits(engines: EngineFactory) -> None:
    world = World(engines, spins)

    def asker() -> None:
        for _ in range(100):
            world.vcpu.request_tlb_flush()
            world.until(lambda: not world.vcpu.may_run_on_old_translations())
        world.guests_go_on()
        world.finish()

    world.run(*world.processors(), asker)


@pytest.mark.parametrize("design", KickDesign)
def test_kicked_vcpus_execute_nothing_until_they_are_resumed(engines: EngineFactory, design: KickDesign) -> None:
    world = World(engines, spins, cpus=2)
    world.vm.set_kick_design(design)

    def kicker() -> None:
        for _ in range(30):
            world.guests_go_on()
            world.vm.kick_all_running_vcpus()
            if design is KickDesign.STICKY:
                before = world.counts()
                for _ in range(20):
                    world.host.relax()
                assert world.counts() == before
            world.vm.resume_all_kicked_vcpus()
        world.guests_go_on()
        world.finish()

    world.run(*world.processors(), kicker)
    assert all(vcpu.statistics.kicked_exits > 0 for vcpu in world.vcpus)


def test_no_answer_is_lost_or_given_twice_under_signals_and_kicks(engines: EngineFactory) -> None:
    def reads(a: Assembler) -> None:
        a.mov("ecx", rounds)
        a.label("again")
        a.xor("eax", "eax")
        a.in_("eax", ANSWERS)
        a.add(Mem("rdi"), "rax")
        a.dec("ecx")
        a.jne("again")
        a.out(DONE, "al")

    rounds, asked = 1000, 0
    world = World(engines, reads)

    def answer(exit_: KvmRun) -> None:
        nonlocal asked
        assert isinstance(exit_, Io)
        if exit_.port == DONE:
            world.finish()
            return
        asked += 1
        exit_.data = asked

    def disturber() -> None:
        while not world.over:
            world.vcpu.signal()
            world.host.relax()
            world.vm.kick_all_running_vcpus()
            world.vm.resume_all_kicked_vcpus()
            before = asked
            world.until(lambda: asked > before or world.over)  # noqa: B023 - looked at before the next round

    world.run(world.processor(world.vcpu, answer), disturber)
    assert asked == rounds
    assert world.word(COUNT) == rounds * (rounds + 1) // 2


# --- waits and interrupts ---------------------------------------------------------------------------------------------


def test_an_interrupt_wakes_a_halted_guest_each_time(engines: EngineFactory) -> None:
    world = World(engines, halts)
    rounds = 50

    def sender() -> None:
        for number in range(rounds):
            if number % 2:
                world.until(lambda: world.vcpu.mp_state is MpState.HALTED)
            world.interrupt(world.vcpu)
            world.until(lambda: world.word(COUNT) > number)  # noqa: B023 - looked at before the next round
        world.finish()

    world.run(*world.processors(), sender)
    assert world.word(TAKEN) == world.word(COUNT) == rounds


def test_interrupts_reach_a_guest_that_spins(engines: EngineFactory) -> None:
    world = World(engines, spins_with_interrupts_on, cpus=2)
    rounds = 50

    def sender() -> None:
        for number in range(rounds):
            for vcpu in world.vcpus:
                world.interrupt(vcpu)
            world.until(lambda: all(world.word(TAKEN + 8 * v.vcpu_id) > number for v in world.vcpus))  # noqa: B023
        world.finish()

    world.run(*world.processors(), sender)
    assert [world.word(TAKEN + 8 * vcpu.vcpu_id) for vcpu in world.vcpus] == [rounds, rounds]


def test_a_signal_ends_a_halt_and_the_interrupt_after_it_is_not_lost(engines: EngineFactory) -> None:
    world = World(engines, halts)
    intrs = 0

    def seen() -> None:
        nonlocal intrs
        intrs += 1

    def sender() -> None:
        for number in range(30):
            world.until(lambda: world.vcpu.mp_state is MpState.HALTED)
            before = intrs
            world.vcpu.signal()
            world.until(lambda: intrs > before)  # noqa: B023 - looked at before the next round
            assert world.word(COUNT) == number, "it went on without an interrupt"
            world.interrupt(world.vcpu)
            world.until(lambda: world.word(COUNT) > number)  # noqa: B023
        world.finish()

    world.run(world.processor(world.vcpu, on_intr=seen), sender)
    assert world.word(TAKEN) == 30


def test_the_wait_call_ends_by_an_interrupt_and_by_a_signal(engines: EngineFactory) -> None:
    def exits(a: Assembler) -> None:
        a.sti()
        a.label("again")
        a.out(DONE, "al")
        a.jmp("again")

    world = World(engines, exits)
    vcpu = world.vcpu
    results: list[WaitResult] = []
    rounds = 20

    def waiter() -> None:
        for number in range(rounds):
            assert isinstance(vcpu.run(), Io)
            assert vcpu.complete_exit() is None
            results.append(vcpu.wait(WaitType.HALT))
            if number % 2:
                # Pending it stays until the guest takes it, which it does before anything else.
                assert vcpu.wait(WaitType.HALT) is WaitResult.WAKEUP
                assert world.word(TAKEN) == number // 2

    def sender() -> None:
        for number in range(rounds):
            world.until(lambda: vcpu.waiting.type is not None and len(results) == number)  # noqa: B023
            if number % 2:
                world.interrupt(vcpu)
            else:
                vcpu.signal()
            world.until(lambda: len(results) > number)  # noqa: B023

    world.run(waiter, sender)
    assert results == [WaitResult.INTR, WaitResult.WAKEUP] * (rounds // 2)
    assert world.word(TAKEN) == rounds // 2 - 1


def test_a_window_is_told_when_the_guest_opens_it(engines: EngineFactory) -> None:
    def opens(a: Assembler) -> None:
        a.label("again")
        a.inc(Mem("rdi", size=8))
        a.out(ANSWERS, "al")
        a.sti()
        # Long enough for a kernel that looks between batches of instructions only.
        a.mov("ecx", 1000)
        a.label("open")
        a.dec("ecx")
        a.jne("open")
        a.cli()
        a.jmp("again")

    world = World(engines, opens)
    told: list[str] = []

    def handle(exit_: KvmRun) -> None:
        if isinstance(exit_, IrqWindowOpen):
            assert exit_.interrupt
            assert world.vcpu.engine.interrupt_flag
            told.append("window")
        else:
            assert isinstance(exit_, Io)
            told.append("closed")
            world.vcpu.events.windows = windows_request(Windows(interrupt=True))
        if len(told) == 40:
            world.finish()

    world.run(world.processor(world.vcpu, handle))
    assert told == ["closed", "window"] * 20


# --- memory -----------------------------------------------------------------------------------------------------------


def test_what_memory_permits_changes_under_a_running_guest(engines: EngineFactory) -> None:
    """A store that is forbidden has no effect and is told; allowed again, it is made, and only once."""

    def stores(a: Assembler) -> None:
        a.mov("rbx", PAGE)
        a.label("again")
        a.inc("rax")
        a.mov(Mem("rbx"), "rax")
        a.inc(Mem("rdi", size=8))
        a.jmp("again")

    world = World(engines, stores)
    rounds, faults = 30, 0

    def refused(exit_: KvmRun) -> None:
        nonlocal faults
        assert isinstance(exit_, MemoryFault)
        assert (exit_.gpa, exit_.access) == (PAGE, Access.WRITE)
        # The store that is refused is the next one, and has left nothing behind.
        assert world.vcpu.engine.regs.rax == world.word(PAGE) + 1 == world.word(COUNT) + 1
        faults += 1
        if faults % 2 == 0:
            # Until then it is told anew by each run.
            world.vm.set_memory_attributes(PAGE, PAGE_SIZE, Access.ALL)

    def changer() -> None:
        for number in range(rounds):
            world.guests_go_on()
            world.vm.set_memory_attributes(PAGE, PAGE_SIZE, Access.READ | Access.EXECUTE)
            world.until(lambda: faults == 2 * (number + 1))  # noqa: B023 - looked at before the next round
        world.guests_go_on()
        world.finish()

    world.run(world.processor(world.vcpu, refused), changer)
    assert faults == 2 * rounds
    assert 0 <= world.word(PAGE) - world.word(COUNT) <= 1


# --- state ------------------------------------------------------------------------------------------------------------


def test_a_state_that_is_saved_and_put_back_goes_on_exactly(engines: EngineFactory) -> None:
    steps = 60_000

    def counts(a: Assembler) -> None:
        a.mov("ecx", steps)
        a.label("again")
        a.inc(Mem("rdi", size=8))
        a.inc("rbx")
        a.dec("ecx")
        a.jne("again")
        a.out(DONE, "al")

    world = World(engines, counts)
    saved = 0

    def save() -> None:
        """Stopped between two instructions: what is taken out, spoilt and put back is as it was."""
        nonlocal saved
        vcpu = world.vcpu
        regs, sregs, fpu = vcpu.get_regs(), vcpu.get_sregs(), vcpu.engine.get_fpu()
        counted = world.word(COUNT)
        assert counted - 1 <= regs.rbx <= counted
        assert steps - counted <= regs.rcx & 0xFFFFFFFF <= steps - counted + 1 or regs.rip <= CODE + 5
        vcpu.set_regs(Regs(rip=CODE + 0x4000, rcx=7, rbx=99))
        assert vcpu.get_regs().rbx == 99
        vcpu.set_sregs(sregs)
        vcpu.set_regs(regs)
        assert vcpu.get_regs() == regs
        assert vcpu.get_sregs() == sregs
        assert vcpu.engine.get_fpu() == fpu
        saved += 1

    def ends(exit_: KvmRun) -> None:
        assert isinstance(exit_, Io)
        world.finish()

    def disturber() -> None:
        for step in range(0, steps, steps // 50):
            world.until(lambda: world.word(COUNT) > step or world.over)  # noqa: B023 - looked at before the next one
            before = saved
            world.vcpu.signal()
            world.until(lambda: saved > before or world.over)  # noqa: B023

    world.run(world.processor(world.vcpu, ends, save), disturber)
    assert (world.word(COUNT), world.vcpu.engine.regs.rbx) == (steps, steps)
    assert saved > 5
