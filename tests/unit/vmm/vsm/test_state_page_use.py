"""VP state pages in use: which messages go there, and when what a VTL writes to a register page counts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.intercept_guests import install, must
from tests.unit.vmm.vsm.state_page_rig import (
    CPUID,
    MESSAGE,
    SINT0_VECTOR,
    VTL0,
    contents,
    in_vtl1,
    map_page,
    register_page,
    returning,
    unmap,
    write,
)
from tests.unit.vmm.vsm.vsm_rig import FREE, PAGE, Guest, Script, input_vtl, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.intercepts import HvInterceptType
from vtlkit.hvdef.messages import HvMessageType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.state_pages import HV_X64_REGISTER_PAGE
from vtlkit.hvdef.state_pages import HvX64RegisterPageDirty as Dirty
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HvVtlEntryReason as Reason

pytestmark = pytest.mark.tlfs("hypercalls.vp-state-page")

# --- messages ---------------------------------------------------------------------------------------------------------


def cpuid_watcher(guest: Guest, *, vtl: int = VTL0) -> Script:
    yield from guest.enable_assist_page()
    yield from guest.enable_synic(SINT0_VECTOR)
    yield from must(install(guest, HvInterceptType.HvInterceptTypeX64GlobalCpuid, 0, 4))
    yield from must(map_page(guest, FREE, MESSAGE, vtl=vtl))
    yield ops.Sti()


def test_a_message_goes_to_the_page_without_interrupt_and_over_the_previous_one() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from cpuid_watcher(guest)
        for _ in range(3):
            yield from guest.vtl_return()
            page = contents(guest)
            assert not any(page[256:])
            seen.append((int.from_bytes(page[:4], "little"), guest.take_message(), guest.entry_reason, page[16 + 0x18]))
        yield from must(unmap(guest, MESSAGE))
        yield from guest.vtl_return()
        seen.append(int.from_bytes(guest.take_message()[:4], "little"))
        yield from guest.end()

    rig = in_vtl1(vtl1, below=lambda _guest: (yield ops.Cpuid()))
    first = seen[0]
    assert first[:3] == (CPUID, b"", Reason.HvVtlEntryIntercept)
    assert seen == [first, first, first, CPUID]
    assert [taken.vector for taken in rig.taken] == [SINT0_VECTOR]


def test_of_two_messages_at_once_the_second_goes_to_sint_0() -> None:
    """VTL 0 can take an NMI, and its SINT 0 a message."""
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_synic(SINT0_VECTOR)
        yield from must(map_page(guest, FREE, MESSAGE))
        asked = 1 | 1 << 48
        assert (yield from guest.set(Name.HvRegisterDeliverabilityNotifications, asked, vtl=VTL0)) == HvStatus.SUCCESS
        yield from guest.vtl_return()
        seen.extend(int.from_bytes(message[:4], "little") for message in (contents(guest), guest.take_message()))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_synic()
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [
        HvMessageType.HvMessageTypeX64InterruptionDeliverable,
        HvMessageType.HvMessageTypeSynicSintDeliverable,
    ]


def test_messages_about_another_vtl_go_to_sint_0() -> None:
    """VTL 2's page is VTL 1's; VTL 0 is intercepted."""
    seen: list[tuple[int, int]] = []

    def vtl2(guest: Guest) -> Script:
        yield from cpuid_watcher(guest, vtl=input_vtl(1))
        yield ops.Cli()
        yield from guest.vtl_return()
        for _ in range(2):
            message = guest.take_message()
            seen.append((int.from_bytes(contents(guest)[:4], "little"), int.from_bytes(message[:4], "little")))
            guest.rig.partition.vtls[2].vm.memory.write(FREE, bytes(4))
            if len(seen) == 2:
                yield from guest.end()
            yield from must(install(guest, HvInterceptType.HvInterceptTypeX64GlobalCpuid, 0, 0))
            yield from guest.vtl_return()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()
        yield ops.Cpuid()
        yield from returning(guest)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (0, 2): vtl2}, vtls=3)
    assert seen == [(CPUID, 0)]


# --- when a register page counts --------------------------------------------------------------------------------------


def test_entered_by_a_call_the_page_is_not_valid_and_not_taken() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from must(map_page(guest))
        yield from guest.vtl_return()
        page = register_page(guest)
        seen.append((page.IsValid, page.Version))
        write(guest, HV_X64_REGISTER_PAGE(IsValid=1, Dirty=sum(Dirty), Rip=0xBAD, Rflags=2))
        yield from guest.vtl_return()
        seen.append(register_page(guest).IsValid)
        yield from guest.vtl_return()

    def below(guest: Guest) -> Script:
        for _ in range(2):
            rsp = guest.regs.rsp
            yield from guest.vtl_call()
            seen.append(guest.regs.rsp == rsp)

    in_vtl1(vtl1, below=below)
    assert seen == [(0, 0), True, 1, True]


def test_the_page_stays_valid_under_a_higher_vtl_and_is_taken_on_a_return_that_passes_others() -> None:
    """VTL 2 meets VTL 0's intercept, calls nobody, and returns to VTL 1, which was passed over."""
    seen: list[Any] = []

    def vtl2(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from must(install(guest, HvInterceptType.HvInterceptTypeX64GlobalCpuid, 0, 4))
        yield from must(map_page(guest))
        yield from guest.vtl_return()
        page = register_page(guest)
        seen.append((guest.entry_reason, page.IsValid, page.Vtl))
        rsp = list(page.GpRegisters)
        rsp[4] = 0x7000
        page.GpRegisters, page.Dirty = tuple(rsp), Dirty.GeneralPurpose
        write(guest, page)
        yield from must(install(guest, HvInterceptType.HvInterceptTypeX64GlobalCpuid, 0, 0))
        yield from guest.vtl_return()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()
        yield from guest.vtl_return()
        seen.append((yield from guest.get(Name.HvX64RegisterRsp, vtl=VTL0))[1])
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Cpuid()
        seen.append(guest.regs.rsp)
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (0, 2): vtl2}, vtls=3)
    assert seen == [(Reason.HvVtlEntryIntercept, 1, 0), 0x7000, 0x7000]


def test_unmapped_while_it_is_valid_nothing_is_taken() -> None:
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        yield from must(install(guest, HvInterceptType.HvInterceptTypeX64GlobalCpuid, 0, 4))
        yield from must(map_page(guest))
        yield from guest.vtl_return()
        page = register_page(guest)
        page.Dirty, page.GpRegisters = Dirty.GeneralPurpose, (0xBAD,) * 16
        write(guest, page)
        yield from must(unmap(guest))
        yield from must(map_page(guest))
        write(guest, page)
        yield from must(install(guest, HvInterceptType.HvInterceptTypeX64GlobalCpuid, 0, 0))
        yield from guest.vtl_return()

    def below(guest: Guest) -> Script:
        yield ops.Cpuid()
        seen.append(guest.regs.rsp)

    in_vtl1(vtl1, below=below)
    assert seen == [0x8000]


def test_another_processor_maps_a_page() -> None:
    """VP 1 maps VP 0's pages: it is VP 0's VTL 0 that is in them, in the memory that VTL 1 has on both."""
    seen: list[Any] = []

    def upper(guest: Guest) -> Script:
        if guest.vp:
            yield from must(map_page(guest, vp=0))
            yield from must(map_page(guest, FREE + PAGE, MESSAGE, vp=0))
            guest.note("mapped")
            while True:
                yield ops.Hlt()
        yield from must(install(guest, HvInterceptType.HvInterceptTypeX64GlobalCpuid, 0, 4))
        assert (yield from guest.enable_vp_vtl(1, vp=1)) == HvStatus.SUCCESS
        assert (yield from guest.start_vp(1, 1)) == HvStatus.SUCCESS
        while "mapped" not in guest.rig.log:
            yield ops.Compute(10)
        yield from guest.vtl_return()
        page = register_page(guest)
        seen.append((page.IsValid, page.GpRegisters[6], int.from_bytes(contents(guest, FREE + PAGE)[:4], "little")))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Set(0x51, "rsi")
        yield ops.Cpuid()

    run_guests({(0, 0): vtl0, (0, 1): upper, (1, 1): upper}, cpus=2)
    assert seen == [(1, 0x51, CPUID)]
