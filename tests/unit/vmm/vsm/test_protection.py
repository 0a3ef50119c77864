"""HvCallModifyVtlProtectionMask and the intercepts that follow: who restricts whom, who is told, what comes after."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import FREE, PAGE, RAM_SIZE, Guest, Script, input_vtl, run_guests
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus

R, W, KX, UX = 1, 2, 4, 8
ALL = R | W | KX | UX
ACCESS = {0: 0, R: 1, R | W: 3, R | KX | UX: 5, ALL: 7, R | KX: 5, R | W | KX: 7, R | UX: 1, R | W | UX: 3}
"""What the masks permit without MBEC, in bits of `Access`; all others are invalid."""
SINT0_VECTOR = 0x30
WRITTEN = 0xFEEDFACE


def enable_protection(guest: Guest, mask: int = ALL) -> Script:
    assert (yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | mask << 1)) == HvStatus.SUCCESS


def attributes(guest: Guest, vtl: int = 0, gpa: int = FREE) -> int:
    return int(guest.rig.partition.vtls[vtl].vm.memory.attributes.at(gpa))


def ladder(top: Any, *, vtls: int) -> dict[tuple[int, int], Any]:
    """Guests of one processor: each VTL below the top enables the next one and calls it; `top` runs there."""

    def rung(guest: Guest) -> Script:
        yield from guest.enable(guest.vtl + 1)
        yield from guest.vtl_call()

    return {(0, vtl): top if vtl == vtls - 1 else rung for vtl in range(vtls)}


# --- the hypercall ----------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("protection.combinations", "protection.modify")
@pytest.mark.parametrize("flags", [*range(16), 0x10, 0x80000000])
def test_every_combination_of_flags(flags: int) -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from enable_protection(guest)
        seen.append((yield from guest.protect([FREE], flags, vtl=input_vtl(0))))
        seen.append([attributes(guest, gpa=FREE + offset) for offset in (-PAGE, 0, PAGE)])
        yield from guest.end()

    run_guests(ladder(vtl1, vtls=2))
    if flags in ACCESS:
        assert seen == [1 << 32, [7, ACCESS[flags], 7]]
    else:
        assert seen == [HvStatus.INVALID_PARAMETER, [7, 7, 7]]


@pytest.mark.tlfs("protection.modify", "protection.order")
def test_whom_a_vtl_may_restrict() -> None:
    """Those below it: one by name, all of them by its own number or by none."""
    seen: list[Any] = []

    def vtl2(guest: Guest) -> Script:
        yield from enable_protection(guest)
        targets = (input_vtl(0), input_vtl(1), input_vtl(2), 0, 7, input_vtl(3), input_vtl(15), 0x30)
        for number, target in enumerate(targets):
            gpa = FREE + number * PAGE
            status = yield from guest.protect([gpa], R, vtl=target)
            seen.append((status, *(attributes(guest, vtl, gpa) for vtl in range(3))))
        yield from guest.end()

    run_guests(ladder(vtl2, vtls=3), vtls=4)
    done = 1 << 32
    assert seen == [
        (done, 1, 7, 7),
        (done, 7, 1, 7),
        (done, 1, 1, 7),
        (done, 1, 1, 7),
        (done, 1, 1, 7),
        (HvStatus.ACCESS_DENIED, 7, 7, 7),
        (HvStatus.ACCESS_DENIED, 7, 7, 7),
        (HvStatus.INVALID_PARAMETER, 7, 7, 7),
    ]


@pytest.mark.tlfs("protection.modify")
def test_refusals() -> None:
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        # Not before protection is enabled.
        seen.append((yield from guest.protect([FREE], R, vtl=input_vtl(0))))
        yield from enable_protection(guest)
        for request in (
            io.HV_INPUT_MODIFY_VTL_PROTECTION_MASK(1, R, input_vtl(0)),
            io.HV_INPUT_MODIFY_VTL_PROTECTION_MASK(HV_PARTITION_ID_SELF, R, input_vtl(0), b"\0\0\1"),
        ):
            page = (FREE // PAGE).to_bytes(8, "little")
            seen.append((yield from guest.call(Call.HvCallModifyVtlProtectionMask, request.pack() + page, elements=1)))
        # Beyond RAM, far beyond it, and no page of any address space.
        for gpa in (RAM_SIZE, 0xFEE00000, 1 << 60):
            seen.append((yield from guest.protect([FREE, gpa, FREE + PAGE], R, vtl=input_vtl(0))))
        seen.append(attributes(guest, gpa=FREE + PAGE))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from guest.protect([FREE], R)))
        yield from guest.enable(1)
        yield from guest.vtl_call()
        seen.append((yield from guest.protect([FREE], R)))
        seen.append((yield from guest.protect([FREE], R, vtl=input_vtl(1))))
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    denied, one_done = HvStatus.ACCESS_DENIED, 1 << 32
    assert seen == [
        denied,
        denied,
        HvStatus.INVALID_PARTITION_ID,
        HvStatus.INVALID_PARAMETER,
        *[HvStatus.INVALID_PARAMETER | one_done] * 3,
        7,
        denied,
        denied,
    ]


@pytest.mark.tlfs("protection.modify")
def test_a_list_of_pages_and_its_continuation() -> None:
    seen: list[Any] = []
    pages = [FREE + number * 2 * PAGE for number in range(20)]

    def vtl1(guest: Guest) -> Script:
        yield from enable_protection(guest)
        seen.append((yield from guest.protect(pages, 0, vtl=input_vtl(0))))
        seen.append([attributes(guest, gpa=gpa) for gpa in range(FREE, FREE + 8 * PAGE, PAGE)])
        # The guest says that the first 18 are done: they stay as they are.
        request = io.HV_INPUT_MODIFY_VTL_PROTECTION_MASK(HV_PARTITION_ID_SELF, ALL, input_vtl(0))
        data = request.pack() + b"".join((gpa // PAGE).to_bytes(8, "little") for gpa in pages)
        seen.append((yield from guest.call(Call.HvCallModifyVtlProtectionMask, data, elements=20, start=18)))
        seen.append([attributes(guest, gpa=gpa) for gpa in pages[-3:]])
        yield from guest.end()

    run_guests(ladder(vtl1, vtls=2))
    assert seen == [20 << 32, [0, 7] * 4, 20 << 32, [0, 7, 7]]


@pytest.mark.tlfs("protection.order")
def test_the_restrictions_of_two_vtls_are_and_ed() -> None:
    seen: list[Any] = []

    def vtl2(guest: Guest) -> Script:
        yield from enable_protection(guest)
        for mine in (ALL, R | W, R, 0):
            yield from guest.protect([FREE], mine, vtl=input_vtl(0))
            seen.append((mine, attributes(guest, 0), attributes(guest, 1)))
        # Overlapping ranges of one page each, side by side.
        yield from guest.protect([FREE + PAGE], R, vtl=0)
        seen.append([attributes(guest, vtl, FREE + PAGE) for vtl in (0, 1)])
        seen.append([attributes(guest, vtl, FREE + 2 * PAGE) for vtl in (0, 1)])
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        yield from enable_protection(guest)
        yield from guest.protect([FREE, FREE + 2 * PAGE], R | KX | UX, vtl=input_vtl(0))
        yield from guest.enable(2)
        yield from guest.vtl_call()

    guests = ladder(vtl2, vtls=3)
    guests[0, 1] = vtl1
    run_guests(guests, vtls=3)
    assert seen == [(ALL, 5, 7), (R | W, 1, 7), (R, 1, 7), (0, 0, 7), [1, 1], [5, 7]]


@pytest.mark.tlfs("protection.modify")
def test_a_vtl_enabled_later_finds_the_restrictions_set_for_it() -> None:
    seen: list[int] = []

    def vtl2(guest: Guest) -> Script:
        yield from enable_protection(guest, R | W)
        yield from guest.protect([FREE], 0, vtl=input_vtl(2))
        assert (yield from guest.enable_partition_vtl(1)) == HvStatus.SUCCESS
        seen.extend(attributes(guest, vtl, gpa) for vtl in (0, 1) for gpa in (FREE, FREE + PAGE))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 2): vtl2}, vtls=3)
    assert seen == [0, 3, 0, 3]
