"""VP state pages under many schedules: several processors map, move and unmap one page, which is used meanwhile."""

from __future__ import annotations

import pytest

from tests.sim.test_vtl_switch import simulator
from tests.unit.vmm.vsm.intercept_guests import install, must
from tests.unit.vmm.vsm.state_page_rig import MESSAGE, REGISTERS, map_page, unmap
from tests.unit.vmm.vsm.vsm_rig import FREE, PAGE, Guest, Script, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.intercepts import HvInterceptType
from vtlkit.hvdef.status import HvStatus

SEEDS = 40
PLACES = [FREE + number * PAGE for number in range(4)]


@pytest.mark.tlfs("hypercalls.vp-state-page")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_pages_lie_where_the_last_one_said_or_nowhere(seed: int) -> None:
    """VP 1 and VP 2 map and unmap VP 0's pages; VP 0's VTL 0 is intercepted all the while."""
    unmapped: list[int] = []
    done: list[int] = []

    def upper(guest: Guest) -> Script:
        if guest.vp:
            for number in range(4):
                for kind in (REGISTERS, MESSAGE):
                    yield from must(map_page(guest, PLACES[(number + guest.vp) % 2 + 2 * kind], kind, vp=0))
                if number % 2 == 0 or guest.vp == 2:
                    unmapped.append((yield from unmap(guest, REGISTERS, vp=0)))
            done.append(guest.vp)
            while True:
                yield ops.Hlt()
        yield from guest.enable_assist_page()
        yield from must(install(guest, HvInterceptType.HvInterceptTypeX64GlobalCpuid, 0, 4))
        for vp in (1, 2):
            assert (yield from guest.enable_vp_vtl(1, vp=vp)) == HvStatus.SUCCESS
            assert (yield from guest.start_vp(vp, 1)) == HvStatus.SUCCESS
        while len(done) < 2:
            yield from guest.vtl_return()
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Cpuid()

    guests = {(0, 0): vtl0, **{(vp, 1): upper for vp in range(3)}}
    rig = run_guests(guests, cpus=3, host=simulator(seed))
    assert set(unmapped) <= {HvStatus.SUCCESS, HvStatus.NOT_FOUND}
    assert HvStatus.SUCCESS in unmapped
    memory = rig.partition.vtls[1].vm.memory
    mapped = {page.overlay.gpa: page.overlay.block for page in rig.partition.vps[0].state_pages.values()}
    for place in PLACES:
        overlay = memory.overlay_at(place)
        assert (overlay and overlay.block) is mapped.get(place)
    # The message page was never unmapped, and has one.
    (messages,) = (page for key, page in rig.partition.vps[0].state_pages.items() if key.type == MESSAGE)
    assert messages.overlay.gpa in PLACES[2:]
