"""Wrong ways to run a guest's guest: each breaks a promise of docs/design/nested.md, and some schedule shows it."""

from __future__ import annotations

import pytest

from tests.sim.known_bad import fails, scenario
from vtlkit.kvm import wait
from vtlkit.kvm.nested import pending
from vtlkit.kvm.nested.svm import Nested
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vendor.svm import SvmVendor
from vtlkit.x86.registers import RFLAGS_IF


def test_an_interrupt_that_comes_since_l1_was_asked_slips_into_l2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SvmVendor, "injection_allowed", lambda self, vcpu: not self.interrupt_blocked(vcpu))
    assert fails(scenario("nested.intercepted"))


def test_l2_is_left_before_the_event_of_its_entry_is_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_events(vcpu: Vcpu) -> bool:
        exit_ = pending._event_exit(vcpu)
        if exit_ is not None:
            vcpu.nested.leave(exit_)
        return False

    monkeypatch.setattr(pending, "check_events", check_events)
    assert fails(scenario("nested.intercepted"))


def test_the_flag_of_l2_counts_where_l1_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Nested, "interrupt_masked", lambda self: not self._vcpu.engine.rflags & RFLAGS_IF)
    assert fails(scenario("nested.masked"))


def test_a_virtual_interrupt_is_no_wake_event(monkeypatch: pytest.MonkeyPatch) -> None:
    right = wait.has_events

    def has_events(vcpu: Vcpu) -> bool:
        control, vcpu.nested.control = vcpu.nested.control, type(vcpu.nested.control)()
        try:
            return right(vcpu)
        finally:
            vcpu.nested.control = control

    monkeypatch.setattr(wait, "has_events", has_events)
    assert fails(scenario("nested.direct"))
