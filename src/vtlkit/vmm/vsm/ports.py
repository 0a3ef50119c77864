"""Ports and connections of a partition: where a posted message or a signalled event goes (TLFS, "Inter-Partition
Communication"; docs/design/ports.md).

Promise: a look-up sees all of a change or nothing of it; when `delete_port` returns, no message of the port waits
anywhere, and none comes to wait.

Shared by all tasks: `_tables`, a cell with an immutable value that is replaced under `lock` (rank PORTS) and read
without it; ports and connections themselves are immutable. `lock` is held around no call to a SynIC.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from vtlkit.host.api import LockRank
from vtlkit.hvdef.identifiers import HV_ANY_VP
from vtlkit.hvdef.messages import make_message
from vtlkit.hvdef.ports import HV_PORT_MESSAGE_BUFFER_COUNT
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import MessageBuffers, Vcpu

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.partition import Partition


@dataclass(frozen=True, slots=True, eq=False)
class MessagePort:
    """Messages to one SINT. `target_vp` may be HV_ANY_VP. Two ports are never the same for having the same number."""

    port_id: int
    vtl: int
    min_connection_vtl: int
    target_vp: int
    sint: int
    buffers: MessageBuffers


@dataclass(frozen=True, slots=True, eq=False)
class EventPort:
    """Flags [base_flag, base_flag + flag_count) of one SINT."""

    port_id: int
    vtl: int
    min_connection_vtl: int
    target_vp: int
    sint: int
    base_flag: int
    flag_count: int


Port: TypeAlias = MessagePort | EventPort


@dataclass(frozen=True, slots=True)
class Connection:
    """A way to `port`, for VTLs from `vtl` on."""

    vtl: int
    port: Port


class _Space(enum.Enum):
    """Devices number their connections for messages and those for events separately."""

    MESSAGES = enum.auto()
    EVENTS = enum.auto()


_DeviceKey: TypeAlias = tuple[_Space, int]


@dataclass(frozen=True, slots=True)
class _Tables:
    """By number. A device's port is in no table of ports: its connection alone names it."""

    ports: Mapping[int, Port] = field(default_factory=lambda: MappingProxyType({}))
    connections: Mapping[int, Connection] = field(default_factory=lambda: MappingProxyType({}))
    devices: Mapping[_DeviceKey, Port] = field(default_factory=lambda: MappingProxyType({}))


_NOTHING: Final = _Tables()
POOL: Final = 4096
"""Ports, and connections, that each VTL may have at a time: none uses up a higher one's. A real partition's come out of
its memory pool."""


class Ports:
    """See the module."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._host = partition.host
        self.lock = self._host.lock("ports", LockRank.PORTS)
        self._tables = self._host.cell(_NOTHING, "ports-tables")

    # --- tables -----------------------------------------------------------------------------------------------------

    def message_buffers(self, name: str) -> MessageBuffers:
        """Buffers for a new message port."""
        return MessageBuffers(self._host, HV_PORT_MESSAGE_BUFFER_COUNT, name)

    def create_port(self, port: Port) -> HvStatus:
        """INVALID_PORT_ID: the number is taken. INSUFFICIENT_MEMORY: its VTL has `POOL` ports."""
        with self.lock:
            tables = self._tables.load()
            if port.port_id in tables.ports:
                return HvStatus.INVALID_PORT_ID
            if sum(other.vtl == port.vtl for other in tables.ports.values()) >= POOL:
                return HvStatus.INSUFFICIENT_MEMORY
            self._tables.store_release(replace(tables, ports={**tables.ports, port.port_id: port}))
        return HvStatus.SUCCESS

    def delete_port(self, port_id: int, level: int) -> HvStatus:
        """As VTL `level`. INVALID_PORT_ID: there is none. ACCESS_DENIED: it is a higher VTL's."""
        with self.lock:
            tables = self._tables.load()
            port = tables.ports.get(port_id)
            if port is None:
                return HvStatus.INVALID_PORT_ID
            if port.vtl > level:
                return HvStatus.ACCESS_DENIED
            ports = {number: other for number, other in tables.ports.items() if number != port_id}
            self._tables.store_release(replace(tables, ports=ports))
        self._free_buffers(port)
        return HvStatus.SUCCESS

    def connect(self, connection_id: int, vtl: int, port_id: int, kind: type[Port]) -> HvStatus:
        """Connect a number to a port, for VTLs from `vtl` on.

        INVALID_CONNECTION_ID: the number is taken. INVALID_PORT_ID: there is no such port. INVALID_PARAMETER: it is not
        of `kind`. ACCESS_DENIED: it is closed to connections of this VTL. INSUFFICIENT_MEMORY: it has
        `POOL` of them.
        """
        with self.lock:
            tables = self._tables.load()
            if connection_id in tables.connections or any((space, connection_id) in tables.devices for space in _Space):
                return HvStatus.INVALID_CONNECTION_ID
            port = tables.ports.get(port_id)
            if port is None:
                return HvStatus.INVALID_PORT_ID
            if not isinstance(port, kind):
                return HvStatus.INVALID_PARAMETER
            if vtl < port.min_connection_vtl:
                return HvStatus.ACCESS_DENIED
            if sum(other.vtl == vtl for other in tables.connections.values()) >= POOL:
                return HvStatus.INSUFFICIENT_MEMORY
            connections = {**tables.connections, connection_id: Connection(vtl, port)}
            self._tables.store_release(replace(tables, connections=connections))
        return HvStatus.SUCCESS

    def disconnect(self, connection_id: int, level: int) -> HvStatus:
        """As VTL `level`. INVALID_CONNECTION_ID: there is none. ACCESS_DENIED: it is a higher VTL's, or a device's."""
        with self.lock:
            tables = self._tables.load()
            if any((space, connection_id) in tables.devices for space in _Space):
                return HvStatus.ACCESS_DENIED
            connection = tables.connections.get(connection_id)
            if connection is None:
                return HvStatus.INVALID_CONNECTION_ID
            if connection.vtl > level:
                return HvStatus.ACCESS_DENIED
            connections = {number: other for number, other in tables.connections.items() if number != connection_id}
            self._tables.store_release(replace(tables, connections=connections))
        return HvStatus.SUCCESS

    def reset(self) -> None:
        """A partition reset: no ports, no connections. Messages that wait go with their SynICs."""
        with self.lock:
            self._tables.store_release(_NOTHING)

    def _free_buffers(self, port: Port) -> None:
        if isinstance(port, MessagePort):
            port.buffers.close()
            for vcpu in self._targets(port):
                vcpu.hv.synic.drop_messages(port.buffers)

    # --- devices ----------------------------------------------------------------------------------------------------

    def connect_messages(self, connection_id: int, target_vp: int, sint: int) -> bool:
        """Let messages to `connection_id` go to a SINT of VTL 0; False: no such VP, or the number is taken."""
        buffers = self.message_buffers(f"device-{connection_id:#x}")
        port = MessagePort(connection_id, 0, 0, target_vp, sint, buffers)
        return self._connect_device((_Space.MESSAGES, connection_id), port)

    def connect_events(self, connection_id: int, target_vp: int, sint: int, flag: int) -> bool:
        """Let events to `connection_id` set one flag of VTL 0; False: no such VP, or the number is taken."""
        port = EventPort(connection_id, 0, 0, target_vp, sint, flag, 1)
        return self._connect_device((_Space.EVENTS, connection_id), port)

    def _connect_device(self, key: _DeviceKey, port: Port) -> bool:
        if port.target_vp >= len(self._partition.vps):
            return False
        with self.lock:
            tables = self._tables.load()
            if key in tables.devices or key[1] in tables.connections:
                return False
            self._tables.store_release(replace(tables, devices={**tables.devices, key: port}))
        return True

    def disconnect_messages(self, connection_id: int) -> None:
        """Take a device's connection away, if it is there; messages that wait are dropped."""
        self._disconnect_devices({(_Space.MESSAGES, connection_id)})

    def disconnect_events(self, connection_id: int) -> None:
        """Take a device's connection away, if it is there."""
        self._disconnect_devices({(_Space.EVENTS, connection_id)})

    def disconnect_devices(self) -> None:
        """Take all devices' connections away."""
        self._disconnect_devices(self._tables.load_acquire().devices.keys())

    def _disconnect_devices(self, keys: Collection[_DeviceKey]) -> None:
        with self.lock:
            tables = self._tables.load()
            gone = [port for key, port in tables.devices.items() if key in keys]
            devices = {key: port for key, port in tables.devices.items() if key not in keys}
            self._tables.store_release(replace(tables, devices=devices))
        for port in gone:
            self._free_buffers(port)

    # --- messages and events: from any task, with no lock of the hypervisor's held -----------------------------------

    def _find(self, space: _Space, connection_id: int, level: int) -> Port | HvStatus:
        """The live port that a connection leads VTL `level` to."""
        tables = self._tables.load_acquire()
        device = tables.devices.get((space, connection_id))
        if device is not None:
            return device
        connection = tables.connections.get(connection_id)
        if connection is None:
            return HvStatus.INVALID_CONNECTION_ID
        if level < connection.vtl:
            return HvStatus.OPERATION_DENIED
        port = connection.port
        # A port that was made under a deleted one's number is another port.
        return port if tables.ports.get(port.port_id) is port else HvStatus.INVALID_PORT_ID

    def _targets(self, port: Port) -> Iterator[Vcpu]:
        """The vCPU of the port's VTL of every processor that may receive."""
        vps = self._partition.vps
        for vp in vps if port.target_vp == HV_ANY_VP else (vps[port.target_vp],):
            vcpu = vp.vcpus.get(port.vtl)
            if vcpu is not None:
                yield vcpu

    def post_message(self, connection_id: int, level: int, message_type: int, payload: bytes) -> HvStatus:
        """Post at most 240 bytes. Statuses as HvCallPostMessage's page lists them, and OPERATION_DENIED."""
        port = self._find(_Space.MESSAGES, connection_id, level)
        if isinstance(port, HvStatus):
            return port
        if not isinstance(port, MessagePort):
            return HvStatus.INVALID_PORT_ID
        message = make_message(message_type, payload, sender=port.port_id).pack()
        for vcpu in self._targets(port):
            status = vcpu.hv.synic.post(port.sint, message, port.buffers)
            if status is not HvStatus.INVALID_SYNIC_STATE:
                return status
        return _nobody(port)

    def signal_event(self, connection_id: int, level: int, flag: int) -> HvStatus:
        """Set a flag, counted from the port's first. Statuses as HvCallSignalEvent's page lists them, and
        OPERATION_DENIED.
        """
        port = self._find(_Space.EVENTS, connection_id, level)
        if isinstance(port, HvStatus):
            return port
        if not isinstance(port, EventPort):
            return HvStatus.INVALID_PORT_ID
        if flag >= port.flag_count:
            return HvStatus.INVALID_PARAMETER
        for vcpu in self._targets(port):
            status = vcpu.hv.synic.signal_event(port.sint, port.base_flag + flag)
            if status is not HvStatus.INVALID_SYNIC_STATE:
                return status
        return _nobody(port)


def _nobody(port: Port) -> HvStatus:
    """No processor's SynIC takes what was sent."""
    return HvStatus.INVALID_VP_INDEX if port.target_vp == HV_ANY_VP else HvStatus.INVALID_SYNIC_STATE
