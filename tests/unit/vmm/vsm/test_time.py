"""Time and VTLs: synthetic timers of an inactive VTL, VP runtime, EOI assist and idling across a switch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, run_guests
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.hvdef import msrs
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HvVtlEntryReason as Reason

TIMER, FLAGS, VECTOR = 0x60, 0x40, 0x70
DIRECT, ENABLED, PERIODIC = 1 << 12, 1 << 0, 1 << 1
TICKS_PER_100_US = 1000


def start_timer(guest: Guest, ticks: int, *, vector: int = TIMER, flags: int = 0) -> Script:
    """Timer 0 in direct mode, `ticks` from now."""
    now = 0 if flags & PERIODIC else (yield from guest.rdmsr(msrs.HV_X64_MSR_TIME_REF_COUNT))
    yield from guest.wrmsr(msrs.HV_X64_MSR_STIMER0_COUNT, now + ticks)
    yield from guest.wrmsr(msrs.HV_X64_MSR_STIMER0_CONFIG, DIRECT | vector << 4 | ENABLED | flags)


def in_vtl1(body: Any, below: Any) -> dict[tuple[int, int], Any]:
    """VTL1 sets up its page and its APIC, does `body` and returns; then VTL0 does `below`, and the run ends."""

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield from body(guest)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from below(guest)
        yield from guest.end()

    return {(0, 0): vtl0, (0, 1): vtl1}


# --- timers of an inactive VTL ----------------------------------------------------------------------------------------


def forever_back(guest: Guest) -> Script:
    """Note why VTL1 was entered, and give way again; interrupts are taken first."""
    yield ops.Sti()
    while True:
        yield from guest.vtl_return()
        guest.note(guest.entry_reason)


@pytest.mark.parametrize("halted", [True, False])
def test_a_timer_of_an_inactive_vtl_takes_the_processor(halted: bool) -> None:
    def body(guest: Guest) -> Script:
        yield from start_timer(guest, 5000)
        yield from forever_back(guest)

    def below(_guest: Guest) -> Script:
        yield ops.Cli()
        while True:
            yield ops.Hlt() if halted else ops.Compute(1000)

    def handler(guest: Guest, _event: Event) -> Script:
        guest.note(guest.entry_reason)
        yield from guest.end()

    rig = VsmRig(in_vtl1(body, below))
    rig.handlers[1, TIMER] = handler
    rig.run()
    assert [(taken.vtl, taken.vector) for taken in rig.taken] == [(1, TIMER)]
    assert rig.log == [Reason.HvVtlEntryInterrupt]


@pytest.mark.parametrize("halted", [True, False])
def test_what_the_priority_holds_back_does_not_take_the_processor(halted: bool) -> None:
    """Neither timers nor event flags of VTL1; both are served, and are there when VTL1 is called."""
    seen: list[Any] = []

    def body(guest: Guest) -> Script:
        yield from guest.wrmsr(msrs.HV_X64_MSR_SCONTROL, 1)
        yield from guest.wrmsr(msrs.HV_X64_MSR_SIEFP, 0x158000 | 1)
        yield from guest.wrmsr(msrs.HV_X64_MSR_SINT0 + 5, FLAGS)
        yield from guest.wrmsr(msrs.HV_X64_MSR_TPR, 0xF0)
        yield from start_timer(guest, 50, flags=PERIODIC)
        yield from guest.vtl_return()
        seen.append(guest.entry_reason)
        apic = rig.partition.vps[0].vcpus[1].apic
        seen.append(sorted(vector for vector in range(256) if apic.irr.test(vector)))
        seen.append(guest.rig.read_vtl(1, 0x158000 + 5 * 256, 1))
        yield from guest.vtl_return()

    def below(guest: Guest) -> Script:
        switches = rig.partition.vps[0].switches
        status = rig.partition.vps[0].vcpus[1].hv.synic.signal_event(5, 3)
        assert status == HvStatus.SUCCESS
        if halted:
            yield from guest.enable_apic()
            yield from start_timer(guest, 2000, vector=VECTOR)
            yield ops.Sti()
            yield ops.Hlt()
        else:
            yield ops.Compute(20_000)
        assert rig.partition.vps[0].switches == switches
        yield from guest.vtl_call()

    rig = VsmRig(in_vtl1(body, below))
    rig.run()
    assert seen == [Reason.HvVtlEntryVtlCall, [FLAGS, TIMER], 1 << 3]


def test_a_timer_that_is_set_for_an_inactive_vtl_and_due_takes_the_processor() -> None:
    """As another processor does by HvCallSetVpRegisters."""

    def body(guest: Guest) -> Script:
        yield from forever_back(guest)

    def below(_guest: Guest) -> Script:
        vcpu = rig.partition.vps[0].vcpus[1]
        assert vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_COUNT, 1)
        assert vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_CONFIG, DIRECT | TIMER << 4 | ENABLED)
        yield ops.Cli()
        while True:
            yield ops.Hlt()

    def handler(guest: Guest, _event: Event) -> Script:
        yield from guest.end()

    rig = VsmRig(in_vtl1(body, below))
    rig.handlers[1, TIMER] = handler
    rig.run()
    assert [(taken.vtl, taken.vector) for taken in rig.taken] == [(1, TIMER)]


# --- what the VTLs share ----------------------------------------------------------------------------------------------


@pytest.mark.tlfs("msrs.vp-runtime")
def test_vp_runtime_is_that_of_the_processor() -> None:
    def look(guest: Guest) -> Script:
        guest.note((yield from guest.rdmsr(msrs.HV_X64_MSR_VP_RUNTIME)))

    def body(guest: Guest) -> Script:
        while True:
            yield from look(guest)
            yield ops.Compute(10_000)
            yield from look(guest)
            yield from guest.vtl_return()

    def below(guest: Guest) -> Script:
        for _ in range(2):
            yield from look(guest)
            yield ops.Compute(20_000)
            yield from look(guest)
            yield from guest.vtl_call()

    log = run_guests(in_vtl1(body, below)).log
    steps = [later - earlier for earlier, later in pairwise(log)]
    computed, between = steps[::2], steps[1::2]
    # VTL1 first, then in turn; between them are a few instructions.
    assert [step // TICKS_PER_100_US for step in computed] == [1, 2, 1, 2, 1]
    assert all(0 <= step < 10 for step in between)


@pytest.mark.tlfs("msrs.reference-time")
def test_reference_time_is_that_of_the_partition() -> None:
    def look(guest: Guest) -> Script:
        guest.note((yield from guest.rdmsr(msrs.HV_X64_MSR_TIME_REF_COUNT)))

    def body(guest: Guest) -> Script:
        yield from look(guest)
        yield from guest.wrmsr(msrs.HV_X64_MSR_REFERENCE_TSC, 0x159000 | 1)
        yield from look(guest)
        yield from guest.vtl_return()

    def below(guest: Guest) -> Script:
        yield from look(guest)

    log = run_guests(in_vtl1(body, below)).log
    assert log == sorted(log)
    assert log[2] - log[0] < 1000


def test_the_unhalted_timer_counts_its_own_vtl() -> None:
    """VTL1's timer does not advance while VTL0 executes, and does not disturb it."""

    def body(guest: Guest) -> Script:
        yield from guest.wrmsr(msrs.HV_X64_MSR_STIME_UNHALTED_TIMER_COUNT, 500)
        yield from guest.wrmsr(msrs.HV_X64_MSR_STIME_UNHALTED_TIMER_CONFIG, 1 << 8 | TIMER)
        yield from guest.vtl_return()
        yield ops.Sti()
        while not rig.taken:
            yield ops.Compute(10)
        guest.note(guest.engine.executed)
        yield from guest.vtl_return()

    def below(guest: Guest) -> Script:
        yield ops.Compute(50_000)
        assert not rig.taken
        yield from guest.vtl_call()

    rig = VsmRig(in_vtl1(body, below))
    rig.run()
    assert [(taken.vtl, taken.vector) for taken in rig.taken] == [(1, TIMER)]
    # 500 units are 5000 instructions.
    assert 5000 <= rig.log[0] < 5200


# --- EOI assist, idling -----------------------------------------------------------------------------------------------


@pytest.mark.tlfs("msrs.eoi-assist")
def test_an_offered_eoi_across_a_vtl_call() -> None:
    seen: list[Any] = []

    def body(guest: Guest) -> Script:
        while True:
            seen.append(("VTL 1 sees", guest.rig.read_vtl(0, below_assist[0], 1)))
            yield from guest.vtl_return()

    def handler(guest: Guest, _event: Event) -> Script:
        if guest.vtl == 0:
            seen.append(("entered", guest.rig.read_vtl(0, guest.assist, 1)))
            yield from guest.vtl_call()
            seen.append(("returned", guest.rig.read_vtl(0, guest.assist, 1)))

    def below(guest: Guest) -> Script:
        below_assist.append(guest.assist)
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from start_timer(guest, 100, vector=VECTOR)
        while len(seen) < 3:
            yield ops.Compute(10)
        yield ops.Compute(10)
        apic = rig.partition.vps[0].vcpus[0].apic
        seen.append(("eois", apic.statistics().eois))

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from below(guest)
        yield from guest.end()

    below_assist: list[int] = []
    rig = VsmRig({(0, 0): vtl0, (0, 1): body})
    rig.handlers[0, VECTOR] = handler
    rig.run()
    assert seen == [("entered", 1), ("VTL 1 sees", 0), ("returned", 1), ("eois", 1)]


@pytest.mark.tlfs("msrs.guest-idle")
def test_idling_goes_on_after_a_higher_vtl_was_here() -> None:
    """VTL0 idles with RFLAGS.IF clear; VTL1's timer takes the processor meanwhile; VTL0's own ends the idling."""

    def body(guest: Guest) -> Script:
        yield from start_timer(guest, 2000)
        yield from forever_back(guest)

    def below(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from start_timer(guest, 9000, vector=VECTOR)
        yield ops.Cli()
        yield from guest.rdmsr(msrs.HV_X64_MSR_GUEST_IDLE)
        guest.note((yield from guest.rdmsr(msrs.HV_X64_MSR_TIME_REF_COUNT)))

    log = run_guests(in_vtl1(body, below)).log
    assert log[0] == Reason.HvVtlEntryInterrupt
    assert len(log) == 2
    assert log[1] >= 9000
