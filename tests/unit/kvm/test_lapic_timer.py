"""The local APIC timer in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.kvm.irqchip_rig import Machine, read, write
from vtlkit.kvm.requests import Req
from vtlkit.x86 import apic as regs

PERIODIC, ONESHOT, DEADLINE = (
    regs.APIC_LVT_TIMER_PERIODIC,
    regs.APIC_LVT_TIMER_ONESHOT,
    regs.APIC_LVT_TIMER_TSCDEADLINE,
)
VECTOR = 0xEE
DIV_1 = 0xB
COUNT = 1_000_000


def take(machine: Machine) -> bool:
    """What the run loop does before entry; whether a timer interrupt was taken and ended."""
    apic = machine.apics[0]
    if apic.pending_timer():
        apic.inject_pending_timer()
    taken = apic.get_interrupt()
    apic.set_eoi()
    assert taken in (-1, VECTOR)
    return taken == VECTOR


def start(machine: Machine, mode: int, count: int = COUNT, divide: int = DIV_1) -> None:
    apic = machine.apics[0]
    write(apic, regs.APIC_LVTT, mode | VECTOR)
    write(apic, regs.APIC_TDCR, divide)
    write(apic, regs.APIC_TMICT, count)


def test_one_shot_fires_once_and_asks_for_unblock_then_kick() -> None:
    machine = Machine()

    def body() -> None:
        apic, owner = machine.apics[0], machine.owners[0]
        start(machine, ONESHOT)
        assert read(apic, regs.APIC_TMCCT) == COUNT
        machine.advance(COUNT - 1)
        assert read(apic, regs.APIC_TMCCT) == 1
        assert not apic.pending_timer()
        assert owner.kicks == 0
        machine.advance(1)
        assert owner.requests == {Req.UNBLOCK}
        assert owner.kicks == 1
        assert apic.irr.load() == 0, "the LVT is the vCPU's own business"
        assert take(machine)
        machine.advance(10 * COUNT)
        assert not take(machine)
        assert read(apic, regs.APIC_TMCCT) == 0
        assert read(apic, regs.APIC_TMICT) == COUNT

    machine.run(body)


@pytest.mark.parametrize(("tdcr", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xA, 128), (0xB, 1)])
def test_divide_configuration(tdcr: int, divisor: int) -> None:
    machine = Machine()

    def body() -> None:
        start(machine, ONESHOT, divide=tdcr)
        machine.advance(COUNT * divisor // 2)
        assert read(machine.apics[0], regs.APIC_TMCCT) == COUNT // 2
        machine.advance(COUNT * divisor // 2 - 1)
        assert not take(machine)
        machine.advance(1)
        assert take(machine)

    machine.run(body)


def test_changing_the_divisor_keeps_the_count() -> None:
    machine = Machine()

    def body() -> None:
        start(machine, ONESHOT)
        machine.advance(COUNT // 4)
        write(machine.apics[0], regs.APIC_TDCR, 1)
        assert read(machine.apics[0], regs.APIC_TMCCT) == 3 * COUNT // 4
        machine.advance(3 * COUNT - 1)
        assert not take(machine)
        machine.advance(1)
        assert take(machine)

    machine.run(body)


def test_periodic_does_not_drift_and_merges_missed_periods() -> None:
    machine = Machine()

    def body() -> None:
        start(machine, PERIODIC)
        machine.advance(COUNT + 300)
        assert take(machine)
        assert read(machine.apics[0], regs.APIC_TMCCT) == COUNT - 300
        machine.advance(COUNT - 301)
        assert not take(machine)
        machine.advance(1)
        assert take(machine)
        machine.advance(5 * COUNT + 7)
        assert read(machine.apics[0], regs.APIC_TMCCT) == COUNT - 7
        assert take(machine)
        assert not take(machine)
        machine.advance(COUNT - 7)
        assert take(machine)
        write(machine.apics[0], regs.APIC_TMICT, 0)
        machine.advance(5 * COUNT)
        assert not take(machine)

    machine.run(body)


def test_shortest_period() -> None:
    machine = Machine()

    def body() -> None:
        start(machine, PERIODIC, count=1)
        machine.advance(199_999)
        assert machine.owners[0].kicks <= 1
        take(machine)
        ticks = 0
        for _ in range(100):
            machine.advance(20_000)
            ticks += take(machine)
        assert ticks == 10

    machine.run(body)


def test_masked_expiry_waits_for_the_unmask() -> None:
    machine = Machine()

    def body() -> None:
        start(machine, ONESHOT | regs.APIC_LVT_MASKED)
        machine.advance(2 * COUNT)
        assert not machine.apics[0].pending_timer()
        assert not take(machine)
        write(machine.apics[0], regs.APIC_LVTT, ONESHOT | VECTOR)
        assert take(machine)

    machine.run(body)


def test_software_disable_forgets_a_pending_expiry() -> None:
    machine = Machine()

    def body() -> None:
        start(machine, ONESHOT)
        machine.advance(COUNT)
        write(machine.apics[0], regs.APIC_SPIV, 0xFF)
        write(machine.apics[0], regs.APIC_SPIV, 0x1FF)
        write(machine.apics[0], regs.APIC_LVTT, VECTOR)
        assert not take(machine)

    machine.run(body)


def test_mode_changes_keep_the_count() -> None:
    """The sequence of kvm-unit-tests' apic test."""
    machine = Machine()

    def body() -> None:
        apic = machine.apics[0]
        start(machine, PERIODIC)
        write(apic, regs.APIC_LVTT, ONESHOT | VECTOR)
        write(apic, regs.APIC_TMICT, COUNT)
        machine.advance(COUNT * 3 // 4)
        write(apic, regs.APIC_LVTT, PERIODIC | VECTOR)
        assert read(apic, regs.APIC_TMCCT) == COUNT // 4
        machine.advance(COUNT // 2)
        assert take(machine)
        assert read(apic, regs.APIC_TMCCT) == COUNT * 3 // 4
        write(apic, regs.APIC_LVTT, ONESHOT | VECTOR)
        assert read(apic, regs.APIC_TMCCT) == COUNT * 3 // 4
        machine.advance(COUNT)
        assert take(machine)
        write(apic, regs.APIC_LVTT, PERIODIC | VECTOR)
        assert read(apic, regs.APIC_TMCCT) == 0
        machine.advance(5 * COUNT)
        assert read(apic, regs.APIC_TMCCT) == 0
        assert not take(machine)
        assert read(apic, regs.APIC_TMICT) == COUNT

    machine.run(body)


def test_tsc_deadline() -> None:
    machine = Machine()

    def body() -> None:
        apic, owner = machine.apics[0], machine.owners[0]
        apic.set_tscdeadline(5)
        assert apic.get_tscdeadline() == 0, "not in TSC-deadline mode"
        start(machine, DEADLINE)
        assert read(apic, regs.APIC_TMICT) == read(apic, regs.APIC_TMCCT) == 0
        apic.set_tscdeadline(COUNT)
        assert apic.get_tscdeadline() == COUNT
        machine.advance(COUNT)
        assert owner.kicks == 1
        assert take(machine)
        assert apic.get_tscdeadline() == 0
        owner.requests.clear()
        apic.set_tscdeadline(COUNT // 2)
        assert owner.requests == {Req.UNBLOCK}
        assert owner.kicks == 2, "the vCPU is the one that wrote: no kick but that of the interrupt before"
        assert take(machine)
        apic.set_tscdeadline(3 * COUNT)
        apic.set_tscdeadline(0)
        machine.advance(5 * COUNT)
        assert not take(machine)

    machine.run(body)


def test_leaving_tsc_deadline_mode_disarms() -> None:
    machine = Machine()

    def body() -> None:
        start(machine, DEADLINE)
        machine.apics[0].set_tscdeadline(COUNT)
        write(machine.apics[0], regs.APIC_LVTT, ONESHOT | VECTOR)
        write(machine.apics[0], regs.APIC_LVTT, DEADLINE | VECTOR)
        assert machine.apics[0].get_tscdeadline() == 0
        machine.advance(2 * COUNT)
        assert not take(machine)

    machine.run(body)


def test_restored_timer_goes_on() -> None:
    machine = Machine()

    def body() -> None:
        start(machine, PERIODIC)
        machine.advance(COUNT // 4)
        page = machine.apics[0].get_state()
        write(machine.apics[0], regs.APIC_TMICT, 0)
        machine.advance(10 * COUNT)
        machine.apics[0].set_state(page)
        assert read(machine.apics[0], regs.APIC_TMCCT) == 3 * COUNT // 4
        machine.advance(3 * COUNT // 4 - 1)
        assert not take(machine)
        machine.advance(1)
        assert take(machine)
        machine.advance(COUNT)
        assert take(machine)

    machine.run(body)


def test_reset_stops_the_timer() -> None:
    machine = Machine()

    def body() -> None:
        start(machine, PERIODIC)
        machine.apics[0].reset(init_event=True)
        machine.advance(3 * COUNT)
        assert machine.owners[0].kicks == 0
        assert not machine.apics[0].timer.pending.load()
        assert read(machine.apics[0], regs.APIC_TMICT) == 0

    machine.run(body)


class FakeHvTimer:
    """The vendor: remembers the deadline that it would exit at."""

    def __init__(self) -> None:
        self.deadline: int | None = None

    def armed(self) -> int | None:
        return self.deadline

    def set_hv_timer(self, deadline_ns: int) -> bool:
        self.deadline = deadline_ns
        return True

    def cancel_hv_timer(self) -> None:
        self.deadline = None


@pytest.mark.parametrize("mode", [ONESHOT, PERIODIC, DEADLINE])
def test_hypervisor_timer_moves_to_software_before_blocking_and_back(mode: int) -> None:
    machine = Machine()

    def body() -> None:
        apic, owner, hv = machine.apics[0], machine.owners[0], FakeHvTimer()
        apic.timer.use_hv_timer(hv)
        apic.timer.switch_to_hv_timer()
        start(machine, mode)
        apic.set_tscdeadline(COUNT)
        assert hv.armed() == COUNT
        apic.timer.switch_to_sw_timer()
        assert hv.armed() is None
        apic.timer.switch_to_hv_timer()
        assert hv.armed() == COUNT
        machine.advance(COUNT)
        assert owner.kicks == 0, "the guest runs: the exit is the expiry"
        apic.timer.expired_hv_timer()
        assert take(machine)
        assert hv.armed() == (2 * COUNT if mode == PERIODIC else None)
        if mode == PERIODIC:
            apic.timer.switch_to_sw_timer()
            machine.advance(COUNT)
            assert owner.kicks == 2, "one for the first interrupt, one of the software timer"
            assert take(machine)

    machine.run(body)


@settings(max_examples=60, deadline=None)
@given(
    period=st.integers(200_000, 700_000),
    steps=st.lists(st.tuples(st.integers(1, 900_000), st.booleans(), st.booleans()), min_size=1, max_size=25),
)
def test_periodic_ticks_against_arithmetic(period: int, steps: list[tuple[int, bool, bool]]) -> None:
    """At most one tick pends; it is there exactly if a boundary passed since the last was taken."""
    machine = Machine()

    def body() -> None:
        start(machine, PERIODIC, count=period)
        begin = machine.host.now_ns()
        taken_until = 0
        for duration, look, entry in steps:
            machine.advance(duration)
            boundaries = (machine.host.now_ns() - begin) // period
            if look:
                left = period - (machine.host.now_ns() - begin) % period
                assert read(machine.apics[0], regs.APIC_TMCCT) == left
            if entry:
                assert take(machine) == (boundaries > taken_until)
                taken_until = boundaries

    machine.run(body)
