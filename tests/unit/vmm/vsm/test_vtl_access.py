"""HvCallCheckSparseGpaPageVtlAccess: the answer is what the access itself would come to."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vmm.vsm.vsm_rig import FREE, PAGE, Guest, Script, input_vtl, run_guests
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF
from vtlkit.hvdef.registers import HvRegisterName
from vtlkit.hvdef.status import HvStatus

pytestmark = pytest.mark.tlfs("hypercalls.check-vtl-access")

PROTECT = 0x1
"""EnableVtlProtection alone in HvRegisterVsmPartitionConfig, with the default mask below."""
ALL = 0xF << 1
READ, WRITE, EXECUTE = 1, 2, 0xC
COMBINATIONS = (0, READ, READ | WRITE, READ | EXECUTE, READ | WRITE | EXECUTE)
Answer = tuple[int, int, list[tuple[int, int, int]]]


def check(guest: Guest, gpas: list[int], access: int, vtl: int = 0x10, **changes: Any) -> Generator[Op, int, Answer]:
    """(status, elements done, (code, denied, VTL) of each)."""
    fields = {"PartitionId": HV_PARTITION_ID_SELF, "TargetVtl": vtl, "DesiredAccess": access, **changes}
    data = io.HV_INPUT_CHECK_SPARSE_GPA_PAGE_VTL_ACCESS(**fields).pack()
    data += b"".join((gpa // PAGE).to_bytes(8, "little") for gpa in gpas)
    result = yield from guest.call(Call.HvCallCheckSparseGpaPageVtlAccess, data, elements=len(gpas))
    found = []
    for at in range(result >> 32):
        word = guest.rig.read(guest.output + 8 * at, 8)
        assert not word >> 20
        found.append((word & 0xFF, word >> 8 & 0xFF, word >> 16))
    return result & 0xFFFF, result >> 32, found


def protecting(guest: Guest) -> Script:
    assert (yield from guest.set(HvRegisterName.HvRegisterVsmPartitionConfig, PROTECT | ALL)) == HvStatus.SUCCESS


def test_what_would_be_denied_and_by_whom() -> None:
    seen: list[Answer] = []

    def vtl1(guest: Guest) -> Script:
        yield from protecting(guest)
        assert (yield from guest.protect([FREE], 0)) & 0xFFFF == 0
        assert (yield from guest.protect([FREE + PAGE], READ)) & 0xFFFF == 0
        pages = [FREE, FREE + PAGE, FREE + 2 * PAGE]
        seen.append((yield from check(guest, pages, READ)))
        seen.append((yield from check(guest, pages, READ | WRITE)))
        seen.append((yield from check(guest, pages, 4)))
        # No memory at all: nobody protects that.
        seen.append((yield from check(guest, [1 << 38], READ | WRITE | EXECUTE)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    free = (0, 0, 0)
    assert seen == [
        (0, 3, [(1, READ, 1), free, free]),
        (0, 3, [(1, READ | WRITE, 1), (1, WRITE, 1), free]),
        (0, 3, [(1, 4, 1), (1, 4, 1), free]),
        (0, 1, [free]),
    ]


def test_of_several_vtls_the_lowest_that_denies_is_named() -> None:
    seen: list[Answer] = []

    def vtl2(guest: Guest) -> Script:
        yield from protecting(guest)
        assert (yield from guest.protect([FREE, FREE + PAGE], READ, vtl=input_vtl(0))) & 0xFFFF == 0
        seen.append((yield from check(guest, [FREE], WRITE, input_vtl(1))))
        yield from guest.vtl_return()
        seen.append((yield from check(guest, [FREE, FREE + PAGE], READ | WRITE, input_vtl(0))))
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()
        yield from protecting(guest)
        assert (yield from guest.protect([FREE], 0)) & 0xFFFF == 0
        yield from guest.vtl_call()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (0, 2): vtl2}, vtls=3)
    assert seen == [(0, 1, [(0, 0, 0)]), (0, 2, [(1, READ | WRITE, 1), (1, WRITE, 2)])]


def test_refusals() -> None:
    seen: list[int] = []

    def one(guest: Guest, gpa: int, access: int, vtl: int = 0x10, **changes: Any) -> Script:
        seen.append((yield from check(guest, [gpa], access, vtl, **changes))[0])

    def vtl1(guest: Guest) -> Script:
        yield from one(guest, FREE, READ, PartitionId=3)
        yield from one(guest, FREE, 0)
        yield from one(guest, FREE, 0x10)
        yield from one(guest, FREE, READ, Reserved0=1)
        yield from one(guest, FREE, READ, Reserved1=1)
        yield from one(guest, FREE, READ, 0x80)
        yield from one(guest, 1 << 52, READ)
        # Its own VTL, named or by default, and one above.
        yield from one(guest, FREE, READ, 0)
        yield from one(guest, FREE, READ, input_vtl(1))
        yield from one(guest, FREE, READ, input_vtl(2))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from one(guest, FREE, READ)
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [
        HvStatus.ACCESS_DENIED,
        HvStatus.INVALID_PARTITION_ID,
        *[HvStatus.INVALID_PARAMETER] * 6,
        *[HvStatus.ACCESS_DENIED] * 3,
    ]


@settings(max_examples=25)
@given(st.lists(st.sampled_from(COMBINATIONS), min_size=1, max_size=6), st.integers(1, 15))
def test_the_answer_agrees_with_what_the_lower_vtl_may_do(masks: list[int], desired: int) -> None:
    """Against the memory of VTL 0 itself: denied exactly where its accesses are."""
    from vtlkit.engine.api import Access

    seen: list[Answer] = []
    pages = [FREE + at * PAGE for at in range(len(masks))]

    def vtl1(guest: Guest) -> Script:
        yield from protecting(guest)
        for page, mask in zip(pages, masks, strict=True):
            assert (yield from guest.protect([page], mask)) & 0xFFFF == 0
        seen.append((yield from check(guest, pages, desired)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    rig = run_guests({(0, 0): vtl0, (0, 1): vtl1})
    memory = rig.partition.vtl0.vm.memory
    kinds = ((1, Access.READ), (2, Access.WRITE), (4, Access.EXECUTE), (8, Access.EXECUTE))
    for page, (code, denied, vtl) in zip(pages, seen[0][2], strict=True):
        wanted = sum(flag for flag, access in kinds if desired & flag and not memory.check(page, 1, access))
        assert (code, denied, vtl) == ((1, wanted, 1) if wanted else (0, 0, 0))
