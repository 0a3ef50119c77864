"""SynIC: registers, message slots and queues against an oracle, event flags, interrupts, races with a guest."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.kvm.hyperv.rig import FakeVm
from vtlkit.engine.api import Access
from vtlkit.host.sim import Simulator
from vtlkit.hvdef import msrs
from vtlkit.hvdef.messages import HvMessageType, make_message
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv.message_buffers import MessageBuffers
from vtlkit.kvm.hyperv.overlays import OverlayPage, Precedence
from vtlkit.kvm.hyperv.synic import MESSAGE_BUFFERS
from vtlkit.kvm.requests import Req

MESSAGES, FLAGS = 0x5000, 0x6000
SINT0 = msrs.HV_X64_MSR_SINT0
MASKED, AUTO_EOI, POLLING, PROXY = 1 << 16, 1 << 17, 1 << 18, 1 << 20
PENDING_OFFSET = 5


def message(number: int) -> bytes:
    return make_message(HvMessageType.HvMessageTypeGpaIntercept, number.to_bytes(4, "little")).pack()


def make_vm(host: Simulator | None = None) -> FakeVm:
    vm = FakeVm(host=host)
    vm.cpu.wrmsr(msrs.HV_X64_MSR_SCONTROL, 1)
    vm.cpu.wrmsr(msrs.HV_X64_MSR_SIMP, MESSAGES | 1)
    vm.cpu.wrmsr(msrs.HV_X64_MSR_SIEFP, FLAGS | 1)
    return vm


def slot_of(vm: FakeVm, sint: int) -> bytes:
    return vm.memory.read(MESSAGES + 256 * sint, 256)


def number_in(vm: FakeVm, sint: int) -> int | None:
    """The number of the message in the slot, None if it is empty."""
    slot = slot_of(vm, sint)
    return int.from_bytes(slot[16:20], "little") if slot[:4] != bytes(4) else None


def empty(vm: FakeVm, sint: int) -> bool:
    """Take the message out of the slot, as a guest does; whether the guest must write EOM."""
    vm.memory.write(MESSAGES + 256 * sint, bytes(4))
    return slot_of(vm, sint)[PENDING_OFFSET] & 1 == 1


# --- registers ----------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("synic.sints")
def test_reset_values() -> None:
    cpu = FakeVm().cpu
    for index in (msrs.HV_X64_MSR_SCONTROL, msrs.HV_X64_MSR_SIEFP, msrs.HV_X64_MSR_SIMP, msrs.HV_X64_MSR_EOM):
        assert cpu.rdmsr(index) == 0
    assert cpu.rdmsr(msrs.HV_X64_MSR_SVERSION) == 1
    assert [cpu.rdmsr(SINT0 + n) for n in range(16)] == [MASKED] * 16
    assert cpu.rdmsr(SINT0 + 16) is None


@pytest.mark.tlfs("synic.sints")
def test_vectors_of_sints() -> None:
    cpu = FakeVm().cpu
    assert not cpu.wrmsr(SINT0, 15)
    assert not cpu.wrmsr(SINT0, 0)
    assert not cpu.wrmsr(SINT0, POLLING | 3)
    assert cpu.rdmsr(SINT0) == MASKED
    assert cpu.wrmsr(SINT0, 16)
    assert cpu.wrmsr(SINT0, MASKED)
    assert cpu.hv.set_msr(SINT0, 0, host_initiated=True)
    assert not cpu.wrmsr(msrs.HV_X64_MSR_SVERSION, 1)


@pytest.mark.tlfs("synic.sints")
def test_auto_eoi_follows_the_sints_of_a_vector() -> None:
    cpu = FakeVm().cpu
    cpu.wrmsr(SINT0 + 1, 0x40)
    assert not cpu.hv.auto_eoi(0x40)
    cpu.wrmsr(SINT0 + 2, 0x40 | AUTO_EOI)
    assert cpu.hv.auto_eoi(0x40)
    cpu.wrmsr(SINT0 + 2, 0x40 | AUTO_EOI | MASKED)
    assert not cpu.hv.auto_eoi(0x40)
    cpu.wrmsr(SINT0 + 1, 0x41 | AUTO_EOI)
    assert cpu.hv.synic.set_irq(1) == 1
    assert cpu.take(eoi=False) == 0x41
    assert cpu.hv.synic.set_irq(1) == 1
    assert cpu.take(eoi=False) == 0x41  # not in service, so the next one is not held back
    assert cpu.hv.synic.set_irq(2) == -1


# --- messages -----------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("synic.messages")
def test_delivery_interrupts_and_queues() -> None:
    vm = make_vm()
    vm.cpu.wrmsr(SINT0, 0x30)
    for number in (1, 2, 3):
        assert vm.cpu.hv.post_synic_message(0, message(number)) == HvStatus.SUCCESS
    assert slot_of(vm, 0)[:PENDING_OFFSET] == message(1)[:PENDING_OFFSET]
    assert slot_of(vm, 0)[8:] == message(1)[8:]
    assert vm.cpu.hv.synic.queued(0) == 2
    assert vm.cpu.take(eoi=False) == 0x30
    assert empty(vm, 0)
    vm.cpu.apic.set_eoi()  # the end of the interrupt brings the next message
    assert number_in(vm, 0) == 2
    assert vm.cpu.take() == 0x30
    assert number_in(vm, 0) == 2  # its slot was not free
    assert empty(vm, 0)
    assert vm.cpu.wrmsr(msrs.HV_X64_MSR_EOM, 0)
    assert number_in(vm, 0) == 3
    assert not empty(vm, 0)
    assert vm.cpu.take() == 0x30
    assert vm.cpu.take() == -1


@pytest.mark.tlfs("synic.messages")
def test_no_message_without_a_synic_or_its_page() -> None:
    vm = make_vm()
    for index, off, on in ((msrs.HV_X64_MSR_SCONTROL, 0, 1), (msrs.HV_X64_MSR_SIMP, MESSAGES, MESSAGES | 1)):
        vm.cpu.wrmsr(index, off)
        assert vm.cpu.hv.post_synic_message(0, message(1)) == HvStatus.INVALID_SYNIC_STATE
        assert vm.cpu.hv.synic.deliver_message(0, message(1)) == HvStatus.INVALID_SYNIC_STATE
        vm.cpu.wrmsr(index, on)
    vm.cpu.wrmsr(SINT0, 0x30 | PROXY)
    assert vm.cpu.hv.post_synic_message(0, message(1)) == HvStatus.INVALID_SYNIC_STATE


@pytest.mark.tlfs("synic.sints")
def test_masked_and_polled_sints_get_messages_without_interrupt() -> None:
    vm = make_vm()
    vm.cpu.wrmsr(SINT0 + 3, 0x33 | POLLING)
    for sint in (2, 3):
        assert vm.cpu.hv.synic.deliver_message(sint, message(sint)) == HvStatus.SUCCESS
        assert number_in(vm, sint) == sint
    assert vm.cpu.take() == -1


@pytest.mark.tlfs("synic.messages")
def test_a_full_queue() -> None:
    vm = make_vm()
    for number in range(MESSAGE_BUFFERS + 1):
        assert vm.cpu.hv.post_synic_message(4, message(number)) == HvStatus.SUCCESS
    assert vm.cpu.hv.post_synic_message(4, message(99)) == HvStatus.INSUFFICIENT_BUFFERS
    assert vm.cpu.hv.synic.deliver_message(4, message(99)) == HvStatus.OBJECT_IN_USE
    vm.cpu.hv.reset(init_event=False)
    assert vm.cpu.hv.synic.queued(4) == 0


class MessageMachine(RuleBasedStateMachine):
    """Messages on three SINTs of which two share a vector; the oracle is a queue per SINT and a number per slot."""

    @initialize()
    def start(self) -> None:
        self.vm = make_vm()
        self.queues: list[deque[int]] = [deque() for _ in range(3)]
        self.slots: list[int | None] = [None] * 3
        self.vectors = [0x40, 0x40, 0x50]
        self.enabled = True
        self.next = 0
        self.due: set[int] = set()
        for sint, vector in enumerate(self.vectors):
            self.vm.cpu.wrmsr(SINT0 + sint, vector)

    def settle(self, sints: list[int]) -> None:
        for sint in sints:
            if self.enabled and self.slots[sint] is None and self.queues[sint]:
                self.slots[sint] = self.queues[sint].popleft()
                if self.vectors[sint]:
                    self.due.add(self.vectors[sint])

    @rule(sint=st.integers(0, 2))
    def post(self, sint: int) -> None:
        self.next += 1
        status = self.vm.cpu.hv.post_synic_message(sint, message(self.next))
        if not self.enabled:
            assert status == HvStatus.INVALID_SYNIC_STATE
        elif len(self.queues[sint]) >= MESSAGE_BUFFERS:
            assert status == HvStatus.INSUFFICIENT_BUFFERS
        else:
            assert status == HvStatus.SUCCESS
            self.queues[sint].append(self.next)
            self.settle([sint])

    @rule(sint=st.integers(0, 2))
    def take_message(self, sint: int) -> None:
        if self.enabled and self.slots[sint] is not None:
            assert empty(self.vm, sint) == bool(self.queues[sint])
            self.slots[sint] = None

    @rule()
    def end_of_message(self) -> None:
        assert self.vm.cpu.wrmsr(msrs.HV_X64_MSR_EOM, 0)
        self.settle([0, 1, 2])

    @rule()
    def take_interrupt(self) -> None:
        vector = self.vm.cpu.take(eoi=False)
        assert vector == max(self.due, default=-1)
        if vector >= 0:
            self.due.discard(vector)
            self.vm.cpu.apic.set_eoi()
            self.settle([sint for sint in range(3) if self.vectors[sint] == vector])

    @rule(sint=st.integers(0, 2), masked=st.booleans())
    def mask(self, sint: int, masked: bool) -> None:
        vector = 0x50 if sint == 2 else 0x40
        self.vm.cpu.wrmsr(SINT0 + sint, vector | MASKED * masked)
        self.vectors[sint] = 0 if masked else vector
        self.settle([0, 1, 2])

    @rule(enabled=st.booleans())
    def control(self, enabled: bool) -> None:
        self.vm.cpu.wrmsr(msrs.HV_X64_MSR_SCONTROL, int(enabled))
        self.enabled = enabled
        self.settle([0, 1, 2])

    @rule(enabled=st.booleans())
    def move_page(self, enabled: bool) -> None:
        """The contents go with the page, so the oracle does not change while it is back at the end."""
        if enabled:
            self.vm.cpu.wrmsr(msrs.HV_X64_MSR_SIMP, 0x9000 | 1)
        self.vm.cpu.wrmsr(msrs.HV_X64_MSR_SIMP, MESSAGES | 1)
        self.settle([0, 1, 2])

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "vm"):
            return
        for sint in range(3):
            assert number_in(self.vm, sint) == self.slots[sint]
            assert self.vm.cpu.hv.synic.queued(sint) == len(self.queues[sint])
            if self.slots[sint] is not None and self.queues[sint] and self.enabled:
                assert slot_of(self.vm, sint)[PENDING_OFFSET] & 1


TestMessages = pytest.mark.tlfs("synic.messages")(MessageMachine.TestCase)


class PreemptedPage(OverlayPage):
    """A page before each of whose stores another task may run."""

    __slots__ = ("host",)
    host: Simulator

    def write(self, offset: int, data: bytes) -> None:
        self.host.relax()
        super().write(offset, data)


@pytest.mark.tlfs("synic.messages")
@pytest.mark.parametrize("seed", range(30))
def test_no_message_is_lost_between_poster_and_guest(seed: int) -> None:
    """The race of the module's docstring: a guest that writes EOM only if it saw MessagePending gets every message."""
    host = Simulator(seed=seed, instrument=True)
    vm = make_vm(host)
    synic = vm.cpu.hv.synic
    page = PreemptedPage(vm.memory, Precedence.MESSAGES, Access.ALL)
    page.host = host
    synic.message_page = page
    view = synic.message_page.view
    taken: list[int] = []
    wanted = 6

    def poster() -> None:
        for number in range(wanted):
            while vm.cpu.hv.post_synic_message(0, message(number)):
                host.relax()

    def guest() -> None:
        for _ in range(10_000):
            host.smp_mb()
            if view[:4] != bytes(4):
                taken.append(int.from_bytes(view[16:20], "little"))
                host.smp_rmb()
                view[:4] = bytes(4)
                host.smp_mb()
                if view[PENDING_OFFSET] & 1:
                    vm.cpu.wrmsr(msrs.HV_X64_MSR_EOM, 0)
            if len(taken) == wanted:
                return
            host.relax()

    host.spawn(poster, "poster")
    host.spawn(guest, "guest")
    host.run()
    assert taken == list(range(wanted))


# --- event flags --------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("synic.event-flags")
def test_event_flags() -> None:
    vm = make_vm()
    vm.cpu.wrmsr(SINT0 + 5, 0x60)
    assert vm.cpu.hv.synic.signal_event(5, 2047) == HvStatus.SUCCESS
    assert vm.cpu.requests == {Req.HV_STIMER}
    assert vm.cpu.kicks == 1
    assert vm.memory.read(FLAGS + 5 * 256 + 255, 1) == b"\0"
    vm.cpu.hv.process_stimers()
    assert vm.memory.read(FLAGS + 5 * 256 + 255, 1) == b"\x80"
    assert vm.cpu.take() == 0x60
    assert vm.cpu.hv.synic.signal_event(5, 2047) == HvStatus.SUCCESS
    vm.cpu.hv.process_stimers()
    assert vm.cpu.take() == -1  # it was set before
    assert vm.cpu.hv.synic.signal_event(5, 2048) == HvStatus.INVALID_PARAMETER
    assert vm.cpu.hv.synic.signal_event(6, 0) == HvStatus.INVALID_SYNIC_STATE  # masked
    vm.cpu.wrmsr(msrs.HV_X64_MSR_SIEFP, 0)
    assert vm.cpu.hv.synic.signal_event(5, 1) == HvStatus.INVALID_SYNIC_STATE


@pytest.mark.tlfs("synic.direct")
def test_whether_a_flag_was_clear() -> None:
    """It is set from the signal on, in the page or on its way there, until the guest clears it."""
    vm = make_vm()
    vm.cpu.wrmsr(SINT0 + 5, 0x60)
    synic = vm.cpu.hv.synic
    assert [synic.test_and_signal_event(5, 9) for _ in range(2)] == [True, False]
    vm.cpu.hv.process_stimers()
    assert synic.test_and_signal_event(5, 9) is False
    assert synic.test_and_signal_event(5, 10) is True
    vm.memory.write(FLAGS + 5 * 256 + 1, b"\0")
    assert synic.test_and_signal_event(5, 9) is True
    assert synic.test_and_signal_event(5, 2048) is HvStatus.INVALID_PARAMETER
    assert synic.test_and_signal_event(6, 0) is HvStatus.INVALID_SYNIC_STATE
    vm.cpu.hv.reset(init_event=False)
    assert synic.test_and_signal_event(5, 9) is HvStatus.INVALID_SYNIC_STATE


def test_messages_of_a_port_wait_in_its_buffers() -> None:
    """On any SINT, not counted as the SINT's own; a reset gives the buffers back, closing refuses and drops."""
    vm = make_vm()
    synic = vm.cpu.hv.synic
    buffers = MessageBuffers(vm.host, 3, "port")
    vm.cpu.wrmsr(SINT0 + 4, 0x60)
    vm.cpu.wrmsr(SINT0 + 5, 0x61)
    for sint in (4, 5):
        assert synic.post(sint, message(0)) == HvStatus.SUCCESS
    statuses = [synic.post(sint, message(sint), buffers) for sint in (4, 5, 4, 5)]
    assert statuses == [HvStatus.SUCCESS] * 3 + [HvStatus.INSUFFICIENT_BUFFERS]
    assert (buffers.free, synic.queued(4), synic.queued(5)) == (0, 2, 1)
    for number in range(MESSAGE_BUFFERS):
        assert synic.post(4, message(number)) == HvStatus.SUCCESS
    assert synic.post(4, message(9)) == HvStatus.INSUFFICIENT_BUFFERS
    empty(vm, 5)
    synic.end_of_message()
    assert (buffers.free, synic.queued(5)) == (1, 0)
    buffers.close()
    assert synic.post(5, message(9), buffers) == HvStatus.INVALID_PORT_ID
    synic.drop_messages(buffers)
    assert (buffers.free, synic.queued(4)) == (3, MESSAGE_BUFFERS)
    others = MessageBuffers(vm.host, 3, "other")
    assert synic.post(4, message(9), others) == HvStatus.SUCCESS
    vm.cpu.hv.reset(init_event=False)
    assert (others.free, synic.queued(4)) == (3, 0)


@pytest.mark.tlfs("synic.event-flags")
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2047)), max_size=20))
def test_signalled_flags_are_the_page(signals: list[tuple[int, int]]) -> None:
    vm = make_vm()
    for sint in range(16):
        vm.cpu.wrmsr(SINT0 + sint, 0x60 + sint)
    expected = bytearray(4096)
    for sint, flag in signals:
        assert vm.cpu.hv.synic.signal_event(sint, flag) == HvStatus.SUCCESS
        expected[sint * 256 + flag // 8] |= 1 << flag % 8
    vm.cpu.hv.process_stimers()
    assert vm.memory.read(FLAGS, 4096) == bytes(expected)
    assert vm.cpu.apic.irr.load() == sum({1 << 0x60 + sint for sint, _ in signals})
