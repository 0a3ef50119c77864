"""The Hyper-V test device of kvm-unit-tests (QEMU's hw/hyperv/hyperv_testdev.c), at port 0x3000.

A 32-bit write is a command: SINT, VP index, `Control`, connection number, a byte each from the lowest. It makes and
uses lines to synthetic interrupt sources, and connections over which the guest's HvCallPostMessage and
HvCallSignalEvent come back to it: a message to the SINT as it was posted, an event as the flag with the connection's
number. What does not exist is left alone. Called under the bus's lock.
"""

from __future__ import annotations

import enum
from typing import Final, Protocol

from vtlkit.hvdef.synic import HV_SYNIC_SINT_COUNT

SYNIC_PORT: Final = 0x3000
SYNIC_PORTS: Final = 4


class Control(enum.IntEnum):
    """What a command does. The last of each kind names the connection alone."""

    SINT_ROUTE_CREATE = 1
    SINT_ROUTE_DESTROY = 2
    SINT_ROUTE_SET_SINT = 3
    MSG_CONN_CREATE = 4
    MSG_CONN_DESTROY = 5
    EVT_CONN_CREATE = 6
    EVT_CONN_DESTROY = 7


class SintLines(Protocol):
    """Lines to SINTs, named by VP index and SINT; what does not exist is left alone."""

    def create(self, vp_index: int, sint: int) -> None: ...

    def destroy(self, vp_index: int, sint: int) -> None: ...

    def pulse(self, vp_index: int, sint: int) -> None:
        """A rising edge."""

    def reset(self) -> None:
        """No lines."""


class Connections(Protocol):
    """Connections to SINTs, by number; those of messages and of events are numbered separately (`vsm.ports.Ports`)."""

    def connect_messages(self, connection_id: int, target_vp: int, sint: int) -> bool:
        """Let messages go to a SINT; False, and nothing done, without such a VP or with the number taken."""

    def connect_events(self, connection_id: int, target_vp: int, sint: int, flag: int) -> bool:
        """Let events set a flag of a SINT."""

    def disconnect_messages(self, connection_id: int) -> None: ...

    def disconnect_events(self, connection_id: int) -> None: ...

    def disconnect_devices(self) -> None:
        """All of them."""


class HypervTestDevice:
    """See the module."""

    __slots__ = ("_connections", "_lines")

    def __init__(self, lines: SintLines, connections: Connections) -> None:
        self._lines = lines
        self._connections = connections

    def read(self, port: int, size: int) -> int:
        return 0

    def write(self, port: int, size: int, value: int) -> None:
        sint, vp_index, control, connection = value & 0xFF, value >> 8 & 0xFF, value >> 16 & 0xFF, value >> 24 & 0xFF
        if sint >= HV_SYNIC_SINT_COUNT:
            return
        match control:
            case Control.SINT_ROUTE_CREATE:
                self._lines.create(vp_index, sint)
            case Control.SINT_ROUTE_DESTROY:
                self._lines.destroy(vp_index, sint)
            case Control.SINT_ROUTE_SET_SINT:
                self._lines.pulse(vp_index, sint)
            case Control.MSG_CONN_CREATE:
                self._connections.connect_messages(connection, vp_index, sint)
            case Control.MSG_CONN_DESTROY:
                self._connections.disconnect_messages(connection)
            case Control.EVT_CONN_CREATE:
                self._connections.connect_events(connection, vp_index, sint, connection)
            case Control.EVT_CONN_DESTROY:
                self._connections.disconnect_events(connection)

    def reset(self) -> None:
        """No lines, no connections."""
        self._lines.reset()
        self._connections.disconnect_devices()
