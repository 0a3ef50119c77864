"""Interrupts and VTLs: a higher VTL's comes at once, a lower one's waits, each VTL has its own local APIC."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.messages import HvMessageType, make_message
from vtlkit.hvdef.vsm import HvVtlEntryReason as Reason
from vtlkit.kvm.uapi import MpState, Vcpu

VECTOR = 0x60
SINT0_VECTOR = 0x30
TIMER_VECTOR = 0x70
MANY = 1_000_000


def spin() -> Script:
    """Never leaves the guest of its own."""
    while True:
        yield ops.Compute(MANY)


def idle_with(guest: Guest, how: str) -> Script:
    """What VTL0 does while an interrupt for VTL1 is on its way."""
    if how == "interrupts off":
        yield ops.Cli()
        yield from spin()
    elif how == "interrupts on":
        yield ops.Sti()
        yield from spin()
    else:
        yield ops.Sti() if how == "halted" else ops.Cli()
        while True:
            yield ops.Hlt()


def two_processors(victim: Any, sender: Any, *, below: str = "interrupts on") -> VsmRig:
    """VTL1 on both processors. `victim` is VTL1 of VP 1 once VTL0 has called it; `sender` is VTL1 of VP 0 when VP 1's
    VTL0 runs again, as `below` says."""

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        if guest.vp == 0:
            yield from guest.enable_vp_vtl(1, vp=1)
            guest.note("enabled")
            while "returned" not in guest.rig.log:
                yield ops.Compute(10)
            yield from sender(guest)
            yield from spin()
        else:
            yield from victim(guest)

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
            return
        while "enabled" not in guest.rig.log:
            yield ops.Compute(10)
        yield from guest.vtl_call()
        guest.note("returned")
        yield from idle_with(guest, below)

    guests = {(vp, vtl): vtl1 if vtl else vtl0 for vp in range(2) for vtl in range(2)}
    return VsmRig(guests, cpus=2)


@pytest.mark.tlfs("interrupts.higher", "vsm.entry-reason")
@pytest.mark.parametrize("below", ["interrupts off", "interrupts on", "halted", "halted for good"])
@pytest.mark.parametrize("flag", [True, False])
def test_an_ipi_for_an_inactive_vtl1_switches_at_once(below: str, flag: bool) -> None:
    """Whatever RFLAGS.IF is, in VTL0 as in VTL1; with VTL1's IF clear the interrupt stays pending after the entry."""
    seen: list[Any] = []

    def victim(guest: Guest) -> Script:
        yield ops.Sti() if flag else ops.Cli()
        yield from guest.vtl_return()
        seen.append((guest.entry_reason, [taken.vector for taken in guest.rig.taken if taken.vp == 1]))
        yield ops.Sti()
        yield ops.Compute(2)
        seen.append([(taken.vtl, taken.vector) for taken in guest.rig.taken if taken.vp == 1])
        yield from guest.end()

    two_processors(victim, lambda guest: guest.send_ipi(1, VECTOR), below=below).run()
    assert seen == [(Reason.HvVtlEntryInterrupt, [VECTOR] if flag else []), [(1, VECTOR)]]


@pytest.mark.tlfs("interrupts.nmi")
@pytest.mark.parametrize("state", [MpState.UNINITIALIZED, MpState.INIT_RECEIVED])
def test_vtl1_takes_interrupts_on_a_processor_whose_vtl0_has_not_started(state: MpState) -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_apic()
        if guest.vp == 0:
            yield from guest.enable_vp_vtl(1, vp=1)
            # VTL0 of VP 1 never runs, so VTL1 cannot be called there: an NMI to its namespace starts it.
            yield from guest.wrmsr(0x830, 1 << 32 | 0x4400)
            yield from spin()
        seen.append((guest.vp, guest.vtl))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1, (1, 1): vtl1}, cpus=2)
    rig.partition.vps[1].vcpus[0].set_mp_state(state)
    rig.run()
    assert seen == [(1, 1)]
    assert (rig.taken[0].vp, rig.taken[0].vtl, rig.taken[0].vector) == (1, 1, 2)


@pytest.mark.tlfs("interrupts.higher")
def test_vtl1s_tpr_holds_its_interrupts_back() -> None:
    """Below or at the priority VTL0 runs on; when VTL1 lowers its TPR the interrupt is there."""
    seen: list[Any] = []

    def victim(guest: Guest) -> Script:
        yield ops.Sti()
        yield from guest.wrmsr(0x808, VECTOR & 0xF0)
        yield from guest.vtl_return()
        # VTL0 has called: nothing else has brought us here.
        seen.append((guest.entry_reason, list(guest.rig.taken)))
        yield from guest.wrmsr(0x808, 0)
        seen.append([taken.vector for taken in guest.rig.taken])
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield from victim(guest)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        vcpu = guest.rig.partition.vps[0].vcpus[1]
        vcpu.apic.accept_irq(0, VECTOR, 1, False)
        yield ops.Compute(50_000)
        seen.append("VTL0 still runs")
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == ["VTL0 still runs", (Reason.HvVtlEntryVtlCall, []), [VECTOR]]


@pytest.mark.tlfs("interrupts.higher", "interrupts.apic-per-vtl")
def test_the_higher_vtls_timer_fires_while_vtl0_runs() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield from guest.wrmsr(0x83E, 0xB)
        yield from guest.wrmsr(0x832, TIMER_VECTOR)
        yield from guest.wrmsr(0x838, 100_000)
        yield ops.Sti()
        yield from guest.vtl_return()
        seen.append((guest.entry_reason, [taken.vector for taken in guest.rig.taken]))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from idle_with(guest, "interrupts off")

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [(Reason.HvVtlEntryInterrupt, [TIMER_VECTOR])]


@pytest.mark.tlfs("interrupts.higher")
def test_a_synic_message_for_an_inactive_vtl1() -> None:
    """A message that user space posts, as for an intercept on another processor."""
    seen: list[Any] = []
    message = make_message(HvMessageType.HvMessageTypeX64ApicEoi, b"payload")

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_synic(SINT0_VECTOR)
        yield ops.Sti()
        yield from guest.vtl_return()
        seen.append((guest.entry_reason, guest.take_message()))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        guest.rig.partition.vps[0].vcpus[1].hv.post_synic_message(0, message.pack())
        yield from idle_with(guest, "interrupts off")

    rig = run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [(Reason.HvVtlEntryInterrupt, message.pack())]
    assert [taken.vector for taken in rig.taken] == [SINT0_VECTOR]


@pytest.mark.tlfs("interrupts.lower")
def test_vtl0s_interrupts_wait_while_vtl1_runs_and_come_after_the_return() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield ops.Sti()
        # VTL0's own timer runs out meanwhile.
        yield ops.Compute(500_000)
        seen.append(("in VTL1", list(guest.rig.taken)))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.wrmsr(0x83E, 0xB)
        yield from guest.wrmsr(0x832, TIMER_VECTOR)
        yield ops.Sti()
        yield from guest.enable(1)
        yield from guest.wrmsr(0x838, 1_000_000)
        yield from guest.vtl_call()
        seen.append([(taken.vtl, taken.vector) for taken in guest.rig.taken])
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [("in VTL1", []), [(0, TIMER_VECTOR)]]


@pytest.mark.tlfs("interrupts.higher", "interrupts.lower")
def test_a_halted_vtl0_halts_on_after_an_excursion_to_vtl1() -> None:
    """VTL1 takes an interrupt and returns: VTL0 is where it was, in HLT, until an interrupt of its own comes."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield from guest.wrmsr(0x83E, 0xB)
        yield from guest.wrmsr(0x832, TIMER_VECTOR)
        yield ops.Sti()
        for _ in range(3):
            yield from guest.wrmsr(0x838, 100_000)
            yield from guest.vtl_return()
            seen.append((guest.entry_reason, guest.rig.partition.vps[0].vcpus[0].get_mp_state()))
        vcpu = guest.rig.partition.vps[0].vcpus[0]
        vcpu.apic.accept_irq(0, VECTOR, 1, False)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Sti()
        yield ops.Hlt()
        seen.append("awake")
        yield from guest.end()

    rig = run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [(Reason.HvVtlEntryInterrupt, MpState.HALTED)] * 3 + ["awake"]
    assert [(taken.vtl, taken.vector) for taken in rig.taken] == [(1, TIMER_VECTOR)] * 3 + [(0, VECTOR)]


@pytest.mark.tlfs("interrupts.lower")
def test_a_return_with_interrupts_off_and_one_pending_comes_straight_back() -> None:
    """RFLAGS.IF does not hold the switch back: the hypervisor looks again on each return."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Cli()
        yield from guest.wrmsr(0x83F, VECTOR)
        for _ in range(3):
            yield from guest.vtl_return()
            seen.append((guest.entry_reason, len(guest.rig.log)))
        yield ops.Sti()
        yield ops.Compute(2)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        guest.note("VTL0 got on")
        yield from guest.end()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1})
    rig.run()
    assert [reason for reason, _ in seen] == [Reason.HvVtlEntryInterrupt] * 3
    # Only when VTL1 has taken the interrupt does VTL0 come to its next instruction.
    assert [noted for _, noted in seen] == [0] * 3


@pytest.mark.tlfs("interrupts.apic-per-vtl")
def test_namespaces_do_not_mix() -> None:
    """The same vector sent in VTL0's and in VTL1's namespace: each arrives in its own, broadcasts included."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield ops.Sti()
        if guest.vp == 0:
            yield from guest.enable_vp_vtl(1, vp=1)
            guest.note("enabled")
            yield from guest.vtl_return()
            # All but self, in VTL1's namespace.
            yield from guest.wrmsr(0x830, 0xC4000 | 0x51)
            yield from guest.vtl_return()
        yield from guest.vtl_return()
        guest.note("VTL1 of VP 1 entered")
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
            while "ready" not in guest.rig.log:
                yield ops.Compute(10)
            # All but self, in VTL0's namespace.
            yield from guest.wrmsr(0x830, 0xC4000 | 0x50)
            while "taken 0" not in guest.rig.log:
                yield ops.Compute(10)
            yield from guest.vtl_call()
            while "VTL1 of VP 1 entered" not in guest.rig.log:
                yield ops.Compute(10)
            yield from guest.end()
        while "enabled" not in guest.rig.log:
            yield ops.Compute(10)
        yield from guest.vtl_call()
        yield ops.Sti()
        guest.note("ready")
        while True:
            yield ops.Compute(10)
            if guest.rig.taken and "taken 0" not in guest.rig.log:
                guest.note("taken 0")

    guests = {(vp, vtl): vtl1 if vtl else vtl0 for vp in range(2) for vtl in range(2)}
    rig = run_guests(guests, cpus=2)
    seen = [(taken.vp, taken.vtl, taken.vector) for taken in rig.taken]
    assert seen == [(1, 0, 0x50), (1, 1, 0x51)]


@pytest.mark.tlfs("interrupts.highest-wins")
def test_the_highest_of_two_vtls_goes_first() -> None:
    """VTL1 and VTL2 both have an interrupt as VTL0 runs: VTL2 goes first, and its return leads into VTL1."""
    seen: list[Any] = []

    def body(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Sti()
        if guest.vtl == 1:
            yield from guest.enable(2)
            yield from guest.vtl_call()
        yield from guest.vtl_return()
        seen.append((guest.vtl, [(taken.vtl, taken.vector) for taken in guest.rig.taken]))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        vps = guest.rig.partition.vps[0]
        # Both at the same instant.
        for vtl in (1, 2):
            vps.vcpus[vtl].apic.accept_irq(0, 0x80 + vtl, 1, False)
        yield ops.Compute(MANY)
        seen.append("VTL0")
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): body, (0, 2): body}, vtls=3)
    assert seen == [(2, [(2, 0x82)]), (1, [(2, 0x82), (1, 0x81)]), "VTL0"]


def test_an_event_for_a_vtl_that_is_being_enabled_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """An NMI from another processor reaches the new vCPU before its processor listens to it."""

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
        while True:
            yield ops.Compute(100)

    def vtl1(guest: Guest) -> Script:
        if guest.vp == 1:
            yield from guest.end()
        partition = guest.rig.partition
        create = partition.create_vcpu

        def with_nmi(index: int, level: int) -> Vcpu:
            vcpu = create(index, level)
            vcpu.nmi()
            return vcpu

        monkeypatch.setattr(partition, "create_vcpu", with_nmi)
        yield from guest.enable_vp_vtl(1, vp=1)
        for _ in range(10_000):
            yield ops.Pause()
        raise AssertionError("VP 1 has not entered VTL 1")

    rig = VsmRig({(vp, vtl): vtl1 if vtl else vtl0 for vp in range(2) for vtl in range(2)}, cpus=2)
    rig.handlers[1, 2] = lambda guest, _event: guest.end()
    rig.run()
