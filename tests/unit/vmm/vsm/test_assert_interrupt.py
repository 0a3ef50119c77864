"""HvCallAssertVirtualInterrupt: which local APICs, in which VTL, in which way."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.vmm.vsm.vsm_rig import Body, Guest, Script, VsmRig, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercall_io import HvInterruptType as Type
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus

VECTOR = 0x61
LEVEL, LOGICAL = 1 << 32, 1 << 33
FIXED, LOWEST, NMI = Type.HvX64InterruptTypeFixed, Type.HvX64InterruptTypeLowestPriority, Type.HvX64InterruptTypeNmi
PARAMETER = HvStatus.INVALID_PARAMETER


def inject(
    guest: Guest, control: int = FIXED, *, to: int = 0, vector: int = VECTOR, vtl: int = 0, **changes: int
) -> Generator[Op, int, int]:
    fields = {"TargetPartition": HV_PARTITION_ID_SELF, "InterruptControl": control, "DestinationAddress": to}
    fields |= {"RequestedVector": vector, "TargetVtl": vtl, **changes}
    return (
        yield from guest.call(Call.HvCallAssertVirtualInterrupt, io.HV_INPUT_ASSERT_VIRTUAL_INTERRUPT(**fields).pack())
    )


def received(rig: Any, vtl: int) -> list[bool]:
    """Which processors' local APICs have the vector; they have it no more."""
    return [vcpu.apic.irr.test_and_clear(VECTOR) for vcpu in rig.partition.vtls[vtl].vm.vcpus]


def enable_apics(rig: Any, vtl: int) -> None:
    for number, vcpu in enumerate(rig.partition.vtls[vtl].vm.vcpus):
        vcpu.apic.mmio_write(0xF0, 4, 0x1FF)
        vcpu.apic.mmio_write(0xD0, 4, 1 << 24 << number)


@pytest.mark.tlfs("hypercalls.assert-interrupt")
def test_destinations() -> None:
    """Physical, broadcast, logical, lowest priority; one that is not there is lost."""
    seen: list[Any] = []
    cases: list[tuple[int, int, list[bool]]] = [
        (FIXED, 1, [False, True, False]),
        (FIXED, 0xFF, [True, True, True]),
        (FIXED | LOGICAL, 0b101, [True, False, True]),
        (FIXED, 9, [False, False, False]),
        (FIXED | LOGICAL, 0b1000, [False, False, False]),
        (FIXED | LEVEL, 2, [False, False, True]),
    ]

    def guest(guest: Guest) -> Script:
        enable_apics(guest.rig, 0)
        for control, to, _ in cases:
            seen.append(((yield from inject(guest, control, to=to)), received(guest.rig, 0)))
        yield from inject(guest, LOWEST | LOGICAL, to=0b111)
        seen.append(sum(received(guest.rig, 0)))
        seen.append(guest.rig.partition.vtls[0].vm.vcpus[2].apic.tmr.test(VECTOR))
        yield from guest.end()

    run_guests({(0, 0): guest}, cpus=3)
    assert seen == [*((HvStatus.SUCCESS, expected) for _, _, expected in cases), 1, True]


@pytest.mark.tlfs("hypercalls.assert-interrupt")
def test_a_level_triggered_interrupt_and_an_nmi_are_taken() -> None:
    def guest(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from inject(guest, FIXED | LEVEL)
        yield ops.Compute(1)
        yield from inject(guest, FIXED | LEVEL)
        yield ops.Compute(1)
        yield from inject(guest, NMI, vector=0)
        yield ops.Compute(1)
        yield from guest.end()

    rig = VsmRig({(0, 0): guest})
    rig.handlers[0, 2] = lambda _guest, _event: iter(())  # type: ignore[assignment,return-value]
    rig.run()
    assert [taken.vector for taken in rig.taken] == [VECTOR, VECTOR, 2]


@pytest.mark.tlfs("hypercalls.assert-interrupt")
def test_a_higher_vtl_interrupts_a_lower_one_and_no_other() -> None:
    """VTL 1 takes its own at once, VTL 0 its one when it runs again; VTL 2 is not VTL 1's to name."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_apic()
        seen.append((yield from inject(guest, vtl=0)))
        seen.append(received(guest.rig, 1))
        seen.append((yield from inject(guest, vtl=2)))
        seen.append((yield from inject(guest, vtl=1, vector=VECTOR + 1)))
        yield ops.Sti()
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from guest.enable(1)
        seen.append((yield from inject(guest, vtl=1)))
        yield from guest.vtl_call()
        yield ops.Compute(1)
        yield from guest.end()

    rig = run_guests({(0, 0): vtl0, (0, 1): vtl1}, vtls=3)
    denied = HvStatus.ACCESS_DENIED
    assert seen == [denied, HvStatus.SUCCESS, [False], denied, HvStatus.SUCCESS]
    assert [(taken.vtl, taken.vector) for taken in rig.taken] == [(1, VECTOR + 1), (0, VECTOR)]


@pytest.mark.tlfs("hypercalls.assert-interrupt")
def test_statuses() -> None:
    seen: list[int] = []

    def vtl2(guest: Guest) -> Script:
        for call in (
            inject(guest, TargetPartition=1),
            inject(guest, vector=15),
            inject(guest, LOWEST, vector=15),
            inject(guest, vector=0x100),
            inject(guest, to=1 << 32),
            inject(guest, 1 << 34),
            inject(guest, ReservedZ0=1),
            inject(guest, ReservedZ1=1),
            inject(guest, vtl=16),
            inject(guest, Type.HvX64InterruptTypeSmi),
            inject(guest, Type.HvX64InterruptTypeRemoteRead),
            inject(guest, Type.HvX64InterruptTypeExtInt),
            inject(guest, Type.HvX64InterruptTypeLocalInt0),
            inject(guest, Type.HvX64InterruptTypeLocalInt1),
            inject(guest, 10),
            inject(guest, vtl=1),
            inject(guest, vtl=0),
        ):
            seen.append((yield from call))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 2): vtl2}, vtls=3)
    assert seen == [HvStatus.INVALID_PARTITION_ID, *[PARAMETER] * 14, HvStatus.INVALID_VTL_STATE, HvStatus.SUCCESS]


@pytest.mark.tlfs("hypercalls.assert-interrupt")
def test_init_and_sipi_start_a_processor() -> None:
    def guest(guest: Guest) -> Script:
        yield from inject(guest, Type.HvX64InterruptTypeInit, to=1)
        yield from inject(guest, Type.HvX64InterruptTypeSipi, to=1, vector=guest.rig.entry(0, 0) >> 12)
        while "started" not in guest.rig.log:
            yield ops.Compute(1000)
        yield from guest.end()

    def other(guest: Guest) -> Script:
        guest.note("started")
        while True:
            yield ops.Compute(1000)

    guests: dict[tuple[int, int], Body] = {(0, 0): guest}
    rig = VsmRig(guests, cpus=2)
    # Not there when the rig boots those that have a guest.
    guests[1, 0] = other
    assert rig.run().log == ["started"]


@pytest.mark.tlfs("hypercalls.assert-interrupt")
def test_init_and_sipi_are_no_way_around_an_intercept() -> None:
    """VTL 1 of VP 0 wants to be told of starts; VTL 0 there would start VP 1 behind its back."""

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        for kind in (Type.HvX64InterruptTypeInit, Type.HvX64InterruptTypeSipi):
            assert (yield from inject(guest, kind, to=1, vector=0x10)) == HvStatus.ACCESS_DENIED
        assert (yield from inject(guest, FIXED, to=1)) == HvStatus.SUCCESS
        assert guest.rig.partition.vps[1].vcpus[0].events.apic_events.load() == 0
        yield from guest.vtl_call()

    def vtl1(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 << 9)
        yield from guest.vtl_return()
        # The VTL that wants to be told may start whom it likes.
        assert (yield from inject(guest, Type.HvX64InterruptTypeInit, to=1)) == HvStatus.SUCCESS
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1}, cpus=2)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(min_size=24, max_size=24), max_size=8), st.integers(0, 15))
@pytest.mark.tlfs("hypercalls.assert-interrupt")
def test_any_input_ends_in_a_status(inputs: list[bytes], kind: int) -> None:
    statuses: list[int] = []

    def guest(guest: Guest) -> Script:
        for data in inputs:
            request = b"\xff" * 8 + kind.to_bytes(4, "little") + data[4:]
            statuses.append((yield from guest.call(Call.HvCallAssertVirtualInterrupt, request)) & 0xFFFF)
        yield from guest.end()

    VsmRig({(0, 0): guest}).run()
    assert len(statuses) == len(inputs)
    assert all(HvStatus(status) is not HvStatus.INVALID_HYPERCALL_CODE for status in statuses)
