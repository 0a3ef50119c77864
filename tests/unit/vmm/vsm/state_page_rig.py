"""Guests that map VP state pages, and look into them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from tests.unit.vmm.vsm.vsm_rig import FREE, PAGE, Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercall_io import HvVpStatePageType as Page
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF
from vtlkit.hvdef.messages import HvMessageType
from vtlkit.hvdef.state_pages import HV_X64_REGISTER_PAGE

REGISTERS, MESSAGE = Page.HvVpStatePageRegisters, Page.HvVpStatePageInterceptMessage
CPUID = HvMessageType.HvMessageTypeX64CpuidIntercept
PROVIDED = io.HV_MAP_VP_STATE_PAGE_MAP_LOCATION_PROVIDED
SINT0_VECTOR = 0x30
VTL0 = input_vtl(0)
Statuses = Generator[Op, int, int]


def map_page(
    guest: Guest,
    gpa: int = FREE,
    kind: int = REGISTERS,
    *,
    vtl: int = VTL0,
    vp: int = HV_VP_INDEX_SELF,
    flags: int = PROVIDED,
    partition: int = HV_PARTITION_ID_SELF,
) -> Statuses:
    """The result value; the output must be the location asked for."""
    guest.rig.write(guest.output, bytes(8))
    request = io.HV_INPUT_MAP_VP_STATE_PAGE(partition, vp, kind, vtl, flags, gpa // PAGE)
    result = yield from guest.call(Call.HvCallMapVpStatePage, request.pack())
    assert guest.rig.read(guest.output, 8) == (0 if result else gpa // PAGE)
    return result


def unmap(
    guest: Guest,
    kind: int = REGISTERS,
    *,
    vtl: int = VTL0,
    vp: int = HV_VP_INDEX_SELF,
    partition: int = HV_PARTITION_ID_SELF,
    reserved: int = 0,
) -> Statuses:
    request = io.HV_INPUT_UNMAP_VP_STATE_PAGE(partition, vp, kind, vtl, reserved)
    return (yield from guest.call(Call.HvCallUnmapVpStatePage, request.pack()))


def contents(guest: Guest, gpa: int = FREE) -> bytes:
    return guest.rig.partition.vtls[guest.vtl].vm.memory.read(gpa, PAGE)


def register_page(guest: Guest, gpa: int = FREE) -> HV_X64_REGISTER_PAGE:
    return HV_X64_REGISTER_PAGE.unpack(contents(guest, gpa))


def write(guest: Guest, page: HV_X64_REGISTER_PAGE, gpa: int = FREE) -> None:
    guest.rig.partition.vtls[guest.vtl].vm.memory.write(gpa, page.pack())


def returning(guest: Guest) -> Script:
    while True:
        yield from guest.vtl_return()


def in_vtl1(body: Any, *, below: Any = None, **options: Any) -> VsmRig:
    """Run `body` in VTL 1 of VP 0, then `below` in VTL 0."""

    def vtl1(guest: Guest) -> Script:
        yield from body(guest)
        yield from returning(guest)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        if below is not None:
            yield from below(guest)
        yield from guest.end()

    return run_guests({(0, 0): vtl0, (0, 1): vtl1, (0, 2): returning, (1, 1): returning}, **options)
