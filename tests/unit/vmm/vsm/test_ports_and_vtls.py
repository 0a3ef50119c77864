"""Ports and VTLs: who may make and use them, what reaches an inactive VTL, and what a reset leaves."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.ports_rig import (
    SINT,
    VECTOR,
    connect,
    connected,
    create_port,
    delete_port,
    disconnect,
    event_port,
    flags,
    message_port,
    post,
    signal,
    synic,
    take,
)
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.identifiers import HV_ANY_VP
from vtlkit.hvdef.ports import HvPortType
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.synic import HV_SYNIC_SINT_POLLING
from vtlkit.hvdef.vsm import HvVtlEntryReason
from vtlkit.vmm.vsm import ports as ports_module
from vtlkit.vmm.vsm.ports import EventPort, MessagePort

MESSAGE, EVENT = HvPortType.HvPortTypeMessage, HvPortType.HvPortTypeEvent
OK, PARAMETER, DENIED = HvStatus.SUCCESS, HvStatus.INVALID_PARAMETER, HvStatus.ACCESS_DENIED
BAD_PORT, BAD_CONNECTION = HvStatus.INVALID_PORT_ID, HvStatus.INVALID_CONNECTION_ID
NO_SYNIC, BAD_VP = HvStatus.INVALID_SYNIC_STATE, HvStatus.INVALID_VP_INDEX
RESERVED_BITS = 1 << 24


@pytest.mark.tlfs("synic.ports")
def test_vtl0_sends_to_vtl1_and_rights_go_downwards() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from synic(guest)
        yield from connected(guest, 1, message_port(vp=0), PortVtl=1)
        yield from connected(guest, 2, event_port(vp=0), PortVtl=1)
        assert not (yield from create_port(guest, 3, message_port(vp=0), PortVtl=1, MinConnectionVtl=1))
        seen.append((yield from connect(guest, 3, 3, MESSAGE, ConnectionVtl=0)))
        assert not (yield from connect(guest, 3, 3, MESSAGE, ConnectionVtl=1))
        assert not (yield from create_port(guest, 4, message_port(vp=0), PortVtl=0))
        yield from guest.vtl_return()
        seen.append((guest.entry_reason, (yield from take(guest)).Payload[:3]))
        yield from guest.vtl_return()
        yield ops.Compute(1)
        seen.append((guest.entry_reason, flags(guest)))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        # VTL 1 runs before these are seen to return, and does not keep RAX.
        yield from post(guest, 1, b"abc")
        yield from signal(guest, 2)
        seen.append((yield from post(guest, 3)))
        for call in (
            delete_port(guest, 3),
            disconnect(guest, 3),
            create_port(guest, 5, message_port(vp=0), PortVtl=1),
            connect(guest, 5, 4, MESSAGE, ConnectionVtl=1),
            connect(guest, 5, 3, MESSAGE),
            delete_port(guest, 4),
        ):
            seen.append((yield from call))
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    interrupt = HvVtlEntryReason.HvVtlEntryInterrupt
    assert seen == [
        DENIED,
        (interrupt, b"abc"),
        (interrupt, 1),
        HvStatus.OPERATION_DENIED,
        *(DENIED, DENIED, DENIED, DENIED, DENIED, OK),
    ]


def test_an_event_that_interrupts_nobody_enters_no_vtl() -> None:
    """A polled SINT's flag is set in the page of an inactive VTL 1 while VTL 0 goes on."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from synic(guest, vector=VECTOR | HV_SYNIC_SINT_POLLING.mask)
        yield from connected(guest, 1, event_port(vp=0), PortVtl=1)
        yield from guest.vtl_return()
        seen.append("entered")
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        assert not (yield from signal(guest, 1))
        yield ops.Compute(1_000_000)
        other = guest.rig.partition.vtls[1].vm.vcpus[0].hv.synic
        seen.append(int.from_bytes(other.event_page.view[SINT * 256 : SINT * 256 + 1], "little"))
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [1]


def test_ports_of_a_vtl_that_a_processor_does_not_have() -> None:
    """INVALID_VTL_STATE where the partition has not the VTL; nobody takes what goes to a processor without it."""
    seen: list[Any] = []

    def vtl2(guest: Guest) -> Script:
        seen.append((yield from create_port(guest, 1, message_port(vp=1), PortVtl=1)))
        yield from connected(guest, 2, message_port(vp=1), PortVtl=2)
        yield from connected(guest, 3, event_port(vp=HV_ANY_VP), PortVtl=2)
        seen.append(((yield from post(guest, 2)), (yield from signal(guest, 3))))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 2): vtl2}, vtls=3, cpus=2)
    assert seen == [HvStatus.INVALID_VTL_STATE, (NO_SYNIC, BAD_VP)]


# --- limits and reset -------------------------------------------------------------------------------------------------


def test_a_vtl_does_not_exhaust_a_higher_ones_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports_module, "POOL", 2)
    statuses: list[HvStatus] = []
    rig = VsmRig({})
    ports = rig.partition.ports

    def task() -> None:
        for number, vtl in enumerate((0, 0, 0, 1, 1, 1)):
            statuses.append(ports.create_port(EventPort(number, vtl, 0, HV_ANY_VP, SINT, 0, 1)))
            statuses.append(ports.connect(number, vtl, 0, EventPort))

    rig.host.spawn(task, "task")
    rig.host.run()
    assert statuses == ([HvStatus.SUCCESS] * 4 + [HvStatus.INSUFFICIENT_MEMORY] * 2) * 2


def test_a_guest_exhausts_its_pool_and_not_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports_module, "POOL", 3)
    statuses: list[HvStatus] = []
    rig = VsmRig({})
    ports = rig.partition.ports

    def make(number: int) -> None:
        port = EventPort(number, 0, 0, HV_ANY_VP, SINT, 0, 1)
        statuses.append(ports.create_port(port))
        statuses.append(ports.connect(number, 0, min(number, 2), EventPort))

    def task() -> None:
        for number in range(4):
            make(number)
        ports.delete_port(1, 0)
        ports.disconnect(1, 0)
        make(3)

    rig.host.spawn(task, "task")
    rig.host.run()
    full = HvStatus.INSUFFICIENT_MEMORY
    assert statuses == [*[OK] * 6, full, full, OK, OK]


@pytest.mark.tlfs("synic.ports")
def test_a_reset_forgets_ports_and_connections() -> None:
    """The guest's and the devices'; the numbers are free again."""
    rig = VsmRig({})
    partition = rig.partition
    ports = partition.ports
    statuses: list[HvStatus] = []

    def make() -> None:
        port = MessagePort(2, 0, 0, HV_ANY_VP, SINT, ports.message_buffers("test"))
        statuses.append(ports.create_port(port))
        statuses.append(ports.connect(2, 0, 2, MessagePort))
        assert ports.connect_messages(1, 0, SINT)

    def task() -> None:
        make()
        statuses.extend(ports.post_message(connection, 0, 1, b"") for connection in (1, 2))
        partition.reset()
        statuses.extend(ports.post_message(connection, 0, 1, b"") for connection in (1, 2))
        make()

    rig.host.spawn(task, "task")
    rig.host.run()
    assert statuses == [OK, OK, NO_SYNIC, BAD_VP, BAD_CONNECTION, BAD_CONNECTION, OK, OK]
