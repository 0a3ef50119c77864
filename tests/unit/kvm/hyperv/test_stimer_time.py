"""Synthetic timers against the clock: when they are armed for, jitter, direct mode, real time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.kvm.core_rig import DONE, Machine, Script, script
from tests.unit.kvm.hyperv.timer_rig import (
    DIRECT,
    ENABLED,
    PERIODIC,
    TICK,
    TSC_PAGE,
    Timers,
    direct,
    offer_hyperv,
    sint,
)
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.host.threads import ThreadHost
from vtlkit.hvdef import msrs
from vtlkit.kvm.kvm_run import Io, KvmRun
from vtlkit.x86.registers import RFLAGS_IF

U64 = (1 << 64) - 1
VECTOR = 0x71
MS = 1_000_000


@settings(max_examples=60)
@given(
    st.sampled_from([10_000, 999_983, 1_000_000, 2_893_437, 3_000_000, 5_000_000]),
    st.integers(0, 5 * MS),
    st.integers(0, 1 << 63),
    st.booleans(),
    st.lists(st.integers(0, 40_000), min_size=1, max_size=5),
)
def test_a_count_is_reached_at_the_time_that_it_is_armed_for(
    tsc_khz: int, begin_ns: int, tsc: int, page: bool, counts: list[int]
) -> None:
    timers = Timers()
    timers.vcpu.vm.tsc_khz = tsc_khz
    reference = timers.vcpu.vm.hv.reference_time
    timers.wait_until(begin_ns)
    timers.vcpu.write_tsc(tsc)
    if page:
        assert timers.set(msrs.HV_X64_MSR_REFERENCE_TSC, TSC_PAGE | 1)
    base = timers.now
    for count in sorted(counts):
        now = timers.host.now_ns()
        due = reference.host_ns(base + count)
        if due > now:
            timers.wait_until(due - 1)
            assert timers.now < base + count
            timers.wait_until(due)
        assert timers.now >= base + count


def test_times_that_do_not_come() -> None:
    timers = Timers()
    for page in (0, 1):
        timers.set(msrs.HV_X64_MSR_REFERENCE_TSC, TSC_PAGE | page)
        assert timers.vcpu.vm.hv.reference_time.host_ns(U64) >= 1 << 62


@pytest.mark.tlfs("synic.stimer-one-shot")
def test_the_reference_tsc_page_may_be_switched_on_while_a_timer_runs() -> None:
    timers = Timers()
    timers.start(0, direct(VECTOR), 10_000)
    timers.wait_until(50)
    # The page's scale is rounded down: its time is behind by less than a cycle from now on.
    timers.set(msrs.HV_X64_MSR_REFERENCE_TSC, TSC_PAGE | 1)
    assert timers.look(MS) == []
    assert timers.now == 9_999
    assert timers.look(MS + 1) == [VECTOR]


def ticking_guest(config: int, count: int, ticks: int, *, halting: bool, tsc_page: bool) -> list[int]:
    """Virtual times at which a guest's handler is entered."""
    entered: list[int] = []

    def wrmsr(index: int, value: int) -> Script:
        yield ops.Set(index, "rcx")
        yield ops.Set(value >> 32, "rdx")
        yield ops.Set(value & 0xFFFFFFFF)
        yield ops.Wrmsr()

    def program(_engine: object) -> Script:
        yield from wrmsr(msrs.HV_X64_MSR_REFERENCE_TSC, TSC_PAGE | tsc_page)
        yield from wrmsr(msrs.HV_X64_MSR_STIMER0_COUNT, count)
        yield from wrmsr(msrs.HV_X64_MSR_STIMER0_CONFIG, config | ENABLED)
        while len(entered) < ticks:
            yield ops.Hlt() if halting else ops.Compute(1)
        yield ops.Out(0x99, 1, 0)

    def handler(_engine: object, _event: Event) -> Script:
        entered.append(machine.host.now_ns() + pending_ns())
        return body()

    def body() -> Script:
        yield ops.Write(0xFEE000B0, 4, 0)

    def pending_ns() -> int:
        return (machine.cpu.executed - machine.vcpu.clock_mark) * machine.vm.ns_per_instruction

    machine = Machine(program, handlers={VECTOR: handler})
    offer_hyperv(machine.vcpu)
    machine.cpu.rflags |= RFLAGS_IF
    machine.run(machine.vcpu.run)
    return entered


@pytest.mark.tlfs("synic.stimer-direct", "synic.stimer-periodic")
@pytest.mark.parametrize("halting", [True, False])
@pytest.mark.parametrize("tsc_page", [True, False])
@pytest.mark.parametrize("count", [100, 997, 12_345])
def test_a_direct_timer_has_no_jitter(count: int, tsc_page: bool, halting: bool) -> None:
    entered = ticking_guest(direct(VECTOR) | PERIODIC, count, 40, halting=halting, tsc_page=tsc_page)
    assert {later - earlier for earlier, later in pairwise(entered)} == {count * TICK}


@pytest.mark.tlfs("synic.stimer-direct")
def test_direct_mode_sends_no_message() -> None:
    timers = Timers()
    timers.start(3, direct(VECTOR) | sint(1), 1000)
    assert timers.look(1000 * TICK) == [VECTOR]
    assert timers.message(1) is None
    assert timers.config(3) == DIRECT | VECTOR << 4 | sint(1)


def test_a_timer_shorter_than_an_exit_does_not_stop_the_guest() -> None:
    """100 ns: an exit alone takes ten times as long."""
    entered = ticking_guest(direct(VECTOR) | PERIODIC, 1, 50, halting=False, tsc_page=False)
    assert len(entered) >= 50


def test_on_threads_timers_expire_too() -> None:
    seen: list[int] = []

    def program(_engine: object) -> Script:
        while len(seen) < 5:
            yield ops.Hlt()
        yield ops.Out(0x99, 1, 0)

    def handler(_engine: object, event: Event) -> Script:
        seen.append(event.vector)
        return body()

    def body() -> Script:
        yield ops.Write(0xFEE000B0, 4, 0)

    machine = Machine(program, handlers={VECTOR: handler}, host=ThreadHost())
    offer_hyperv(machine.vcpu)
    machine.cpu.rflags |= RFLAGS_IF

    def user() -> None:
        machine.vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_COUNT, 10_000)
        machine.vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_CONFIG, direct(VECTOR) | PERIODIC | ENABLED)
        machine.vcpu.run()
        machine.vcpu.hv.destroy()

    machine.run(user)
    assert len(seen) == 5


@pytest.mark.parametrize("page", [0, 1])
def test_a_period_shorter_than_it_takes_to_serve_it_leaves_time_for_the_guest(page: int) -> None:
    machine = Machine(script(*[ops.Compute(10)] * 20, ops.Out(DONE, 1, 0)), host=ThreadHost())
    vcpu = machine.vcpu
    offer_hyperv(vcpu)
    machine.cpu.unbounded = True
    exits: list[KvmRun] = []

    def user() -> None:
        vcpu.set_guest_msr(msrs.HV_X64_MSR_REFERENCE_TSC, TSC_PAGE | page)
        for timer in range(4):
            vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_COUNT + 2 * timer, 1)
            vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_CONFIG + 2 * timer, direct(VECTOR) | PERIODIC | ENABLED)
        watchdog.start(machine.host.now_ns() + 4_000 * MS)
        exits.append(vcpu.run())
        watchdog.cancel()
        vcpu.hv.destroy()

    watchdog = machine.host.timer(vcpu.signal, "watchdog")
    machine.run(user)
    assert isinstance(exits[0], Io), "the guest has not executed an instruction"
