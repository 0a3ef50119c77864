"""VINA when VTLs are entered and left: AutoReset, what is pending then, AutoEoi, more than two VTLs, reset."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.test_vina import (
    MANY,
    NOTICE,
    ON,
    VECTOR,
    asserted,
    clear,
    enable,
    in_vtl1,
    interrupt,
    lower,
    notices,
)
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, input_vtl
from vtlkit.engine.scripted import ops

AUTO_RESET, AUTO_EOI = 1 << 9, 1 << 10


# --- entries ----------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("interrupts.vina-auto")
@pytest.mark.parametrize("options", [0, AUTO_RESET])
def test_auto_reset_on_entry(options: int) -> None:
    """VTL 0 cannot take its interrupt, as its interrupts are off when it calls; then they are on."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from enable(guest, ON | options)
        yield from interrupt(guest)
        seen.append((notices(guest), asserted(guest)))
        for _ in range(2):
            yield from guest.vtl_return()
            yield ops.Compute(MANY)
            seen.append((notices(guest), asserted(guest)))
            yield from interrupt(guest)
            seen.append((notices(guest), asserted(guest)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        while True:
            yield ops.Sti()
            yield from guest.vtl_call()

    VsmRig({(0, 0): vtl0, (0, 1): vtl1}).run()
    # VTL 0 has taken the interrupt in between: nothing is pending on entry.
    expected = [(1, 1), (1, 0), (2, 1), (2, 0), (3, 1)] if options else [(1, 1)] * 5
    assert seen == expected


@pytest.mark.tlfs("interrupts.vina-auto")
def test_what_is_pending_on_entry_notifies() -> None:
    """VTL 0's interrupt comes in the shadow of STI, just before its call."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from enable(guest, ON | AUTO_RESET)
        for _ in range(3):
            yield from guest.vtl_return()
            yield ops.Compute(2)
            seen.append((notices(guest), asserted(guest)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        yield from guest.vtl_call()
        while True:
            yield ops.Set(0, "rax")
            yield ops.Set(0x11, "rcx")
            yield ops.Host(lambda: guest.rig.partition.vps[0].vcpus[0].apic.accept_irq(0, VECTOR, 1, False))
            yield ops.Set(0, "rax")
            yield ops.Sti()
            yield ops.Vmmcall()
            yield ops.Compute(3)
            yield ops.Cli()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1}).run()
    assert seen == [(1, 1), (2, 1), (3, 1)]
    assert [taken.vector for taken in rig.taken] == [NOTICE, VECTOR] * 2 + [NOTICE]


@pytest.mark.tlfs("interrupts.vina-auto")
@pytest.mark.parametrize("options", [0, AUTO_RESET])
def test_auto_reset_where_the_lower_vtl_has_not_run(options: int) -> None:
    """VTL 1 returns and is entered again at once for an interrupt of its own: VTL 0's still waits, and is news."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from enable(guest, ON | options)
        yield from interrupt(guest)
        seen.append((notices(guest), asserted(guest)))
        yield ops.Cli()
        yield from interrupt(guest, VECTOR + 1, vtl=1)
        yield from guest.vtl_return()
        yield ops.Sti()
        yield ops.Compute(MANY)
        seen.append((notices(guest), asserted(guest)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        yield ops.Sti()
        yield ops.Compute(2)
        yield from guest.vtl_call()
        raise AssertionError("not to be run")

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1}).run()
    assert seen == ([(1, 1), (2, 1)] if options else [(1, 1), (1, 1)])
    assert [taken.vtl for taken in rig.taken] == [1] * (3 if options else 2)


@pytest.mark.tlfs("interrupts.vina-auto")
@pytest.mark.parametrize("auto", [False, True])
def test_auto_eoi(auto: bool) -> None:
    """With AutoEoi the interrupt is never in service, so that one of a lower priority is taken in its handler."""
    seen: list[int] = []

    def notice(guest: Guest, _event: Any) -> Script:
        seen.append(lower(guest, 1).apic._isr)
        yield from clear(guest)

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from enable(guest, ON | (AUTO_EOI if auto else 0))
        yield from interrupt(guest)
        # Without the bit the vector is an ordinary one.
        yield from enable(guest, ON)
        yield from interrupt(guest, VECTOR + 1)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        yield ops.Sti()
        yield ops.Compute(2)
        yield from guest.vtl_call()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1})
    rig.handlers[1, NOTICE] = notice
    rig.run()
    # Writing the register, with an old interrupt pending and Asserted clear, notifies too.
    in_service = 1 << NOTICE
    assert seen == [0 if auto else in_service, in_service, in_service]


# --- more VTLs --------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("interrupts.vina")
def test_only_the_active_vtl_is_told_and_of_every_lower_one() -> None:
    seen: list[Any] = []

    def vtl2(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield ops.Sti()
        # For VTL 1, which is not active: nobody is told of what VTL 2 keeps back.
        yield from enable(guest, ON, vtl=input_vtl(1))
        yield from interrupt(guest, VECTOR, 0)
        seen.append((notices(guest, 1), notices(guest, 2)))
        yield from enable(guest)
        yield ops.Compute(2)
        seen.append((notices(guest, 1), notices(guest, 2)))
        yield from clear(guest)
        yield from interrupt(guest, VECTOR, 1)
        seen.append((notices(guest, 1), notices(guest, 2)))
        yield from guest.vtl_return()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield from guest.enable(2)
        yield ops.Sti()
        yield ops.Compute(2)
        yield from guest.vtl_call()
        # VTL 1 has taken its own, and was told of VTL 0's as it became active.
        seen.append(sorted((taken.vtl, taken.vector) for taken in guest.rig.taken if taken.vtl == 1))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from guest.enable(1)
        yield from guest.vtl_call()

    VsmRig({(0, 0): vtl0, (0, 1): vtl1, (0, 2): vtl2}, vtls=3).run()
    assert seen == [(0, 0), (0, 1), (0, 2), [(1, VECTOR), (1, NOTICE)]]


@pytest.mark.tlfs("interrupts.vina-auto")
def test_the_return_of_a_higher_vtl_is_no_entry() -> None:
    """VTL 1 calls VTL 2 and goes on: Asserted stays."""
    seen: list[int] = []

    def vtl2(guest: Guest) -> Script:
        while True:
            yield from guest.vtl_return()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield from guest.enable(2)
        yield ops.Sti()
        yield from enable(guest, ON | AUTO_RESET)
        yield from interrupt(guest)
        yield from guest.vtl_call()
        yield ops.Compute(2)
        seen.append(asserted(guest))
        seen.append(notices(guest))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        yield ops.Sti()
        yield ops.Compute(2)
        yield from guest.vtl_call()

    VsmRig({(0, 0): vtl0, (0, 1): vtl1, (0, 2): vtl2}, vtls=3).run()
    assert seen == [1, 1]


def test_a_partition_reset_turns_vina_off() -> None:
    def vtl1(guest: Guest) -> Script:
        yield from enable(guest)

    rig = in_vtl1(vtl1)
    vp = rig.partition.vps[0]
    assert vp.vina.read(1) == ON
    assert vp._look.load()
    rig.host.spawn(rig.partition.reset, "reset")
    rig.host.run()
    assert vp.vina.read(1) == 0
    assert not vp._look.load()
