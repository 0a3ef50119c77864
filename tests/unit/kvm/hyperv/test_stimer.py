"""Synthetic timers: the rules of CONFIG and COUNT, one-shot and periodic expirations, messages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.hyperv.rig import ALL_FEATURES
from tests.unit.kvm.hyperv.timer_rig import (
    AUTO_ENABLE,
    ENABLED,
    LAZY,
    MASKED,
    PERIODIC,
    TICK,
    TimerMessage,
    Timers,
    direct,
    sint,
)
from vtlkit.hvdef import msrs
from vtlkit.hvdef.synic import HV_STIMER_CONFIG_RESERVED_MASK
from vtlkit.kvm.requests import Req

U64 = (1 << 64) - 1
VECTOR = 0x71
RESERVED = [bit for bit in range(64) if HV_STIMER_CONFIG_RESERVED_MASK >> bit & 1]
MS = 1_000_000


# --- registers --------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("synic.stimer-auto-enable")
def test_reset_values_and_indices() -> None:
    timers = Timers()
    indices = range(msrs.HV_X64_MSR_STIMER0_CONFIG, msrs.HV_X64_MSR_STIMER3_COUNT + 1)
    assert [timers.get(index) for index in indices] == [0] * 8
    for number in range(4):
        timers.start(number, sint(1 + number), 1000 + number)
    values = [value for number in range(4) for value in (sint(1 + number) | ENABLED, 1000 + number)]
    assert [timers.get(index) for index in indices] == values
    timers.vcpu.reset(init_event=True)
    assert [timers.get(index) for index in indices] == values, "INIT leaves synthetic registers alone"
    timers.vcpu.reset(init_event=False)
    assert [timers.get(index) for index in indices] == [0] * 8
    assert timers.look(10 * MS) == []


@pytest.mark.tlfs("synic.stimer-auto-enable")
@given(st.sampled_from(RESERVED), st.integers(0, U64))
def test_reserved_bits_fault_and_change_nothing(bit: int, value: int) -> None:
    timers = Timers()
    assert timers.set_config(0, sint(5))
    assert not timers.set_config(0, value | 1 << bit)
    assert timers.config(0) == sint(5)


@pytest.mark.tlfs("synic.stimer-direct")
def test_direct_mode_needs_its_feature_and_a_fixed_vector() -> None:
    timers = Timers()
    assert not timers.set_config(0, direct(15))
    assert not timers.set_config(0, direct(0) | ENABLED)
    assert timers.set_config(0, direct(16))
    timers = Timers(replace(ALL_FEATURES, stimer_direct=False))
    assert not timers.set_config(0, direct(VECTOR))
    assert timers.set_config(0, sint(1))
    assert timers.vcpu.set_msr(msrs.HV_X64_MSR_STIMER0_CONFIG, direct(VECTOR)), "user space restores what it saved"


def test_the_privilege_guards_all_eight() -> None:
    timers = Timers(replace(ALL_FEATURES, stimer=False, stimer_direct=False))
    for index in range(msrs.HV_X64_MSR_STIMER0_CONFIG, msrs.HV_X64_MSR_STIMER3_COUNT + 1):
        assert timers.get(index) is None
        assert not timers.set(index, 0)


@pytest.mark.tlfs("synic.stimer-auto-enable")
def test_sint_0_is_not_for_timers() -> None:
    timers = Timers()
    timers.start(0, sint(0), 1000)
    assert timers.config(0) == 0
    assert timers.set_config(1, AUTO_ENABLE | PERIODIC)
    assert timers.set_count(1, 1000)
    assert timers.config(1) == AUTO_ENABLE | PERIODIC
    timers.start(2, direct(VECTOR), 1000)
    assert timers.config(2) == direct(VECTOR) | ENABLED, "direct mode uses no SINT"
    assert timers.look(MS) == [VECTOR]


@pytest.mark.tlfs("synic.stimer-auto-enable")
def test_count_enables_and_disables() -> None:
    timers = Timers()
    assert timers.set_config(0, direct(VECTOR))
    assert timers.set_count(0, 1000)
    assert timers.config(0) == direct(VECTOR), "no AutoEnable"
    assert timers.look(MS) == []
    assert timers.set_config(0, direct(VECTOR) | AUTO_ENABLE)
    assert timers.look(2 * MS) == [], "only a write of COUNT enables it"
    assert timers.set_count(0, 30_000)
    assert timers.config(0) == direct(VECTOR) | AUTO_ENABLE | ENABLED
    assert timers.set_count(0, 0)
    assert timers.config(0) == direct(VECTOR) | AUTO_ENABLE
    assert timers.look(4 * MS) == []
    assert timers.set_count(0, 50_000)
    assert timers.look(5 * MS) == [VECTOR]
    assert timers.config(0) == direct(VECTOR) | AUTO_ENABLE


@pytest.mark.tlfs("synic.stimer-auto-enable")
def test_enabled_without_a_count_runs_when_the_count_comes() -> None:
    timers = Timers()
    timers.start(0, direct(VECTOR), 0)
    assert timers.config(0) & ENABLED
    assert timers.look(MS) == []
    assert timers.set_count(0, 20_000)
    assert timers.look(2 * MS - 1) == []
    assert timers.look(2 * MS) == [VECTOR]


def test_user_space_writes_what_it_has_read() -> None:
    """COUNT 0 disables, and AutoEnable enables, only when the guest writes."""
    timers = Timers()
    assert timers.vcpu.set_msr(msrs.HV_X64_MSR_STIMER0_CONFIG, sint(1) | ENABLED)
    assert timers.vcpu.set_msr(msrs.HV_X64_MSR_STIMER0_COUNT, 0)
    assert timers.config(0) == sint(1) | ENABLED
    assert timers.vcpu.set_msr(msrs.HV_X64_MSR_STIMER0_CONFIG + 2, sint(1) | AUTO_ENABLE)
    assert timers.vcpu.set_msr(msrs.HV_X64_MSR_STIMER0_COUNT + 2, 5000)
    assert timers.config(1) == sint(1) | AUTO_ENABLE


# --- one-shot ---------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("synic.stimer-one-shot", "synic.stimer-message")
def test_a_one_shot_timer_sends_one_message_at_its_time() -> None:
    timers = Timers()
    timers.wait_until(777)
    timers.start(2, sint(3), 12_345)
    assert timers.look(12_345 * TICK - 1) == []
    assert timers.config(2) == sint(3) | ENABLED
    assert timers.look(12_345 * TICK) == [0x70]
    assert timers.take_message(3) == (TimerMessage(2, 12_345, 12_345), False)
    assert timers.config(2) == sint(3), "it has disabled itself"
    assert timers.look(20 * MS) == []
    assert timers.message(3) is None


@pytest.mark.tlfs("synic.stimer-one-shot")
def test_a_count_in_the_past_expires_at_once() -> None:
    timers = Timers()
    timers.wait_until(5 * MS)
    timers.start(0, sint(1), 49_999)
    assert timers.look() == [0x50]
    assert timers.message(1) == TimerMessage(0, 49_999, 50_000)


@pytest.mark.tlfs("synic.stimer-one-shot")
@given(st.integers(0, U64))
def test_any_count_is_taken_and_none_expires_early(count: int) -> None:
    timers = Timers()
    timers.wait_until(MS)
    timers.start(0, direct(VECTOR), count)
    taken = timers.look(MS)
    assert taken == ([VECTOR] if 0 < count <= 10_000 else [])
    assert timers.look(3 * MS) == ([VECTOR] if 10_000 < count <= 30_000 else [])


@pytest.mark.parametrize("stop", ["config", "count", "reset", "destroy"])
def test_a_stopped_timer_does_not_expire(stop: str) -> None:
    timers = Timers()
    timers.start(0, direct(VECTOR), 10_000)
    timers.start(1, direct(VECTOR) | PERIODIC, 10_000)
    timers.wait_until(MS + 1)
    for number in (0, 1):
        if stop == "config":
            timers.set_config(number, 0)
        elif stop == "count":
            timers.set_count(number, 0)
    if stop == "reset":
        timers.vcpu.hv.reset(init_event=False)
    if stop == "destroy":
        timers.look()
        timers.vcpu.hv.destroy()
    assert timers.look(5 * MS) == []


def test_a_new_count_forgets_the_old_expiration() -> None:
    timers = Timers()
    timers.start(0, direct(VECTOR), 10_000)
    timers.wait_until(MS)
    assert timers.vcpu.requests.test(Req.HV_STIMER)
    timers.set_count(0, 30_000)
    assert timers.look(2 * MS) == []
    assert timers.look(3 * MS) == [VECTOR]


# --- periodic ---------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("synic.stimer-periodic")
@pytest.mark.parametrize("lazy", [0, LAZY])
def test_periods_begin_when_the_timer_is_enabled_and_do_not_drift(lazy: int) -> None:
    timers = Timers()
    timers.set_count(0, 10_000)
    timers.wait_until(300 * TICK)
    timers.start(0, sint(1) | PERIODIC | lazy, 10_000)
    for tick in range(1, 20):
        due = 300 + tick * 10_000
        # Looked at late, and by a different amount each time.
        late = tick * 37 % 100
        assert timers.look(due * TICK - 1) == []
        assert timers.look((due + late) * TICK) == [0x50]
        assert timers.take_message(1) == (TimerMessage(0, due, due + late), False)
    assert timers.config(0) & ENABLED


@pytest.mark.tlfs("synic.stimer-periodic")
@pytest.mark.parametrize("lazy", [0, LAZY])
def test_missed_periods_are_skipped_and_the_grid_stays(lazy: int) -> None:
    timers = Timers()
    timers.start(0, sint(1) | PERIODIC | lazy, 1000)
    assert timers.look(7_300 * TICK) == [0x50]
    assert timers.take_message(1)[0] == TimerMessage(0, 1000, 7300)
    assert timers.look(8_000 * TICK - 1) == []
    assert timers.look(8_000 * TICK) == [0x50]
    assert timers.take_message(1)[0] == TimerMessage(0, 8000, 8000)


@pytest.mark.tlfs("synic.stimer-periodic", "synic.stimer-message")
def test_a_busy_slot_keeps_one_tick_and_a_lazy_timer_none() -> None:
    timers = Timers()
    timers.start(0, sint(1) | PERIODIC, 1000)
    timers.start(1, sint(2) | PERIODIC | LAZY, 1000)
    assert timers.look(1000 * TICK) == [0x60, 0x50]
    for when in (2000, 3000, 3500):
        timers.look(when * TICK)
    for number in (1, 2):
        message, must_end = timers.take_message(number)
        assert message == TimerMessage(number - 1, 1000, 1000)
        assert must_end
    timers.wait_until(3600 * TICK)
    timers.end_of_message()
    assert timers.look() == [0x50]
    assert timers.take_message(1)[0] == TimerMessage(0, 2000, 3600)
    assert timers.message(2) is None
    assert timers.look(4000 * TICK) == [0x60, 0x50]
    assert timers.message(1) == TimerMessage(0, 4000, 4000)
    assert timers.message(2) == TimerMessage(1, 4000, 4000)


# --- messages that find no room ---------------------------------------------------------------------------------------


@pytest.mark.tlfs("synic.stimer-message")
@pytest.mark.parametrize("end", ["eom", "eoi"])
def test_a_message_waits_for_its_slot(end: str) -> None:
    timers = Timers()
    for number in (0, 1, 2):
        timers.start(number, sint(1), 1000 + number)
    timers.wait_until(1002 * TICK)
    while timers.vcpu.check_request(Req.HV_STIMER):
        timers.vcpu.hv.process_stimers()
    assert timers.vcpu.apic.get_interrupt() == 0x50
    assert timers.pending(1)
    timers.wait_until(2000 * TICK)
    assert timers.take_message(1) == (TimerMessage(0, 1000, 1002), True)
    if end == "eom":
        timers.end_of_message()
    timers.vcpu.apic.set_eoi()
    assert timers.message(1) == TimerMessage(1, 1001, 2000)
    assert timers.pending(1), "one more waits"
    assert timers.config(1) == sint(1)
    assert timers.config(2) == sint(1) | ENABLED
    timers.take_message(1)
    timers.end_of_message()
    assert timers.take_message(1) == (TimerMessage(2, 1002, 2000), False)


@pytest.mark.tlfs("synic.stimer-message")
def test_a_message_waits_for_the_synic() -> None:
    timers = Timers()
    timers.synic(False)
    timers.start(0, sint(1), 1000)
    timers.start(1, sint(2), 1000)
    timers.set(msrs.HV_X64_MSR_SIMP, 0)
    assert timers.look(2000 * TICK) == []
    timers.synic(True)
    assert timers.look() == []
    timers.set(msrs.HV_X64_MSR_SIMP, 0x5000 | 1)
    assert timers.look() == [0x60, 0x50]
    assert timers.message(1) == TimerMessage(0, 1000, 2000)


def test_disabling_a_timer_drops_its_waiting_message() -> None:
    timers = Timers()
    timers.start(0, sint(1), 1000)
    timers.start(1, sint(1), 1000)
    timers.look(1000 * TICK)
    timers.set_config(1, 0)
    timers.take_message(1)
    timers.end_of_message()
    assert timers.message(1) is None


@pytest.mark.tlfs("synic.stimer-message")
def test_a_masked_sint_gets_the_message_and_no_interrupt() -> None:
    timers = Timers()
    timers.set(msrs.HV_X64_MSR_SINT0 + 1, MASKED | 0x50)
    timers.start(0, sint(1), 1000)
    assert timers.look(1000 * TICK) == []
    assert timers.message(1) == TimerMessage(0, 1000, 1000)
