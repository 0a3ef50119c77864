"""HvCallMapVpStatePage, HvCallUnmapVpStatePage and the register: whose pages, and where they lie."""

from __future__ import annotations

import pytest

from tests.unit.vmm.vsm.intercept_guests import install, must
from tests.unit.vmm.vsm.state_page_rig import (
    MESSAGE,
    PROVIDED,
    VTL0,
    contents,
    in_vtl1,
    map_page,
    register_page,
    unmap,
)
from tests.unit.vmm.vsm.vsm_rig import FREE, PAGE, RAM_SIZE, Guest, Script, input_vtl, run_guests
from vtlkit.engine.api import Access
from vtlkit.engine.scripted import ops
from vtlkit.hvdef import msrs
from vtlkit.hvdef.hypercall_io import HvVpStatePageType as Page
from vtlkit.hvdef.intercepts import HvInterceptType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import MAXPHYADDR, HvFeatures

pytestmark = pytest.mark.tlfs("hypercalls.vp-state-page")

# --- statuses ---------------------------------------------------------------------------------------------------------


def test_statuses_that_both_calls_share() -> None:
    seen: list[tuple[int, int]] = []
    names: tuple[tuple[dict[str, int], HvStatus], ...] = (
        ({"partition": 1}, HvStatus.INVALID_PARTITION_ID),
        ({"vp": 2}, HvStatus.INVALID_VP_INDEX),
        ({"kind": Page.HvVpVtlStatePageGhcb}, HvStatus.INVALID_PARAMETER),
        ({"kind": 3}, HvStatus.INVALID_PARAMETER),
        ({"kind": 0xFFFF}, HvStatus.INVALID_PARAMETER),
        ({"vtl": 0x20 | VTL0}, HvStatus.INVALID_PARAMETER),
        # The caller's own, by name and by default; higher ones.
        ({"vtl": input_vtl(1)}, HvStatus.ACCESS_DENIED),
        ({"vtl": 0}, HvStatus.ACCESS_DENIED),
        ({"vtl": input_vtl(2)}, HvStatus.ACCESS_DENIED),
        ({"vtl": input_vtl(15)}, HvStatus.ACCESS_DENIED),
        # VTL 1 is not enabled there.
        ({"vp": 1}, HvStatus.INVALID_VTL_STATE),
    )

    def vtl1(guest: Guest) -> Script:
        for name, _ in names:
            seen.append(((yield from map_page(guest, **name)), (yield from unmap(guest, **name))))

    rig = in_vtl1(vtl1, cpus=2, vtls=3)
    assert seen == [(status, status) for _, status in names]
    assert rig.partition.vtls[1].vm.memory.overlay_at(FREE) is None


def test_a_lower_vtl_that_is_not_enabled() -> None:
    """VTL 2 over VTL 0: there is no VTL 1."""
    seen: list[int] = []

    def vtl2(guest: Guest) -> Script:
        seen.append((yield from map_page(guest, vtl=input_vtl(1))))
        seen.append((yield from map_page(guest)))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 2): vtl2}, vtls=3)
    assert seen == [HvStatus.INVALID_VTL_STATE, HvStatus.SUCCESS]


def test_flags_location_and_reserved_fields() -> None:
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        for flags in (0, PROVIDED | 2, 0x80 | PROVIDED):
            seen.append((yield from map_page(guest, flags=flags)))
        for gpa in (1 << MAXPHYADDR, 1 << 63, (1 << 64) * PAGE - PAGE):
            seen.append((yield from map_page(guest, gpa)))
        seen.append((yield from unmap(guest)))
        seen.append((yield from map_page(guest, (1 << MAXPHYADDR) - PAGE)))
        seen.append((yield from unmap(guest, reserved=1)))
        seen.append((yield from unmap(guest, MESSAGE)))
        seen.append((yield from unmap(guest)))
        seen.append((yield from unmap(guest)))

    in_vtl1(vtl1)
    bad, missing = HvStatus.INVALID_PARAMETER, HvStatus.NOT_FOUND
    assert seen == [*[bad] * 6, missing, HvStatus.SUCCESS, bad, missing, HvStatus.SUCCESS, missing]


def test_vtl0_has_nobody_below_it() -> None:
    seen: list[int] = []

    def vtl0(guest: Guest) -> Script:
        for vtl in (0, VTL0, input_vtl(1)):
            seen.append((yield from map_page(guest, vtl=vtl)))
        seen.append((yield from guest.set(Name.HvX64RegisterRegisterPage, FREE | 1)))
        seen.append((yield from guest.get(Name.HvX64RegisterRegisterPage))[0])
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    assert seen == [HvStatus.ACCESS_DENIED] * 5


def test_a_partition_without_vsm_has_neither_call() -> None:
    seen: list[int] = []

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from map_page(guest)))
        seen.append((yield from unmap(guest)))
        yield from guest.end()

    run_guests({(0, 0): vtl0}, hyperv=HvFeatures(vsm=False))
    assert seen == [HvStatus.ACCESS_DENIED] * 2


# --- where it lies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpa", [FREE, RAM_SIZE + 16 * PAGE])
def test_the_page_is_its_vtls_own_and_no_code(gpa: int) -> None:
    def vtl1(guest: Guest) -> Script:
        if gpa < RAM_SIZE:
            guest.rig.write(gpa, b"beneath")
        yield from must(map_page(guest, gpa))
        memory = guest.rig.partition.vtls[1].vm.memory
        assert memory.check(gpa, PAGE, Access.READ)
        assert memory.check(gpa, PAGE, Access.WRITE)
        assert not memory.check(gpa, 1, Access.EXECUTE)
        assert contents(guest, gpa) == bytes(PAGE)
        memory.write(gpa, b"mine")
        assert guest.rig.partition.vtls[0].vm.memory.overlay_at(gpa) is None
        yield from must(unmap(guest))
        assert memory.overlay_at(gpa) is None
        if gpa < RAM_SIZE:
            assert contents(guest, gpa)[:7] == b"beneath"

    in_vtl1(vtl1)


def test_mapped_again_it_moves_with_its_contents_and_unmapped_it_loses_them() -> None:
    def vtl1(guest: Guest) -> Script:
        memory = guest.rig.partition.vtls[1].vm.memory
        yield from must(map_page(guest, FREE))
        yield from must(map_page(guest, FREE + PAGE, MESSAGE))
        memory.write(FREE, b"one")
        memory.write(FREE + PAGE, b"two")
        yield from must(map_page(guest, FREE + 2 * PAGE))
        assert memory.overlay_at(FREE) is None
        assert (contents(guest, FREE + 2 * PAGE)[:3], contents(guest, FREE + PAGE)[:3]) == (b"one", b"two")
        yield from must(unmap(guest))
        yield from must(map_page(guest, FREE))
        assert contents(guest)[:3] == bytes(3)
        assert contents(guest, FREE + PAGE)[:3] == b"two"

    in_vtl1(vtl1)


def test_other_overlays_show_above_it() -> None:
    def vtl1(guest: Guest) -> Script:
        memory = guest.rig.partition.vtls[1].vm.memory
        yield from must(map_page(guest))
        memory.write(FREE, b"state")
        yield from guest.wrmsr(msrs.HV_X64_MSR_SIMP, FREE | 1)
        assert contents(guest)[:5] == bytes(5)
        yield from guest.wrmsr(msrs.HV_X64_MSR_SIMP, 0)
        assert contents(guest)[:5] == b"state"

    in_vtl1(vtl1)


def test_a_reset_of_the_partition_unmaps_everything() -> None:
    def vtl1(guest: Guest) -> Script:
        yield from must(map_page(guest, FREE, MESSAGE))
        assert (yield from guest.set(Name.HvX64RegisterRegisterPage, FREE + PAGE | 1)) == HvStatus.SUCCESS

    rig = in_vtl1(vtl1)
    partition = rig.partition
    vp = partition.vps[0]
    assert len(vp.state_pages) == 2
    partition.reset()
    assert not vp.state_pages


# --- the register -----------------------------------------------------------------------------------------------------


def test_the_register_maps_moves_and_disables() -> None:
    register = Name.HvX64RegisterRegisterPage

    def vtl1(guest: Guest) -> Script:
        memory = guest.rig.partition.vtls[1].vm.memory
        assert (yield from guest.get(register)) == (HvStatus.SUCCESS, 0)
        for written in (FREE | 1, FREE + PAGE | 1):
            assert (yield from guest.set(register, written)) == HvStatus.SUCCESS
            assert (yield from guest.get(register)) == (HvStatus.SUCCESS, written)
            assert memory.overlay_at(written & -PAGE) is not None
        assert memory.overlay_at(FREE) is None
        memory.write(FREE + PAGE, b"kept")
        for bad in (FREE | 3, FREE | 0x801, 1 << 64 | FREE | 1):
            assert (yield from guest.set(register, bad)) == HvStatus.INVALID_REGISTER_VALUE
        assert (yield from guest.set(register, FREE)) == HvStatus.SUCCESS
        assert (yield from guest.get(register)) == (HvStatus.SUCCESS, FREE)
        assert memory.overlay_at(FREE) is memory.overlay_at(FREE + PAGE) is None
        assert (yield from guest.set(register, FREE | 1)) == HvStatus.SUCCESS
        assert contents(guest)[:4] == b"kept"
        # Beyond the GPA space there is nothing to be seen, as with other registers of overlays.
        assert (yield from guest.set(register, 1 << 63 | 1)) == HvStatus.SUCCESS
        assert memory.overlay_at(FREE) is None
        # It is no page of VTL 0's: that one is not mapped.
        assert (yield from unmap(guest)) == HvStatus.NOT_FOUND

    in_vtl1(vtl1)


def test_a_vtls_own_page_comes_before_the_registers() -> None:
    def vtl1(guest: Guest) -> Script:
        yield from must(install(guest, HvInterceptType.HvInterceptTypeX64GlobalCpuid, 0, 4))
        assert (yield from guest.set(Name.HvX64RegisterRegisterPage, FREE + PAGE | 1)) == HvStatus.SUCCESS
        yield from must(map_page(guest))
        for own in (True, False):
            yield from guest.vtl_return()
            assert (register_page(guest).IsValid, register_page(guest, FREE + PAGE).IsValid) == (own, not own)
            if own:
                yield from must(unmap(guest))
        yield from guest.end()

    in_vtl1(vtl1, below=lambda _guest: (yield ops.Cpuid()))
