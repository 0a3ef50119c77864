"""The run loop: kicks and requests, user space's answers, signals in the middle of instructions, time, statistics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.core_rig import DONE, Cpu, Machine, Script, recorder, script
from vtlkit.engine import api
from vtlkit.engine.api import RamBlock
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.kvm.kvm_run import Intr, Io, Mmio, Rdmsr, Shutdown, Wrmsr
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.requests import Req
from vtlkit.kvm.run import FASTPATH_LIMIT
from vtlkit.kvm.vcpu import Mode
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_IF

NOWHERE = 0xD0000000
"""No memory: exits to user space as MMIO."""
NO_MSR = 0x12345


# --- requests and kicks -----------------------------------------------------------------------------------------------


def test_a_kick_from_inside_the_guest_ends_the_run_at_once() -> None:
    seen: list[Mode] = []

    def program(_engine: object) -> Script:
        yield ops.Host(kick)
        yield ops.Compute(1000)
        yield ops.Out(DONE, 1, 0)

    def kick() -> int:
        seen.append(machine.vcpu.mode.load())
        machine.vcpu.make_request(Req.TLB_FLUSH)
        machine.vcpu.kick()
        seen.append(machine.vcpu.mode.load())
        executed.append(machine.cpu.executed)
        return 0

    executed: list[int] = []
    machine = Machine(program)
    flushed_at: list[int] = []
    machine.cpu.on_run = lambda: flushed_at.append(machine.cpu.executed) if machine.cpu.flushes else None
    machine.vcpu.run()
    assert seen == [Mode.IN_GUEST_MODE, Mode.EXITING_GUEST_MODE]
    assert flushed_at[0] == executed[0]
    assert machine.cpu.flushes == 1
    assert machine.vcpu.mode.load() == Mode.OUTSIDE_GUEST_MODE


def test_a_vcpu_outside_the_guest_is_not_kicked() -> None:
    machine = Machine()
    machine.vcpu.make_request(Req.TLB_FLUSH)
    machine.vcpu.kick()
    assert machine.cpu.kicks == 0


@pytest.mark.parametrize("times", [1, 40])
def test_a_signal_that_comes_as_cpuid_exits_is_seen(times: int) -> None:
    """The kick has ended a run that was over anyway, so the fast path must look for itself."""
    machine = Machine(script(*[ops.Cpuid()] * times, ops.Compute(1000), ops.Out(DONE, 1, 0)))

    def signal(reason: api.Exit) -> None:
        machine.cpu.on_exit = None
        assert isinstance(reason, api.Cpuid)
        machine.vcpu.signal()

    machine.cpu.on_exit = signal
    assert isinstance(machine.vcpu.run(), Intr)
    assert machine.cpu.executed == 1
    assert machine.cpu.regs.rip == 0xFFF1


def test_a_request_that_comes_as_cpuid_exits_is_seen() -> None:
    machine = Machine(script(ops.Cpuid(), ops.Compute(1000), ops.Out(DONE, 1, 0)))

    def request(_reason: api.Exit) -> None:
        machine.cpu.on_exit = None
        machine.vcpu.request_tlb_flush()

    executed: list[int] = []
    machine.cpu.on_exit = request
    machine.cpu.on_run = lambda: executed.append(machine.cpu.executed) if machine.cpu.flushes else None
    machine.vcpu.run()
    assert executed[0] == 1


def test_a_kick_without_request_that_comes_as_cpuid_exits_is_seen() -> None:
    """A queued message takes back the offer to skip an EOI so. Kicked in vain, the vCPU could not be kicked again."""
    machine = Machine(script(ops.Cpuid(), ops.Cpuid(), ops.Compute(1000), ops.Out(DONE, 1, 0)))

    def kick(_reason: api.Exit) -> None:
        machine.cpu.on_exit = None
        machine.vcpu.kick()

    modes: list[Mode] = []
    machine.cpu.on_exit = kick
    machine.cpu.on_run = lambda: modes.append(machine.vcpu.mode.load())
    machine.vcpu.run()
    assert set(modes) == {Mode.IN_GUEST_MODE}


def test_cpuid_leaves_the_guest_now_and_then() -> None:
    """Timers must not wait for a guest that does nothing but CPUID."""
    machine = Machine(script(*[ops.Cpuid()] * (3 * FASTPATH_LIMIT), ops.Out(DONE, 1, 0)))
    machine.vcpu.run()
    assert machine.vcpu.statistics.cpuid_exits == 3 * FASTPATH_LIMIT
    assert len([budget for budget, _forced in machine.cpu.entries if budget is not None]) == 4


# --- what user space answers ------------------------------------------------------------------------------------------


@given(size=st.sampled_from([1, 2, 4]), data=st.integers(0, (1 << 32) - 1), old=st.integers(0, (1 << 64) - 1))
def test_an_answer_to_in_arrives_in_the_register(size: int, data: int, old: int) -> None:
    machine = Machine(script(ops.Set(old), ops.In(DONE, size), ops.Out(DONE, 1, 0)))
    exit_ = machine.vcpu.run()
    assert exit_ == Io(DONE, size, False)
    assert isinstance(exit_, Io)
    exit_.data = data
    assert machine.vcpu.run() == Io(DONE, 1, True, 0)
    mask = (1 << 8 * size) - 1
    assert machine.cpu.regs.rax == (data & mask if size == 4 else (old & ~mask) | (data & mask))


def test_an_answer_to_a_load_arrives_in_the_register() -> None:
    machine = Machine(script(ops.Read(NOWHERE, 4), ops.Out(DONE, 1, 0)))
    exit_ = machine.vcpu.run()
    assert exit_ == Mmio(NOWHERE, 4, False)
    assert isinstance(exit_, Mmio)
    exit_.data = 0x12345678
    machine.vcpu.run()
    assert machine.cpu.regs.rax == 0x12345678


@pytest.mark.parametrize("error", [False, True])
def test_user_space_answers_for_unknown_msrs_if_it_wants_to(error: bool) -> None:
    log: list[int] = []
    program = script(ops.Set(NO_MSR, "rcx"), ops.Rdmsr(), ops.Wrmsr(), ops.Out(DONE, 1, 0))
    machine = Machine(program, handlers={Vector.GP: recorder(log, ops.Out(DONE, 1, 0))})
    machine.vm.user_space_msr = True
    exit_ = machine.vcpu.run()
    assert exit_ == Rdmsr(NO_MSR)
    assert isinstance(exit_, Rdmsr)
    exit_.data, exit_.error = 0x1122334455667788, error
    following = machine.vcpu.run()
    if error:
        assert log == [Vector.GP]
        return
    assert (machine.cpu.regs.rax, machine.cpu.regs.rdx) == (0x55667788, 0x11223344)
    assert following == Wrmsr(NO_MSR, 0x1122334455667788)
    assert isinstance(machine.vcpu.run(), Io)
    assert not log


def test_unknown_msrs_fault_otherwise() -> None:
    log: list[int] = []
    program = script(ops.Set(NO_MSR, "rcx"), ops.Rdmsr())
    machine = Machine(program, handlers={Vector.GP: recorder(log, ops.Out(DONE, 1, 0))})
    assert isinstance(machine.vcpu.run(), Io)
    assert log == [Vector.GP]


# --- instructions in pieces -------------------------------------------------------------------------------------------


def in_pieces() -> Machine:
    """An instruction that loads from and stores to user space's memory."""
    return Machine(script(ops.Set(5), ops.Add(NOWHERE, 4), ops.Out(DONE, 1, 0)))


def test_a_signal_waits_for_the_end_of_an_instruction() -> None:
    machine = in_pieces()
    load = machine.vcpu.run()
    assert load == Mmio(NOWHERE, 4, False)
    assert isinstance(load, Mmio)
    load.data = 37
    machine.vcpu.signal()
    assert machine.vcpu.run() == Mmio(NOWHERE, 4, True, 42)
    assert machine.cpu.unfinished
    assert isinstance(machine.vcpu.run(), Intr)
    assert machine.cpu.at_boundary
    assert machine.cpu.regs.rip == 0xFFF2
    assert isinstance(machine.vcpu.run(), Io), "one signal is one EINTR"


def test_complete_exit_finishes_the_instruction_and_no_more() -> None:
    machine = in_pieces()
    load = machine.vcpu.run()
    assert isinstance(load, Mmio)
    load.data = 1
    store = machine.vcpu.complete_exit()
    assert store == Mmio(NOWHERE, 4, True, 6)
    assert machine.vcpu.complete_exit() is None
    assert machine.cpu.at_boundary
    executed = machine.cpu.executed
    assert machine.vcpu.complete_exit() is None
    assert machine.cpu.executed == executed
    assert isinstance(machine.vcpu.run(), Io)


def flushed_before_each_run(machine: Machine) -> list[bool]:
    """Whether anything is left to flush, each time that the guest is entered."""
    seen: list[bool] = []
    machine.cpu.on_run = lambda: seen.append(machine.vcpu.requests.test(Req.TLB_FLUSH))
    return seen


def test_the_rest_of_an_instruction_executes_under_no_translation_that_a_flush_has_ended() -> None:
    """The flush completes while user space answers, as the vCPU is outside the guest."""
    machine = in_pieces()
    machine.vcpu.run()
    machine.vcpu.request_tlb_flush()
    assert not machine.vcpu.may_run_on_old_translations()
    left = flushed_before_each_run(machine)
    assert isinstance(machine.vcpu.complete_exit(), Mmio)
    assert left == [False]
    assert machine.cpu.flushes == 1
    assert machine.vcpu.mode.load() == Mode.OUTSIDE_GUEST_MODE


def test_a_flush_waits_for_the_rest_of_an_instruction_that_executes() -> None:
    machine = in_pieces()
    machine.vcpu.run()
    old: list[bool] = []

    def flush() -> None:
        machine.vcpu.request_tlb_flush()
        old.append(machine.vcpu.may_run_on_old_translations())

    machine.cpu.on_run = flush
    machine.vcpu.complete_exit()
    assert old == [True]
    assert not machine.vcpu.may_run_on_old_translations()


def test_a_flush_that_meets_a_vcpu_on_its_way_into_an_instruction_is_made_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes after the requests have been looked at, and finds the vCPU outside the guest still."""
    machine = in_pieces()
    machine.vcpu.run()
    completed: list[bool] = []

    def budget() -> int:
        if not completed:
            machine.vcpu.request_tlb_flush()
            completed.append(not machine.vcpu.may_run_on_old_translations())
        return 1_000

    # An interrupt waits for the end of the instruction, so that an exit is forced.
    machine.cpu.rflags |= RFLAGS_IF
    machine.vcpu.apic.accept_irq(DeliveryMode.FIXED, 0x41, 1, False)
    monkeypatch.setattr(machine.host, "guest_budget_ns", budget)
    left = flushed_before_each_run(machine)
    machine.vcpu.run()
    assert completed == [True]
    assert not left[0]


def test_complete_exit_does_not_take_the_signal() -> None:
    machine = in_pieces()
    machine.vcpu.run()
    machine.vcpu.signal()
    assert isinstance(machine.vcpu.complete_exit(), Mmio)
    assert machine.vcpu.complete_exit() is None
    assert isinstance(machine.vcpu.run(), Intr)


@pytest.mark.parametrize("request_", [Req.EVENT, Req.MEMORY_CHANGED, Req.TLB_FLUSH])
def test_requests_do_not_disturb_an_unfinished_instruction(request_: Req) -> None:
    machine = in_pieces()
    machine.cpu.rflags |= RFLAGS_IF
    machine.vcpu.run()
    machine.vcpu.make_request(request_)
    if request_ is Req.MEMORY_CHANGED:
        machine.vm.set_user_memory_region(MemoryRegion(1, NOWHERE, 4096, RamBlock(4096)))
    if request_ is Req.EVENT:
        machine.vcpu.queue_exception(Vector.UD)
    assert machine.vcpu.run() == Mmio(NOWHERE, 4, True, 5)
    finished = machine.vcpu.run()
    if request_ is Req.EVENT:
        assert isinstance(finished, Shutdown), "no handler: the exception was delivered after the instruction"
    else:
        assert isinstance(finished, Io)
        assert not machine.vcpu.requests.load()


def test_init_in_the_middle_of_an_instruction_abandons_it() -> None:
    machine = in_pieces()
    machine.vcpu.run()
    machine.vcpu.reset(init_event=True)
    assert machine.cpu.at_boundary
    assert machine.vcpu.run() == Mmio(NOWHERE, 4, False), "begun anew, and the answer to the old exit is not asked for"


@given(kicks=st.lists(st.booleans(), min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_signals_at_any_exit_change_nothing_but_the_order_of_exits(kicks: list[bool], seed: int) -> None:
    """A guest that copies between devices, interrupted wherever user space looks: same stores, same result."""

    def program(_engine: object) -> Script:
        total = 0
        for step in range(6):
            total += yield ops.In(DONE + step % 2, 1)
            yield ops.Add(NOWHERE + 4 * step, 4)
            yield ops.Cpuid()
        yield ops.Set(total)
        yield ops.Out(DONE, 4)

    machine = Machine(program, host=Simulator(seed=seed))
    stores: list[tuple[int, int]] = []
    turn = 0
    while True:
        exit_ = machine.vcpu.run()
        if isinstance(exit_, Intr):
            assert machine.cpu.at_boundary
        elif isinstance(exit_, Io) and exit_.write:
            break
        elif isinstance(exit_, Io | Mmio):
            if exit_.write:
                assert isinstance(exit_, Mmio)
                stores.append((exit_.gpa, exit_.data))
            else:
                exit_.data = 7
        if kicks[turn % len(kicks)] and not isinstance(exit_, Intr):
            machine.vcpu.signal()
        turn += 1
    assert stores == [(NOWHERE + 4 * step, 14 & 0xFFFFFFFF) for step in range(6)]
    assert exit_.data == 42


# --- time and statistics ----------------------------------------------------------------------------------------------


def test_instructions_and_exits_take_time() -> None:
    machine = Machine(script(ops.Compute(100), ops.Out(DONE, 1, 0)))
    machine.vcpu.run()
    vm = machine.vm
    assert machine.host.now_ns() == 101 * vm.ns_per_instruction + vm.ns_per_exit


def test_no_instruction_is_accounted_twice() -> None:
    loop: list[ops.Op] = [ops.Cpuid(), ops.Compute(10), ops.Rdtsc()] * 20
    machine = Machine(script(*loop, ops.Out(DONE, 1, 0)))
    vm = machine.vm
    machine.vcpu.run()
    exits = machine.vcpu.statistics.all_exits()
    assert exits == {"cpuid": 20, "rdtsc": 20, "io": 1}
    assert machine.host.now_ns() == machine.cpu.executed * vm.ns_per_instruction + exits.total() * vm.ns_per_exit
    assert machine.vcpu.hv.runtime_ns == machine.cpu.executed * vm.ns_per_instruction


def test_a_guest_that_asks_the_time_sees_what_it_has_executed() -> None:
    read: list[int] = []

    def program(engine: Cpu) -> Script:
        for _ in range(2):
            yield ops.Rdtsc()
            read.append(engine.regs.rax)
            yield ops.Compute(1000)
        yield ops.Out(DONE, 1, 0)

    machine = Machine(program)
    machine.vcpu.run()
    assert read[1] - read[0] == 1001 * machine.vm.ns_per_instruction + machine.vm.ns_per_exit


def test_a_timer_of_the_host_bounds_the_budget() -> None:
    machine = Machine(script(ops.Compute(1_000_000), ops.Out(DONE, 1, 0)))
    fired: list[int] = []
    timer = machine.host.timer(lambda: fired.append(machine.cpu.executed), "timer")
    timer.start(12_340)
    machine.vcpu.run()
    assert fired[0] * machine.vm.ns_per_instruction <= 12_340


def test_exits_are_counted_by_name_and_reason(vendor: str) -> None:
    machine = Machine(script(ops.Read(NOWHERE, 1), ops.Pause(), ops.Cpuid(), ops.Out(DONE, 1, 0), ops.Out(DONE, 1, 0)))
    statistics = machine.vcpu.statistics
    for _ in range(3):
        machine.vcpu.run()
    machine.vcpu.signal()
    machine.vcpu.run()
    assert statistics.user_exits == {"MMIO": 1, "IO": 2, "INTR": 1}
    forced = {"svm": "interrupted", "vmx": "preemption_timer"}[vendor]
    # The first load faults, as no I/O page is mapped before the guest touches it.
    assert statistics.all_exits() == {"memory_fault": 1, "mmio": 1, "pause": 1, "cpuid": 1, "io": 2, forced: 1}
    assert statistics.injected_interrupts == 0
