"""HvRegisterPendingEvent0: exceptions that one VTL injects into another."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.test_vp_registers import in_vtl1
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import Sregs


def pending(vector: int, error_code: int | None = None, parameter: int = 0) -> int:
    flags = 0 if error_code is None else 1 << 8
    return 1 | flags | vector << 16 | (error_code or 0) << 32 | parameter << 64


@pytest.mark.tlfs("intercepts.pending-events")
def test_an_injected_exception_is_taken_before_the_next_instruction() -> None:
    order: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterPendingEvent0, pending(13, 0x50), vtl=input_vtl(0))
        order.append((yield from guest.get(Name.HvRegisterPendingEvent0, vtl=input_vtl(0))))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        order.append("next instruction")
        yield from guest.end()

    def handler(guest: Guest, event: Event) -> Script:
        order.append((event.vector, event.error_code))
        yield ops.Compute()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1})
    rig.handlers[0, Vector.GP] = handler
    rig.run()
    assert order == [(0, pending(13, 0x50)), (13, 0x50), "next instruction"]


@pytest.mark.tlfs("intercepts.pending-events")
def test_an_injected_page_fault_brings_its_address() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterPendingEvent0, pending(14, 2, 0xDEAD000), vtl=input_vtl(0))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from guest.end()

    def handler(guest: Guest, event: Event) -> Script:
        seen.append((event.error_code, guest.regs.sregs.cr2))
        yield ops.Compute()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1})
    rig.handlers[0, Vector.PF] = handler
    rig.run()
    assert seen == [(2, 0xDEAD000)]


@pytest.mark.tlfs("intercepts.pending-events")
def test_a_pending_event_can_be_taken_back() -> None:
    def vtl1(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterPendingEvent0, pending(13, 0), vtl=input_vtl(0))
        assert (yield from guest.set(Name.HvRegisterPendingEvent0, 0, vtl=input_vtl(0))) == HvStatus.SUCCESS
        assert (yield from guest.get(Name.HvRegisterPendingEvent0, vtl=input_vtl(0))) == (0, 0)

    assert in_vtl1(vtl1).taken == []


@pytest.mark.tlfs("intercepts.pending-events")
@pytest.mark.parametrize("value", [pending(32), 1 | 1 << 1, 1 | 1 << 4, 1 | 1 << 9, pending(0xFFFF)])
def test_malformed_pending_events(value: int) -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        seen.append((yield from guest.set(Name.HvRegisterPendingEvent0, value, vtl=input_vtl(0))))

    assert in_vtl1(vtl1).taken == []
    assert seen == [HvStatus.INVALID_REGISTER_VALUE]


@pytest.mark.tlfs("intercepts.pending-events")
@pytest.mark.parametrize(
    "name", [Name.HvRegisterPendingEvent1, Name.HvRegisterPendingEvent2, Name.HvRegisterPendingEvent3]
)
def test_no_event_is_longer_than_a_register(name: Name) -> None:
    """The further registers are empty while PendingEvent0 holds an event, and hold nothing else."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        below = input_vtl(0)
        yield from guest.set(Name.HvRegisterPendingEvent0, pending(13, 0), vtl=below)
        seen.append((yield from guest.get(name, vtl=below)))
        for value in (0, 1, 1 << 127):
            seen.append((yield from guest.set(name, value, vtl=below)))
        seen.append((yield from guest.get(name, vtl=below)))
        yield from guest.set(Name.HvRegisterPendingEvent0, 0, vtl=below)

    assert in_vtl1(vtl1).taken == []
    refused = HvStatus.INVALID_REGISTER_VALUE
    assert seen == [(0, 0), HvStatus.SUCCESS, refused, refused, (0, 0)]


@pytest.mark.parametrize("vp", [0, 1])
def test_whoever_writes_a_vcpus_registers_holds_its_mutex(vp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page fault for VTL 0 changes CR2 of the vCPU that has the shared registers: that of the active VTL."""
    written: list[tuple[str, bool]] = []
    write = Vcpu.set_sregs

    def checked(vcpu: Vcpu, sregs: Sregs) -> None:
        written.append((vcpu.name, vcpu.mutex._owner is vcpu.host.current()))  # type: ignore[attr-defined]
        write(vcpu, sregs)

    def vtl1(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable_vp_vtl(1, vp=1)
            guest.note("ready")
        else:
            guest.note("entered")
            while True:
                yield ops.Compute(100)
        while "entered" not in guest.rig.log:
            yield ops.Compute(100)
        monkeypatch.setattr(Vcpu, "set_sregs", checked)
        event = pending(Vector.PF, 2, 0xDEAD000)
        assert (yield from guest.set(Name.HvRegisterPendingEvent0, event, vtl=input_vtl(0), vp=vp)) == HvStatus.SUCCESS
        guest.note((yield from guest.get(Name.HvX64RegisterCr2, vp=vp, vtl=input_vtl(0))))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
        else:
            while "ready" not in guest.rig.log:
                yield ops.Compute(100)
        yield from guest.vtl_call()

    rig = run_guests({(at, vtl): (vtl0, vtl1)[vtl] for at in range(2) for vtl in range(2)}, cpus=2)
    assert written == [(f"vtl1-vcpu{vp}", True)]
    assert rig.log[-1] == (HvStatus.SUCCESS, 0xDEAD000)
