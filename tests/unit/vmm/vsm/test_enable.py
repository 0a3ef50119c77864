"""HvCallEnablePartitionVtl and HvCallEnableVpVtl: who may enable what, and every status that says no."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vmm.vsm.vsm_rig import EFER, Guest, Script, VsmRig, initial_context, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HV_INITIAL_VP_CONTEXT, HV_X64_SEGMENT_REGISTER, HV_X64_TABLE_REGISTER
from vtlkit.vmm.vsm import context as vsm_context


def idle(guest: Guest) -> Script:
    """A VTL that returns at once, each time."""
    while True:
        yield from guest.vtl_return()


@pytest.mark.tlfs("vsm.enable-partition")
def test_statuses_of_enable_partition_vtl() -> None:
    seen: list[int] = []

    def vtl0(guest: Guest) -> Script:
        for arguments in (
            {"vtl": 1, "partition": 1},
            {"vtl": 0},
            {"vtl": 4},
            {"vtl": 15},
            {"vtl": 255},
            {"vtl": 1, "flags": 1},
            {"vtl": 1, "flags": 0x80},
            {"vtl": 1, "reserved": b"\0\0\0\0\0\1"},
            {"vtl": 1},
            {"vtl": 1},
            {"vtl": 2},
        ):
            seen.append((yield from guest.enable_partition_vtl(**arguments)))
        seen.append((yield from guest.get(Name.HvRegisterVsmPartitionStatus))[1])
        yield from guest.end()

    run_guests({(0, 0): vtl0}, vtls=4)
    assert seen == [
        HvStatus.INVALID_PARTITION_ID,
        HvStatus.INVALID_PARAMETER,
        HvStatus.INVALID_PARAMETER,
        HvStatus.INVALID_PARAMETER,
        HvStatus.INVALID_PARAMETER,
        HvStatus.INVALID_PARAMETER,
        HvStatus.INVALID_PARAMETER,
        HvStatus.INVALID_PARAMETER,
        HvStatus.SUCCESS,
        HvStatus.VTL_ALREADY_ENABLED,
        # VTL1 is the highest one below it, and VTL0 is not VTL1.
        HvStatus.ACCESS_DENIED,
        3 << 16 | 0b11,
    ]


@pytest.mark.tlfs("vsm.enable-vp", "vsm.enable-elsewhere")
def test_statuses_of_enable_vp_vtl() -> None:
    seen: list[int] = []

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from guest.enable_vp_vtl(1)))
        yield from guest.enable_partition_vtl(1)
        for arguments in (
            {"vtl": 1, "partition": 7},
            {"vtl": 1, "vp": 2},
            {"vtl": 0},
            {"vtl": 3},
            {"vtl": 1, "reserved": b"\1\0\0"},
            {"vtl": 1, "context": HV_INITIAL_VP_CONTEXT()},
            {"vtl": 2},
            {"vtl": 1, "vp": 0},
            {"vtl": 1},
            {"vtl": 1, "vp": 1},
        ):
            seen.append((yield from guest.enable_vp_vtl(**arguments)))
        seen.append((yield from guest.get(Name.HvRegisterVsmVpStatus))[1])
        seen.append((yield from guest.get(Name.HvRegisterVsmVpStatus, vp=1))[1])
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): idle}, cpus=2, vtls=3)
    assert seen == [
        HvStatus.INVALID_VTL_STATE,
        HvStatus.INVALID_PARTITION_ID,
        HvStatus.INVALID_VP_INDEX,
        HvStatus.INVALID_PARAMETER,
        HvStatus.INVALID_PARAMETER,
        HvStatus.INVALID_PARAMETER,
        HvStatus.INVALID_REGISTER_VALUE,
        HvStatus.INVALID_VTL_STATE,
        HvStatus.SUCCESS,
        HvStatus.VTL_ALREADY_ENABLED,
        # Once VTL1 is enabled on one processor VTL0 enables it on no other.
        HvStatus.ACCESS_DENIED,
        # The active VTL is unchanged.
        0b11 << 16 | 0,
        0b01 << 16 | 0,
    ]


@pytest.mark.tlfs("vsm.enable-elsewhere")
def test_vtl1_enables_itself_on_the_others() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        seen.append((yield from guest.enable_vp_vtl(1, vp=1)))
        seen.append((yield from guest.enable_vp_vtl(1, vp=1)))
        seen.append((yield from guest.get(Name.HvRegisterVsmVpStatus, vp=1))[1])
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1}, cpus=2)
    assert seen == [HvStatus.SUCCESS, HvStatus.VTL_ALREADY_ENABLED, 0b11 << 16]


@pytest.mark.tlfs("vsm.enable-partition", "vsm.enable-vp", "vsm.three")
def test_a_higher_vtl_enables_lower_ones() -> None:
    """VTLs need not be consecutive, and a higher one may always enable one below it."""
    seen: list[Any] = []

    def vtl3(guest: Guest) -> Script:
        yield from guest.enable(1)
        seen.append((yield from guest.get(Name.HvRegisterVsmVpStatus))[1])
        yield from guest.vtl_return()
        raise AssertionError("VTL1 has nothing to call")

    def vtl1(guest: Guest) -> Script:
        seen.append("vtl1")
        seen.append((yield from guest.enable_partition_vtl(2)))
        seen.append((yield from guest.enable_vp_vtl(2)))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(3)
        yield from guest.vtl_call()
        seen.append((yield from guest.get(Name.HvRegisterVsmVpStatus))[1])
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (0, 2): idle, (0, 3): vtl3}, vtls=4)
    assert seen == [
        0b1011 << 16 | 3,
        "vtl1",
        HvStatus.SUCCESS,
        HvStatus.ACCESS_DENIED,
        0b1011 << 16 | 0,
    ]


@pytest.mark.tlfs("vsm.enable-vp")
def test_a_processor_without_vtl1_is_no_way_round_it() -> None:
    """VTL0 of a processor on which VTL1 is not enabled is not the highest VTL below VTL2 there is."""
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        assert (yield from guest.enable_partition_vtl(2)) == HvStatus.SUCCESS
        seen.append(0)
        while len(seen) == 1:
            yield ops.Compute(100)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    def other(guest: Guest) -> Script:
        while not seen:
            yield ops.Compute(100)
        seen.append((yield from guest.enable_vp_vtl(2)))

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (1, 0): other}, cpus=2, vtls=3)
    assert seen[1] == HvStatus.ACCESS_DENIED


def test_a_vtl_that_is_enabled_while_others_look_at_the_set() -> None:
    """The set of VTLs grows while another processor's task is in the middle of looking through it."""
    rig = VsmRig({(0, 0): idle}, vtls=3)
    vp = rig.partition.vps[0]
    with rig.partition.lock:
        looking, looking_at_vtls = iter(vp.vcpus), iter(rig.partition.vtls)
        assert (next(looking), next(looking_at_vtls)) == (0, 0)
        rig.partition.enable_vtl(1)
        vp.add_vcpu(rig.partition.create_vcpu(0, 1), 1)
        assert list(looking) == []
        assert list(looking_at_vtls) == []
    rig.factory.close()


# --- initial contexts -----------------------------------------------------------------------------------------------


CR4_ALLOWED = 0x7E8
CODE32 = HV_X64_SEGMENT_REGISTER(0, 0xFFFFFFFF, 8, 0xC09B)


@pytest.mark.tlfs("vsm.enable-vp-context", "vsm.modes")
@pytest.mark.parametrize(
    "changes",
    [
        {"Cr0": 0x60000010},
        {"Cr0": 0x80000010},
        {"Cr0": 0x1_80010033},
        {"Cr0": 0xA0010033},
        {"Rflags": 1 << 17 | 2},
        {"Rflags": 1 << 22 | 2},
        {"Rflags": 1 << 3 | 2},
        {"MsrCrPat": 0x0007040600070402},
        {"Efer": 0x100},
        {"Efer": 0x400},
        {"Efer": 0x500 | 1 << 20},
        {"Cr4": 0},
        {"Cr4": 0x20 | 1 << 31},
        {"Cr3": 1 << 60},
        {"Rip": 0x8000_0000_0000_0000},
        {"Cs": HV_X64_SEGMENT_REGISTER(0, 0xFFFFFFFF, 8, 0xA01B)},
        {"Cs": HV_X64_SEGMENT_REGISTER(0, 0xFFFFFFFF, 8, 0xE09B)},
        {"Cs": HV_X64_SEGMENT_REGISTER(0, 0xFFFFFFFF, 8, 0xC093)},
    ],
)
def test_contexts_that_no_vtl_can_start_in(changes: dict[str, Any]) -> None:
    """Real mode, virtual-8086 mode, and what a processor refuses to be loaded with."""
    assert vsm_context.decode(initial_context(0x1000), CR4_ALLOWED) is not None
    assert vsm_context.decode(initial_context(0x1000, **changes), CR4_ALLOWED) is None


@pytest.mark.tlfs("vsm.enable-vp-context", "vsm.modes")
@pytest.mark.parametrize(
    "changes",
    [
        {"Efer": 0, "Cs": CODE32},
        {"Efer": 0, "Cs": CODE32, "Cr0": 0x10033},
        {"Efer": 0, "Cs": CODE32, "Cr0": 0x10033, "Cr4": 0},
        {"Efer": 0xD00},
        {"Rip": 0xFFFF_8000_0000_0000},
        {"Cs": CODE32},
        {"Rflags": 0x202},
    ],
)
def test_contexts_of_every_mode_a_vtl_may_have(changes: dict[str, Any]) -> None:
    """64-bit, compatibility, 32-bit with PAE, 32-bit without paging."""
    assert vsm_context.decode(initial_context(0x1000, **changes), CR4_ALLOWED) is not None


@pytest.mark.tlfs("vsm.enable-vp-context")
@given(st.binary(min_size=224, max_size=224))
def test_hostile_contexts_are_refused_or_loaded(data: bytes) -> None:
    context = HV_INITIAL_VP_CONTEXT.unpack(data)
    state = vsm_context.decode(context, CR4_ALLOWED)
    if state is not None:
        # Nothing random has so many right bits.
        assert context.Cr0 & 1
        assert context.Efer & EFER in (0, EFER)


def data_segment(base: int, selector: int) -> HV_X64_SEGMENT_REGISTER:
    return HV_X64_SEGMENT_REGISTER(base, 0xFFFFF, selector, 0x4093)


CONTEXT_SEGMENTS = {
    "Cs": HV_X64_SEGMENT_REGISTER(0, 0xFFFFFFFF, 0x40, 0xA09B),
    **{name: data_segment(0x100000 * at, 0x48 + 8 * at) for at, name in enumerate(("Ds", "Es", "Fs", "Gs", "Ss"))},
    "Tr": HV_X64_SEGMENT_REGISTER(0x3000, 0x67, 0x80, 0x8B),
    "Ldtr": HV_X64_SEGMENT_REGISTER(0x4000, 0x7F, 0x88, 0x82),
}


@pytest.mark.tlfs("vsm.enable-vp-context")
def test_a_context_reaches_the_registers() -> None:
    """Every field of it, each with a value that no other has."""
    seen: dict[str, Any] = {}

    def vtl1(guest: Guest) -> Script:
        vcpu = guest.rig.partition.vps[0].vcpus[1]
        seen["regs"], seen["sregs"] = vcpu.get_regs(), vcpu.get_sregs()
        seen["pat"] = vcpu.get_msr(0x277)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        context = initial_context(
            guest.rig.entry(0, 1),
            Rsp=0xABC000,
            Rflags=0x202,
            Idtr=HV_X64_TABLE_REGISTER(Limit=0x123, Base=0x5000),
            Gdtr=HV_X64_TABLE_REGISTER(Limit=0x456, Base=0x6000),
            Efer=0xD00,
            Cr0=0x80050033,
            Cr3=0x77000,
            Cr4=0x6A0,
            MsrCrPat=0x0007010600070106,
            **CONTEXT_SEGMENTS,
        )
        yield from guest.enable_partition_vtl(1)
        assert (yield from guest.enable_vp_vtl(1, context=context)) == HvStatus.SUCCESS
        yield from guest.vtl_call()

    # That the program ran says that RIP was the context's.
    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    regs, sregs = seen["regs"], seen["sregs"]
    assert (regs.rsp, regs.rflags) == (0xABC000, 0x202)
    assert (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) == (0x80050033, 0x77000, 0x6A0, 0xD00)
    for name, expected in CONTEXT_SEGMENTS.items():
        segment = getattr(sregs, "ldt" if name == "Ldtr" else name.lower())
        packed = segment.attributes & 0xFF | (segment.attributes & 0xF00) << 4
        found = (segment.base, segment.limit, segment.selector, packed)
        assert found == (expected.Base, expected.Limit, expected.Selector, expected.Attributes), name
    assert (sregs.idt.base, sregs.idt.limit, sregs.gdt.base, sregs.gdt.limit) == (0x5000, 0x123, 0x6000, 0x456)
    assert seen["pat"] == 0x0007010600070106


# --- the ladder -----------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("vsm.three")
@pytest.mark.parametrize("count", range(2, 17))
def test_up_and_down_a_ladder_of_vtls(count: int) -> None:
    """Each VTL enables the next one and calls it; the top returns, and the way down passes each of them."""
    top = count - 1
    seen: list[Any] = []

    def rung(guest: Guest) -> Script:
        status = yield from guest.get(Name.HvRegisterVsmVpStatus)
        seen.append(("up", guest.vtl, status[1]))
        if guest.vtl < top:
            yield from guest.enable(guest.vtl + 1)
            yield from guest.vtl_call()
            status = yield from guest.get(Name.HvRegisterVsmVpStatus)
            seen.append(("down", guest.vtl, status[1]))
        if guest.vtl:
            yield from guest.vtl_return()
        else:
            yield from guest.end()

    rig = run_guests({(0, vtl): rung for vtl in range(count)}, vtls=count)
    up = [("up", vtl, ((2 << vtl) - 1) << 16 | vtl) for vtl in range(count)]
    down = [("down", vtl, ((1 << count) - 1) << 16 | vtl) for vtl in reversed(range(top))]
    assert seen == up + down
    assert rig.partition.vps[0].switches == 2 * top
