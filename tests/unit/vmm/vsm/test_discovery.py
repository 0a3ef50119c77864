"""What a guest finds out about the partition: VTLs that it may have, where it starts, whom VP indices name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, initial_context, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.cpuid import HvPartitionPrivilege as Privilege
from vtlkit.hvdef.identifiers import HV_ANY_VP, HV_VP_INDEX_SELF
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import HvFeatures


def privileges(guest: Guest) -> Any:
    """HV_PARTITION_PRIVILEGE_MASK, by CPUID."""
    yield ops.Set(0x40000003)
    yield ops.Cpuid()
    return guest.regs.rbx << 32 | guest.regs.rax


@pytest.mark.tlfs("discovery.presence")
@pytest.mark.parametrize("hyperv", [HvFeatures(), None])
def test_the_hypervisor_is_announced(hyperv: HvFeatures | None) -> None:
    seen: list[tuple[int, ...]] = []

    def vtl0(guest: Guest) -> Script:
        for leaf in (1, 0x40000000, 0x40000001):
            yield ops.Set(leaf)
            yield ops.Cpuid()
            seen.append((guest.regs.rax, guest.regs.rbx, guest.regs.rcx, guest.regs.rdx))
        yield from guest.end()

    run_guests({(0, 0): vtl0}, hyperv=hyperv)
    assert seen[0][2] >> 31 & 1
    assert (seen[1][0] >= 0x40000005) is (hyperv is not None)
    assert (seen[2][0] == 0x31237648) is (hyperv is not None)


@pytest.mark.tlfs("discovery.vtl-count")
@pytest.mark.parametrize("vtls", [2, 3, 16])
def test_the_highest_vtl_is_told_and_held_to(vtls: int) -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        assert (yield from privileges(guest)) & Privilege.AccessVsm
        seen.append((yield from guest.get(Name.HvRegisterVsmPartitionStatus)))
        seen.append((yield from guest.enable_partition_vtl(vtls)))
        seen.append((yield from guest.enable_partition_vtl(vtls - 1)))
        seen.append((yield from guest.get(Name.HvRegisterVsmPartitionStatus)))
        yield from guest.end()

    run_guests({(0, 0): vtl0}, vtls=vtls)
    (status, first), above, highest, (again, second) = seen
    assert (status, again) == (HvStatus.SUCCESS, HvStatus.SUCCESS)
    assert (above, highest) == (HvStatus.INVALID_PARAMETER, HvStatus.SUCCESS)
    assert (first & 0xFFFF, first >> 16 & 0xF) == (1, vtls - 1)
    assert (second & 0xFFFF, second >> 16 & 0xF) == (1 | 1 << (vtls - 1), vtls - 1)


@pytest.mark.tlfs("discovery.vtl-count", "discovery.vsm-privileges")
@pytest.mark.parametrize(
    "options", [{"vtls": 1}, {"vtls": 2, "hyperv": HvFeatures().changed(vsm=False)}], ids=["one VTL", "no hv-vsm"]
)
def test_without_vtls_there_is_no_vsm(options: dict[str, Any]) -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from privileges(guest)) & (Privilege.AccessVsm | Privilege.AccessVpRegisters))
        seen.append((yield from guest.enable_partition_vtl(1)))
        seen.append((yield from guest.get(Name.HvRegisterVsmPartitionStatus))[0])
        yield from guest.end()

    run_guests({(0, 0): vtl0}, **options)
    assert seen == [0, HvStatus.ACCESS_DENIED, HvStatus.ACCESS_DENIED]


@pytest.mark.tlfs("discovery.start-in-vtl0")
def test_processors_start_in_vtl_0_and_a_reset_leaves_nothing_else() -> None:
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        seen.append((yield from guest.get(Name.HvRegisterVsmVpStatus))[1])
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from guest.get(Name.HvRegisterVsmVpStatus))[1])
        yield from guest.enable(1)
        yield from guest.vtl_call()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1}, cpus=2)
    vps = rig.partition.vps
    assert [(vp.active.load(), vp.enabled_set()) for vp in vps] == [(0, 1), (0, 1)]
    rig.run()
    # Active VTL in bits 3:0, enabled ones in bits 31:16.
    assert seen == [1 << 16, 1 | 3 << 16]
    rig.partition.reset()
    assert [(vp.active.load(), vp.enabled_set()) for vp in vps] == [(0, 1), (0, 1)]
    assert rig.partition.enabled_set() == 1


@pytest.mark.tlfs("discovery.vp-index")
def test_vp_indices() -> None:
    """SELF is the caller; ANY and indices that no processor has name nobody."""
    seen: list[Any] = []

    def second(guest: Guest) -> Script:
        for index in (HV_VP_INDEX_SELF, 0, 1, 2, HV_ANY_VP, 0x1000):
            seen.append((yield from guest.get(Name.HvX64RegisterRip, vp=index))[0])
            seen.append((yield from guest.set(Name.HvX64RegisterCr2, 0, vp=index)) if index != 0 else 0)
        seen.append((yield from guest.enable_partition_vtl(1)))
        context = initial_context(0x10000)
        for index in (2, HV_ANY_VP, HV_VP_INDEX_SELF):
            seen.append((yield from guest.enable_vp_vtl(1, vp=index, context=context)))
        yield from guest.end()

    def first(guest: Guest) -> Script:
        while True:
            yield from guest.rdmsr(0x40000002)

    rig = run_guests({(0, 0): first, (1, 0): second}, cpus=2)
    bad = HvStatus.INVALID_VP_INDEX
    assert seen[:12:2] == [0, 0, 0, bad, bad, bad]
    assert seen[7:12:2] == [bad] * 3
    assert seen[12:] == [HvStatus.SUCCESS, bad, bad, HvStatus.SUCCESS]
    assert [vp.enabled_set() for vp in rig.partition.vps] == [1, 3]
