"""HvRegisterDeliverabilityNotifications: a higher VTL hears when a lower one can take what it has for it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef import msrs as hv_msrs
from vtlkit.hvdef.messages import HvMessageType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus

NOTIFY = Name.HvRegisterDeliverabilityNotifications
NMI, INTERRUPT = 1, 2
DELIVERABLE = HvMessageType.HvMessageTypeX64InterruptionDeliverable
SINT_DELIVERABLE = HvMessageType.HvMessageTypeSynicSintDeliverable


def priority(value: int) -> int:
    return value << 2


def sint(number: int) -> int:
    return 1 << 48 + number


def told(guest: Guest) -> tuple[int, int, int]:
    """(type, first field behind the header, RIP of the lower VTL) of the message that is there."""
    message = guest.take_message()
    kind = int.from_bytes(message[:4], "little")
    payload = message[16:]
    return kind, int.from_bytes(payload[0x28:0x2A], "little"), int.from_bytes(payload[0x18:0x20], "little")


def asked(value: int, after: Any, *, first: Any = None) -> VsmRig:
    """VTL1 asks, returns, and notes what it is told when it runs again; VTL0 goes on with `after`."""

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_synic()
        # The message alone: its interrupt would bring the processor back again and again.
        yield from guest.wrmsr(hv_msrs.HV_X64_MSR_SINT0, 0x10030)
        assert (yield from guest.set(NOTIFY, value, vtl=input_vtl(0))) == HvStatus.SUCCESS
        assert (yield from guest.get(NOTIFY, vtl=input_vtl(0))) == (HvStatus.SUCCESS, value)
        yield from guest.vtl_return()
        while True:
            kind, what, _ = told(guest)
            guest.note((kind, what, guest.entry_reason))
            guest.note((yield from guest.get(NOTIFY, vtl=input_vtl(0)))[1])
            yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        if first is not None:
            yield from first(guest)
        yield from guest.vtl_call()
        yield from after(guest)
        guest.note("end")
        yield from guest.end()

    return run_guests({(0, 0): vtl0, (0, 1): vtl1})


@pytest.mark.tlfs("intercepts.pending-events")
def test_interrupts_are_taken_again() -> None:
    def after(guest: Guest) -> Script:
        yield ops.Compute(100)
        guest.note("still off")
        yield ops.Sti()
        yield ops.Compute()
        guest.note("shadow over")

    rig = asked(INTERRUPT, after)
    # Told once, by an intercept, when the shadow of STI is over.
    assert rig.log == ["still off", (DELIVERABLE, 0, 3), 0, "shadow over", "end"]


@pytest.mark.tlfs("intercepts.pending-events")
def test_the_task_priority_counts_where_a_priority_is_asked_for() -> None:
    def raise_tpr(guest: Guest) -> Script:
        yield from guest.wrmsr(0x808, 0x50)
        yield ops.Sti()

    def after(guest: Guest) -> Script:
        yield ops.Compute(100)
        guest.note("TPR 5")
        yield from guest.wrmsr(0x808, 0x40)
        guest.note("TPR 4")

    rig = asked(INTERRUPT | priority(5), after, first=raise_tpr)
    assert rig.log == ["TPR 5", (DELIVERABLE, 0, 3), 0, "TPR 4", "end"]


@pytest.mark.tlfs("intercepts.pending-events")
def test_a_halted_vtl_can_take_interrupts() -> None:
    """VTL0 halts with interrupts on: nothing wakes it but the end that VTL1, once told, makes."""

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_synic()
        yield from guest.set(NOTIFY, INTERRUPT, vtl=input_vtl(0))
        yield from guest.vtl_return()
        guest.note(told(guest)[:2])
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Sti()
        yield ops.Hlt()

    rig = run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert rig.log == [(DELIVERABLE, 0)]


@pytest.mark.tlfs("intercepts.pending-events")
def test_nmis_are_taken() -> None:
    def after(_guest: Guest) -> Script:
        yield ops.Compute()

    rig = asked(NMI, after)
    assert rig.log == [(DELIVERABLE, 2, 3), 0, "end"]


@pytest.mark.tlfs("intercepts.pending-events")
def test_a_message_slot_is_empty() -> None:
    """SINT 2's slot is full until the guest empties it and says so."""
    slot = 2 * 256

    def fill(guest: Guest) -> Script:
        yield from guest.enable_synic()
        yield from guest.wrmsr(hv_msrs.HV_X64_MSR_SINT0 + 2, 0x31)
        guest.rig.partition.vtls[0].vm.memory.write(guest.messages + slot, (1).to_bytes(4, "little"))

    def after(guest: Guest) -> Script:
        yield ops.Compute(100)
        memory = guest.rig.partition.vtls[0].vm.memory
        guest.note("full")
        # MessagePending: someone waits for the slot.
        guest.note(memory.read(guest.messages + slot + 5, 1)[0])
        memory.write(guest.messages + slot, bytes(4))
        yield from guest.wrmsr(hv_msrs.HV_X64_MSR_EOM, 0)
        guest.note("empty")

    rig = asked(sint(2), after, first=fill)
    assert rig.log == ["full", 1, (SINT_DELIVERABLE, 1 << 2, 3), 0, "empty", "end"]


@pytest.mark.tlfs("intercepts.pending-events")
def test_who_may_ask() -> None:
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        seen.append((yield from guest.set(NOTIFY, INTERRUPT)))
        seen.append((yield from guest.set(NOTIFY, 1 << 6, vtl=input_vtl(0))))
        seen.append((yield from guest.set(NOTIFY, INTERRUPT, vtl=input_vtl(0), vp=1)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    def halted(_guest: Guest) -> Script:
        yield ops.Hlt()

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (1, 0): halted}, cpus=2)
    # Its own VTL; a reserved bit; a processor that has no VTL 1.
    assert seen == [HvStatus.ACCESS_DENIED, HvStatus.INVALID_REGISTER_VALUE, HvStatus.INVALID_VTL_STATE]


@pytest.mark.tlfs("intercepts.pending-events")
def test_a_notification_can_be_taken_back() -> None:
    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_synic()
        yield from guest.set(NOTIFY, INTERRUPT | NMI | sint(0), vtl=input_vtl(0))
        yield from guest.set(NOTIFY, 0, vtl=input_vtl(0))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Sti()
        yield ops.Compute(10)
        guest.note("end")
        yield from guest.end()

    assert run_guests({(0, 0): vtl0, (0, 1): vtl1}).log == ["end"]


def test_the_vtl_that_asked_is_told() -> None:
    """VTL2 asks about VTL0: VTL1, which is between them, hears nothing."""

    def vtl2(guest: Guest) -> Script:
        yield from guest.enable_synic()
        yield from guest.set(NOTIFY, INTERRUPT, vtl=input_vtl(0))
        yield from guest.vtl_return()
        guest.note(told(guest)[:2])
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_synic()
        yield from guest.enable(2)
        yield from guest.vtl_call()
        yield from guest.vtl_return()
        guest.note("VTL 1")

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Sti()
        yield ops.Compute(10)
        guest.note("VTL 0 goes on")

    rig = run_guests({(0, 0): vtl0, (0, 1): vtl1, (0, 2): vtl2}, vtls=3)
    assert rig.log == [(DELIVERABLE, 0)]


def test_a_lower_asker_does_not_take_away_what_a_higher_one_waits_for() -> None:
    def rung(guest: Guest) -> Script:
        yield from guest.enable(guest.vtl + 1)
        yield from guest.vtl_call()
        if guest.vtl == 1:
            for value in (0, INTERRUPT):
                assert (yield from guest.set(NOTIFY, value, vtl=input_vtl(0))) == HvStatus.ACCESS_DENIED
            yield from guest.vtl_call()
            # VTL 2 has withdrawn its request.
            assert (yield from guest.set(NOTIFY, INTERRUPT, vtl=input_vtl(0))) == HvStatus.SUCCESS
            yield from guest.vtl_call()

    def vtl2(guest: Guest) -> Script:
        assert (yield from guest.set(NOTIFY, NMI, vtl=input_vtl(0))) == HvStatus.SUCCESS
        yield from guest.vtl_return()
        assert (yield from guest.get(NOTIFY, vtl=input_vtl(0))) == (HvStatus.SUCCESS, NMI)
        assert (yield from guest.set(NOTIFY, 0, vtl=input_vtl(0))) == HvStatus.SUCCESS
        yield from guest.vtl_return()
        # A higher one may take a lower one's.
        assert (yield from guest.set(NOTIFY, NMI, vtl=input_vtl(0))) == HvStatus.SUCCESS
        yield from guest.end()

    run_guests({(0, 0): rung, (0, 1): rung, (0, 2): vtl2}, vtls=3)
