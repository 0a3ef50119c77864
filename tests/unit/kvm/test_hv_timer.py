"""The guest's timer as an exit (VMX preemption timer): the four cases of the fast path, and the same interrupts at the
same times as with a software timer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.core_rig import DONE, Cpu, Machine, Script, script
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm import run as run_loop
from vtlkit.kvm.device_pages import VcpuDevices
from vtlkit.kvm.kvm_run import Intr, Io
from vtlkit.kvm.lapic_timer import LapicTimer
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vendor import preemption_timer
from vtlkit.kvm.vendor.preemption_timer import LIMIT, PreemptionTimer
from vtlkit.x86 import apic as regs
from vtlkit.x86.msr import MSR_IA32_TSC_DEADLINE
from vtlkit.x86.registers import RFLAGS_IF

VECTOR = 0xEE
APIC = 0xFEE00000
DIV_1 = 0xB
MODES = (regs.APIC_LVT_TIMER_ONESHOT, regs.APIC_LVT_TIMER_PERIODIC, regs.APIC_LVT_TIMER_TSCDEADLINE)
ONESHOT, PERIODIC, DEADLINE = MODES


def register(offset: int, value: int) -> Op:
    return ops.Write(APIC + offset, 4, value)


def counting(mode: int, count: int) -> list[Op]:
    """One-shot or periodic, `count` ns."""
    return [
        register(regs.APIC_TDCR, DIV_1),
        register(regs.APIC_LVTT, mode | VECTOR),
        register(regs.APIC_TMICT, count),
    ]


def deadline(tsc: int) -> list[Op]:
    return [
        register(regs.APIC_LVTT, DEADLINE | VECTOR),
        ops.Set(MSR_IA32_TSC_DEADLINE, "rcx"),
        ops.Set(tsc & 0xFFFFFFFF),
        ops.Set(tsc >> 32, "rdx"),
        ops.Wrmsr(),
    ]


@dataclass
class Timed:
    """A machine that notes when its timer's interrupts come: (instructions executed, virtual time)."""

    machine: Machine
    ticks: list[tuple[int, int]] = field(default_factory=list)

    @property
    def timer(self) -> PreemptionTimer:
        timer = self.machine.vcpu.preemption_timer
        assert timer is not None
        return timer


def timed(program: Callable[[Cpu], Script], vendor: str, *, ns_per_exit: int | None = None) -> Timed:
    ticks: list[tuple[int, int]] = []

    def handler(engine: Cpu, _event: Event) -> Script:
        vcpu = machine.vcpu
        # The clock stands where the guest was last left.
        ticks.append((engine.executed, machine.host.now_ns() + (engine.executed - vcpu.clock_mark) * 10))
        return body()

    def body() -> Script:
        yield register(regs.APIC_EOI, 0)

    machine = Machine(program, handlers={VECTOR: handler}, vendor=vendor)
    machine.cpu.rflags |= RFLAGS_IF
    if ns_per_exit is not None:
        machine.vm.ns_per_exit = ns_per_exit
    return Timed(machine, ticks)


def plain(*instructions: Op) -> Callable[[Cpu], Script]:
    return script(*instructions, ops.Out(DONE, 1, 0))


def run_to_the_end(guest: Timed) -> None:
    exits: list[object] = []
    guest.machine.run(lambda: exits.append(guest.machine.vcpu.run()))
    assert [type(exit_) for exit_ in exits] == [Io], exits


# --- the fast path's cases --------------------------------------------------------------------------------------------


def test_the_guests_timer_is_an_exit_at_its_very_time() -> None:
    guest = timed(plain(*counting(ONESHOT, 20_000), ops.Compute(5_000)), "vmx")
    run_to_the_end(guest)
    assert guest.machine.vcpu.statistics.exits["preemption_timer"] == 1
    (tick,) = guest.ticks
    # 20 us from the write to TMICT, the exits of the two writes before it left aside: 2,000 instructions and no less.
    assert 1_800 < tick[0] <= 2_004
    assert guest.machine.vcpu.apic.timer.hv_timer_in_use is False


def test_an_exit_while_soft_disabled_goes_back_to_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without leaving it: the budget goes on, no interrupt comes, every instruction is executed once."""
    monkeypatch.setattr(preemption_timer, "SOFT_DISABLED", 1_000)
    guest = timed(plain(ops.Compute(450)), "vmx")
    run_to_the_end(guest)
    machine = guest.machine
    assert machine.vcpu.statistics.exits["preemption_timer"] == 4
    assert machine.cpu.executed == 451
    assert [budget for budget, _ in machine.cpu.entries][1:] == [None] * 4, "re-entered, not entered"
    assert guest.ticks == []
    assert not machine.vcpu.requests.load()


def test_a_kick_ends_a_spurious_exit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption_timer, "SOFT_DISABLED", 1_000)
    guest = timed(plain(ops.Compute(450)), "vmx")
    machine = guest.machine
    machine.cpu.on_exit = lambda _reason: machine.vcpu.signal()
    assert isinstance(machine.vcpu.run(), Intr)
    assert machine.cpu.executed == 100


def test_a_forced_exit_is_handled_and_the_timer_still_comes() -> None:
    """It takes the place of the guest's timer for one entry only."""
    guest = timed(plain(*counting(ONESHOT, 20_000), ops.In(DONE, 1), ops.Compute(5_000)), "vmx")
    machine = guest.machine
    assert isinstance(machine.vcpu.run(), Io)
    assert machine.vcpu.complete_exit() is None
    assert machine.vcpu.vendor.vcpu_run(machine.vcpu, 100, True).name == "preemption_timer"
    executed = machine.cpu.executed
    assert isinstance(machine.vcpu.run(), Io)
    assert machine.cpu.executed > executed + 5_000
    assert len(guest.ticks) == 1


def test_going_back_to_the_guest_without_a_look_at_requests_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_loop, "_exit_request", lambda _vcpu: False)
    guest = timed(plain(*counting(ONESHOT, 20_000), ops.Compute(5_000)), "vmx")
    run_to_the_end(guest)
    assert guest.ticks == [], "the interrupt waits for an exit that has nothing to do with it"


def test_in_l2_the_slow_path_makes_the_event_request_and_nothing_of_l2_is_executed() -> None:
    guest = timed(plain(*counting(ONESHOT, 20_000), ops.Compute(5_000)), "vmx")
    machine = guest.machine
    vcpu, cpu = machine.vcpu, machine.cpu
    vcpu.guest_mode = True
    slow: list[tuple[int, bool]] = []
    expired = vcpu.vendor.handle_preemption_timer

    def noted(each: object) -> None:
        assert each is vcpu
        expired(vcpu)
        slow.append((cpu.executed, vcpu.requests.test(Req.EVENT)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(vcpu.vendor), "handle_preemption_timer", lambda _self, each: noted(each))
        run_to_the_end(guest)
    assert [made for _, made in slow] == [True]
    assert [tick[0] for tick in guest.ticks] == [slow[0][0]]
    assert vcpu.statistics.exits["preemption_timer"] == 1


def test_the_slow_path_is_for_l2_alone() -> None:
    vcpu = timed(plain(), "vmx").machine.vcpu
    with pytest.raises(AssertionError, match="fast path"):
        vcpu.vendor.handle_preemption_timer(vcpu)


# --- where there is no such timer -------------------------------------------------------------------------------------


def test_there_is_none_outside_of_run() -> None:
    """User space may wait for what the timer brings, as for the VTL that is not active."""
    guest = timed(plain(*counting(ONESHOT, 20_000), ops.In(DONE, 1), ops.Compute(5_000)), "vmx")
    machine = guest.machine
    timer = machine.vcpu.apic.timer
    kicks: list[int] = []

    def body() -> None:
        machine.vcpu.run()
        assert not timer.hv_timer_in_use
        machine.vcpu.listen(lambda: kicks.append(machine.host.now_ns()))
        machine.host.schedule()
        machine.host.consume_ns(30_000)
        assert len(kicks) == 1
        assert machine.vcpu.wake_event_pending()

    machine.run(body)


def test_a_deadline_that_the_timer_cannot_hold_is_a_software_timer() -> None:
    guest = timed(plain(*deadline(LIMIT + 10_000_000), ops.Hlt()), "vmx")
    in_use: list[bool] = []
    guest.machine.cpu.on_run = lambda: in_use.append(guest.machine.vcpu.apic.timer.hv_timer_in_use)
    run_to_the_end(guest)
    assert not any(in_use)
    assert guest.ticks[0][1] >= LIMIT


def test_real_time_has_none() -> None:
    machine = Machine(script(), host=ThreadHost(), vendor="vmx")
    assert machine.vcpu.preemption_timer is not None
    assert not machine.vcpu.apic.timer.has_hv_timer


@pytest.mark.parametrize("mode", MODES)
def test_a_halted_vcpu_is_woken(mode: int) -> None:
    start = deadline(50_000) if mode == DEADLINE else counting(mode, 300_000)
    guest = timed(plain(*start, ops.Hlt()), "vmx")
    run_to_the_end(guest)
    assert len(guest.ticks) == 1


def test_a_halted_vcpu_sleeps_for_ever_if_the_timer_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LapicTimer, "switch_to_sw_timer", lambda _self: None)
    guest = timed(plain(*counting(ONESHOT, 300_000), ops.Hlt()), "vmx")
    with pytest.raises(Exception, match="deadlock") as caught:
        run_to_the_end(guest)
    assert type(caught.value).__name__ == "Deadlock"


# --- against the software timer ---------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("compute"), st.integers(1, 60_000)),
    st.tuples(st.just("oneshot"), st.integers(1, 400_000)),
    st.tuples(st.just("periodic"), st.integers(200_000, 500_000)),
    st.tuples(st.just("deadline"), st.integers(-1_000, 400_000)),
    st.tuples(st.just("stop"), st.just(0)),
    st.tuples(st.just("halt"), st.just(0)),
    st.tuples(st.just("cpuid"), st.integers(1, 40)),
    st.tuples(st.just("count"), st.integers(1, 3)),
    st.tuples(st.just("divide"), st.sampled_from([0xB, 0, 1])),
    st.tuples(st.just("pause"), st.just(0)),
    st.tuples(st.just("cli"), st.integers(1, 30_000)),
    st.tuples(st.just("user"), st.just(0)),
)


def guest_of(steps: list[tuple[str, int]], counts: list[int]) -> Callable[[Cpu], Script]:
    def program(_engine: Cpu) -> Script:
        armed = False
        for what, value in steps:
            if what == "compute":
                yield ops.Compute(value)
            elif what in ("oneshot", "periodic"):
                armed = True
                for instruction in counting(ONESHOT if what == "oneshot" else PERIODIC, value):
                    yield instruction
            elif what == "deadline":
                armed = True
                now = yield ops.Rdtsc()
                for instruction in deadline(max(now + value, 1)):
                    yield instruction
            elif what == "stop":
                yield register(regs.APIC_TMICT, 0)
                armed = False
            elif what == "halt" and armed:
                # Something else always wakes it, should the timer be over.
                yield ops.Hlt()
            elif what == "cpuid":
                for _ in range(value):
                    yield ops.Cpuid()
            elif what == "count":
                for _ in range(value):
                    counts.append((yield ops.Read(APIC + regs.APIC_TMCCT, 4)))
            elif what == "divide":
                yield register(regs.APIC_TDCR, value)
            elif what == "pause":
                yield ops.Pause()
            elif what == "cli":
                yield ops.Cli()
                yield ops.Compute(value)
                yield ops.Sti()
            elif what == "user":
                yield ops.In(DONE, 1)
        yield ops.Out(DONE, 1, 0)

    return program


def story(steps: list[tuple[str, int]], vendor: str, ns_per_exit: int) -> tuple[object, ...]:
    counts: list[int] = []
    guest = timed(guest_of(steps, counts), vendor, ns_per_exit=ns_per_exit)
    machine = guest.machine
    beats = machine.host.timer(lambda: beat(), "beats")

    def beat() -> None:
        machine.vcpu.nmi()
        beats.start(machine.host.now_ns() + 10_000_000)

    def nmi(_engine: Cpu, _event: Event) -> Script:
        yield ops.Compute(1)

    machine.cpu.handlers[2] = nmi
    beats.start(10_000_000)

    def body() -> None:
        while not (isinstance(exit_ := machine.vcpu.run(), Io) and exit_.write):
            pass
        beats.cancel()

    machine.run(body)
    used = machine.vcpu.statistics.exits["preemption_timer"]
    return guest.ticks, counts, machine.cpu.executed, machine.host.now_ns(), used


@given(st.lists(STEPS.filter(lambda step: step[0] != "pause"), min_size=1, max_size=14))
def test_the_same_interrupts_at_the_same_times(steps: list[tuple[str, int]]) -> None:
    """Exits take no time here, as an expiry may be one more exit, and nobody yields, for as long as to the next timer
    of the host; then everything the guest sees is the same."""
    software, hypervisor = story(steps, "svm", 0), story(steps, "vmx", 0)
    assert hypervisor[:4] == software[:4]
    assert software[4] == 0


HARMLESS = STEPS.filter(lambda step: step[0] in ("compute", "cpuid", "count", "pause", "user"))
LATE_NS = 30_000
"""What is handled before the clock is looked at, and the exits around it."""


@given(st.integers(30_000, 400_000), st.lists(HARMLESS, max_size=14))
def test_never_early_and_late_by_exits_alone(ahead: int, steps: list[tuple[str, int]]) -> None:
    """With exits that take time: whatever the guest does meanwhile, every one of them moves the clock."""
    due: list[int] = []

    def program(engine: Cpu) -> Script:
        now = yield ops.Rdtsc()
        due.append(now + ahead)
        for instruction in deadline(now + ahead):
            yield instruction
        for instruction in guest_of([*steps, ("compute", 60_000)], [])(engine):
            # What is sent in goes nowhere: none of these steps looks at it.
            yield instruction

    guest = timed(program, "vmx", ns_per_exit=1_000)

    def body() -> None:
        while not (isinstance(exit_ := guest.machine.vcpu.run(), Io) and exit_.write):
            pass

    guest.machine.run(body)
    ((_, when),) = guest.ticks
    assert due[0] <= when <= due[0] + LATE_NS
    assert guest.machine.vcpu.statistics.exits["preemption_timer"] <= 2


def tick_of_a_guest_that_reads_its_apic() -> int | None:
    """When the interrupt comes to a guest that looks at the count for 1 ms; due at 100 us."""
    looks = [ops.Read(APIC + regs.APIC_TMCCT, 4)] * 1_000
    guest = timed(plain(*deadline(100_000), *looks), "vmx")
    run_to_the_end(guest)
    return guest.ticks[0][1] if guest.ticks else None


def test_device_accesses_move_the_clock_and_so_the_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    when = tick_of_a_guest_that_reads_its_apic()
    assert when is not None
    assert 100_000 <= when <= 100_000 + LATE_NS
    monkeypatch.setattr(VcpuDevices, "_leave_for_timer", lambda _self: None)
    assert tick_of_a_guest_that_reads_its_apic() is None, "known bad"


@pytest.mark.parametrize("mode", MODES)
def test_what_the_property_compares_is_not_nothing(mode: int) -> None:
    name = {ONESHOT: "oneshot", PERIODIC: "periodic", DEADLINE: "deadline"}[mode]
    steps = [(name, 250_000), ("compute", 60_000), ("halt", 0), ("compute", 60_000)]
    software, hypervisor = story(steps, "svm", 0), story(steps, "vmx", 0)
    assert hypervisor[:4] == software[:4]
    assert len(software[0]) >= (4 if mode == PERIODIC else 1)  # type: ignore[arg-type]
    assert hypervisor[4] >= 1  # type: ignore[operator]


def test_times_are_guest_tsc_whatever_the_offset() -> None:
    guest = timed(plain(*deadline(5_000_000_000 + 40_000), ops.Compute(10_000)), "vmx", ns_per_exit=0)
    guest.machine.vcpu.write_tsc(5_000_000_000)
    run_to_the_end(guest)
    assert guest.ticks == [(4_000, 40_000)]
    assert isinstance(guest.machine.host, Simulator)
    assert guest.timer.soft_disabled
