"""Kicks, requests, waits, changes of memory, and state: vCPUs on real threads, on the embedded CPU and on /dev/kvm.

Guests of a few instructions count what they do; what they have counted must be exact, whatever interrupts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.conformance import devkvm_here
from tests.integration.run_control_rig import COUNT, PAGE, STOP, TAKEN, World, halts, spins, spins_with_interrupts_on
from vtlkit.engine.api import PAGE_SIZE, Access, EngineFactory
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.kvm.uapi import (
    Io,
    IrqWindowOpen,
    KickDesign,
    KvmRun,
    MemoryFault,
    MpState,
    WaitResult,
    WaitType,
    Windows,
    windows_request,
)
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.testing.guest_builder import CODE
from vtlkit.x86.registers import Regs

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
    rounds, saved = 40, 0

    def counts(a: Assembler) -> None:
        a.label("again")
        a.inc(Mem("rdi", size=8))
        a.inc("rbx")
        a.cmp(Mem("rsi", size=8), 0)
        a.je("again")
        a.out(DONE, "al")

    world = World(engines, counts)
    world.vcpu.engine.regs.rsi = STOP

    def save() -> None:
        """Stopped between two instructions: what is taken out, spoilt and put back is as it was."""
        nonlocal saved
        vcpu = world.vcpu
        regs, sregs, fpu = vcpu.get_regs(), vcpu.get_sregs(), vcpu.engine.get_fpu()
        counted = world.word(COUNT)
        assert counted - 1 <= regs.rbx <= counted
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
        for number in range(rounds):
            if number % 2:
                world.guests_go_on()
            before = saved
            world.vcpu.signal()
            world.until(lambda: saved > before)  # noqa: B023 - looked at before the next round
        world.ram.words(8)[STOP // 8] = 1

    world.run(world.processor(world.vcpu, ends, save), disturber)
    assert saved >= rounds
    assert world.word(COUNT) == world.vcpu.engine.regs.rbx
