"""HvRegisterVsmPartitionConfig: who sets it, once, and what its default mask protects."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import FREE, Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus


def in_vtl1(body: Any, *, below: Any = None, vtls: int = 2) -> VsmRig:
    """Run `body` in VTL1; `below` is what VTL0 does once VTL1 has returned."""

    def vtl1(guest: Guest) -> Script:
        yield from body(guest)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        if below is not None:
            yield from below(guest)
        yield from guest.end()

    return run_guests({(0, 0): vtl0, (0, 1): vtl1}, vtls=vtls)


def config(enable: int = 0, mask: int = 0, zero: int = 0) -> int:
    return enable | mask << 1 | zero << 5


@pytest.mark.tlfs("protection.config")
def test_partition_config_of_vtl0_and_of_higher_vtls() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        seen.append((yield from guest.get(Name.HvRegisterVsmPartitionConfig)))
        seen.append((yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 << 63)))
        seen.append((yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 << 64)))
        # Interception of acceptance and of protection, and what the TLFS does not know.
        refused = [bit for bit in range(7, 64) if bit != 9]
        for bit in refused:
            status = yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 << bit)
            assert status == HvStatus.INVALID_REGISTER_VALUE, bit
        seen.append((yield from guest.set(Name.HvRegisterVsmPartitionConfig, 0, vtl=input_vtl(0))))
        seen.append((yield from guest.set(Name.HvRegisterVsmPartitionConfig, 0, vtl=input_vtl(2))))

    def below(guest: Guest) -> Script:
        seen.append((yield from guest.set(Name.HvRegisterVsmPartitionConfig, 0)))
        seen.append((yield from guest.get(Name.HvRegisterVsmPartitionConfig, vtl=input_vtl(1)))[0])

    in_vtl1(vtl1, below=below, vtls=3)
    assert seen == [
        # Memory is zeroed on reset unless the VTL says otherwise.
        (HvStatus.SUCCESS, config(zero=1)),
        HvStatus.INVALID_REGISTER_VALUE,
        HvStatus.INVALID_REGISTER_VALUE,
        HvStatus.ACCESS_DENIED,
        HvStatus.ACCESS_DENIED,
        HvStatus.ACCESS_DENIED,
        HvStatus.ACCESS_DENIED,
    ]


@pytest.mark.tlfs("protection.config", "protection.default-mask")
def test_protection_is_enabled_once() -> None:
    seen: list[Any] = []
    name = Name.HvRegisterVsmPartitionConfig

    def vtl1(guest: Guest) -> Script:
        # Without protection the mask may be anything that is a mask, and protects nothing.
        seen.append((yield from guest.set(name, config(mask=3))))
        seen.append(guest.rig.partition.vtl0.vm.memory.attributes.at(FREE))
        for value in (config(1, 0xF), config(1, 3), config(0, 0xF), config(0, 0, 1)):
            seen.append((yield from guest.set(name, value)))
            seen.append((yield from guest.get(name))[1])

    in_vtl1(vtl1)
    ok = HvStatus.SUCCESS
    kept = config(1, 0xF)
    assert seen == [ok, 7, ok, kept, ok, kept, ok, kept, ok, kept | config(zero=1)]


@pytest.mark.tlfs("protection.default-mask")
@pytest.mark.parametrize("mask", range(16))
def test_default_protection_mask(mask: int) -> None:
    """It covers all memory of all lower VTLs from the moment protection is enabled."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        seen.append((yield from guest.set(Name.HvRegisterVsmPartitionConfig, config(1, mask))))
        attributes = guest.rig.partition.vtl0.vm.memory.attributes
        seen.append({int(attributes.at(gpa)) for gpa in range(0, 0x200000, 0x1000)})
        seen.append(int(guest.rig.partition.vtls[1].vm.memory.attributes.at(FREE)))
        yield from guest.end()

    in_vtl1(vtl1)
    # R, W, kernel-mode execute, user-mode execute; without MBEC kernel-mode execute is execute.
    expected = {0: 0, 1: 1, 3: 3, 5: 5, 7: 7, 9: 1, 0xB: 3, 0xD: 5, 0xF: 7}.get(mask)
    if expected is None:
        assert seen == [HvStatus.INVALID_REGISTER_VALUE, {7}, 7]
    else:
        assert seen == [HvStatus.SUCCESS, {expected}, 7]


@pytest.mark.tlfs("protection.config")
def test_a_higher_vtl_configures_a_lower_one() -> None:
    seen: list[Any] = []

    def vtl2(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, config(1, 1), vtl=input_vtl(1))
        seen.append((yield from guest.get(Name.HvRegisterVsmPartitionConfig, vtl=input_vtl(1)))[1])
        vtls = guest.rig.partition.vtls
        seen.append([int(vtls[vtl].vm.memory.attributes.at(FREE)) for vtl in range(3)])
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (0, 2): vtl2}, vtls=3)
    # It is VTL1's protection: of what is below VTL1.
    assert seen == [config(1, 1), [1, 7, 7]]
