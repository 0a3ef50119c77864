"""Virtual Interrupt Notification Assist: when VTL 1 hears that it keeps an interrupt from VTL 0, and when not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, input_vtl
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import MpState, Vcpu

NOTICE = 0x70
VECTOR = 0x60
TIMER = 0x58
ENABLED, AUTO_RESET, AUTO_EOI = 1 << 8, 1 << 9, 1 << 10
ON = NOTICE | ENABLED
MANY = 20_000


def lower(guest: Guest, vtl: int = 0) -> Vcpu:
    return guest.rig.partition.vps[guest.vp].vcpus[vtl]


def interrupt(guest: Guest, vector: int = VECTOR, vtl: int = 0) -> Script:
    """An interrupt for a VTL of this processor, from a device; and time for it to be heard of."""
    yield ops.Host(lambda: lower(guest, vtl).apic.accept_irq(0, vector, 1, False))
    yield ops.Compute(MANY)


def asserted(guest: Guest, vtl: int | None = None) -> int:
    vcpu = lower(guest, guest.vtl if vtl is None else vtl)
    return vcpu.hv.assist.read(12, 1)[0]


def clear(guest: Guest) -> Script:
    """What the guest's own store to its assist page is: no exit."""
    yield ops.Write(guest.assist + 12, 1, 0)


def notices(guest: Guest, vtl: int = 1) -> int:
    return sum(taken.vector == NOTICE and taken.vtl == vtl for taken in guest.rig.taken)


def enable(guest: Guest, value: int = ON, vtl: int = 0) -> Script:
    assert (yield from guest.set(Name.HvRegisterVsmVina, value, vtl=vtl)) == HvStatus.SUCCESS


def in_vtl1(body: Callable[[Guest], Script], *, below: str = "sti", vtls: int = 2) -> VsmRig:
    """`body` in VTL 1, with its local APIC and assist page on and interrupts enabled; VTL 0 has its local APIC on, and
    its interrupts as `below` says. VTL 0 calls again and again."""

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from body(guest)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        if below == "sti":
            yield ops.Sti()
            yield ops.Compute(2)
        while True:
            yield from guest.vtl_call()

    return VsmRig({(0, 0): vtl0, (0, 1): vtl1}, vtls=vtls).run()


# --- the register -----------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("interrupts.vina")
def test_the_register() -> None:
    seen: list[Any] = []
    name = Name.HvRegisterVsmVina

    def vtl1(guest: Guest) -> Script:
        seen.append((yield from guest.get(name)))
        for value in (ON, 0, 0x5, 0x7FF, ON | 1 << 11, 1 << 63, ON | 1 << 64, ENABLED | 15):
            seen.append((yield from guest.set(name, value)))
        seen.append((yield from guest.get(name))[1])
        seen.append((yield from guest.get(name, vtl=input_vtl(0)))[0])
        seen.append((yield from guest.set(name, ON, vtl=input_vtl(0))))
        seen.append((yield from guest.set(name, ON, vtl=input_vtl(2))))
        assert (yield from guest.get(name))[1] == 0x7FF

    in_vtl1(vtl1, vtls=3)
    ok, bad = HvStatus.SUCCESS, HvStatus.INVALID_REGISTER_VALUE
    invalid = HvStatus.INVALID_PARAMETER
    assert seen == [(ok, 0), ok, ok, ok, ok, bad, bad, bad, bad, 0x7FF, invalid, invalid, HvStatus.ACCESS_DENIED]


# --- the notice -------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("interrupts.vina")
def test_a_new_interrupt_for_vtl0_is_notified_once_until_asserted_is_cleared() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from enable(guest)
        yield ops.Compute(MANY)
        seen.append((notices(guest), asserted(guest)))
        for vector in (VECTOR, VECTOR + 1, VECTOR + 2):
            yield from interrupt(guest, vector)
            seen.append((notices(guest), asserted(guest)))
        yield from clear(guest)
        # What is pending already is old.
        yield ops.Compute(MANY)
        yield from guest.rdmsr(0x808)
        yield from guest.get(Name.HvRegisterVsmVina)
        seen.append((notices(guest), asserted(guest)))
        yield from interrupt(guest, VECTOR + 3)
        seen.append((notices(guest), asserted(guest)))
        yield from clear(guest)
        # The same vector again is a new interrupt.
        yield from interrupt(guest, VECTOR + 3)
        seen.append((notices(guest), asserted(guest)))

    rig = in_vtl1(vtl1)
    assert seen == [(0, 0), (1, 1), (1, 1), (1, 1), (1, 0), (2, 1), (3, 1)]
    assert {(taken.vtl, taken.vector) for taken in rig.taken} == {(1, NOTICE)}


@pytest.mark.tlfs("interrupts.vina")
def test_eoi_does_not_clear_asserted_and_the_notice_is_an_edge() -> None:
    def vtl1(guest: Guest) -> Script:
        yield from enable(guest)
        yield from interrupt(guest)
        apic = lower(guest, 1).apic
        # The rig's handler has ended it.
        assert (notices(guest), asserted(guest)) == (1, 1)
        assert not apic.irr.load()
        assert not apic.tmr.load() >> NOTICE & 1
        assert apic._isr == 0

    in_vtl1(vtl1)


@pytest.mark.tlfs("interrupts.vina")
def test_what_is_pending_when_vina_is_enabled_notifies_at_once() -> None:
    def vtl1(guest: Guest) -> Script:
        yield from interrupt(guest)
        assert notices(guest) == 0
        yield from enable(guest)
        yield ops.Compute(2)
        assert (notices(guest), asserted(guest)) == (1, 1)
        # And when it is written once more, but for Asserted.
        yield from enable(guest)
        yield ops.Compute(2)
        assert notices(guest) == 1
        yield from clear(guest)
        yield from enable(guest)
        yield ops.Compute(2)
        assert notices(guest) == 2

    in_vtl1(vtl1)


@pytest.mark.tlfs("interrupts.vina")
def test_off_is_off() -> None:
    def vtl1(guest: Guest) -> Script:
        yield from enable(guest)
        yield from enable(guest, NOTICE | AUTO_RESET)
        yield from interrupt(guest)
        assert (notices(guest), asserted(guest)) == (0, 0)

    in_vtl1(vtl1)


@pytest.mark.tlfs("interrupts.vina")
@pytest.mark.parametrize("hold", ["interrupts off", "TPR", "in service", "shadow", "unstarted"])
def test_an_interrupt_that_vtl0_could_not_take_now_is_not_notified(hold: str) -> None:
    """RFLAGS.IF counts here, unlike for a switch; so do the local APIC's priorities."""

    def vtl1(guest: Guest) -> Script:
        yield from enable(guest)
        vcpu = lower(guest)
        if hold == "TPR":
            yield ops.Host(lambda: vcpu.apic.set_tpr(VECTOR >> 4))
        elif hold == "in service":
            yield ops.Host(lambda: vcpu.apic.accept_irq(0, VECTOR + 8, 1, False) and None)
            yield ops.Host(lambda: vcpu.apic.get_interrupt() and None)
            yield from clear(guest)
            yield ops.Compute(MANY)
            yield from clear(guest)
        elif hold == "shadow":
            vcpu.engine.interrupt_shadow = True
        elif hold == "unstarted":
            vcpu.mp_state = MpState.INIT_RECEIVED
        before = notices(guest)
        yield from interrupt(guest)
        assert notices(guest) == before
        assert asserted(guest) == 0

    in_vtl1(vtl1, below="cli" if hold == "interrupts off" else "sti")


@pytest.mark.tlfs("interrupts.vina")
@pytest.mark.parametrize("flag", ["sti", "cli"])
def test_an_nmi_is_notified_whatever_if_says(flag: str) -> None:
    def vtl1(guest: Guest) -> Script:
        yield from enable(guest)
        yield ops.Host(lambda: lower(guest).nmi())
        yield ops.Compute(MANY)
        assert (notices(guest), asserted(guest)) == (1, 1)

    in_vtl1(vtl1, below=flag)


@pytest.mark.tlfs("interrupts.vina")
def test_vtl0s_timer_and_synic_notify() -> None:
    """Nobody runs VTL 0's vCPU, whose own task would move an expiry or an event flag on."""
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        yield from enable(guest)
        yield ops.Compute(200_000)
        seen.append(notices(guest))
        yield from clear(guest)
        yield ops.Host(lambda: lower(guest).hv.synic.signal_event(3, 9) and None)
        yield ops.Compute(MANY)
        seen.append(notices(guest))
        yield from guest.end()

    def upper(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from vtl1(guest)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.wrmsr(0x40000082, guest.messages | 1)
        yield from guest.wrmsr(0x40000093, 0x68)
        yield from guest.wrmsr(0x40000080, 1)
        yield from guest.wrmsr(0x83E, 0xB)
        yield from guest.wrmsr(0x832, TIMER)
        yield from guest.enable(1)
        yield ops.Sti()
        yield from guest.wrmsr(0x838, 100_000)
        yield from guest.vtl_call()

    VsmRig({(0, 0): vtl0, (0, 1): upper}).run()
    assert seen == [1, 2]
