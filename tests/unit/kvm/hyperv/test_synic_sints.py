"""Every SINT in every mode, and what waits while the SynIC takes nothing."""

from __future__ import annotations

import pytest

from tests.unit.kvm.hyperv.test_synic import (
    AUTO_EOI,
    FLAGS,
    MASKED,
    MESSAGES,
    POLLING,
    SINT0,
    make_vm,
    message,
    number_in,
)
from vtlkit.hvdef import msrs
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv.overlays import OverlayPage


@pytest.mark.tlfs("synic.messages")
@pytest.mark.parametrize("register", ["scontrol", "simp", "sint"])
def test_what_waits_comes_when_the_synic_takes_it_again(register: str) -> None:
    """The guest empties the slot while the SynIC is off, and will not write EOM for it."""
    vm = make_vm()
    vm.cpu.wrmsr(SINT0, 0x30)
    for number in (1, 2):
        assert vm.cpu.hv.post_synic_message(0, message(number)) == HvStatus.SUCCESS
    off, on = {
        "scontrol": ((msrs.HV_X64_MSR_SCONTROL, 0), (msrs.HV_X64_MSR_SCONTROL, 1)),
        "simp": ((msrs.HV_X64_MSR_SIMP, MESSAGES), (msrs.HV_X64_MSR_SIMP, MESSAGES | 1)),
        "sint": ((SINT0, 0x30 | MASKED), (SINT0, 0x30)),
    }[register]
    vm.cpu.wrmsr(*off)
    vm.cpu.hv.synic.message_page.write(0, bytes(4))
    vm.cpu.wrmsr(*on)
    assert number_in(vm, 0) == 2


@pytest.mark.tlfs("synic.sints", "synic.messages", "synic.event-flags")
@pytest.mark.parametrize("sint", range(16))
@pytest.mark.parametrize("mode", [0, AUTO_EOI, POLLING, MASKED, MASKED | POLLING])
def test_every_sint_alike(sint: int, mode: int) -> None:
    vm = make_vm()
    cpu = vm.cpu
    vector = 0x40 + sint
    assert cpu.wrmsr(SINT0 + sint, vector | mode)
    assert cpu.rdmsr(SINT0 + sint) == vector | mode
    interrupts = [vector] if not mode & (MASKED | POLLING) else []

    def taken() -> list[int]:
        found = []
        while (got := cpu.take(eoi=not mode & AUTO_EOI)) >= 0:
            found.append(got)
        return found

    assert cpu.hv.post_synic_message(sint, message(7)) == HvStatus.SUCCESS
    assert number_in(vm, sint) == 7
    assert taken() == interrupts
    accepted = mode != MASKED
    for flag in (0, 1000, 2047):
        status = cpu.hv.synic.signal_event(sint, flag)
        assert status == (HvStatus.SUCCESS if accepted else HvStatus.INVALID_SYNIC_STATE)
        cpu.hv.process_stimers()
        byte = vm.memory.read(FLAGS + sint * 256 + flag // 8, 1)[0]
        assert byte >> flag % 8 & 1 == accepted
        assert taken() == interrupts


@pytest.mark.tlfs("synic.event-flags")
def test_only_bytes_with_new_flags_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest on another processor may be clearing flags of its own in the other bytes."""
    vm = make_vm()
    vm.cpu.wrmsr(SINT0 + 5, 0x60)
    synic = vm.cpu.hv.synic
    written: list[tuple[int, bytes]] = []
    write = OverlayPage.write

    def noted(page: OverlayPage, offset: int, data: bytes) -> None:
        written.append((offset, data))
        write(page, offset, data)

    for flag in (8, 9, 2047):
        assert synic.signal_event(5, flag) == HvStatus.SUCCESS
    synic.process_events()
    monkeypatch.setattr(OverlayPage, "write", noted)
    for flag in (9, 10, 77):
        assert synic.signal_event(5, flag) == HvStatus.SUCCESS
    synic.process_events()
    assert written == [(5 * 256 + 1, b"\x07"), (5 * 256 + 9, b"\x20")]
