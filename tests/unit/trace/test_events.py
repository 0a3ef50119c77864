"""Events have KVM's texts where KVM has the tracepoint, and each text can be read back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trace.any_events import NAMES, any_event
from vtlkit.trace import events
from vtlkit.trace.events import FIELDS, TEMPLATES, Event, MalformedEvent, from_values, vcpu_name

AT = (1, "vp0", "vtl0", 3)

TEXTS = [
    (events.KvmEntry(*AT, 0x7C00, False), "vcpu 3, rip 0x7c00"),
    (events.KvmEntry(*AT, 0x7C00, True), "vcpu 3, rip 0x7c00 [immediate exit]"),
    (
        events.KvmExit(*AT, "cpuid", 0x7C00),
        "vcpu 3 reason cpuid rip 0x7c00 info1 0x0000000000000000 info2 0x0000000000000000 intr_info 0x00000000 "
        "error_code 0x00000000",
    ),
    (events.KvmUserspaceExit(*AT, "KVM_EXIT_IO", 2), "reason KVM_EXIT_IO (2)"),
    (events.KvmVcpuWakeup(*AT, 1500, True, True), "wait time 1500 ns, polling valid"),
    (events.KvmVcpuWakeup(*AT, 1500, False, False), "poll time 1500 ns, polling invalid"),
    (events.KvmApicAcceptIrq(*AT, 0x1F, 48, "FIXED", True), "apicid 1f vec 48 (FIXED|level)"),
    (events.KvmApicIpi(*AT, 0xFF, 48, "NMI", False, "SELF"), "dst ff vec 48 (NMI|physical|SELF)"),
    (events.KvmInjVirq(*AT, 0x31), "IRQ 0x31"),
    (events.KvmInjVirq(*AT, 0x31, True, True), "Soft/INTn 0x31 [reinjected]"),
    (events.KvmInjException(*AT, "#GP", 0), "#GP (0x0)"),
    (events.KvmEoi(*AT, 0x1F, 48), "apicid 1f vector 48"),
    (events.KvmHypercall(*AT, 11, 1, 2, 3, 4), "nr 0xb a0 0x1 a1 0x2 a2 0x3 a3 0x4"),
    (
        events.KvmHvHypercall(*AT, 2, True, 0, 5, 1, 0x1000, 0x2000),
        "code 0x2 fast var_cnt 0x0 rep_cnt 0x5 idx 0x1 in 0x1000 out 0x2000",
    ),
    (events.KvmHvHypercallDone(*AT, 0x0005000000000000), "result 0x5000000000000"),
    (events.KvmPageFault(*AT, 0x10, 0x5000, 2), "vcpu 3 rip 0x10 address 0x0000000000005000 error_code 0x2"),
    (events.KvmPio(*AT, True, 0x3F8, 1, 0x41), "pio_write at 0x3f8 size 1 count 1 val 0x41"),
    (events.KvmMmio(*AT, False, 4, 0xFEE00020, 7), "mmio read len 4 gpa 0xfee00020 val 0x7"),
    (events.KvmMsr(*AT, False, 0xC0000080, 0, True), "msr_read c0000080 = 0x0 (#GP)"),
]


@pytest.mark.parametrize(("event", "text"), TEXTS, ids=lambda value: value.name if isinstance(value, Event) else "")
def test_the_text_is_that_of_kvm(event: Event, text: str) -> None:
    assert event.payload() == text


def test_usual_expressions_find_their_fields() -> None:
    """What scripts over a kernel's trace look for."""
    entry = events.KvmEntry(*AT, 0xFFFFFFF0, True).payload()
    exit_ = events.KvmExit(*AT, "hlt", 0xFFFFFFF1, kicked_by=4).payload()
    assert (found := re.match(r"vcpu (\d+), rip (0x[0-9a-f]+)", entry)) is not None
    assert found.groups() == ("3", "0xfffffff0")
    assert (found := re.match(r"vcpu (\d+) reason (\S+) rip (0x\S+) info1 (0x\S+) info2 (0x\S+)", exit_)) is not None
    assert found.groups()[:3] == ("3", "hlt", "0xfffffff1")


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_text_can_be_read_back(name: str, data: st.DataObject) -> None:
    event = data.draw(any_event(name))
    read = TEMPLATES[name].parse(event.payload())
    assert read is not None
    assert from_values(name, {**event.values(), **read}) == event
    missing = set(FIELDS[name]) - read.keys()
    assert missing <= {"time_ns", "task", "vm", "vcpu"}, "the text leaves fields out"


def test_another_text_is_not_taken_for_it() -> None:
    template = TEMPLATES["kvm_entry"]
    assert template.parse("vcpu 0, rip 0x10 [immediate exit]") is not None
    for text in ("", "vcpu 0", "vcpu x, rip 0x10", "vcpu 0, rip 0x10 [immediate", "vcpu 0, rip 0x10 and more"):
        assert template.parse(text) is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("kvm_nothing", {}),
        ("kvm_entry", {"rip": "7"}),
        ("kvm_entry", {"rip": True}),
        ("kvm_entry", {"immediate_exit": 0}),
        ("kvm_entry", {"more": 1}),
    ],
)
def test_what_is_no_event_is_refused(name: str, change: dict[str, object]) -> None:
    values = {**events.KvmEntry(*AT, 0, False).values(), **change}
    with pytest.raises(MalformedEvent):
        from_values(name, values)


def test_a_missing_field_is_refused() -> None:
    values = events.KvmEntry(*AT, 0, False).values()
    del values["rip"]
    with pytest.raises(MalformedEvent):
        from_values("kvm_entry", values)


def test_names_of_vcpus() -> None:
    assert vcpu_name("vtl1", 4) == "vtl1-vcpu4"
    assert vcpu_name("vtl1", events.NO_VCPU) == "vtl1"
