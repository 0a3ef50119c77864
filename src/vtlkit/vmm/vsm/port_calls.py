"""Hypercalls about ports and connections, and those that send to a virtual processor without one.

TLFS, HvCallCreatePort, HvCallDeletePort, HvCallConnectPort, HvCallDisconnectPort, HvCallPostMessage, HvCallSignalEvent,
HvCallPostMessageDirect, HvCallSignalEventDirect. What is decided where those pages are silent: docs/design/ports.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef import ports as hv
from vtlkit.hvdef.identifiers import (
    HV_ANY_VP,
    HV_MAX_VTLS,
    HV_PARTITION_ID_INVALID,
    HV_PARTITION_ID_SELF,
)
from vtlkit.hvdef.messages import (
    HV_MESSAGE,
    HV_MESSAGE_FLAG_MESSAGE_PENDING,
    HV_MESSAGE_MAX_PAYLOAD_BYTE_COUNT,
    HV_MESSAGE_TYPE_HYPERVISOR_MASK,
    HvMessageType,
)
from vtlkit.hvdef.ports import HvPortType
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.synic import HV_EVENT_FLAGS_COUNT, HV_SYNIC_INTERCEPTION_SINT_INDEX, HV_SYNIC_SINT_COUNT
from vtlkit.kvm.uapi import HypercallParameters, Vcpu
from vtlkit.vmm.vsm.ports import EventPort, MessagePort, Port
from vtlkit.vmm.vsm.targets import target_vp

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_KINDS: Final[dict[int, type[Port]]] = {
    HvPortType.HvPortTypeMessage: MessagePort,
    HvPortType.HvPortTypeEvent: EventPort,
}
"""Monitor and doorbell ports are not there."""


# --- ports and connections ------------------------------------------------------------------------------------------


def create_port(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallCreatePort."""
    request = hv.HV_INPUT_CREATE_PORT.unpack_from(call.data)
    partition = vp.partition
    foreign = request.ConnectionPartition not in (HV_PARTITION_ID_INVALID, HV_PARTITION_ID_SELF)
    if request.PortPartition != HV_PARTITION_ID_SELF or foreign:
        return HvStatus.INVALID_PARTITION_ID, 0
    if request.PortId & hv.HV_PORT_ID_RESERVED_MASK:
        return HvStatus.INVALID_PORT_ID, 0
    if request.ReservedZ0 or request.PortVtl >= HV_MAX_VTLS or request.MinConnectionVtl >= HV_MAX_VTLS:
        return HvStatus.INVALID_PARAMETER, 0
    if request.PortVtl > level:
        return HvStatus.ACCESS_DENIED, 0
    if request.PortVtl not in partition.vtls:
        return HvStatus.INVALID_VTL_STATE, 0
    status = _proximity(request.ProximityDomainInfo)
    if status:
        return status, 0
    port = _decode_port(vp, request)
    return (port if isinstance(port, HvStatus) else partition.ports.create_port(port)), 0


def _decode_port(vp: Vp, request: hv.HV_INPUT_CREATE_PORT) -> Port | HvStatus:
    # The two kinds have type, SINT and processor in the same places.
    info = hv.HV_EVENT_PORT_INFO.unpack_from(request.PortInfo)
    if info.PortType not in _KINDS or info.Padding or info.RsvdZ:
        return HvStatus.INVALID_PARAMETER
    if not HV_SYNIC_INTERCEPTION_SINT_INDEX < info.TargetSint < HV_SYNIC_SINT_COUNT:
        return HvStatus.INVALID_PARAMETER
    if info.TargetVp != HV_ANY_VP and info.TargetVp >= len(vp.partition.vps):
        return HvStatus.INVALID_VP_INDEX
    where = (request.PortId, request.PortVtl, request.MinConnectionVtl, info.TargetVp, info.TargetSint)
    if info.PortType == HvPortType.HvPortTypeEvent:
        if not info.FlagCount or info.BaseFlagNumber + info.FlagCount > HV_EVENT_FLAGS_COUNT:
            return HvStatus.INVALID_PARAMETER
        return EventPort(*where, info.BaseFlagNumber, info.FlagCount)
    if hv.HV_MESSAGE_PORT_INFO.unpack_from(request.PortInfo).RsvdZ:
        return HvStatus.INVALID_PARAMETER
    return MessagePort(*where, vp.partition.ports.message_buffers(f"port-{request.PortId:#x}"))


def _proximity(info: int) -> HvStatus:
    """There is one node."""
    if info & hv.HV_PROXIMITY_DOMAIN_INFO_RESERVED_MASK:
        return HvStatus.INVALID_PARAMETER
    if hv.HV_PROXIMITY_DOMAIN_INFO_VALID.get(info) and hv.HV_PROXIMITY_DOMAIN_INFO_ID.get(info):
        return HvStatus.INVALID_PROXIMITY_DOMAIN_INFO
    return HvStatus.SUCCESS


def delete_port(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallDeletePort."""
    request = hv.HV_INPUT_DELETE_PORT.unpack_from(call.data)
    if request.PortPartition != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID, 0
    if request.Reserved:
        return HvStatus.INVALID_PARAMETER, 0
    return vp.partition.ports.delete_port(request.PortId, level), 0


def connect_port(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallConnectPort."""
    request = hv.HV_INPUT_CONNECT_PORT.unpack_from(call.data)
    info = hv.HV_CONNECTION_INFO.unpack_from(request.ConnectionInfo)
    if request.ConnectionPartition != HV_PARTITION_ID_SELF or request.PortPartition != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID, 0
    if request.ConnectionId & hv.HV_CONNECTION_ID_RESERVED_MASK:
        return HvStatus.INVALID_CONNECTION_ID, 0
    if request.ReservedZ0 or request.ReservedZ1 or request.ReservedZ2 or request.ConnectionVtl >= HV_MAX_VTLS:
        return HvStatus.INVALID_PARAMETER, 0
    kind = _KINDS.get(info.PortType)
    if kind is None or info.Padding or any(info.RsvdZ):
        return HvStatus.INVALID_PARAMETER, 0
    if request.ConnectionVtl > level:
        return HvStatus.ACCESS_DENIED, 0
    status = _proximity(request.ProximityDomainInfo)
    if not status:
        ports = vp.partition.ports
        status = ports.connect(request.ConnectionId, request.ConnectionVtl, request.PortId, kind)
    return status, 0


def disconnect_port(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallDisconnectPort."""
    request = hv.HV_INPUT_DISCONNECT_PORT.unpack_from(call.data)
    if request.ConnectionPartition != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID, 0
    return vp.partition.ports.disconnect(request.ConnectionId, level), 0


# --- through a connection -------------------------------------------------------------------------------------------


def post_message(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallPostMessage."""
    request = io.HV_INPUT_POST_MESSAGE.unpack_from(call.data)
    size = request.PayloadSize
    if request.MessageType == HvMessageType.HvMessageTypeNone or request.Padding:
        return HvStatus.INVALID_PARAMETER, 0
    if request.MessageType & HV_MESSAGE_TYPE_HYPERVISOR_MASK or size > HV_MESSAGE_MAX_PAYLOAD_BYTE_COUNT:
        return HvStatus.INVALID_PARAMETER, 0
    ports = vp.partition.ports
    return ports.post_message(request.ConnectionId, level, request.MessageType, request.Message[:size]), 0


def signal_event(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallSignalEvent."""
    request = io.HV_INPUT_SIGNAL_EVENT.unpack_from(call.data)
    if request.RsvdZ:
        return HvStatus.INVALID_PARAMETER, 0
    return vp.partition.ports.signal_event(request.ConnectionId, level, request.FlagNumber), 0


# --- without a port -------------------------------------------------------------------------------------------------


def _direct_target(vp: Vp, level: int, partition_id: int, vp_index: int, vtl: int) -> Vcpu | HvStatus:
    """The vCPU that a direct call names: of the caller's VTL or a lower one."""
    if partition_id != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID
    target = target_vp(vp, vp_index)
    if target is None:
        return HvStatus.INVALID_VP_INDEX
    if vtl >= HV_MAX_VTLS:
        return HvStatus.INVALID_PARAMETER
    if vtl > level:
        return HvStatus.ACCESS_DENIED
    return target.vcpus.get(vtl) or HvStatus.INVALID_VTL_STATE


def post_message_direct(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallPostMessageDirect."""
    request = io.HV_INPUT_POST_MESSAGE_DIRECT.unpack_from(call.data)
    target = _direct_target(vp, level, request.PartitionId, request.VpIndex, request.Vtl)
    if isinstance(target, HvStatus):
        return target, 0
    message = HV_MESSAGE.unpack_from(request.Message)
    header = message.Header
    if request.Sint >= HV_SYNIC_SINT_COUNT or any(request.Padding0) or any(request.Padding1) or request.Padding2:
        return HvStatus.INVALID_PARAMETER, 0
    if header.MessageType == HvMessageType.HvMessageTypeNone:
        return HvStatus.INVALID_PARAMETER, 0
    if header.PayloadSize > HV_MESSAGE_MAX_PAYLOAD_BYTE_COUNT:
        return HvStatus.INVALID_PARAMETER, 0
    header.MessageFlags &= ~HV_MESSAGE_FLAG_MESSAGE_PENDING
    return target.hv.synic.post(request.Sint, message.pack()), 0


def signal_event_direct(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallSignalEventDirect."""
    request = io.HV_INPUT_SIGNAL_EVENT_DIRECT.unpack_from(call.data)
    target = _direct_target(vp, level, request.TargetPartition, request.TargetVp, request.TargetVtl)
    if isinstance(target, HvStatus):
        return target, 0
    if not HV_SYNIC_INTERCEPTION_SINT_INDEX < request.TargetSint < HV_SYNIC_SINT_COUNT:
        return HvStatus.INVALID_PARAMETER, 0
    outcome = target.hv.synic.test_and_signal_event(request.TargetSint, request.FlagNumber)
    if isinstance(outcome, HvStatus):
        return outcome, 0
    call.write_output(io.HV_OUTPUT_SIGNAL_EVENT_DIRECT(NewlySignaled=outcome).pack())
    return HvStatus.SUCCESS, 0
