"""What is told of a trace, what is left out, and that two runs that part are told apart. Traces made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.hvdef import msrs
from vtlkit.testing.differential import CONTEXT, UNTOLD, Difference, Recording, compare, stories
from vtlkit.trace import events
from vtlkit.trace.events import Event
from vtlkit.x86 import msr
from vtlkit.x86.exceptions import PFERR_PRESENT, PFERR_WRITE

COM1, STATUS, CONTROL = 0x3F8, 0x3FD, 0x3FB


def at(kind: Any, *values: Any, vm: str = "vtl0", vcpu: int = 0) -> Event:
    event: Event = kind(0, "vp0", vm, vcpu, *values)
    return event


def out(port: int, value: int, **where: Any) -> Event:
    return at(events.KvmPio, True, port, 1, value, **where)


def port_in(port: int, value: int, **where: Any) -> Event:
    return at(events.KvmPio, False, port, 1, value, **where)


def says(text: str, **where: Any) -> list[Event]:
    """As a driver writes it: is there room, then a character."""
    return [event for each in text for event in (port_in(STATUS, 0x60, **where), out(COM1, ord(each), **where))]


def one(*trace: Event) -> list[str]:
    """The story of the only vCPU; empty if there is nothing to tell."""
    return stories(trace).get("vtl0-vcpu0", [])


HLT = (events.KvmExit, "hlt", 0x1000)


def test_of_every_event_something_is_told_or_the_reason_is_given_why_not() -> None:
    made = {name: _any_of(kind) for name, kind in events.CLASSES.items()}
    for name, event in made.items():
        assert (name in UNTOLD) == (not stories([event])), name


def _any_of(kind: type[Event]) -> Event:
    values: dict[str, Any] = {
        name: {int: 1, str: "x", bool: False}[type_] for name, type_ in events.KINDS[kind.name].items()
    }
    return kind(**{**values, "vm": "vtl0", "vcpu": 0})


def test_vcpus_and_vtls_have_stories_of_their_own() -> None:
    trace = [out(0x80, 1), out(0x80, 2, vcpu=1), out(0x80, 3, vm="vtl1"), out(0x80, 4)]
    assert stories(trace) == {
        "vtl0-vcpu0": ["out 0x80 size 1: 0x1", "out 0x80 size 1: 0x4"],
        "vtl0-vcpu1": ["out 0x80 size 1: 0x2"],
        "vtl1-vcpu0": ["out 0x80 size 1: 0x3"],
    }


def test_accesses_are_told_with_their_sizes_and_values() -> None:
    assert one(
        port_in(0x80, 0x12),
        at(events.KvmMmio, True, 4, 0xFF000000, 0x1234),
        at(events.KvmMmio, False, 2, 0xFF000002, 0x34),
        at(events.KvmMsr, True, 0x40000001, 0x1001, False),
        at(events.KvmMsr, False, 0x999, 0, True),
        at(events.KvmInjException, "#GP", 0, False),
    ) == [
        "in 0x80 size 1: 0x12",
        "store to 0xff000000 size 4: 0x1234",
        "load from 0xff000002 size 2: 0x34",
        "wrmsr 0x40000001: 0x1001",
        "rdmsr 0x999: 0x0, #GP",
        "inj_exception: #GP (0x0)",
    ]


def test_hypercalls_are_told_with_parameters_and_result_but_of_vtl_switches_the_left_overs_are_not() -> None:
    assert one(
        at(events.KvmHvHypercall, 0x50, False, 0, 1, 0, 0x1000, 0x1800),
        at(events.KvmHvHypercallDone, 1 << 32),
        at(events.KvmHvHypercall, 0x11, False, 0, 0, 0, 0xDEAD, 0xBEEF),
        at(events.VtlSwitch, 0, 1, "HvVtlEntryVtlCall"),
    ) == [
        "hv_hypercall: code 0x50 slow var_cnt 0x0 rep_cnt 0x1 idx 0x0 in 0x1000 out 0x1800",
        "hv_hypercall_done: result 0x100000000",
        "HvCallVtlCall",
        "vtl_switch: vp 0 vtl 0 -> 1 reason HvVtlEntryVtlCall",
    ]


def test_what_the_guest_says_is_told_by_the_line_however_often_it_asks_for_room() -> None:
    hurried = [out(COM1, ord(each)) for each in "one\n"]
    assert one(*says("one\n")) == one(*hurried) == ["says 'one'"]
    assert one(*says("on"), out(0x80, 1)) == ["says 'on', no line's end", "out 0x80 size 1: 0x1"]
    assert one(*says("e")) == ["says 'e', no line's end"]


def test_the_serial_ports_divisor_is_nothing_that_is_said() -> None:
    assert one(out(CONTROL, 0x80), out(COM1, 1), out(CONTROL, 3), *says("a\n"))[1:] == [
        "out 0x3f8 size 1: 0x1",
        "out 0x3fb size 1: 0x3",
        "says 'a'",
    ]


@given(st.integers(1, 5), st.integers(1, 5))
def test_polls_are_told_once(before: int, after: int) -> None:
    polls = [port_in(0x64, 1)] * before + [port_in(0x64, 0)] * after
    assert one(*polls) == ["in 0x64 size 1: 0x1", "in 0x64 size 1: 0x0"]
    assert len(one(*[out(0x64, 1)] * before)) == before, "a write is no poll"


def test_a_memory_fault_is_told_if_user_space_is() -> None:
    fault = at(events.KvmPageFault, 0x1000, 0x5008, PFERR_PRESENT | PFERR_WRITE)
    left = at(events.KvmExit, "memory_fault", 0x1000)
    told = at(events.KvmUserspaceExit, "KVM_EXIT_MEMORY_FAULT", 39)
    assert one(left, fault, told) == ["writes 0x5008 at RIP 0x1000, which is not permitted"]
    # The first touch of a device's page: the hypervisor has it mapped, and the access is made again.
    touched = at(events.KvmMmio, True, 4, 0x5008, 1)
    assert one(left, fault, at(*HLT), told, touched) == ["halts", "store to 0x5008 size 4: 0x1"]


def test_halts_are_told_where_there_is_nobody_to_be_early() -> None:
    assert one(at(*HLT), at(*HLT)) == ["halts"]
    assert stories([at(*HLT), at(*HLT, vcpu=1), out(0x80, 1, vcpu=1)]) == {
        "vtl0-vcpu0": [],
        "vtl0-vcpu1": ["out 0x80 size 1: 0x1"],
    }


@pytest.mark.parametrize(
    "reason", ["interrupted", "cpuid", "interrupt_window", "preemption_timer", "cr_access", "pause"]
)
def test_exits_that_are_an_engines_own_are_not_told(reason: str) -> None:
    assert one(at(events.KvmExit, reason, 0x1000)) == []


def test_clocks_are_not_told_and_deadlines_without_their_time() -> None:
    reads = [at(events.KvmMsr, False, msrs.HV_X64_MSR_TIME_REF_COUNT, now, False) for now in range(3)]
    assert one(*reads, port_in(0x608, 5)) == []
    assert one(at(events.KvmMsr, True, msr.MSR_IA32_TSC_DEADLINE, 12345, False)) == ["wrmsr 0x6e0: (any)"]
    refused = at(events.KvmMsr, False, msrs.HV_X64_MSR_TIME_REF_COUNT, 0, True)
    assert one(refused) == ["rdmsr 0x40000020: (any), #GP"]


def test_ends_of_interrupts_are_not_told() -> None:
    assert one(at(events.KvmMsr, True, msrs.HV_X64_MSR_EOM, 0, False)) == []
    assert one(at(events.KvmMsr, True, 0x80B, 0, False)) == []


def test_masks_stand_for_what_guests_say_differently() -> None:
    found = stories(says("call at +0xf\n"), masks=[(r"\+0x[0-9a-f]+", "+(any)")])
    assert found == {"vtl0-vcpu0": ["says 'call at +(any)'"]}


def recording(*lines: str, console: str = "", outcome: str = "done", other: bool = False) -> Recording:
    told = {"vtl0-vcpu0": list(lines), **({"vtl0-vcpu1": []} if other else {})}
    return Recording(outcome, console, told, [])


def test_runs_that_are_the_same_do_not_differ() -> None:
    assert compare(recording("a", "b", console="x\ny\n"), recording("a", "b", console="x\ny\n")) == []


def test_a_difference_is_told_with_what_led_to_it() -> None:
    lines = [f"line {number}" for number in range(20)]
    (found,) = compare(recording(*lines, "here", "b"), recording(*lines, "there"))
    assert found == Difference("vtl0-vcpu0", 20, lines[-CONTEXT:], ["here", "b"], ["there"])
    told = found.describe("unicorn", "kvm").splitlines()
    assert told[0] == "vtl0-vcpu0: 20 the same, then not"
    assert told[1 : 1 + CONTEXT] == [f"      {line}" for line in lines[-CONTEXT:]]
    assert told[1 + CONTEXT :] == ["  unicorn:", "    > here", "    > b", "  kvm:", "    > there"]


def test_a_run_that_goes_on_where_the_other_ends_differs() -> None:
    (found,) = compare(recording("a"), recording("a", "b"))
    assert (found.left, found.right) == ([], ["b"])
    assert "(nothing more)" in found.describe()


def test_a_vcpu_that_one_run_has_not_differs() -> None:
    more = Recording("done", "", {"vtl0-vcpu0": ["a"], "vtl1-vcpu0": ["b"]}, [])
    assert [each.where for each in compare(recording("a"), more)] == ["vtl1-vcpu0"]


def test_outcome_and_console_count() -> None:
    found = compare(recording(console="x\n"), recording(console="y\n", outcome="timeout"))
    assert [each.where for each in found] == ["console", "outcome"]


def test_lines_of_a_console_are_in_order_if_one_processor_writes_them() -> None:
    assert compare(recording(console="x\ny\n"), recording(console="y\nx\n")) != []
    assert compare(recording(console="x\ny\n", other=True), recording(console="y\nx\n", other=True)) == []


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_the_first_difference_is_the_one_that_is_told(left: list[str], right: list[str]) -> None:
    found = compare(recording(*left), recording(*right))
    if left == right:
        assert found == []
        return
    (only,) = found
    assert left[: only.count] == right[: only.count]
    assert left[only.count : only.count + 1] != right[only.count : only.count + 1]
