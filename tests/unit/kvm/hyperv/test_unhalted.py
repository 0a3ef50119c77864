"""The synthetic time-unhalted timer and HV_X64_MSR_VP_RUNTIME: they count what the guest executes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, Script, script
from tests.unit.kvm.hyperv.rig import ALL_FEATURES
from tests.unit.kvm.hyperv.timer_rig import ENABLED, PERIODIC, direct, offer_hyperv
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.host.threads import ThreadHost
from vtlkit.hvdef import msrs
from vtlkit.x86.registers import RFLAGS_IF

CONFIG, COUNT = msrs.HV_X64_MSR_STIME_UNHALTED_TIMER_CONFIG, msrs.HV_X64_MSR_STIME_UNHALTED_TIMER_COUNT
ASSIST = 0x7000
EXPIRED = ASSIST + 56
ON = 1 << 8
VECTOR, WAKE = 0x71, 0x51
NMI = 2
TICK = 100

pytestmark = pytest.mark.tlfs("msrs.unhalted-timer")


class Guest:
    """Does `step` again and again until its handlers for `VECTOR` and NMI have run `ticks` times."""

    def __init__(
        self, *step: Op, ticks: int = 10, host: ThreadHost | None = None, config: int = ON | VECTOR, count: int = 50
    ) -> None:
        self.step = step
        self.ticks = ticks
        self.at: list[int] = []
        """Time executed as each handler was entered, in ns."""
        self.vectors: list[int] = []
        self.fields: list[bytes] = []
        handlers = dict.fromkeys((VECTOR, NMI, WAKE), self._handler)
        self.machine = Machine(self._program, handlers=handlers, host=host)
        self.vcpu = self.machine.vcpu
        self.vm = self.machine.vm
        offer_hyperv(self.vcpu)
        assert self.vcpu.set_guest_msr(msrs.HV_X64_MSR_VP_ASSIST_PAGE, ASSIST | 1)
        assert self.vcpu.set_guest_msr(COUNT, count)
        assert self.vcpu.set_guest_msr(CONFIG, config)
        self.machine.cpu.rflags |= RFLAGS_IF

    def run(self) -> None:
        self.machine.run(self.vcpu.run)

    def _program(self, _engine: object) -> Script:
        while len(self.at) < self.ticks:
            for op in self.step:  # noqa: UP028 - RAX is sent, which a tuple does not take
                yield op
        yield ops.Out(DONE, 1, 0)

    def _handler(self, _engine: object, event: Event) -> Script:
        if event.vector != WAKE:
            self.at.append(self.machine.cpu.executed * self.vm.ns_per_instruction)
            self.vectors.append(event.vector)
            self.fields.append(self.vm.memory.read(EXPIRED, 1))
        return self._handle(event.vector)

    def _handle(self, vector: int) -> Script:
        yield ops.Host(lambda: self.vm.memory.write(EXPIRED, b"\0"))
        if vector != NMI:
            yield ops.Write(0xFEE000B0, 4, 0)


@pytest.mark.parametrize("config", [ON | VECTOR, ON | NMI])
@pytest.mark.parametrize("step", [ops.Compute(1), ops.Compute(777), ops.Cpuid(), ops.Rdtsc()])
def test_it_expires_at_the_instruction_that_ends_the_period(config: int, step: Op) -> None:
    guest = Guest(step, config=config, count=53)
    guest.run()
    assert guest.at == [53 * TICK * tick for tick in range(1, 11)]
    assert set(guest.vectors) == {config & 0xFF}
    assert set(guest.fields) == {b"\1"}
    assert guest.vm.memory.read(EXPIRED, 1) == b"\0", "the guest has reset it"


def test_time_in_halts_and_exits_does_not_count() -> None:
    guest = Guest(ops.Compute(7), ops.Hlt())
    guest.vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_COUNT, 1000)
    guest.vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_CONFIG, direct(WAKE) | PERIODIC | ENABLED)
    guest.run()
    assert guest.at == [50 * TICK * tick for tick in range(1, 11)]
    assert guest.machine.host.now_ns() > 100 * guest.at[-1]


def test_an_interrupt_that_is_held_back_does_not_hold_back_the_timer() -> None:
    guest = Guest(ops.Compute(3), ticks=1)
    guest.machine.cpu.rflags &= ~RFLAGS_IF

    def permit() -> None:
        if guest.machine.cpu.executed * guest.vm.ns_per_instruction > 50 * TICK * 3.5:
            guest.machine.cpu.rflags |= RFLAGS_IF

    guest.step = (ops.Compute(3), ops.Host(permit))
    guest.run()
    assert len(guest.at) == 1
    assert guest.vcpu.hv.unhalted.left_ns <= 50 * TICK // 2, "in the fourth period"


def rdmsr(guest: Guest, index: int) -> int | None:
    return guest.vcpu.hv.get_msr(index, host_initiated=False)


def test_registers() -> None:
    guest = Guest(config=0, count=0)
    set_msr = guest.vcpu.set_guest_msr
    for bit in range(9, 64):
        assert not set_msr(CONFIG, 1 << bit)
    for vector in (0, 1, 3, 15):
        assert not set_msr(CONFIG, ON | vector)
        assert set_msr(CONFIG, vector), "not enabled"
    for vector in (2, 16, 255):
        assert set_msr(CONFIG, ON | vector)
        assert rdmsr(guest, CONFIG) == ON | vector
    assert not guest.vcpu.hv.unhalted.running, "no period"
    assert set_msr(COUNT, (1 << 64) - 1)
    assert rdmsr(guest, COUNT) == (1 << 64) - 1
    guest.vcpu.reset(init_event=True)
    assert rdmsr(guest, CONFIG) == ON | 255
    guest.vcpu.reset(init_event=False)
    assert rdmsr(guest, CONFIG) == rdmsr(guest, COUNT) == 0


@pytest.mark.parametrize("stop", [(CONFIG, VECTOR), (COUNT, 0)])
def test_it_is_stopped_by_either_register(stop: tuple[int, int]) -> None:
    guest = Guest(ops.Compute(1), ticks=3)
    guest.run()
    assert guest.vcpu.set_guest_msr(*stop)
    assert not guest.vcpu.hv.unhalted.running


def test_it_needs_its_privilege_and_its_feature() -> None:
    guest = Guest()
    offer_hyperv(guest.vcpu, replace(ALL_FEATURES, stimer=False, stimer_direct=False))
    for index in (CONFIG, COUNT):
        assert rdmsr(guest, index) is None
        assert not guest.vcpu.set_guest_msr(index, 0)


def test_expirations_that_pass_together_are_one_and_the_period_goes_on() -> None:
    guest = Guest(count=10)
    timer = guest.vcpu.hv.unhalted
    timer.account(999)
    assert timer.left_ns == 1
    assert guest.vcpu.apic.has_interrupt() == -1
    timer.account(2501)
    assert timer.left_ns == 500
    assert guest.vcpu.apic.get_interrupt() == VECTOR
    assert guest.vcpu.apic.get_interrupt() == -1
    timer.account(500)
    assert timer.left_ns == 1000


def test_in_real_time_it_ends_a_run_that_nothing_else_ends() -> None:
    guest = Guest(ops.Compute(5), ticks=3, host=ThreadHost(), count=2000)

    def user() -> None:
        guest.vcpu.run()
        guest.vcpu.hv.destroy()

    guest.machine.run(user)
    assert guest.vectors == [VECTOR] * 3
    assert set(guest.fields) == {b"\1"}
    assert guest.vcpu.hv.runtime_ns >= 3 * 2000 * TICK


@pytest.mark.tlfs("msrs.vp-runtime")
@pytest.mark.parametrize("host", [None, ThreadHost])
def test_runtime_counts_every_stay_in_the_guest_once(host: Callable[[], ThreadHost] | None) -> None:
    """The MSR counts units of 100 ns, and grows with what the guest executes between two looks."""
    seen: list[int] = []

    def program(_engine: object) -> Script:
        for _ in range(20):
            yield ops.Compute(100)
            yield ops.Cpuid()
            yield ops.Set(msrs.HV_X64_MSR_VP_RUNTIME, "rcx")
            low = yield ops.Rdmsr()
            seen.append(machine.cpu.regs.rdx << 32 | low)
        yield ops.Out(DONE, 1, 0)

    machine = Machine(program, host=None if host is None else host())
    offer_hyperv(machine.vcpu)
    machine.run(machine.vcpu.run)
    if host is None:
        # Each look sees all that was executed before it, its own RDMSR included.
        per_round = 103 * machine.vm.ns_per_instruction
        assert [value * TICK for value in seen] == [per_round * turn // TICK * TICK for turn in range(1, 21)]
        assert machine.vcpu.hv.runtime_ns == machine.cpu.executed * machine.vm.ns_per_instruction
    else:
        assert all(later >= earlier for earlier, later in pairwise(seen))
        assert 0 < machine.vcpu.hv.runtime_ns <= machine.host.now_ns()


@pytest.mark.tlfs("msrs.vp-runtime")
def test_in_real_time_instructions_are_not_time() -> None:
    """An engine may count on a host whose clock does not need it: what counts is what passes, and it does so once."""
    machine = Machine(script(ops.Compute(1 << 40), ops.Out(DONE, 1, 0)), host=ThreadHost())
    offer_hyperv(machine.vcpu)
    machine.cpu.unbounded = True
    machine.run(machine.vcpu.run)
    assert 0 < machine.vcpu.hv.runtime_ns <= machine.host.now_ns()
