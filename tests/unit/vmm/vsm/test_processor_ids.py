"""HvCallGetVpIndexFromApicId and HvCallGetVpSetFromMda, from the guest."""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, input_vtl, run_guests
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF
from vtlkit.hvdef.status import HvStatus


def vp_indices(
    guest: Guest, apic_ids: list[int], *, vtl: int = 0, partition: int = HV_PARTITION_ID_SELF, start: int = 0
) -> Generator[Op, int, tuple[int, int, list[int]]]:
    """(status, elements done, indices of those)."""
    data = io.HV_INPUT_GET_VP_INDEX_FROM_APIC_ID(partition, vtl).pack()
    data += b"".join(apic_id.to_bytes(4, "little") for apic_id in apic_ids)
    result = yield from guest.call(Call.HvCallGetVpIndexFromApicId, data, elements=len(apic_ids), start=start)
    done = result >> 32
    return result & 0xFFFF, done, [guest.rig.read(guest.output + 4 * at, 4) for at in range(start, done)]


def vp_set(
    guest: Guest, destination: int, *, logical: int = 0, vtl: int = 0, **changes: Any
) -> Generator[Op, int, tuple[int, set[int]]]:
    fields = {"TargetPartition": HV_PARTITION_ID_SELF, "DestinationAddress": destination, "TargetVtl": vtl}
    request = io.HV_INPUT_GET_VP_SET_FROM_MDA(**{**fields, "LogicalDestinationMode": logical, **changes})
    result = yield from guest.call(Call.HvCallGetVpSetFromMda, request.pack())
    if result:
        return result, set()
    form, banks = guest.rig.read(guest.output, 8), guest.rig.read(guest.output + 8, 8)
    assert form == 0
    assert banks in (0, 1)
    bank = guest.rig.read(guest.output + 16, 8) if banks else 0
    return result, {index for index in range(64) if bank >> index & 1}


@pytest.mark.tlfs("hypercalls.vp-index-from-apic-id")
def test_vp_indices_of_apic_ids() -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from vp_indices(guest, [2, 0, 1, 2])))
        seen.append((yield from vp_indices(guest, [1, 9, 2])))
        seen.append((yield from vp_indices(guest, [9, 2, 1], start=1)))
        seen.append((yield from vp_indices(guest, [0], vtl=1)))
        seen.append((yield from vp_indices(guest, [0], vtl=0x20)))
        seen.append((yield from vp_indices(guest, [0], partition=5)))
        yield from guest.end()

    run_guests({(0, 0): vtl0}, cpus=3)
    assert seen == [
        (HvStatus.SUCCESS, 4, [2, 0, 1, 2]),
        (HvStatus.INVALID_PARAMETER, 1, [1]),
        (HvStatus.SUCCESS, 3, [2, 1]),
        (HvStatus.ACCESS_DENIED, 0, []),
        (HvStatus.INVALID_PARAMETER, 0, []),
        (HvStatus.INVALID_PARTITION_ID, 0, []),
    ]


@pytest.mark.tlfs("hypercalls.vp-index-from-apic-id")
def test_a_higher_vtl_may_ask_about_itself_and_lower_ones() -> None:
    """The number of the VTL is taken as it is, or as an HV_INPUT_VTL: guests send both."""
    seen: list[Any] = []

    def vtl2(guest: Guest) -> Script:
        for vtl in (0, 2, input_vtl(0), input_vtl(2), 1, 3):
            seen.append((yield from vp_indices(guest, [0], vtl=vtl)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 2): vtl2}, vtls=3)
    assert seen[:4] == [(HvStatus.SUCCESS, 1, [0])] * 4
    assert [status for status, _, _ in seen[4:]] == [HvStatus.INVALID_VTL_STATE, HvStatus.ACCESS_DENIED]


@pytest.mark.tlfs("hypercalls.vp-set-from-mda")
def test_vp_sets_of_destinations() -> None:
    """Physical and logical destinations in x2APIC mode, broadcasts, and nobody."""
    seen: list[Any] = []

    def other(guest: Guest) -> Script:
        yield from guest.enable_apic()
        guest.note(("up", guest.vp))
        while True:
            yield from guest.rdmsr(0x40000002)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        while len(guest.rig.log) < 2:
            yield from guest.rdmsr(0x40000002)
        for destination, logical in ((0, 0), (2, 0), (7, 0), (0xFF, 0), (0xFFFFFFFF, 0), (0b101, 1), (1 << 16 | 1, 1)):
            seen.append((yield from vp_set(guest, destination, logical=logical)))
        yield from guest.end()

    run_guests({(0, 0): vtl0, (1, 0): other, (2, 0): other}, cpus=3)
    assert seen == [
        (HvStatus.SUCCESS, {0}),
        (HvStatus.SUCCESS, {2}),
        (HvStatus.SUCCESS, set()),
        (HvStatus.SUCCESS, {0, 1, 2}),
        (HvStatus.SUCCESS, {0, 1, 2}),
        (HvStatus.SUCCESS, {0, 2}),
        (HvStatus.SUCCESS, set()),
    ]


@pytest.mark.tlfs("hypercalls.vp-set-from-mda")
def test_vp_sets_are_of_the_vtl_that_is_named() -> None:
    """VTL 1's local APICs are its own: VTL 0 has moved to x2APIC mode, VTL 1 is in xAPIC mode with a logical ID."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        apic = guest.rig.partition.vtls[1].vm.vcpus[0].apic
        apic.mmio_write(0xF0, 4, 0x1FF)
        apic.mmio_write(0xD0, 4, 0x40 << 24)
        for vtl, destination in ((1, 0x40), (1, 1), (0, 0x40), (0, 1)):
            seen.append((yield from vp_set(guest, destination, logical=1, vtl=vtl)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert [found for _, found in seen] == [{0}, set(), set(), {0}]


@pytest.mark.tlfs("hypercalls.vp-set-from-mda")
def test_vp_sets_that_are_refused() -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from vp_set(guest, 0, TargetPartition=5))[0])
        seen.append((yield from vp_set(guest, 0, LogicalDestinationMode=2))[0])
        seen.append((yield from vp_set(guest, 0, Reserved=b"\1" + bytes(5)))[0])
        seen.append((yield from vp_set(guest, 1 << 32))[0])
        seen.append((yield from vp_set(guest, 0, vtl=0x40))[0])
        seen.append((yield from vp_set(guest, 0, vtl=1))[0])
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    assert seen == [
        HvStatus.INVALID_PARTITION_ID,
        *[HvStatus.INVALID_PARAMETER] * 4,
        HvStatus.ACCESS_DENIED,
    ]


@pytest.mark.tlfs("hypercalls.interrupt-target")
def test_set_virtual_interrupt_target_is_another_architectures() -> None:
    """Of what it would be asked nothing is looked at: this partition, another one, nonsense; from any VTL."""
    seen: list[int] = []

    def ask(guest: Guest) -> Script:
        for partition, vector, vp, vtl in (
            (HV_PARTITION_ID_SELF, 0x41, 0, guest.vtl),
            (HV_PARTITION_ID_SELF, 0x41, 0xFFFFFFFE, 0),
            (5, 0xFFFFFFFF, 0xFFFFFFFF, 0xFF),
        ):
            data = struct.pack("<QIIB7x", partition, vector, vp, vtl)
            seen.append((yield from guest.call(Call.HvCallSetVirtualInterruptTarget, data)))

    def vtl1(guest: Guest) -> Script:
        yield from ask(guest)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from ask(guest)
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [HvStatus.INVALID_HYPERCALL_CODE] * 6
