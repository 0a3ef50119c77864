"""Reference time: the TSC page and the counter agree at every TSC value, and time does not go back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.hyperv.rig import FakeVm
from vtlkit.hvdef import msrs
from vtlkit.hvdef.assist import HV_REFERENCE_TSC_PAGE

COUNT, PAGE = msrs.HV_X64_MSR_TIME_REF_COUNT, msrs.HV_X64_MSR_REFERENCE_TSC
GPA = 0x3000
U64 = (1 << 64) - 1


def page_time(vm: FakeVm) -> int | None:
    """What a guest computes from the page now, by the TLFS's formula; None if the page says not to."""
    page = HV_REFERENCE_TSC_PAGE.unpack(vm.memory.read(GPA, 4096))
    if not page.TscSequence:
        return None
    return ((vm.cpu.tsc * page.TscScale >> 64) + page.TscOffset) & U64


@pytest.mark.tlfs("msrs.reference-time")
def test_the_counter_counts_100_ns_from_its_origin() -> None:
    vm = FakeVm(time_origin_ns=1000)
    vm.clock_ns = 1000
    assert vm.cpu.rdmsr(COUNT) == 0
    vm.clock_ns = 123_456_789
    assert vm.cpu.rdmsr(COUNT) == 1_234_557
    assert not vm.cpu.wrmsr(COUNT, 0)
    assert vm.cpu.hv.set_msr(COUNT, 0, host_initiated=True)


@given(
    st.integers(10_001, 10_000_000),
    st.integers(0, 1 << 62),
    st.integers(0, 1 << 60),
    st.lists(st.integers(0, U64), min_size=1, max_size=20),
)
@pytest.mark.tlfs("msrs.reference-time")
def test_page_and_counter_agree(tsc_khz: int, clock_ns: int, tsc: int, later: list[int]) -> None:
    vm = FakeVm()
    vm.tsc_khz, vm.clock_ns, vm.cpu.tsc = tsc_khz, clock_ns, tsc
    assert vm.cpu.wrmsr(PAGE, GPA | 1)
    assert vm.cpu.rdmsr(PAGE) == GPA | 1
    assert vm.cpu.rdmsr(COUNT) == page_time(vm) == clock_ns // 100
    for value in later:
        vm.cpu.tsc = value
        assert vm.cpu.rdmsr(COUNT) == page_time(vm)


@pytest.mark.tlfs("msrs.reference-time")
def test_the_page_runs_at_the_rate_of_time() -> None:
    vm = FakeVm()
    vm.tsc_khz = 2_893_437
    vm.clock_ns, vm.cpu.tsc = 5_000_000_000, 77_000
    vm.cpu.wrmsr(PAGE, GPA | 1)
    day_ns = 86_400_000_000_000
    vm.cpu.tsc += day_ns * vm.tsc_khz // 1_000_000
    vm.clock_ns += day_ns
    now = page_time(vm)
    assert now is not None
    assert abs(now - vm.clock_ns // 100) <= 1


@pytest.mark.tlfs("msrs.reference-time")
def test_disabling_the_page_never_turns_time_back() -> None:
    vm = FakeVm()
    vm.cpu.wrmsr(PAGE, GPA | 1)
    vm.cpu.tsc += 100_000_050
    vm.clock_ns += 100_000_000
    ahead = vm.cpu.rdmsr(COUNT)
    vm.clock_ns -= 5_000
    vm.cpu.wrmsr(PAGE, 0)
    assert vm.cpu.rdmsr(COUNT) == ahead
    vm.clock_ns += 10_000
    assert vm.cpu.rdmsr(COUNT) == vm.clock_ns // 100


@pytest.mark.tlfs("msrs.reference-time")
def test_sequence_numbers_and_a_changed_tsc() -> None:
    vm = FakeVm()
    assert vm.memory.read(GPA, 4) == bytes(4)
    vm.cpu.wrmsr(PAGE, GPA | 1)
    first = int.from_bytes(vm.memory.read(GPA, 4), "little")
    vm.clock_ns, vm.cpu.tsc, vm.tsc_khz = 4_000_000, 9_000_000, 3_000_000
    vm.hv.tsc_changed()
    second = int.from_bytes(vm.memory.read(GPA, 4), "little")
    assert first
    assert second
    assert second != first
    assert page_time(vm) == vm.cpu.rdmsr(COUNT) == 40_000
    vm.cpu.tsc += 3_000_000
    assert page_time(vm) == 50_000


@pytest.mark.tlfs("msrs.reference-time")
def test_sequence_numbers_differ_from_change_to_change_and_are_never_0() -> None:
    vm = FakeVm()
    vm.cpu.wrmsr(PAGE, GPA | 1)
    seen = []
    # The last value is followed by 1; all ones, which older guests took for "invalid", is not used.
    vm.hv.reference_time._sequence = 0xFFFFFFFC
    for _ in range(4):
        vm.hv.tsc_changed()
        seen.append(int.from_bytes(vm.memory.read(GPA, 4), "little"))
    assert seen == [0xFFFFFFFD, 0xFFFFFFFE, 1, 2]
    vm.cpu.wrmsr(PAGE, GPA)
    vm.cpu.wrmsr(PAGE, GPA | 1)
    assert int.from_bytes(vm.memory.read(GPA, 4), "little") == 3


@pytest.mark.tlfs("msrs.reference-time")
def test_a_tsc_too_slow_to_scale_leaves_the_page_invalid() -> None:
    vm = FakeVm()
    vm.tsc_khz = 9_999
    vm.cpu.wrmsr(PAGE, GPA | 1)
    assert page_time(vm) is None
    vm.clock_ns = 5_000
    assert vm.cpu.rdmsr(COUNT) == 50


def test_reset_disables_the_page_and_time_goes_on() -> None:
    vm = FakeVm()
    vm.clock_ns = 1_000_000
    vm.cpu.wrmsr(PAGE, GPA | 1)
    vm.hv.reset()
    assert vm.cpu.rdmsr(PAGE) == 0
    assert vm.memory.overlay_at(GPA) is None
    assert vm.cpu.rdmsr(COUNT) == 10_000


@pytest.mark.tlfs("msrs.reference-time")
def test_the_counter_outlives_the_first_vcpu() -> None:
    """At the end of a run vCPUs go one after the other: those that are left still ask what time it is."""
    vm = FakeVm(2)
    first, second = vm.vcpus
    first.tsc, second.tsc = 5_000, 999_999_999
    assert first.wrmsr(PAGE, GPA | 1)
    before = second.rdmsr(COUNT)
    vm.vcpus = [second]
    assert second.rdmsr(COUNT) == before
