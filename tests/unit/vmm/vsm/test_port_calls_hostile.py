"""Whatever a guest passes to the calls about ports, it gets a status, and what it made can be taken back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.vmm.vsm.ports_rig import SELF, SINT, synic
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_ANY_VP, HV_VP_INDEX_SELF
from vtlkit.hvdef.ports import HV_PORT_MESSAGE_BUFFER_COUNT
from vtlkit.hvdef.status import HvStatus
from vtlkit.vmm.vsm.ports import MessagePort

CALLS = (
    Call.HvCallCreatePort,
    Call.HvCallDeletePort,
    Call.HvCallConnectPort,
    Call.HvCallDisconnectPort,
    Call.HvCallPostMessage,
    Call.HvCallSignalEvent,
    Call.HvCallPostMessageDirect,
    Call.HvCallSignalEventDirect,
    Call.HvExtCallQueryCapabilities,
)
WORDS = st.one_of(
    st.integers(0, 7),
    st.integers(0, 2**32 - 1),
    st.sampled_from([HV_ANY_VP, HV_VP_INDEX_SELF, SELF & 0xFFFFFFFF, SINT, 1 << 16, 2047 << 16]),
)
BLOCKS = st.lists(WORDS, max_size=70).map(lambda words: b"".join(word.to_bytes(4, "little") for word in words))
ADDRESSED = st.tuples(st.booleans(), BLOCKS).map(lambda pair: (b"\xff" * 8 if pair[0] else b"") + pair[1])


@pytest.mark.tlfs("synic.ports")
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(CALLS), ADDRESSED), max_size=12))
def test_any_input_ends_in_a_status(inputs: list[tuple[int, bytes]]) -> None:
    statuses: list[int] = []

    def guest(guest: Guest) -> Script:
        yield from synic(guest, sti=False)
        for code, data in inputs:
            statuses.append((yield from guest.call(code, data.ljust(280, b"\0"))) & 0xFFFF)
        yield from guest.end()

    VsmRig({(0, 0): guest}).run()
    assert len(statuses) == len(inputs)
    assert all(HvStatus(status) is not HvStatus.INVALID_HYPERCALL_CODE for status in statuses)


class PortMachine(RuleBasedStateMachine):
    """Message ports and connections with small numbers; the oracle knows who leads where and what waits."""

    numbers = st.integers(0, 3)

    @initialize()
    def start(self) -> None:
        self.rig = VsmRig({})
        self.ports = self.rig.partition.ports
        self.synic = self.rig.partition.vps[0].vcpus[0].hv.synic
        self.do(lambda: self.synic.set_scontrol(1))
        self.do(lambda: self.synic.set_simp(0x9001))
        self.by_id: dict[int, list[bytes]] = {}
        self.made: dict[int, MessagePort] = {}
        self.links: dict[int, list[bytes]] = {}
        self.order: list[tuple[int, bytes]] = []
        self.sent = 0

    def do(self, body: Any) -> Any:
        found: list[Any] = []
        self.rig.host.spawn(lambda: found.append(body()), "task")
        self.rig.host.run()
        return found[0]

    @rule(number=numbers)
    def create(self, number: int) -> None:
        port = MessagePort(number, 0, 0, 0, SINT, self.ports.message_buffers("test"))
        taken = number in self.by_id
        assert self.do(lambda: self.ports.create_port(port)) == (HvStatus.INVALID_PORT_ID if taken else 0)
        if not taken:
            self.by_id[number] = []
            self.made[number] = port

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        there = number in self.by_id
        assert self.do(lambda: self.ports.delete_port(number, 0)) == (0 if there else HvStatus.INVALID_PORT_ID)
        if there:
            waiting = self.by_id.pop(number)
            del self.made[number]
            self.order = [entry for entry in self.order if not any(entry[1] is each for each in waiting)]

    @rule(connection=numbers, number=numbers)
    def connect(self, connection: int, number: int) -> None:
        expected = HvStatus.SUCCESS
        if connection in self.links:
            expected = HvStatus.INVALID_CONNECTION_ID
        elif number not in self.by_id:
            expected = HvStatus.INVALID_PORT_ID
        assert self.do(lambda: self.ports.connect(connection, 0, number, MessagePort)) == expected
        if not expected:
            self.links[connection] = self.by_id[number]

    @rule(connection=numbers)
    def disconnect(self, connection: int) -> None:
        expected = 0 if self.links.pop(connection, None) is not None else HvStatus.INVALID_CONNECTION_ID
        assert self.do(lambda: self.ports.disconnect(connection, 0)) == expected

    @rule(connection=numbers)
    def post(self, connection: int) -> None:
        self.sent += 1
        payload = self.sent.to_bytes(4, "little")
        status = self.do(lambda: self.ports.post_message(connection, 0, 1, payload))
        link = self.links.get(connection)
        number = next((number for number, waiting in self.by_id.items() if waiting is link), None)
        if link is None:
            assert status == HvStatus.INVALID_CONNECTION_ID
        elif number is None:
            assert status == HvStatus.INVALID_PORT_ID
        elif len(link) >= HV_PORT_MESSAGE_BUFFER_COUNT:
            assert status == HvStatus.INSUFFICIENT_BUFFERS
        else:
            assert status == HvStatus.SUCCESS
            self.order.append((number, payload))
            link.append(payload)
            self.settle()

    @rule()
    def take(self) -> None:
        view = self.synic.message_page.view
        view[SINT * 256 : SINT * 256 + 4] = bytes(4)
        self.do(self.synic.end_of_message)
        self.settle(free=True)

    def settle(self, *, free: bool = False) -> None:
        """The oldest message goes to the slot if that is free, and gives its buffer back."""
        if free:
            self.full = False
        if self.order and not getattr(self, "full", False):
            number, payload = self.order.pop(0)
            self.by_id[number].remove(payload)
            self.full = True
            slot = SINT * 256
            assert self.synic.message_page.view[slot + 16 : slot + 20] == payload
            assert self.synic.message_page.view[slot + 8 : slot + 16] == number.to_bytes(8, "little")

    @invariant()
    def buffers_agree(self) -> None:
        for number, port in getattr(self, "made", {}).items():
            assert port.buffers.free == HV_PORT_MESSAGE_BUFFER_COUNT - len(self.by_id[number])


PortMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestPorts = PortMachine.TestCase
