"""Ports and connections: identifiers, doorbell descriptions, inputs (TLFS, "Inter-Partition Communication")."""

from __future__ import annotations

import enum
from typing import Annotated, Final

from vtlkit.layout import Bits, Bytes, Struct, u8, u16, u32, u64

HV_PORT_ID_ID: Final = Bits(0, 24)
HV_PORT_ID_RESERVED_MASK: Final = 0xFF000000
HV_CONNECTION_ID_ID: Final = Bits(0, 24)
HV_CONNECTION_ID_RESERVED_MASK: Final = 0xFF000000
HV_PORT_MESSAGE_BUFFER_COUNT: Final = 16
"""Guest message buffers of one port (TLFS, "Guest Message Buffers")."""


class HvPortType(enum.IntEnum):
    HvPortTypeMessage = 1
    HvPortTypeEvent = 2
    HvPortTypeMonitor = 3
    HvPortTypeDoorbell = 4


class HV_MESSAGE_PORT_INFO(Struct, size=24, offsets={"TargetSint": 8, "TargetVp": 12}):
    """HV_PORT_INFO of a message port (the layout of the TLFS's earlier editions)."""

    PortType: u32 = 0
    Padding: u32 = 0
    TargetSint: u32 = 0
    TargetVp: u32 = 0
    RsvdZ: u64 = 0


class HV_EVENT_PORT_INFO(
    Struct, size=24, offsets={"TargetSint": 8, "TargetVp": 12, "BaseFlagNumber": 16, "FlagCount": 18}
):
    """HV_PORT_INFO of an event port (the layout of the TLFS's earlier editions)."""

    PortType: u32 = 0
    Padding: u32 = 0
    TargetSint: u32 = 0
    TargetVp: u32 = 0
    BaseFlagNumber: u16 = 0
    FlagCount: u16 = 0
    RsvdZ: u32 = 0


class HV_DOORBELL_PORT_INFO(Struct, size=24, offsets={"TargetSint": 8, "TargetVp": 12}):
    """HV_PORT_INFO of a doorbell port, with the alignment that the C declaration implies."""

    PortType: u32 = HvPortType.HvPortTypeDoorbell
    Padding: u32 = 0
    TargetSint: u8 = 0
    Padding0: u8 = 0
    Padding1: u16 = 0
    TargetVp: u32 = 0
    RsvdZ: u64 = 0


class HV_CONNECTION_INFO(Struct, size=32):
    """Of a message or event connection: the type alone."""

    PortType: u32 = 0
    Padding: u32 = 0
    RsvdZ: Annotated[bytes, Bytes(24)] = bytes(24)


class HV_DOORBELL_CONNECTION_INFO(Struct, size=32):
    """HV_CONNECTION_INFO of a doorbell connection."""

    PortType: u32 = HvPortType.HvPortTypeDoorbell
    Padding: u32 = 0
    GuestPhysicalAddress: u64 = 0
    TriggerValue: u64 = 0
    Flags: u64 = 0


HV_DOORBELL_FLAG_TRIGGER_SIZE_MASK: Final = 0x7
HV_DOORBELL_FLAG_TRIGGER_ANY_VALUE: Final = 0x80000000


# HV_PROXIMITY_DOMAIN_INFO, one 64-bit word
HV_PROXIMITY_DOMAIN_INFO_ID: Final = Bits(0, 32)
HV_PROXIMITY_DOMAIN_INFO_PREFERRED: Final = Bits(32)
HV_PROXIMITY_DOMAIN_INFO_RESERVED_MASK: Final = 0x7FFFFFFE00000000
HV_PROXIMITY_DOMAIN_INFO_VALID: Final = Bits(63)


class HV_INPUT_CREATE_PORT(Struct, size=56, offsets={"PortVtl": 12, "MinConnectionVtl": 13, "PortInfo": 24}):
    PortPartition: u64 = 0
    PortId: u32 = 0
    PortVtl: u8 = 0
    MinConnectionVtl: u8 = 0
    ReservedZ0: u16 = 0
    ConnectionPartition: u64 = 0
    PortInfo: Annotated[bytes, Bytes(24)] = bytes(24)
    ProximityDomainInfo: u64 = 0


class HV_INPUT_CONNECT_PORT(Struct, size=72, offsets={"ConnectionVtl": 12, "PortId": 24, "ConnectionInfo": 32}):
    ConnectionPartition: u64 = 0
    ConnectionId: u32 = 0
    ConnectionVtl: u8 = 0
    ReservedZ0: u8 = 0
    ReservedZ1: u16 = 0
    PortPartition: u64 = 0
    PortId: u32 = 0
    ReservedZ2: u32 = 0
    ConnectionInfo: Annotated[bytes, Bytes(32)] = bytes(32)
    ProximityDomainInfo: u64 = 0


class HV_INPUT_DELETE_PORT(Struct, size=16):
    PortPartition: u64 = 0
    PortId: u32 = 0
    Reserved: u32 = 0


class HV_INPUT_DISCONNECT_PORT(Struct, size=12):
    ConnectionPartition: u64 = 0
    ConnectionId: u32 = 0
