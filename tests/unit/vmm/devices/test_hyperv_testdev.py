"""The test device of kvm-unit-tests: commands, and connections that lead back to the guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import VsmRig
from vtlkit.host.api import LockRank
from vtlkit.hvdef.messages import HV_MESSAGE
from vtlkit.hvdef.status import HvStatus
from vtlkit.vmm.devices.bus import PortBus
from vtlkit.vmm.devices.hyperv_testdev import SYNIC_PORT, SYNIC_PORTS, Control, HypervTestDevice
from vtlkit.vmm.vsm.ports import MessagePort

SINT = 8
GONE = HvStatus.INVALID_CONNECTION_ID


class Lines:
    """Lines to SINTs that only remember."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def create(self, vp_index: int, sint: int) -> None:
        self.calls.append(("create", vp_index, sint))

    def destroy(self, vp_index: int, sint: int) -> None:
        self.calls.append(("destroy", vp_index, sint))

    def pulse(self, vp_index: int, sint: int) -> None:
        self.calls.append(("pulse", vp_index, sint))

    def reset(self) -> None:
        self.calls.append("reset")


class Rig:
    """The device on a bus with the bus's lock, before a partition of two processors with SynICs."""

    def __init__(self) -> None:
        self.rig = VsmRig({}, cpus=2)
        self.ports = self.rig.partition.ports
        self.lines = Lines()
        self.device = HypervTestDevice(self.lines, self.ports)
        self.bus = PortBus(self.rig.host.lock("bus", LockRank.BUS))
        self.bus.register(SYNIC_PORT, SYNIC_PORTS, self.device)
        self.synics = [vp.vcpus[0].hv.synic for vp in self.rig.partition.vps]
        for synic in self.synics:
            synic.scontrol, synic.simp, synic.siefp = 1, 0x9001, 0xA001
            synic.sints[SINT] = 0x50

    def do(self, body: Callable[[], Any]) -> Any:
        found: list[Any] = []
        self.rig.host.spawn(lambda: found.append(body()), "vcpu")
        self.rig.host.run()
        return found[0]

    def command(self, control: int, *, vp: int = 0, sint: int = 0, connection: int = 0) -> None:
        self.do(lambda: self.bus.write(SYNIC_PORT, 4, connection << 24 | control << 16 | vp << 8 | sint))

    def post(self, connection: int) -> HvStatus:
        status = self.do(lambda: self.ports.post_message(connection, 0, 0x12345678, b"payload"))
        assert isinstance(status, HvStatus)
        return status

    def signal(self, connection: int, flag: int = 0) -> HvStatus:
        status = self.do(lambda: self.ports.signal_event(connection, 0, flag))
        assert isinstance(status, HvStatus)
        return status


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_message_comes_back_to_the_sint(rig: Rig) -> None:
    rig.command(Control.MSG_CONN_CREATE, vp=1, sint=SINT, connection=0x11)
    assert rig.post(0x11) == HvStatus.SUCCESS
    message = HV_MESSAGE.unpack(bytes(rig.synics[1].message_page.view[SINT * 256 : SINT * 256 + 256]))
    assert (message.Header.MessageType, message.Header.PayloadSize) == (0x12345678, 7)
    assert message.Payload[:7] == b"payload"
    assert rig.post(0x12) == GONE
    assert rig.post(0x11) == HvStatus.SUCCESS
    assert rig.synics[1].queued(SINT) == 1
    rig.command(Control.MSG_CONN_DESTROY, connection=0x11)
    assert rig.post(0x11) == GONE
    assert rig.synics[1].queued(SINT) == 0


def test_an_event_sets_the_flag_with_the_connections_number(rig: Rig) -> None:
    rig.command(Control.EVT_CONN_CREATE, vp=1, sint=SINT, connection=0xFE)
    assert rig.signal(0xFE, 1) == HvStatus.INVALID_PARAMETER
    assert rig.signal(0xFE) == HvStatus.SUCCESS
    rig.do(rig.synics[1].process_events)
    assert bytes(rig.synics[1].event_page.view[SINT * 256 : SINT * 256 + 32]) == (1 << 0xFE).to_bytes(32, "little")
    rig.command(Control.EVT_CONN_DESTROY, connection=0xFE)
    assert rig.signal(0xFE) == GONE


def test_messages_and_events_are_numbered_separately(rig: Rig) -> None:
    """As in QEMU: with more than sixteen processors kvm-unit-tests uses one number for both."""
    rig.command(Control.MSG_CONN_CREATE, sint=SINT, connection=0x20)
    rig.command(Control.EVT_CONN_CREATE, sint=SINT, connection=0x20)
    assert rig.post(0x20) == HvStatus.SUCCESS
    assert rig.signal(0x20) == HvStatus.SUCCESS
    rig.command(Control.EVT_CONN_DESTROY, connection=0x20)
    assert rig.post(0x20) == HvStatus.SUCCESS
    assert rig.signal(0x20) == GONE


def test_a_guests_connection_and_a_devices_never_share_a_number(rig: Rig) -> None:
    port = MessagePort(1, 0, 0, 0, SINT, rig.ports.message_buffers("test"))
    assert not rig.do(lambda: rig.ports.create_port(port))
    rig.command(Control.EVT_CONN_CREATE, sint=SINT, connection=5)
    assert rig.do(lambda: rig.ports.connect(5, 0, 1, MessagePort)) == GONE
    assert rig.do(lambda: rig.ports.disconnect(5, 0)) == HvStatus.ACCESS_DENIED
    assert not rig.do(lambda: rig.ports.connect(6, 0, 1, MessagePort))
    rig.command(Control.MSG_CONN_CREATE, vp=1, sint=SINT, connection=6)
    assert rig.post(6) == HvStatus.SUCCESS
    assert rig.synics[0].message_page.view[SINT * 256]
    assert not rig.synics[1].message_page.view[SINT * 256]


def test_what_does_not_exist_is_left_alone(rig: Rig) -> None:
    for control in (Control.MSG_CONN_CREATE, Control.EVT_CONN_CREATE):
        rig.command(control, vp=2, sint=SINT, connection=1)
        rig.command(control, sint=16, connection=1)
    assert (rig.post(1), rig.signal(1)) == (GONE, GONE)
    for other in (0, 8, 0xFF, int(Control.MSG_CONN_DESTROY), int(Control.EVT_CONN_DESTROY)):
        rig.command(other, sint=SINT, connection=1)
    assert rig.lines.calls == []
    rig.command(Control.MSG_CONN_CREATE, sint=SINT, connection=1)
    rig.command(Control.MSG_CONN_CREATE, vp=1, sint=SINT, connection=1)
    assert rig.post(1) == HvStatus.SUCCESS
    assert rig.synics[0].message_page.view[SINT * 256]
    assert rig.bus.read(SYNIC_PORT, 4) == 0


def test_lines_and_a_reset(rig: Rig) -> None:
    rig.command(Control.SINT_ROUTE_CREATE, vp=1, sint=3)
    rig.command(Control.SINT_ROUTE_SET_SINT, vp=1, sint=3)
    rig.command(Control.SINT_ROUTE_DESTROY, vp=1, sint=3)
    assert rig.lines.calls == [("create", 1, 3), ("pulse", 1, 3), ("destroy", 1, 3)]
    rig.command(Control.MSG_CONN_CREATE, sint=SINT, connection=1)
    rig.command(Control.EVT_CONN_CREATE, sint=SINT, connection=1)
    rig.do(rig.device.reset)
    assert rig.lines.calls[-1] == "reset"
    assert (rig.post(1), rig.signal(1)) == (GONE, GONE)
