"""HvCallStartVirtualProcessor: who may start which VTL of whom, and which VTL runs then."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import (
    PROGRAMS,
    Guest,
    Script,
    VsmRig,
    initial_context,
)
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HV_X64_SEGMENT_REGISTER
from vtlkit.hvdef.vsm import HvVtlEntryReason as Reason
from vtlkit.kvm.uapi import MpState

DENY, INTERCEPT = 1 << 6, 1 << 9
INIT, SIPI = 0x4500, 0x4600
CODE32 = HV_X64_SEGMENT_REGISTER(0, 0xFFFFFFFF, 8, 0xC09B)
UNSTARTED = (MpState.UNINITIALIZED, MpState.INIT_RECEIVED)


def rig_of(guests: Any, *, cpus: int = 2, vtls: int = 2) -> VsmRig:
    """All processors but the first wait for their start, as after power-on."""
    rig = VsmRig(guests, cpus=cpus, vtls=vtls)
    for vp in rig.partition.vps[1:]:
        vp.vcpus[0].reset_to_power_on()
    return rig


def spin(_guest: Guest) -> Script:
    while True:
        yield ops.Compute(100)


def wait_for(guest: Guest, what: Any) -> Script:
    while what not in guest.rig.log:
        yield ops.Compute(20)


def noted(what: Any) -> Any:
    def body(guest: Guest) -> Script:
        guest.note(what)
        yield from spin(guest)

    return body


# --- the hypercall ----------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("hypercalls.start-vp")
@pytest.mark.parametrize("init", [False, True])
def test_vtl0_starts_a_processor_where_it_says(init: bool) -> None:
    """Without INIT or SIPI, and after an INIT just as well; it starts once."""
    seen: dict[str, Any] = {}

    def vtl0(guest: Guest) -> Script:
        if guest.vp:
            vcpu = guest.rig.partition.vps[1].vcpus[0]
            seen["regs"], seen["sregs"], seen["pat"] = vcpu.get_regs(), vcpu.get_sregs(), vcpu.get_msr(0x277)
            guest.note("started")
            yield from spin(guest)
        if init:
            yield from guest.enable_apic()
            yield from guest.wrmsr(0x830, 1 << 32 | INIT)
            yield ops.Compute(10_000)
        context = initial_context(guest.rig.entry(1, 0), Rsp=0xABC000, Rflags=0x202, Cr3=0x77000, MsrCrPat=6)
        seen["first"] = yield from guest.start_vp(1, context=context)
        yield from wait_for(guest, "started")
        seen["second"] = yield from guest.start_vp(1)
        yield from guest.end()

    rig = rig_of({(0, 0): vtl0, (1, 0): vtl0})
    rig.run()
    assert (seen["first"], seen["second"]) == (HvStatus.SUCCESS, HvStatus.INVALID_VP_STATE)
    regs, sregs = seen["regs"], seen["sregs"]
    assert (regs.rsp, regs.rflags) == (0xABC000, 0x202)
    assert (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, seen["pat"]) == (0x80010033, 0x77000, 0x20, 0x500, 6)
    assert rig.log == ["started"]


@pytest.mark.tlfs("hypercalls.start-vp")
def test_statuses() -> None:
    seen: list[int] = []

    def vtl0(guest: Guest) -> Script:
        for arguments in (
            {"vp": 1, "partition": 3},
            {"vp": 3},
            {"vp": 0xFFFFFFFF},
            # The caller's own processor, by both of its names.
            {"vp": 0, "context": initial_context(0)},
            {"vp": 0xFFFFFFFE, "context": initial_context(0)},
            {"vp": 1, "reserved": b"\0\1\0"},
            # VTL numbers that are none; VTLs above the caller's.
            {"vp": 1, "vtl": 200, "context": initial_context(0)},
            {"vp": 1, "vtl": 1},
            {"vp": 1, "vtl": 15, "context": initial_context(0)},
            {"vp": 1, "context": initial_context(0, Cr0=0x80000010)},
            {"vp": 1, "context": initial_context(1 << 63)},
            {"vp": 1, "context": initial_context(0, Rflags=1 << 22)},
            # VP 2 runs.
            {"vp": 2},
            {"vp": 1},
            {"vp": 1},
        ):
            seen.append((yield from guest.start_vp(**arguments)))
        yield from guest.end()

    rig = VsmRig({(0, 0): vtl0, (1, 0): spin, (2, 0): spin}, cpus=3)
    rig.partition.vps[1].vcpus[0].reset_to_power_on()
    rig.run()
    assert seen == [
        HvStatus.INVALID_PARTITION_ID,
        *[HvStatus.INVALID_VP_INDEX] * 4,
        *[HvStatus.INVALID_PARAMETER] * 2,
        *[HvStatus.ACCESS_DENIED] * 2,
        *[HvStatus.INVALID_REGISTER_VALUE] * 3,
        HvStatus.INVALID_VP_STATE,
        HvStatus.SUCCESS,
        HvStatus.INVALID_VP_STATE,
    ]


@pytest.mark.tlfs("hypercalls.start-vp")
def test_a_vtl_that_is_not_enabled_there() -> None:
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        seen.append((yield from guest.start_vp(1, 1)))
        yield from guest.enable_vp_vtl(1, vp=1)
        seen.append((yield from guest.start_vp(1, 1, context=initial_context(0, Cr0=0x10))))
        seen.append((yield from guest.start_vp(1, 1)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    rig_of({(0, 0): vtl0, (0, 1): vtl1, (1, 1): spin}).run()
    assert seen == [HvStatus.INVALID_VTL_STATE, HvStatus.INVALID_REGISTER_VALUE, HvStatus.SUCCESS]


@pytest.mark.parametrize(
    "changes", [{"Cs": CODE32, "Efer": 0, "Cr0": 0x10, "Cr4": 0}, {"Cs": CODE32, "Efer": 0, "Cr4": 0}]
)
@pytest.mark.tlfs("hypercalls.start-vp")
def test_vtl0_may_start_in_any_mode(changes: dict[str, Any]) -> None:
    def vtl0(guest: Guest) -> Script:
        if guest.vp:
            guest.note(guest.engine.cr0)
            yield from guest.end()
        context = initial_context(guest.rig.entry(1, 0), **changes)
        assert (yield from guest.start_vp(1, context=context)) == HvStatus.SUCCESS
        yield from spin(guest)

    rig = rig_of({(0, 0): vtl0, (1, 0): vtl0})
    rig.run()
    assert rig.log == [changes.get("Cr0", 0x80010033)]


# --- VTLs -------------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("start.start-vp-vtl")
def test_a_processor_starts_in_vtl1() -> None:
    """VTL 1 says where, whatever HvCallEnableVpVtl said; VTL 0 waits on for its own start, which brings VTL 1 first."""
    elsewhere = PROGRAMS + 0x800

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_vp_vtl(1, vp=1, context=initial_context(0xDEAD0))
        assert (yield from guest.start_vp(1, 1, context=initial_context(elsewhere, Rsp=0x7700))) == HvStatus.SUCCESS
        yield from wait_for(guest, "returning")
        yield ops.Compute(10_000)
        assert "VTL0" not in guest.rig.log
        # It runs VTL 1 no more, and has not started: both may be started.
        assert (yield from guest.start_vp(1, 0)) == HvStatus.SUCCESS
        yield from wait_for(guest, "VTL0")
        assert (yield from guest.start_vp(1, 1)) == HvStatus.INVALID_VP_STATE
        yield from guest.end()

    def started(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        guest.note(("VTL1", guest.regs.rsp, guest.entry_reason))
        guest.note("returning")
        yield from guest.vtl_return()
        guest.note(("again", guest.entry_reason))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    rig = rig_of({(0, 0): vtl0, (0, 1): vtl1, (1, 0): noted("VTL0")})
    rig.factory._programs[elsewhere] = lambda engine: started(Guest(rig, engine))  # type: ignore[index]
    rig.run()
    none = Reason.HvVtlEntryInterrupt
    assert rig.log == [("VTL1", 0x7700, none), "returning", ("again", none), "VTL0"]


@pytest.mark.tlfs("start.start-vp-vtl")
def test_the_highest_vtl_sees_the_start_first() -> None:
    """VTL 0 starts VP 1, which has VTLs 1 and 3: VTL 3 runs, its return leads into VTL 1, whose into VTL 0."""

    def vtl3(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        if guest.vp:
            guest.note((3, guest.entry_reason))
            yield from guest.vtl_return()
        yield from guest.enable_partition_vtl(1)
        for vtl in (1, 3):
            assert (yield from guest.enable_vp_vtl(vtl, vp=1)) == HvStatus.SUCCESS
        yield from guest.vtl_return()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        guest.note((1, guest.entry_reason))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        if guest.vp:
            guest.note(0)
            yield from guest.end()
        yield from guest.enable(3)
        yield from guest.vtl_call()
        assert (yield from guest.start_vp(1)) == HvStatus.SUCCESS
        yield from spin(guest)

    rig = rig_of({(vp, vtl): body for vp in range(2) for vtl, body in ((0, vtl0), (1, vtl1), (3, vtl3))}, vtls=4)
    rig.run()
    assert rig.log == [(3, Reason.HvVtlEntryInterrupt), (1, Reason.HvVtlEntryInterrupt), 0]


@pytest.mark.tlfs("start.start-vp-vtl")
def test_a_start_of_vtl0_while_its_vtl1_runs() -> None:
    """VTL 1 goes on; VTL 0 is ready when it returns."""

    def vtl1(guest: Guest) -> Script:
        if guest.vp:
            guest.note("VTL1 runs")
            yield from wait_for(guest, "started")
            yield ops.Compute(10_000)
            guest.note("returning")
            yield from guest.vtl_return()
        yield from guest.enable_vp_vtl(1, vp=1)
        assert (yield from guest.start_vp(1, 1)) == HvStatus.SUCCESS
        yield from wait_for(guest, "VTL1 runs")
        # It is busy in VTL 1: only VTL 0 waits for a start.
        assert (yield from guest.start_vp(1, 1)) == HvStatus.INVALID_VP_STATE
        assert (yield from guest.start_vp(1, 0)) == HvStatus.SUCCESS
        guest.note("started")
        yield from spin(guest)

    def vtl0(guest: Guest) -> Script:
        if guest.vp:
            guest.note("VTL0 runs")
            yield from guest.end()
        yield from guest.enable(1)
        yield from guest.vtl_call()

    rig = rig_of({(vp, vtl): (vtl0, vtl1)[vtl] for vp in range(2) for vtl in range(2)})
    rig.run()
    assert rig.log == ["VTL1 runs", "started", "returning", "VTL0 runs"]
