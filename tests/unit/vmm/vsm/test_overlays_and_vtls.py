"""An overlay lies in its own VTL and nowhere else, and no protection that a higher VTL has set is lost under it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import FREE, PAGE, RAM_SIZE, Guest, Script, VsmRig, reps, run_guests
from vtlkit.engine.api import Access
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef import msrs
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF
from vtlkit.hvdef.messages import HvMessageType, make_message
from vtlkit.hvdef.registers import HvRegisterName
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vm

pytestmark = pytest.mark.tlfs("msrs.overlay-vtl")

ENABLE = msrs.HV_MSR_PAGE_ENABLE
PLACEABLE = (
    msrs.HV_X64_MSR_SIMP,
    msrs.HV_X64_MSR_SIEFP,
    msrs.HV_X64_MSR_VP_ASSIST_PAGE,
    msrs.HV_X64_MSR_REFERENCE_TSC,
    msrs.HV_X64_MSR_HYPERCALL,
)
SECRET = b"a secret of VTL 1"
PROTECT_WITH_ALL = 0x1F
"""EnableVtlProtection, and a default mask that permits everything."""
READ, WRITE = 1, 2


def memory(guest: Guest, vtl: int) -> Vm:
    return guest.rig.partition.vtls[vtl].vm


def partition(change: Any, *, mask: int = 0) -> VsmRig:
    """VTL 1 puts SECRET at FREE and permits VTL 0 `mask` of it; then VTL 0 runs `change`."""

    def vtl1(guest: Guest) -> Script:
        status = yield from guest.set(HvRegisterName.HvRegisterVsmPartitionConfig, PROTECT_WITH_ALL)
        assert status == HvStatus.SUCCESS
        guest.rig.write(FREE, SECRET)
        assert (yield from guest.protect([FREE], mask)) & 0xFFFF == HvStatus.SUCCESS
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from change(guest)
        yield from guest.end()

    return run_guests({(0, 0): vtl0, (0, 1): vtl1})


@pytest.mark.parametrize("index", PLACEABLE, ids=hex)
@pytest.mark.parametrize("mask", [0, READ, READ | WRITE])
def test_an_overlay_gives_no_right_that_a_higher_vtl_denies(index: int, mask: int) -> None:
    """VTL 0's rights to the page are at most those that it was left with, before, during and after."""

    def change(guest: Guest) -> Script:
        space = memory(guest, 0).memory
        granted = {access for access in (Access.READ, Access.WRITE, Access.EXECUTE) if space.check(FREE, 1, access)}
        yield from guest.wrmsr(index, FREE | ENABLE)
        assert space.overlay_at(FREE) is not None
        for access in (Access.READ, Access.WRITE, Access.EXECUTE):
            assert access in granted or not space.check(FREE, 1, access)
        # What VTL 1 has there is neither hidden from it nor changed.
        assert memory(guest, 1).memory.read(FREE, len(SECRET)) == SECRET
        assert space.read(FREE, len(SECRET)) != SECRET
        yield from guest.wrmsr(index, 0)
        assert granted == {a for a in (Access.READ, Access.WRITE, Access.EXECUTE) if space.check(FREE, 1, a)}

    partition(change, mask=mask)


def test_what_the_hypervisor_writes_to_an_overlay_is_not_written_under_it() -> None:
    """Messages and event flags that are sent to VTL 0 while its pages lie over VTL 1's."""

    def change(guest: Guest) -> Script:
        yield from guest.enable_synic()
        yield from guest.wrmsr(msrs.HV_X64_MSR_SIMP, FREE | ENABLE)
        message = make_message(HvMessageType.HvMessageTypeUnrecoverableException, b"x" * 240).pack()
        hv = guest.rig.partition.vps[0].vcpus[0].hv
        assert hv.post_synic_message(0, message) == HvStatus.SUCCESS
        assert memory(guest, 0).memory.read(FREE, 256) == message
        assert memory(guest, 1).memory.read(FREE, len(SECRET)) == SECRET
        yield from guest.wrmsr(msrs.HV_X64_MSR_SIMP, 0)
        assert memory(guest, 0).memory.read(FREE, len(SECRET)) == SECRET

    partition(change)


def test_hypercall_parameters_get_no_further_through_an_overlay() -> None:
    """A page that VTL 0 may not touch is no parameter page, whatever it has laid over it."""
    seen: list[int] = []

    def change(guest: Guest) -> Script:
        for covered in (False, True):
            yield from guest.wrmsr(msrs.HV_X64_MSR_SIMP, FREE | ENABLE if covered else 0)
            mine = guest.input, guest.output
            for guest.input, guest.output in ((FREE, mine[1]), (mine[0], FREE)):
                seen.append((yield from _get_rip(guest)))
            guest.input, guest.output = mine
        assert (yield from _get_rip(guest)) == HvStatus.SUCCESS

    partition(change)
    assert seen == [HvStatus.INVALID_HYPERCALL_INPUT] * 4


def _get_rip(guest: Guest) -> Generator[Op, int, int]:
    data = io.HV_INPUT_GET_VP_REGISTERS(HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF).pack()
    data += int(HvRegisterName.HvX64RegisterRip).to_bytes(4, "little")
    if guest.input != FREE:
        guest.rig.write(guest.input, data)
    yield ops.Set(Call.HvCallGetVpRegisters | reps(1), "rcx")
    yield ops.Set(guest.input, "rdx")
    yield ops.Set(guest.output, "r8")
    result = yield ops.Vmmcall()
    return result & 0xFFFF


@pytest.mark.parametrize("index", PLACEABLE, ids=hex)
def test_an_overlay_of_a_higher_vtl_is_its_own(index: int) -> None:
    """VTL 0 sees the memory under it, and neither its contents nor its rights."""
    seen: list[tuple[bool, bytes]] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.wrmsr(index, FREE | ENABLE)
        assert memory(guest, 1).memory.overlay_at(FREE) is not None
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        guest.rig.write(FREE, b"under it")
        yield from guest.enable(1)
        yield from guest.vtl_call()
        space = memory(guest, 0).memory
        seen.append((space.check(FREE, 1, Access.ALL), space.read(FREE, 8)))
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [(True, b"under it")]


@pytest.mark.parametrize("index", PLACEABLE[:4], ids=hex)
def test_data_overlays_are_no_code_where_no_higher_vtl_can_forbid_it(index: int) -> None:
    """Outside RAM there are no protections: a page that VTL 0 fills itself must not be executable there."""

    def change(guest: Guest) -> Script:
        gpa = RAM_SIZE + 16 * PAGE
        yield from guest.wrmsr(index, gpa | ENABLE)
        space = memory(guest, 0).memory
        assert space.check(gpa, 1, Access.READ)
        assert not space.check(gpa, 1, Access.EXECUTE)

    partition(change)
