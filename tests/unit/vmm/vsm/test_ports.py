"""Messages and events through ports and connections, as guests see them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.ports_rig import (
    SELF,
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
    slot,
    synic,
    take,
)
from tests.unit.vmm.vsm.vsm_rig import Body, Guest, Script, VsmRig, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef import msrs
from vtlkit.hvdef.identifiers import HV_ANY_VP
from vtlkit.hvdef.ports import HV_DOORBELL_PORT_INFO, HV_PORT_MESSAGE_BUFFER_COUNT, HvPortType
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.synic import HV_SYNIC_SINT_MASKED

MESSAGE, EVENT = HvPortType.HvPortTypeMessage, HvPortType.HvPortTypeEvent
OK, PARAMETER, DENIED = HvStatus.SUCCESS, HvStatus.INVALID_PARAMETER, HvStatus.ACCESS_DENIED
BAD_PORT, BAD_CONNECTION = HvStatus.INVALID_PORT_ID, HvStatus.INVALID_CONNECTION_ID
NO_SYNIC, BAD_VP = HvStatus.INVALID_SYNIC_STATE, HvStatus.INVALID_VP_INDEX
RESERVED_BITS = 1 << 24


def alone(body: Body, **options: Any) -> VsmRig:
    """One processor in VTL 0."""

    def guest(guest: Guest) -> Script:
        yield from body(guest)
        yield from guest.end()

    return run_guests({(0, 0): guest}, **options)


def asleep(guest: Guest) -> Script:
    """A processor with a SynIC that does nothing."""
    yield from synic(guest)
    guest.note(f"vp{guest.vp} ready")
    while True:
        yield ops.Hlt()


def wait_for(guest: Guest, note: Any) -> Script:
    while note not in guest.rig.log:
        yield ops.Compute(100)


# --- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("synic.post-message")
def test_a_message_reaches_the_ports_processor() -> None:
    """Type, size and payload as posted, no byte beyond the size, the port as the sender, one interrupt."""
    seen: list[Any] = []

    def sender(guest: Guest) -> Script:
        yield from wait_for(guest, "vp1 ready")
        yield from connected(guest, 0x123456, message_port(vp=1))
        assert not (yield from post(guest, 0x123456, b"hello", type_=0x7FFFFFFF))
        other = Guest(guest.rig, guest.rig.partition.vps[1].vcpus[0].engine)  # type: ignore[arg-type]
        message = slot(other)
        seen.append((message.Header.MessageType, message.Header.PayloadSize, message.Header.Sender))
        seen.append(message.Payload)
        yield ops.Compute(10_000_000)
        yield from guest.end()

    rig = run_guests({(0, 0): sender, (1, 0): asleep}, cpus=2)
    assert seen == [(0x7FFFFFFF, 5, 0x123456), b"hello".ljust(240, b"\0")]
    assert [(taken.vp, taken.vector) for taken in rig.taken] == [(1, VECTOR)]


@pytest.mark.tlfs("synic.post-message")
def test_statuses_of_post_message() -> None:
    seen: list[int] = []

    def body(guest: Guest) -> Script:
        yield from synic(guest)
        yield from connected(guest, 1, message_port(vp=0))
        yield from connected(guest, 2, event_port(vp=0))
        for call in (
            post(guest, 1, type_=0),
            post(guest, 1, type_=0x80000000),
            post(guest, 1, type_=0x80000010),
            post(guest, 1, size=241),
            post(guest, 1, size=0xFFFFFFFF),
            post(guest, 1, Padding=1),
            post(guest, 3),
            post(guest, 1 | RESERVED_BITS),
            post(guest, 2),
            post(guest, 1, bytes(240)),
        ):
            seen.append((yield from call))
        yield from guest.wrmsr(msrs.HV_X64_MSR_SIMP, 0)
        seen.append((yield from post(guest, 1)))
        yield from guest.wrmsr(msrs.HV_X64_MSR_SIMP, guest.messages | 1)
        yield from guest.wrmsr(msrs.HV_X64_MSR_SCONTROL, 0)
        seen.append((yield from post(guest, 1)))
        yield from delete_port(guest, 1)
        seen.append((yield from post(guest, 1)))

    alone(body)
    bad = [PARAMETER] * 6 + [BAD_CONNECTION, BAD_CONNECTION, BAD_PORT]
    assert seen == [*bad, OK, NO_SYNIC, NO_SYNIC, BAD_PORT]


@pytest.mark.tlfs("synic.post-message")
def test_any_processor_that_accepts() -> None:
    """None at first; then VP 1, which is the first with a message page."""
    seen: list[Any] = []

    def body(guest: Guest) -> Script:
        yield from connected(guest, 1, message_port(vp=HV_ANY_VP))
        yield from connected(guest, 2, event_port(vp=HV_ANY_VP))
        seen.append(((yield from post(guest, 1)), (yield from signal(guest, 2))))
        guest.note("go")
        yield from wait_for(guest, "vp1 ready")
        seen.append(((yield from post(guest, 1)), (yield from signal(guest, 2))))
        yield ops.Compute(10_000_000)
        yield from guest.end()

    def other(guest: Guest) -> Script:
        yield from wait_for(guest, "go")
        yield from asleep(guest)

    rig = run_guests({(0, 0): body, (1, 0): other}, cpus=3)
    assert seen == [(BAD_VP, BAD_VP), (OK, OK)]
    assert {taken.vp for taken in rig.taken} == {1}


@pytest.mark.tlfs("synic.post-message")
def test_each_port_has_its_own_buffers() -> None:
    """A message in the slot needs no buffer; order is kept; taking one message frees one buffer."""
    seen: list[Any] = []
    count = HV_PORT_MESSAGE_BUFFER_COUNT

    def body(guest: Guest) -> Script:
        yield from synic(guest, sti=False)
        yield from connected(guest, 1, message_port(vp=0))
        yield from connected(guest, 2, message_port(vp=0))
        for number in range(count + 1):
            assert not (yield from post(guest, 1, bytes([number])))
        seen.append((yield from post(guest, 1, b"\xff")))
        seen.append((yield from post(guest, 2, bytes([count + 1]))))
        got = [(yield from take(guest)).Payload[0]]
        seen.append((yield from post(guest, 1, bytes([count + 2]))))
        seen.append((yield from post(guest, 1, b"\xff")))
        while slot(guest).Header.MessageType:
            got.append((yield from take(guest)).Payload[0])
        assert got == list(range(count + 3))

    alone(body)
    assert seen == [HvStatus.INSUFFICIENT_BUFFERS, OK, OK, HvStatus.INSUFFICIENT_BUFFERS]


@pytest.mark.tlfs("synic.ports")
def test_a_deleted_port_takes_its_messages_along() -> None:
    """What waits is dropped, what others posted stays; a new port of the number is another port."""

    def body(guest: Guest) -> Script:
        yield from synic(guest, sti=False)
        yield from connected(guest, 1, message_port(vp=0))
        yield from connected(guest, 2, message_port(vp=HV_ANY_VP))
        for connection, payload in ((1, b"a"), (1, b"b"), (2, b"c"), (1, b"d")):
            assert not (yield from post(guest, connection, payload))
        assert not (yield from delete_port(guest, 1))
        assert (yield from delete_port(guest, 1)) == BAD_PORT
        assert (yield from post(guest, 1)) == BAD_PORT
        assert not (yield from create_port(guest, 1, message_port(vp=0)))
        assert (yield from post(guest, 1)) == BAD_PORT
        assert not (yield from disconnect(guest, 1))
        assert (yield from disconnect(guest, 1)) == BAD_CONNECTION
        assert (yield from post(guest, 1)) == BAD_CONNECTION
        assert not (yield from connect(guest, 1, 1, MESSAGE))
        for number in range(HV_PORT_MESSAGE_BUFFER_COUNT):
            assert not (yield from post(guest, 1, bytes([number])))
        got = []
        while slot(guest).Header.MessageType:
            got.append((yield from take(guest)).Payload[:1])
        assert got == [b"a", b"c", *(bytes([number]) for number in range(HV_PORT_MESSAGE_BUFFER_COUNT))]
        guest.note("done")

    assert alone(body).log == ["done"]


# --- events ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.tlfs("synic.signal-event")
def test_an_event_sets_the_ports_flag(fast: bool) -> None:
    """Flags count from the port's first; a flag that is set interrupts no more."""

    def body(guest: Guest) -> Script:
        yield from synic(guest)
        yield from connected(guest, 7, event_port(vp=0, base=1000, count=3))
        for flag in (0, 2, 2, 0):
            assert not (yield from signal(guest, 7, flag, fast=fast))
        assert (yield from signal(guest, 7, 3, fast=fast)) == PARAMETER
        assert (yield from signal(guest, 7, 0xFFFF, fast=fast)) == PARAMETER
        yield ops.Compute(1000)
        guest.note(flags(guest))

    rig = alone(body)
    assert rig.log == [1 << 1000 | 1 << 1002]
    assert [taken.vector for taken in rig.taken] == [VECTOR, VECTOR]


@pytest.mark.tlfs("synic.signal-event")
def test_statuses_of_signal_event() -> None:
    seen: list[int] = []

    def body(guest: Guest) -> Script:
        yield from synic(guest)
        yield from connected(guest, 1, message_port(vp=0))
        yield from connected(guest, 2, event_port(vp=0))
        for call in (
            signal(guest, 3),
            signal(guest, 2 | RESERVED_BITS),
            signal(guest, 1),
            signal(guest, 2, reserved=1),
            signal(guest, 2, 1),
            signal(guest, 2),
        ):
            seen.append((yield from call))
        for register, value, back in (
            (msrs.HV_X64_MSR_SIEFP, 0, 1),
            (msrs.HV_X64_MSR_SCONTROL, 0, 1),
            (msrs.HV_X64_MSR_SINT0 + SINT, VECTOR | HV_SYNIC_SINT_MASKED.mask, VECTOR),
        ):
            old = (yield from guest.rdmsr(register)) if register == msrs.HV_X64_MSR_SIEFP else back
            yield from guest.wrmsr(register, value)
            seen.append((yield from signal(guest, 2)))
            yield from guest.wrmsr(register, old)
        yield from delete_port(guest, 2)
        seen.append((yield from signal(guest, 2)))

    alone(body)
    assert seen == [BAD_CONNECTION, BAD_CONNECTION, BAD_PORT, PARAMETER, PARAMETER, OK, *[NO_SYNIC] * 3, BAD_PORT]


# --- making ports and connections -----------------------------------------------------------------------------------


@pytest.mark.tlfs("synic.ports")
def test_statuses_of_create_port() -> None:
    doorbell = HV_DOORBELL_PORT_INFO(TargetSint=SINT).pack()
    monitor = HvPortType.HvPortTypeMonitor.to_bytes(24, "little")
    seen: list[int] = []

    def body(guest: Guest) -> Script:
        for info, changes in (
            (message_port(), {"PortPartition": 1}),
            (message_port(), {"PortPartition": 0}),
            (message_port(), {"ConnectionPartition": 2}),
            (message_port(), {"PortId": 1 | RESERVED_BITS}),
            (message_port(), {"ReservedZ0": 1}),
            (message_port(), {"PortVtl": 16}),
            (message_port(), {"MinConnectionVtl": 16}),
            (message_port(), {"PortVtl": 1}),
            (message_port(), {"ProximityDomainInfo": 1 << 33}),
            (message_port(), {"ProximityDomainInfo": 1 << 63 | 1}),
            (message_port(sint=0), {}),
            (message_port(sint=16), {}),
            (message_port(sint=0x105), {}),
            (message_port(vp=1), {}),
            (message_port(RsvdZ=1), {}),
            (message_port(RsvdZ=1 << 32), {}),
            (message_port(Padding=1), {}),
            (message_port(PortType=0), {}),
            (monitor, {}),
            (doorbell, {}),
            (event_port(count=0), {}),
            (event_port(base=2048), {}),
            (event_port(base=2040, count=9), {}),
            (event_port(RsvdZ=1), {}),
            (event_port(base=2040, count=8), {"ConnectionPartition": SELF, "ProximityDomainInfo": 1 << 63}),
            (message_port(), {}),
        ):
            seen.append((yield from create_port(guest, **{"port_id": 1, "info": info, **renamed(changes)})))

    def renamed(changes: dict[str, int]) -> dict[str, Any]:
        return {"port_id" if name == "PortId" else name: value for name, value in changes.items()}

    alone(body)
    bad_partition, proximity = HvStatus.INVALID_PARTITION_ID, HvStatus.INVALID_PROXIMITY_DOMAIN_INFO
    assert seen == [
        *[bad_partition] * 3,
        BAD_PORT,
        *[PARAMETER] * 3,
        DENIED,
        PARAMETER,
        proximity,
        *[PARAMETER] * 3,
        BAD_VP,
        *[PARAMETER] * 10,
        OK,
        BAD_PORT,
    ]


@pytest.mark.tlfs("synic.ports")
def test_statuses_of_the_other_calls() -> None:
    seen: list[int] = []

    def body(guest: Guest) -> Script:
        assert not (yield from create_port(guest, 1, message_port()))
        assert not (yield from create_port(guest, 2, event_port()))
        for call in (
            connect(guest, 9, 1, MESSAGE, ConnectionPartition=1),
            connect(guest, 9, 1, MESSAGE, PortPartition=1),
            connect(guest, 9 | RESERVED_BITS, 1, MESSAGE),
            connect(guest, 9, 1, MESSAGE, ReservedZ0=1),
            connect(guest, 9, 1, MESSAGE, ReservedZ1=1),
            connect(guest, 9, 1, MESSAGE, ReservedZ2=1),
            connect(guest, 9, 1, MESSAGE, ConnectionVtl=16),
            connect(guest, 9, 1, MESSAGE, ConnectionVtl=1),
            connect(guest, 9, 1, MESSAGE, ProximityDomainInfo=1 << 62),
            connect(guest, 9, 1, EVENT),
            connect(guest, 9, 1, HvPortType.HvPortTypeMonitor),
            connect(guest, 9, 1, HvPortType.HvPortTypeDoorbell),
            connect(guest, 9, 3, MESSAGE),
            connect(guest, 9, 1, MESSAGE),
            connect(guest, 9, 2, EVENT),
            delete_port(guest, 1, PortPartition=1),
            delete_port(guest, 1, Reserved=1),
            delete_port(guest, 3),
            delete_port(guest, 1 | RESERVED_BITS),
            disconnect(guest, 9, partition=1),
            disconnect(guest, 8),
            disconnect(guest, 9),
            connect(guest, 9, 2, EVENT),
        ):
            seen.append((yield from call))

    alone(body)
    partition = HvStatus.INVALID_PARTITION_ID
    assert seen == [
        *(partition, partition, BAD_CONNECTION, PARAMETER, PARAMETER, PARAMETER, PARAMETER, DENIED),
        *(PARAMETER, PARAMETER, PARAMETER, PARAMETER, BAD_PORT, OK, BAD_CONNECTION),
        *(partition, PARAMETER, BAD_PORT, BAD_PORT),
        *(partition, BAD_CONNECTION, OK, OK),
    ]
