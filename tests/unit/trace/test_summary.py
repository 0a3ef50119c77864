"""What a summary makes of a trace whose every time is known."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trace.any_events import ANY_EVENT
from vtlkit.trace import events
from vtlkit.trace.events import Event
from vtlkit.trace.summary import KICKS_REMEMBERED, Latency, summarise

WAKE: list[Event] = [
    events.KvmExit(100, "vp1", "vtl0", 1, "hlt", 0),
    events.KvmVcpuBlock(110, "vp1", "vtl0", 1, "HALTED"),
    events.KvmVcpuKick(200, "vp0", "vtl0", 1, 1, "vtl0-vcpu0"),
    events.KvmVcpuWakeup(230, "vp1", "vtl0", 1, 120, woken_by=1),
    events.KvmEntry(250, "vp1", "vtl0", 1, 0, False),
]
KICK: list[Event] = [
    events.KvmEntry(300, "vp1", "vtl0", 1, 0, False),
    events.KvmVcpuKick(310, "vp0", "vtl0", 1, 2, "vtl0-vcpu0"),
    events.KvmExit(317, "vp1", "vtl0", 1, "interrupted", 0, kicked_by=2),
]
SWITCH: list[Event] = [
    events.KvmExit(400, "vp0", "vtl0", 0, "hypercall", 0),
    events.KvmUserspaceExit(405, "vp0", "vtl0", 0, "KVM_EXIT_HYPERV", 27),
    events.VtlSwitch(410, "vp0", "vtl0", 0, 0, 1, "HvVtlEntryVtlCall"),
    events.KvmEntry(430, "vp0", "vtl1", 0, 0, False),
]


def test_a_wake() -> None:
    summary = summarise(WAKE)
    assert list(summary.wake.samples) == [30]
    assert list(summary.wake_to_entry.samples) == [50]
    assert list(summary.blocked.samples) == [120]
    assert summary.woke == {("vtl0-vcpu0", "vtl0-vcpu1"): 1}
    assert (summary.exit_counts, summary.exit_ns) == ({"hlt": 1}, {"hlt": 10})


def test_a_poll_that_found_its_event_is_a_wake_and_no_sleep() -> None:
    polled = events.KvmVcpuWakeup(230, "vp1", "vtl0", 1, 120, waited=False, woken_by=1)
    summary = summarise([events.KvmVcpuKick(200, "vp0", "vtl0", 1, 1, "vtl0-vcpu0"), polled])
    assert list(summary.blocked.samples) == []
    assert list(summary.wake.samples) == [30]


def test_a_wake_whose_vcpu_sleeps_again_comes_to_no_entry() -> None:
    again = events.KvmVcpuBlock(240, "vp1", "vtl0", 1, "HALTED")
    summary = summarise([*WAKE[:-1], again, WAKE[-1]])
    assert list(summary.wake_to_entry.samples) == []


def test_a_kick_of_a_guest() -> None:
    summary = summarise(KICK)
    assert list(summary.kick_to_exit.samples) == [7]
    assert not summary.woke


def test_a_vtl_switch() -> None:
    summary = summarise(SWITCH)
    assert list(summary.vtl_switch.samples) == [30]
    assert summary.exit_ns == {"hypercall": 10}


def test_an_exit_takes_until_the_next_entry() -> None:
    trace: list[Event] = []
    for number in range(3):
        trace.append(events.KvmExit(100 * number, "vp0", "vtl0", 0, "cpuid", 0))
        trace.append(events.KvmEntry(100 * number + 10 + number, "vp0", "vtl0", 0, 0, False))
    summary = summarise(trace)
    assert (summary.exit_counts["cpuid"], summary.exit_ns["cpuid"]) == (3, 33)


def test_an_empty_trace_has_a_summary() -> None:
    summary = summarise([])
    assert summary.events.total() == 0
    assert json.loads(json.dumps(summary.to_json()))["latency_ns"]["wake"] == {"count": 0}


def test_kicks_that_come_to_nothing_are_forgotten() -> None:
    kicks: list[Event] = [
        events.KvmVcpuKick(number, "vp0", "vtl0", 1, number, "vtl0-vcpu0") for number in range(1, KICKS_REMEMBERED + 2)
    ]
    oldest = events.KvmVcpuWakeup(9_999, "vp1", "vtl0", 1, 5, woken_by=1)
    second = events.KvmVcpuWakeup(9_999, "vp1", "vtl0", 1, 5, woken_by=2)
    assert not summarise([*kicks, oldest]).woke
    assert summarise([*kicks, second]).woke


@given(st.lists(ANY_EVENT, max_size=40))
def test_no_order_of_events_upsets_it(trace: list[Event]) -> None:
    summary = summarise(trace)
    assert summary.events.total() == len(trace)
    json.dumps(summary.to_json())


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [([5], 0.0, 5), ([5], 1.0, 5), ([1, 2], 0.5, 1), ([1, 2, 3], 0.5, 2), (list(range(1, 101)), 0.99, 99)],
)
def test_quantiles(samples: list[int], share: float, expected: int) -> None:
    latency = Latency()
    for sample in reversed(samples):
        latency.add(sample)
    assert latency.quantiles([share]) == [expected]


def test_buckets_are_powers_of_two_without_gaps() -> None:
    latency = Latency()
    for sample in (0, 1, 5, 7, 8):
        latency.add(sample)
    assert latency.buckets() == [(0, 1, 1), (1, 2, 1), (2, 4, 0), (4, 8, 2), (8, 16, 1)]
