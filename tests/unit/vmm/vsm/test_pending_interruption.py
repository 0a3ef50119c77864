"""HvRegisterPendingInterruption, HvRegisterInterruptState, external interrupts: events between choice and delivery."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.test_every_register import Bare
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, input_vtl
from vtlkit.engine.api import Event, EventType
from vtlkit.engine.scripted import ScriptedFactory, ops
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.x86.exceptions import Vector

INTERRUPTION = Name.HvRegisterPendingInterruption
EXTERNAL = 1 | 5 << 1


def interruption(kind: int, vector: int, *, code: int | None = None, length: int = 0) -> int:
    return 1 | kind << 1 | (code is not None) << 4 | length << 5 | vector << 16 | (code or 0) << 32


EVENTS = {
    interruption(0, 0x41): Event(EventType.INTERRUPT, 0x41),
    interruption(2, 2): Event(EventType.NMI, 2),
    interruption(3, 13, code=0x18): Event(EventType.EXCEPTION, 13, 0x18),
    interruption(3, 6): Event(EventType.EXCEPTION, 6),
    interruption(4, 0x80, length=2): Event(EventType.SOFTWARE, 0x80, None, 2),
}


@pytest.fixture
def bare() -> Bare:
    return Bare(ScriptedFactory({}))


@pytest.mark.parametrize("value", sorted(EVENTS))
def test_an_event_cut_short_is_visible(bare: Bare, value: int) -> None:
    bare.vp.vcpus[0].events.interrupted = EVENTS[value]
    assert bare.get(INTERRUPTION) == value
    assert bare.set(INTERRUPTION, 0) == HvStatus.SUCCESS
    assert bare.vp.vcpus[0].events.interrupted is None


@pytest.mark.parametrize("value", sorted(EVENTS))
def test_an_event_that_the_engine_has_is_taken_back(bare: Bare, value: int) -> None:
    engine = bare.vp.vcpus[0].engine
    engine.inject(EVENTS[value])
    assert bare.get(INTERRUPTION) == value
    other = interruption(0, 0x99)
    assert bare.set(INTERRUPTION, other) == HvStatus.SUCCESS
    assert engine.injected() is None
    assert bare.get(INTERRUPTION) == other


@pytest.mark.parametrize(
    "value",
    [
        interruption(0, 15),
        interruption(0, 0x100),
        interruption(0, 0x41, code=1),
        interruption(0, 0x41, length=1),
        interruption(1, 0x41),
        interruption(2, 3),
        interruption(3, 32),
        interruption(3, 13),
        interruption(3, 6, code=0),
        interruption(3, 20),
        interruption(4, 0x80),
        interruption(5, 1, length=1),
        interruption(6, 3, length=1),
        interruption(7, 3),
        interruption(0, 0x41) | 1 << 9,
        interruption(0, 0x41) | 1 << 32,
        interruption(0, 0x41) | 1 << 64,
    ],
)
def test_no_such_event(bare: Bare, value: int) -> None:
    assert bare.set(INTERRUPTION, value) == HvStatus.INVALID_REGISTER_VALUE
    assert bare.get(INTERRUPTION) == 0


def below(body: Any, after: Any, handlers: dict[int, Any] | None = None) -> VsmRig:
    """VTL1 does `body` while VTL0 is inactive; then VTL0 goes on with `after`."""

    def vtl1(guest: Guest) -> Script:
        yield from body(guest)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from after(guest)
        yield from guest.end()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1})
    for vector, handler in (handlers or {}).items():
        rig.handlers[0, vector] = handler
    return rig.run()


def nothing(_guest: Guest, *_event: Event) -> Script:
    yield ops.Compute()


@pytest.mark.tlfs("intercepts.pending-events")
def test_an_interruption_is_delivered_whatever_the_interrupt_flag_says() -> None:
    def vtl1(guest: Guest) -> Script:
        assert (yield from guest.set(INTERRUPTION, interruption(3, 13, code=7), vtl=input_vtl(0))) == 0

    rig = below(vtl1, nothing, {13: nothing})
    assert [(taken.vector, taken.error_code) for taken in rig.taken] == [(13, 7)]


@pytest.mark.tlfs("intercepts.pending-events")
def test_an_external_interrupt_waits_until_interrupts_are_taken() -> None:
    order: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        event = EXTERNAL | 0x44 << 8
        assert (yield from guest.set(Name.HvRegisterPendingEvent0, event, vtl=input_vtl(0))) == HvStatus.SUCCESS
        order.append((yield from guest.get(Name.HvRegisterPendingEvent0, vtl=input_vtl(0))) == (0, event))

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        order.append("interrupts off")
        yield ops.Sti()
        yield ops.Compute()
        yield ops.Compute()
        order.append("after")
        order.append((yield from guest.get(Name.HvRegisterPendingEvent0)))

    def handler(_guest: Guest, event: Event) -> Script:
        order.append((event.type, event.vector))
        yield ops.Compute()

    below(vtl1, vtl0, {0x44: handler})
    assert order == [True, "interrupts off", (EventType.INTERRUPT, 0x44), "after", (0, 0)]


@pytest.mark.parametrize("event", [EXTERNAL | 8 << 8, EXTERNAL | 0x44 << 8 | 1 << 16, EXTERNAL | 0x44 << 8 | 1 << 127])
def test_no_such_external_interrupt(bare: Bare, event: int) -> None:
    assert bare.set(Name.HvRegisterPendingEvent0, event) == HvStatus.INVALID_REGISTER_VALUE
    assert bare.get(Name.HvRegisterPendingEvent0) == 0


@pytest.mark.tlfs("intercepts.pending-events")
def test_an_external_interrupt_wakes_a_halted_processor() -> None:
    """VP 1 halts with interrupts on; VP 0 gives it an interrupt that no controller has."""

    def vtl0(guest: Guest) -> Script:
        while (yield from guest.get(Name.HvRegisterInternalActivityState, vp=1)) != (0, 2):
            yield ops.Compute(10)
        yield from guest.set(Name.HvRegisterPendingEvent0, EXTERNAL | 0x44 << 8, vp=1)
        yield ops.Hlt()

    def other(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield ops.Sti()
        yield ops.Hlt()
        yield from guest.end()

    rig = VsmRig({(0, 0): vtl0, (1, 0): other}, cpus=2)
    rig.handlers[0, 0x44] = nothing
    rig.run()
    assert [(taken.vp, taken.vector) for taken in rig.taken] == [(1, 0x44)]


@pytest.mark.tlfs("intercepts.pending-events")
def test_an_exception_takes_the_place_of_an_external_interrupt(bare: Bare) -> None:
    bare.set(Name.HvRegisterPendingEvent0, EXTERNAL | 0x44 << 8)
    gp = 1 | 1 << 8 | Vector.GP << 16
    assert bare.set(Name.HvRegisterPendingEvent0, gp) == HvStatus.SUCCESS
    assert bare.get(Name.HvRegisterPendingEvent0) == gp
    assert bare.set(Name.HvRegisterPendingEvent0, EXTERNAL | 0x45 << 8) == HvStatus.SUCCESS
    assert bare.get(Name.HvRegisterPendingEvent0) == EXTERNAL | 0x45 << 8
    assert bare.set(Name.HvRegisterPendingEvent0, 0) == HvStatus.SUCCESS
    assert bare.get(Name.HvRegisterPendingEvent0) == 0


@pytest.mark.parametrize(
    "event",
    [
        1 | 1 << 8 | 6 << 16,
        1 | 2 << 16,
        1 | 20 << 16,
        1 | 6 << 16 | 1 << 32,
        *(1 | kind << 1 for kind in (1, 2, 3, 4, 6)),
    ],
)
def test_no_such_exception(bare: Bare, event: int) -> None:
    """An error code where there is none, an NMI, one processor's own exceptions; kinds that cannot be pending here."""
    assert bare.set(Name.HvRegisterPendingEvent0, event) == HvStatus.INVALID_REGISTER_VALUE


def test_the_further_halves_of_pending_events_are_empty(bare: Bare) -> None:
    for name in (Name.HvRegisterPendingEvent1, Name.HvRegisterPendingEvent2, Name.HvRegisterPendingEvent3):
        assert bare.get(name) == 0
        assert bare.set(name, 0) == HvStatus.SUCCESS
        assert bare.set(name, 1) == HvStatus.INVALID_REGISTER_VALUE


@pytest.mark.tlfs("hypercalls.registers-architectural")
def test_a_mask_of_nmis_and_the_interrupt_shadow(bare: Bare) -> None:
    engine = bare.vp.vcpus[0].engine
    for value in range(4):
        assert bare.set(Name.HvRegisterInterruptState, value) == HvStatus.SUCCESS
        assert (engine.interrupt_shadow, engine.nmi_blocked) == (bool(value & 1), bool(value & 2))
        assert bare.get(Name.HvRegisterInterruptState) == value


def test_an_nmi_waits_for_its_mask() -> None:
    """VTL1 masks NMIs of VTL0 and lifts the mask: an NMI sent in between comes then."""
    order: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterInterruptState, 2, vtl=input_vtl(0))
        yield from guest.vtl_return()
        yield from guest.set(Name.HvRegisterInterruptState, 0, vtl=input_vtl(0))

    def vtl0(guest: Guest) -> Script:
        yield from guest.wrmsr(0x1B, 0xFEE00D00)
        yield from guest.wrmsr(0x80F, 0x1FF)
        # An NMI to itself.
        yield from guest.wrmsr(0x830, 0x40400)
        yield ops.Compute(10)
        order.append("masked")
        yield from guest.vtl_call()
        yield ops.Compute()
        order.append("after")

    def handler(_guest: Guest, event: Event) -> Script:
        order.append(event.vector)
        yield ops.Compute()

    below(vtl1, vtl0, {2: handler})
    assert order == ["masked", 2, "after"]
