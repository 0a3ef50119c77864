"""Guests that use ports: the hypercalls about them, and a SynIC with all its pages."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from tests.unit.vmm.vsm.vsm_rig import PAGE, Guest, Script
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef import msrs
from vtlkit.hvdef import ports as hv
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_ANY_VP, HV_PARTITION_ID_SELF
from vtlkit.hvdef.messages import HV_MESSAGE
from vtlkit.hvdef.ports import HvPortType

SINT: Final = 5
VECTOR: Final = 0x55
FLAGS: Final = 0x1A0000
"""Event flags pages, one per VTL and processor."""
SELF: Final = HV_PARTITION_ID_SELF
Status = Generator[Op, int, int]


def flags_page(guest: Guest) -> int:
    return FLAGS + (guest.vtl * 16 + guest.vp) * PAGE


def synic(guest: Guest, *, sint: int = SINT, vector: int = VECTOR, sti: bool = True) -> Script:
    """Both pages, and one SINT."""
    yield from guest.enable_apic()
    yield from guest.wrmsr(msrs.HV_X64_MSR_SIMP, guest.messages | 1)
    yield from guest.wrmsr(msrs.HV_X64_MSR_SIEFP, flags_page(guest) | 1)
    yield from guest.wrmsr(msrs.HV_X64_MSR_SINT0 + sint, vector)
    yield from guest.wrmsr(msrs.HV_X64_MSR_SCONTROL, 1)
    if sti:
        yield ops.Sti()


def message_port(vp: int = HV_ANY_VP, sint: int = SINT, **changes: int) -> bytes:
    fields = {"PortType": HvPortType.HvPortTypeMessage, "TargetSint": sint, "TargetVp": vp, **changes}
    return hv.HV_MESSAGE_PORT_INFO(**fields).pack()


def event_port(vp: int = HV_ANY_VP, sint: int = SINT, base: int = 0, count: int = 1, **changes: int) -> bytes:
    fields = {"PortType": HvPortType.HvPortTypeEvent, "TargetSint": sint, "TargetVp": vp}
    return hv.HV_EVENT_PORT_INFO(**{**fields, "BaseFlagNumber": base, "FlagCount": count, **changes}).pack()


def create_port(guest: Guest, port_id: int, info: bytes, **changes: int) -> Status:
    fields = {"PortPartition": SELF, "PortId": port_id, **changes}
    return (yield from guest.call(Call.HvCallCreatePort, hv.HV_INPUT_CREATE_PORT(**fields, PortInfo=info).pack()))


def connect(guest: Guest, connection_id: int, port_id: int, kind: int, **changes: int) -> Status:
    fields = {"ConnectionPartition": SELF, "PortPartition": SELF, "ConnectionId": connection_id, "PortId": port_id}
    info = hv.HV_CONNECTION_INFO(kind).pack()
    request = hv.HV_INPUT_CONNECT_PORT(**{**fields, **changes}, ConnectionInfo=info)
    return (yield from guest.call(Call.HvCallConnectPort, request.pack()))


def connected(guest: Guest, number: int, info: bytes, **changes: int) -> Script:
    """A port and a connection of the same number; both calls must succeed."""
    assert not (yield from create_port(guest, number, info, **changes))
    assert not (yield from connect(guest, number, number, info[0]))


def delete_port(guest: Guest, port_id: int, **changes: int) -> Status:
    request = hv.HV_INPUT_DELETE_PORT(**{"PortPartition": SELF, "PortId": port_id, **changes})
    return (yield from guest.call(Call.HvCallDeletePort, request.pack()))


def disconnect(guest: Guest, connection_id: int, partition: int = SELF) -> Status:
    request = hv.HV_INPUT_DISCONNECT_PORT(partition, connection_id)
    return (yield from guest.call(Call.HvCallDisconnectPort, request.pack()))


def post(
    guest: Guest, connection_id: int, payload: bytes = b"", type_: int = 1, size: int = -1, **changes: int
) -> Status:
    size = len(payload) if size < 0 else size
    request = io.HV_INPUT_POST_MESSAGE(connection_id, 0, type_, size, payload.ljust(240, b"\xee"))
    for name, value in changes.items():
        setattr(request, name, value)
    return (yield from guest.call(Call.HvCallPostMessage, request.pack()))


def signal(guest: Guest, connection_id: int, flag: int = 0, *, reserved: int = 0, fast: bool = True) -> Status:
    request = io.HV_INPUT_SIGNAL_EVENT(connection_id, flag, reserved).pack()
    if not fast:
        return (yield from guest.call(Call.HvCallSignalEvent, request))
    yield ops.Set(Call.HvCallSignalEvent | 1 << 16, "rcx")
    yield ops.Set(int.from_bytes(request, "little"), "rdx")
    return (yield ops.Vmmcall())


def post_direct(
    guest: Guest, vp: int, vtl: int, message: HV_MESSAGE, *, sint: int = SINT, partition: int = SELF, pad: int = 0
) -> Status:
    request = io.HV_INPUT_POST_MESSAGE_DIRECT(partition, vp, vtl, Sint=sint, Message=message.pack(), Padding2=pad)
    return (yield from guest.call(Call.HvCallPostMessageDirect, request.pack()))


def signal_direct(
    guest: Guest, vp: int, vtl: int, flag: int, *, sint: int = SINT, partition: int = SELF
) -> Generator[Op, int, tuple[int, int]]:
    """(status, whether it was newly signalled)."""
    request = io.HV_INPUT_SIGNAL_EVENT_DIRECT(partition, vp, vtl, sint, flag)
    guest.rig.write(guest.output, b"\xff" * 8)
    status = yield from guest.call(Call.HvCallSignalEventDirect, request.pack())
    return status, guest.rig.read(guest.output, 8)


def slot(guest: Guest, sint: int = SINT) -> HV_MESSAGE:
    """What is in the guest's message slot."""
    memory = guest.rig.partition.vtls[guest.vtl].vm.memory
    return HV_MESSAGE.unpack(memory.read(guest.messages + sint * 256, 256))


def take(guest: Guest, sint: int = SINT) -> Generator[Op, int, HV_MESSAGE]:
    """Take the message from the slot, and say so."""
    message = slot(guest, sint)
    memory = guest.rig.partition.vtls[guest.vtl].vm.memory
    memory.write(guest.messages + sint * 256, bytes(4))
    yield from guest.wrmsr(msrs.HV_X64_MSR_EOM, 0)
    return message


def flags(guest: Guest, sint: int = SINT) -> int:
    """The guest's event flags of one SINT."""
    memory = guest.rig.partition.vtls[guest.vtl].vm.memory
    return int.from_bytes(memory.read(flags_page(guest) + sint * 256, 256), "little")
