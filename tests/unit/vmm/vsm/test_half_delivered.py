"""A VTL switch in the middle of an event's delivery: what was begun is taken back, and done once, afterwards.

On the embedded engine, where delivery really pushes a frame and reads tables, each in a page that VTL 1 may forbid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.vmm.vsm.machine_code_rig import DONE, CodeRig
from vtlkit.engine.api import Access, Event, EventType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Io, Shutdown, Vcpu
from vtlkit.kvm.vendor.svm import SvmVendor
from vtlkit.testing import guest_builder as builder
from vtlkit.testing.assembler import Mem
from vtlkit.vmm.vsm import vp_registers
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_FIXED, RFLAGS_IF

pytestmark = pytest.mark.tlfs("vsm.half-delivered")

VECTOR = 0x41
UNMAPPED = 0x1FF000
READ_ONLY = Access.READ | Access.EXECUTE
INTERRUPTION_PENDING = 1 << 6

Make = Callable[..., CodeRig]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[CodeRig] = []

    def make_rig(policy: Callable[[CodeRig], None], **options: Any) -> CodeRig:
        made.append(CodeRig(policy, **options))
        return made[-1]

    yield make_rig
    for rig in made:
        rig.close()


# --- the events -------------------------------------------------------------------------------------------------------


def interrupt(rig: CodeRig) -> tuple[int, int]:
    rig.enable_apic(rig.vtl0)
    code = rig.code()
    code.label("at")
    code.jmp("at")
    rig.guest.load(code)
    rig.vtl0.engine.rflags = RFLAGS_FIXED | RFLAGS_IF
    rig.vtl0.apic.accept_irq(0, VECTOR, 1, False)
    return VECTOR, code.at("at")


def nmi(rig: CodeRig) -> tuple[int, int]:
    code = rig.code()
    code.label("at")
    code.jmp("at")
    rig.guest.load(code)
    rig.vtl0.nmi()
    return Vector.NMI, code.at("at")


def software(rig: CodeRig) -> tuple[int, int]:
    rig.guest.gate(VECTOR, dpl=3)
    code = rig.code()
    code.int(VECTOR)
    code.label("after")
    code.hlt()
    rig.guest.load(code)
    return VECTOR, code.at("after")


def breakpoint_(rig: CodeRig) -> tuple[int, int]:
    rig.guest.gate(Vector.BP, dpl=3)
    code = rig.code()
    code.nop()
    code.int3()
    code.label("after")
    code.hlt()
    rig.guest.load(code)
    return Vector.BP, code.at("after")


def invalid_opcode(rig: CodeRig) -> tuple[int, int]:
    code = rig.code()
    code.label("at")
    code.ud2()
    rig.guest.load(code)
    return Vector.UD, code.at("at")


def page_fault(rig: CodeRig) -> tuple[int, int]:
    rig.guest.map_page(UNMAPPED, 0)
    code = rig.code()
    code.mov("ebx", UNMAPPED)
    code.label("at")
    code.mov("eax", Mem("rbx"))
    rig.guest.load(code)
    return Vector.PF, code.at("at")


def fault_in_delivery(rig: CodeRig) -> tuple[int, int]:
    """INT of a gate that is not there: it is #NP whose frame cannot be pushed; INT is executed again."""
    rig.guest.gate(VECTOR, dpl=3, present=False)
    code = rig.code()
    code.nop()
    code.label("at")
    code.int(VECTOR)
    rig.guest.load(code)
    return Vector.NP, code.at("at")


EVENTS = [interrupt, nmi, software, breakpoint_, invalid_opcode, page_fault, fault_in_delivery]
HAS_ERROR_CODE = {Vector.PF, Vector.NP, Vector.GP, Vector.DF}

PAGES = {
    "stack": (0, builder.STACK - 1, READ_ONLY),
    "stack, no access": (0, builder.STACK - 1, Access.NONE),
    "IDT": (0, builder.IDT, Access.NONE),
    "GDT": (0, builder.GDT, Access.NONE),
    "stack from user mode": (3, builder.RING0_STACK - 1, READ_ONLY),
    "TSS from user mode": (3, builder.TSS, Access.NONE),
}
"""CPL, an address in the page that VTL 1 forbids, and what it leaves."""


@pytest.mark.parametrize("where", PAGES)
@pytest.mark.parametrize("begin", EVENTS)
def test_an_event_is_delivered_once_when_the_page_is_permitted(
    make: Make, begin: Callable[[CodeRig], tuple[int, int]], where: str
) -> None:
    cpl, page, left = PAGES[where]
    seen: list[Any] = []

    def permit(rig: CodeRig) -> None:
        state = int.from_bytes(rig.message()[16 + 6 : 16 + 8], "little")
        seen.append(bool(state & INTERRUPTION_PENDING))
        # Nothing has been pushed, nobody entered.
        seen.append((rig.taken(), rig.vtl0.engine.regs.rsp, rig.vtl0.engine.cpl))
        rig.protect(page, Access.ALL)

    rig = make(permit, cpl=cpl)
    vector, rip = begin(rig)
    rsp = rig.vtl0.engine.regs.rsp
    rig.protect(page, left)
    rig.run()
    assert seen == [True, ({}, rsp, cpl)]
    assert rig.taken() == {vector: 1}
    frame = rig.end.frame[:6][1 if vector in HAS_ERROR_CODE else 0 :]
    assert (frame[0], frame[3]) == (rip, rsp)
    assert isinstance(rig.exits[0], Io)
    assert rig.exits[0].port == DONE
    if vector == Vector.PF:
        assert rig.end.cr2 == UNMAPPED
    assert rig.end.nmi_blocked == (vector == Vector.NMI)


def test_a_second_nmi_waits_for_the_half_delivered_one(make: Make) -> None:
    """NMIs are blocked from the first attempt on: the second one is latched, not taken in between."""

    def permit(rig: CodeRig) -> None:
        rig.vtl0.nmi()
        rig.protect(builder.STACK - 1, Access.ALL)

    rig = make(permit)
    nmi(rig)
    rig.protect(builder.STACK - 1, READ_ONLY)
    rig.run()
    assert rig.taken() == {Vector.NMI: 1}
    assert rig.vtl0.events.nmi_pending == 1


def test_the_page_may_be_refused_again_and_again(make: Make) -> None:
    """VTL 1 returns without having done anything: the event is tried again, and VTL 1 told again."""

    def stubborn(rig: CodeRig) -> None:
        if rig.entries == 5:
            rig.protect(builder.STACK - 1, Access.ALL)

    rig = make(stubborn)
    vector, _ = interrupt(rig)
    rig.protect(builder.STACK - 1, READ_ONLY)
    rig.run()
    assert (rig.entries, rig.taken()) == (5, {vector: 1})
    # It was taken out of the local APIC once.
    assert rig.vtl0.apic.irr.load() == 0
    assert rig.vtl0.statistics.injected_interrupts == 1


# --- what VTL 1 may do about it ---------------------------------------------------------------------------------------


def inject(rig: CodeRig, vector: int, error_code: int | None = None) -> None:
    flags = 0 if error_code is None else 1 << 8
    value = 1 | flags | vector << 16 | (error_code or 0) << 32
    assert vp_registers.set(rig.vp, rig.vp, 0, Name.HvRegisterPendingEvent0, value) == HvStatus.SUCCESS


@pytest.mark.parametrize("begin", [interrupt, nmi])
def test_an_injected_exception_comes_before_an_interrupt(
    make: Make, begin: Callable[[CodeRig], tuple[int, int]]
) -> None:
    """The interrupt is delivered on top, before the first instruction of the exception's handler."""

    def refuse(rig: CodeRig) -> None:
        inject(rig, Vector.GP, 0x18)
        rig.protect(builder.STACK - 1, Access.ALL)

    rig = make(refuse)
    vector, rip = begin(rig)
    rig.protect(builder.STACK - 1, READ_ONLY)
    rig.run()
    assert rig.taken() == {vector: 1}
    frame = rig.end.frame[:5]
    assert frame[0] == builder.Guest.handler(Vector.GP)
    below = frame[3]
    assert rig.guest.read(below, 8) == 0x18
    assert rig.guest.read(below + 8, 8) == rip


def test_an_injected_exception_replaces_a_software_interrupt(make: Make) -> None:
    """RIP is at the INT, which runs again when the handler returns."""

    def refuse(rig: CodeRig) -> None:
        inject(rig, Vector.GP, 0)
        rig.protect(builder.STACK - 1, Access.ALL)

    rig = make(refuse)
    software(rig)
    rig.protect(builder.STACK - 1, READ_ONLY)
    rig.run()
    assert rig.taken() == {Vector.GP: 1}
    assert rig.end.frame[:2] == (0, builder.CODE)


def test_exceptions_combine_to_a_double_fault(make: Make) -> None:
    def refuse(rig: CodeRig) -> None:
        inject(rig, Vector.GP, 0)
        rig.protect(builder.STACK - 1, Access.ALL)

    rig = make(refuse)
    page_fault(rig)
    rig.protect(builder.STACK - 1, READ_ONLY)
    rig.run()
    assert rig.taken() == {Vector.DF: 1}


def test_a_half_delivered_double_fault_and_another_exception_shut_down(make: Make) -> None:
    def refuse(rig: CodeRig) -> None:
        inject(rig, Vector.GP, 0)

    rig = make(refuse)
    page_fault(rig)
    rig.protect(builder.STACK - 1, READ_ONLY)
    rig.run()
    assert [type(each) for each in rig.exits] == [Shutdown]
    # The page fault, the double fault.
    assert rig.entries == 2


def test_the_event_follows_where_vtl1_puts_vtl0(make: Make) -> None:
    """VTL 1 moves RSP instead of permitting the page, and RIP: the event is delivered there, from there."""
    elsewhere = builder.FREE + 0x800

    def move(rig: CodeRig) -> None:
        for name, value in ((Name.HvX64RegisterRsp, elsewhere), (Name.HvX64RegisterRip, builder.CODE + 0x100)):
            assert vp_registers.set(rig.vp, rig.vp, 0, name, value) == HvStatus.SUCCESS

    rig = make(move)
    vector, _ = interrupt(rig)
    rig.protect(builder.STACK - 1, READ_ONLY)
    rig.run()
    assert rig.taken() == {vector: 1}
    assert rig.end.frame[:4][0::3] == (builder.CODE + 0x100, elsewhere)


def test_an_event_that_is_injected_and_not_entered_stays_with_its_vtl(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VTL 1 is entered between the injection and the guest: it runs, and VTL 0's event is delivered after it."""
    seen: list[Any] = []

    def look(rig: CodeRig) -> None:
        # VTL 1's interrupts are off: it takes its own out of its local APIC.
        seen.append((rig.vtl0.engine.injected(), rig.vtl1.engine.injected(), rig.vtl1.apic.get_interrupt()))

    rig = make(look)
    rig.enable_apic(rig.vtl1)
    vector, rip = interrupt(rig)
    inject_irq = SvmVendor.inject_irq

    def inject_and_be_called_away(vendor: SvmVendor, vcpu: Vcpu, number: int) -> None:
        inject_irq(vendor, vcpu, number)
        if not seen:
            rig.vtl1.apic.accept_irq(0, VECTOR + 1, 1, False)

    monkeypatch.setattr(SvmVendor, "inject_irq", inject_and_be_called_away)
    rig.run()
    assert seen == [(Event(EventType.INTERRUPT, vector), None, VECTOR + 1)]
    assert rig.taken() == {vector: 1}
    assert rig.end.frame[:1] == (rip,)
