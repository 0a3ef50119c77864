"""INIT and SIPI where there are VTLs, and higher VTLs that deny or intercept a lower one's starts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.test_startup import noted, rig_of, spin, wait_for
from tests.unit.vmm.vsm.vsm_rig import PROGRAMS, Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.messages import (
    HV_MESSAGE_HEADER,
    HV_X64_APIC_INIT_SIPI_INTERCEPT_MESSAGE,
    HV_X64_HYPERCALL_INTERCEPT_MESSAGE,
    HvMessageType,
)
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HvVtlEntryReason as Reason
from vtlkit.kvm.uapi import InterceptedStartup, MpState
from vtlkit.vmm.vsm import intercepts

DENY, INTERCEPT = 1 << 6, 1 << 9
INIT, SIPI = 0x4500, 0x4600
UNSTARTED = (MpState.UNINITIALIZED, MpState.INIT_RECEIVED)


# --- INIT and SIPI ----------------------------------------------------------------------------------------------------


def start_by_sipi(guest: Guest, vp: int) -> Script:
    yield from guest.enable_apic()
    for message in (INIT, SIPI | PROGRAMS >> 12):
        yield from guest.wrmsr(0x830, vp << 32 | message)
        yield ops.Compute(10_000)


def sipi_rig(vtl1: Any) -> VsmRig:
    """VP 0's VTL 1 sets things up; then its VTL 0 sends INIT and SIPI to VP 1, and the run ends."""

    def upper(guest: Guest) -> Script:
        yield from vtl1(guest)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from start_by_sipi(guest, 1)
        yield from guest.end()

    # A SIPI leads to the program of VP 0, which knows where it is.
    return rig_of({(0, 0): vtl0, (0, 1): upper, (1, 0): noted("started by SIPI"), (1, 1): spin})


def nothing(_guest: Guest) -> Script:
    yield ops.Compute()


def enable_there(guest: Guest) -> Script:
    yield from guest.enable_vp_vtl(1, vp=1)


def deny(guest: Guest) -> Script:
    assert (yield from guest.set(Name.HvRegisterVsmPartitionConfig, DENY)) == HvStatus.SUCCESS


def deny_and_allow(guest: Guest) -> Script:
    yield from deny(guest)
    assert (yield from guest.set(Name.HvRegisterVsmPartitionConfig, 0)) == HvStatus.SUCCESS


@pytest.mark.tlfs("start.init-sipi-dropped", "start.deny")
@pytest.mark.parametrize(
    ("prepare", "starts"),
    [(nothing, True), (deny_and_allow, True), (enable_there, False), (deny, False)],
)
def test_init_and_sipi_of_vtl0(prepare: Any, starts: bool) -> None:
    """They start a processor that has no higher VTL, unless VTL 1 denies it."""
    rig = sipi_rig(prepare)
    rig.run()
    assert rig.log == (["started by SIPI"] if starts else [])
    assert (rig.partition.vps[1].vcpus[0].get_mp_state() in UNSTARTED) == (not starts)


@pytest.mark.tlfs("start.init-sipi-dropped")
def test_vtl1_that_stops_denying_does_not_open_a_processor_that_has_it() -> None:
    def prepare(guest: Guest) -> Script:
        yield from enable_there(guest)
        yield from deny_and_allow(guest)

    rig = sipi_rig(prepare)
    rig.run()
    assert rig.log == []


@pytest.mark.tlfs("start.init-sipi-dropped")
def test_init_and_sipi_never_reach_a_vtl_above_0() -> None:
    """In VTL 1's own namespace nothing is started, nor reset."""

    def vtl1(guest: Guest) -> Script:
        if guest.vp:
            guest.note("VTL1 of VP 1")
            yield from spin(guest)
        yield from guest.enable_vp_vtl(1, vp=1)
        yield from start_by_sipi(guest, 1)
        guest.note("sent")
        assert (yield from guest.start_vp(1, 1)) == HvStatus.SUCCESS
        yield from wait_for(guest, "VTL1 of VP 1")
        vcpu = guest.rig.partition.vps[1].vcpus[1]
        before = vcpu.get_sregs().cr0
        yield from start_by_sipi(guest, 1)
        assert vcpu.get_sregs().cr0 == before
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    rig = rig_of({(0, 0): vtl0, (0, 1): vtl1, (1, 1): vtl1})
    rig.run()
    assert rig.log == ["sent", "VTL1 of VP 1"]


# --- denial and interception ------------------------------------------------------------------------------------------


@pytest.mark.tlfs("start.deny")
def test_who_is_denied() -> None:
    """Those below the VTL that denies; itself and those above are not. A reset opens everything again."""
    seen: list[Any] = []

    def vtl2(guest: Guest) -> Script:
        # For VTL 1 and for itself: what VTL 1 denies, VTL 2 may; what VTL 2 denies, VTL 1 may not.
        for config in ((1, DENY), (2, DENY), (2, 0)):
            yield from guest.set(Name.HvRegisterVsmPartitionConfig, config[1], vtl=input_vtl(config[0]))
            yield from guest.vtl_return()
        assert (yield from guest.start_vp(1)) == HvStatus.SUCCESS
        yield from wait_for(guest, "started")
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable(2)
        for vp in (2, 9, 3):
            yield from guest.vtl_call()
            seen.append((1, (yield from guest.start_vp(vp))))
            yield from guest.vtl_return()
        yield from guest.vtl_call()

    def vtl0(guest: Guest) -> Script:
        if guest.vp:
            guest.note("started")
            yield from spin(guest)
        yield from guest.enable(1)
        while True:
            yield from guest.vtl_call()
            seen.append((0, (yield from guest.start_vp(1))))

    guests = {(vp, 0): vtl0 for vp in range(4)}
    rig = rig_of({**guests, (0, 1): vtl1, (0, 2): vtl2}, cpus=4, vtls=3)
    rig.run()
    denied = HvStatus.ACCESS_DENIED
    assert seen == [
        (1, HvStatus.SUCCESS),
        (0, denied),
        (1, HvStatus.INVALID_VP_INDEX),
        (0, denied),
        (1, HvStatus.SUCCESS),
        (0, denied),
    ]


@pytest.mark.tlfs("start.intercept")
def test_a_start_is_intercepted() -> None:
    """VTL 1 gets the hypercall, nothing having been done; it starts the processor itself and lets VTL 0 go on."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_synic()
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, INTERCEPT)
        yield from guest.vtl_return()
        raw = guest.take_message()
        header = HV_MESSAGE_HEADER.unpack_from(raw)
        message = HV_X64_HYPERCALL_INTERCEPT_MESSAGE.unpack_from(raw[16:])
        vcpu = guest.rig.partition.vps[0].vcpus[0]
        seen.append((header.MessageType, guest.entry_reason))
        seen.append((message.Header.VpIndex, message.Header.ExecutionState >> 7 & 0xF, message.Header.Rip))
        seen.append((message.Rcx, message.Rdx, guest.rig.partition.vps[1].starting.load()))
        assert message.Header.Rip == vcpu.get_regs().rip
        assert (yield from guest.start_vp(1)) == HvStatus.SUCCESS
        # The intercepted hypercall has succeeded, and is over.
        rip = message.Header.Rip + (message.Header.InstructionLengthCr8 & 0xF)
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, 0)
        assert (yield from guest.set(Name.HvX64RegisterRip, rip, vtl=input_vtl(0))) == HvStatus.SUCCESS
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        if guest.vp:
            guest.note("started")
            yield from guest.end()
        yield from guest.enable(1)
        yield from guest.vtl_call()
        seen.append(guest.input)
        yield from guest.start_vp(1)
        yield from spin(guest)

    rig = rig_of({(0, 0): vtl0, (0, 1): vtl1, (1, 0): vtl0})
    rig.run()
    assert rig.log == ["started"]
    page = seen.pop(0)
    assert seen[0] == (HvMessageType.HvMessageTypeHypercallIntercept, Reason.HvVtlEntryIntercept)
    assert seen[1][:2] == (0, 0)
    assert seen[2] == (0x99, page, None)


@pytest.mark.tlfs("start.intercept")
def test_init_and_sipi_are_intercepted() -> None:
    """VTL 1 gets each, the processor gets none; after it has lifted the intercept, both go through."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_synic(0x30 | 1 << 18)
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, INTERCEPT)
        for _ in range(2):
            yield from guest.vtl_return()
            raw = guest.take_message()
            message = HV_X64_APIC_INIT_SIPI_INTERCEPT_MESSAGE.unpack_from(raw[16:])
            kind = HV_MESSAGE_HEADER.unpack_from(raw).MessageType
            seen.append((kind, guest.entry_reason, message.Header.VpIndex, message.ApicIcr))
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, 0)
        assert guest.rig.partition.vps[1].vcpus[0].get_mp_state() is MpState.UNINITIALIZED
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from start_by_sipi(guest, 1)
        assert guest.rig.log == []
        yield from start_by_sipi(guest, 1)
        yield from guest.end()

    rig = rig_of({(0, 0): vtl0, (0, 1): vtl1, (1, 0): noted("started by SIPI")})
    rig.run()
    told = (HvMessageType.HvMessageTypeX64ApicInitSipiIntercept, Reason.HvVtlEntryIntercept, 0)
    assert seen == [(*told, 1 << 32 | INIT), (*told, 1 << 32 | SIPI | PROGRAMS >> 12)]
    assert rig.log == ["started by SIPI"]


@pytest.mark.tlfs("start.intercept")
def test_the_lowest_vtl_that_wants_to_know_is_told() -> None:
    seen: list[Any] = []

    def upper(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, INTERCEPT)
        if guest.vtl == 1:
            yield from guest.enable(2)
            yield from guest.vtl_call()
        yield from guest.vtl_return()
        seen.append((guest.vtl, guest.entry_reason))
        # VTL 1 is not told of its own start, and VTL 2 is.
        if guest.vtl == 1:
            yield from guest.start_vp(1)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from guest.start_vp(1)

    rig_of({(0, 0): vtl0, (0, 1): upper, (0, 2): upper}, vtls=3).run()
    assert seen == [(1, Reason.HvVtlEntryIntercept), (2, Reason.HvVtlEntryIntercept)]


@pytest.mark.tlfs("start.deny")
def test_a_denied_start_is_not_intercepted() -> None:
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, INTERCEPT | DENY)
        yield from guest.vtl_return()
        raise AssertionError("nobody calls")

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        seen.append((yield from guest.start_vp(1)))
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1}, cpus=2)
    assert seen == [HvStatus.ACCESS_DENIED]


@pytest.mark.tlfs("start.intercept")
def test_a_lifted_startup_is_sent_after_all() -> None:
    """Between the trap and its handling another processor has lifted the intercept: the INIT is not lost."""
    rig = VsmRig({(0, 0): lambda guest: guest.end()}, cpus=2)
    vp = rig.partition.vps[0]
    sent = vp.vcpus[0].apic.statistics().ipis_sent
    intercepts.intercepted(vp, 0, vp.vcpus[0], InterceptedStartup(1 << 32 | 0x4500))
    assert vp.vcpus[0].apic.statistics().ipis_sent == sent + 1
    assert vp.switches == 0
    rig.factory.close()
