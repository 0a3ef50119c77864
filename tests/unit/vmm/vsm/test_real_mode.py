"""There is no real mode above VTL 0: no start context has it, and no instruction leads there."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, initial_context
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HV_X64_SEGMENT_REGISTER
from vtlkit.x86.exceptions import Vector

CODE32 = HV_X64_SEGMENT_REGISTER(0, 0xFFFFFFFF, 8, 0xC09B)
PROTECTED = 0x10033
REAL = 0x10032


@pytest.mark.tlfs("vsm.modes")
def test_vtl1_cannot_clear_pe() -> None:
    """Protected mode without paging, whence MOV to CR0 would lead to real mode: #GP, and CR0 is as it was."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield ops.Set(REAL)
        yield ops.MovToCr(0)
        seen.append("after")
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_partition_vtl(1)
        context = initial_context(guest.rig.entry(0, 1), Efer=0, Cs=CODE32, Cr0=PROTECTED, Cr4=0)
        assert (yield from guest.enable_vp_vtl(1, context=context)) == HvStatus.SUCCESS
        yield from guest.vtl_call()

    def handler(guest: Guest, event: Event) -> Script:
        seen.append((event.vector, event.error_code, guest.engine.cr0))
        # The instruction runs again when the handler returns: with a value that is allowed.
        yield ops.Set(PROTECTED)

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1})
    rig.handlers[1, Vector.GP] = handler
    rig.run()
    assert seen == [(Vector.GP, 0, PROTECTED), "after"]


@pytest.mark.tlfs("vsm.modes")
@pytest.mark.parametrize("cr0", [0x10, 0x60000010])
def test_no_vtl_starts_in_real_mode(cr0: int) -> None:
    seen: list[int] = []

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_partition_vtl(1)
        context = initial_context(0, Efer=0, Cs=HV_X64_SEGMENT_REGISTER(0, 0xFFFF, 0, 0x9B), Cr0=cr0, Cr4=0)
        seen.append((yield from guest.enable_vp_vtl(1, context=context)))
        yield from guest.end()

    VsmRig({(0, 0): vtl0}).run()
    assert seen == [HvStatus.INVALID_REGISTER_VALUE]
