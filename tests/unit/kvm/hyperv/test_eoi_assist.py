"""EOI assist: when NoEoiRequired is set, what the guest's clearing it does, and that every other EOI still works."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, Script, engine_of
from tests.unit.kvm.hyperv.timer_rig import ENABLED, offer_hyperv, sint
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.host.sim import Simulator
from vtlkit.hvdef import msrs
from vtlkit.hvdef.messages import HvMessageType, make_message
from vtlkit.kvm.kvm_run import IrqWindowOpen
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.windows import Windows
from vtlkit.x86 import apic as regs
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.registers import RFLAGS_IF

pytestmark = pytest.mark.tlfs("msrs.eoi-assist")

ASSIST, MESSAGES = 0x7000, 0x5000
APIC = 0xFEE00000
LOW, VECTOR, HIGH = 0x41, 0x61, 0x81

Part = Generator[Op, int, None]
Body = Callable[["Guest", int], Part]


class Guest:
    """A guest that computes, with a VP assist page; `bodies` are its handlers, without their EOI unless in `ends`."""

    def __init__(self, bodies: dict[int, Body] | None = None, ends: dict[int, Body] | None = None) -> None:
        self.bodies = bodies or {}
        self.ends = ends or {}
        self.seen: list[int] = []
        self.bits: list[int] = []
        """NoEoiRequired as each handler was entered."""
        self.skipped: list[int] = []
        """Vectors that were ended without an exit."""
        self.left = 60

        handlers = dict.fromkeys(range(0x20, 0x100), self._handler)
        self.machine = Machine(self._program, handlers=handlers, host=Simulator())
        self.vcpu = self.machine.vcpu
        self.apic = self.vcpu.apic
        self.assist = self.vcpu.hv.assist
        offer_hyperv(self.vcpu)
        self.vcpu.set_guest_msr(msrs.HV_X64_MSR_VP_ASSIST_PAGE, ASSIST | 1)
        self.machine.cpu.rflags |= RFLAGS_IF

    @property
    def bit(self) -> int:
        return self.machine.vm.memory.read(ASSIST, 1)[0]

    def run(self) -> None:
        """Until it has computed for a while."""
        self.machine.run(self.vcpu.run)
        assert self.bit == 0
        assert self.apic.statistics().eois == self.apic.statistics().interrupts
        assert all(self.apic.mmio_read(regs.APIC_ISR + 16 * word, 4) == 0 for word in range(8))

    def send(self, vector: int, *, level: bool = False) -> None:
        self.apic.accept_irq(DeliveryMode.FIXED, vector, 1, level)

    def _program(self, _engine: object) -> Script:
        while True:
            while self.left:
                self.left -= 1
                yield ops.Compute(3)
            yield ops.Out(DONE, 1, 0)

    def _handler(self, _engine: object, event: Event) -> Script:
        self.seen.append(event.vector)
        return self._handle(event.vector)

    def _handle(self, vector: int) -> Script:
        yield ops.Host(lambda: self.bits.append(self.bit))
        body = self.bodies.get(vector)
        if body is not None:
            yield from body(self, vector)
        yield from self.ends[vector](self, vector) if vector in self.ends else self.end(vector)

    def clear(self, vector: int) -> Part:
        """BTR: end the interrupt if no EOI is required."""

        def btr() -> None:
            if self.bit & 1:
                self.machine.vm.memory.write(ASSIST, b"\0")
                self.skipped.append(vector)

        yield ops.Host(btr)

    def end(self, vector: int) -> Part:
        """The TLFS's recommended EOI."""
        before = len(self.skipped)
        yield from self.clear(vector)
        if len(self.skipped) == before:
            yield from wrmsr(msrs.HV_X64_MSR_EOI, 0)


def wrmsr(index: int, value: int) -> Part:
    yield ops.Set(index, "rcx")
    yield ops.Set(value >> 32, "rdx")
    yield ops.Set(value & 0xFFFFFFFF)
    yield ops.Wrmsr()


def at(step: Callable[[], object]) -> Part:
    """Something that happens to the machine while the guest is here."""

    def run() -> None:
        step()

    yield ops.Host(run)
    yield ops.Compute(2)


# --- offered or not ---------------------------------------------------------------------------------------------------


def test_an_edge_interrupt_alone_is_ended_without_an_exit() -> None:
    guest = Guest()
    for vector in (VECTOR, LOW, VECTOR):
        guest.send(vector)
        guest.left = 20
        guest.run()
    assert guest.bits == [1, 1, 1]
    assert guest.skipped == guest.seen == [VECTOR, LOW, VECTOR]
    assert guest.vcpu.statistics.exits["wrmsr"] == 0


def test_without_the_page_nothing_is_offered() -> None:
    guest = Guest()
    guest.vcpu.set_guest_msr(msrs.HV_X64_MSR_VP_ASSIST_PAGE, ASSIST)
    guest.send(VECTOR)
    guest.run()
    assert guest.skipped == []
    assert guest.seen == [VECTOR]


def test_a_level_interrupt_needs_its_eoi() -> None:
    guest = Guest()
    guest.send(VECTOR, level=True)
    guest.run()
    assert guest.bits == [0]
    assert guest.skipped == []


def test_a_pending_interrupt_of_lower_priority_needs_the_eoi() -> None:
    guest = Guest()
    guest.send(LOW)
    guest.send(VECTOR)
    guest.run()
    assert guest.seen == [VECTOR, LOW]
    assert guest.bits == [0, 1]


def test_a_pin_that_waits_for_the_eoi_needs_it() -> None:
    guest = Guest()
    guest.machine.vm.bus.set_ack_vectors(1 << VECTOR)
    guest.send(VECTOR)
    guest.send(LOW)
    guest.run()
    guest.send(VECTOR)
    guest.left = 20
    guest.run()
    assert dict(zip(guest.seen, guest.bits, strict=True)) == {VECTOR: 0, LOW: 1}


def test_user_space_that_waits_for_the_priority_to_fall_needs_the_eoi() -> None:
    guest = Guest({VECTOR: leaves})
    guest.send(VECTOR)
    guest.machine.run(guest.vcpu.run)
    guest.vcpu.events.windows = Windows(interrupt=True, priority=VECTOR >> 4)
    exits: list[object] = []
    guest.machine.run(lambda: exits.append(guest.vcpu.run()))
    assert isinstance(exits[0], IrqWindowOpen)
    assert guest.skipped == []
    assert guest.apic.statistics().eois == 1


def with_sint(guest: Guest, vector: int) -> None:
    guest.vcpu.set_guest_msr(msrs.HV_X64_MSR_SCONTROL, 1)
    guest.vcpu.set_guest_msr(msrs.HV_X64_MSR_SIMP, MESSAGES | 1)
    guest.vcpu.set_guest_msr(msrs.HV_X64_MSR_SINT0 + 4, vector)


def post(guest: Guest, count: int) -> None:
    message = make_message(HvMessageType.HvMessageTypeGpaIntercept, b"x").pack()
    for _ in range(count):
        guest.vcpu.hv.post_synic_message(4, message)


def take_message(guest: Guest, _vector: int) -> Part:
    yield from at(lambda: guest.machine.vm.memory.write(MESSAGES + 4 * 256, bytes(4)))


@pytest.mark.parametrize("messages", [1, 3])
def test_a_sint_with_queued_messages_needs_its_eoi(messages: int) -> None:
    """The guest never writes EOM: what is queued comes at the EOIs, and the last message's EOI may be skipped."""
    guest = Guest({VECTOR: take_message})
    with_sint(guest, VECTOR)
    post(guest, messages)
    guest.run()
    assert guest.seen == [VECTOR] * messages
    assert guest.bits == [0] * (messages - 1) + [1]


def test_a_message_that_is_queued_later_takes_the_offer_back() -> None:
    def late_message(guest: Guest, vector: int) -> Part:
        if len(guest.seen) == 1:
            yield from at(lambda: post(guest, 1))
            guest.bits.append(guest.bit)
        yield from take_message(guest, vector)

    guest = Guest({VECTOR: late_message})
    with_sint(guest, VECTOR)
    post(guest, 1)
    guest.run()
    assert guest.seen == [VECTOR, VECTOR]
    assert guest.bits == [1, 0, 1]


def test_a_timer_message_that_waits_needs_the_eoi() -> None:
    guest = Guest({VECTOR: take_message})
    with_sint(guest, VECTOR)
    for timer in (0, 1):
        guest.vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_COUNT + 2 * timer, 1)
        guest.vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_CONFIG + 2 * timer, sint(4) | ENABLED)
    guest.machine.host.run(until=200)
    guest.run()
    assert guest.seen == [VECTOR, VECTOR]
    assert guest.bits == [0, 1]


# --- what comes while it is offered -----------------------------------------------------------------------------------


def test_an_interrupt_of_lower_priority_takes_the_offer_back() -> None:
    def interrupted(guest: Guest, _vector: int) -> Part:
        yield from at(lambda: guest.send(LOW))
        guest.bits.append(guest.bit)

    guest = Guest({VECTOR: interrupted})
    guest.send(VECTOR)
    guest.run()
    assert guest.seen == [VECTOR, LOW]
    assert guest.bits == [1, 0, 1]
    assert guest.skipped == [LOW]


def test_nested_interrupts_are_ended_one_by_one() -> None:
    def interrupted(guest: Guest, _vector: int) -> Part:
        def sti() -> None:
            guest.machine.cpu.rflags |= RFLAGS_IF

        yield from at(sti)
        yield from at(lambda: guest.send(HIGH))
        yield ops.Compute(5)
        guest.seen.append(0)

    guest = Guest({VECTOR: interrupted})
    guest.send(VECTOR)
    guest.run()
    assert guest.seen == [VECTOR, HIGH, 0]
    assert guest.bits == [1, 1]
    assert guest.skipped[0] == HIGH


def test_an_interrupt_of_the_same_class_comes_after_a_skipped_eoi() -> None:
    """From inside the guest: the self-IPI is looked at with the EOI done."""

    def ends_early(guest: Guest, vector: int) -> Part:
        yield from guest.clear(vector)
        yield ops.Write(APIC + regs.APIC_ICR, 4, regs.APIC_DEST_SELF | regs.APIC_INT_ASSERT | (VECTOR + 1))
        yield ops.Compute(2)

    guest = Guest(ends={VECTOR: ends_early})
    guest.send(VECTOR)
    guest.run()
    assert guest.seen == [VECTOR, VECTOR + 1]
    assert guest.skipped == [VECTOR, VECTOR + 1]


def test_the_apic_page_shows_a_skipped_eoi() -> None:
    read: list[int] = []

    def looks(guest: Guest, vector: int) -> Part:
        read.append((yield ops.Read(APIC + regs.APIC_PROCPRI, 4)))
        yield from wrmsr(msrs.HV_X64_MSR_TPR, 0)
        yield from guest.clear(vector)
        read.append((yield ops.Read(APIC + regs.APIC_PROCPRI, 4)))

    guest = Guest(ends={VECTOR: looks})
    guest.send(VECTOR)
    guest.run()
    assert guest.bits == [1]
    assert read == [VECTOR & 0xF0, 0]
    assert guest.skipped == [VECTOR], "it was offered again after the read and the exit"


# --- an EOI in spite of the offer -------------------------------------------------------------------------------------


def by_mmio(guest: Guest, _vector: int) -> Part:
    yield ops.Write(APIC + regs.APIC_EOI, 4, 0)
    guest.bits.append(guest.bit)


def by_hv_msr(guest: Guest, _vector: int) -> Part:
    yield from wrmsr(msrs.HV_X64_MSR_EOI, 0)
    guest.bits.append(guest.bit)


def by_x2apic(guest: Guest, _vector: int) -> Part:
    yield from wrmsr(0x1B, guest.apic.get_base() | 1 << 10)
    yield from wrmsr(0x80B, 0)
    guest.bits.append(guest.bit)


@pytest.mark.parametrize("eoi", [by_mmio, by_hv_msr, by_x2apic])
def test_an_eoi_in_spite_of_the_offer_ends_one_interrupt(eoi: Body) -> None:
    guest = Guest(ends={VECTOR: eoi, LOW: eoi})
    guest.send(VECTOR)
    guest.machine.run(guest.vcpu.run)
    assert guest.bits == [1, 0]
    assert guest.apic.statistics().eois == 1
    guest.send(LOW)
    guest.left = 20
    guest.machine.run(guest.vcpu.run)
    assert guest.seen == [VECTOR, LOW]
    assert guest.apic.statistics().eois == 2


# --- reset, registers, the other side of an exit ----------------------------------------------------------------------


def leaves(_guest: Guest, _vector: int) -> Part:
    yield ops.Out(DONE, 1, 1)


def test_outside_the_guest_the_bit_is_clear_and_the_apic_exact() -> None:
    guest = Guest({VECTOR: leaves})
    guest.send(VECTOR)
    guest.machine.run(guest.vcpu.run)
    assert guest.bits == [1]
    assert guest.bit == 0
    assert not guest.vcpu.hv.eoi_assist.offered
    assert guest.apic.mmio_read(regs.APIC_ISR + 16 * (VECTOR // 32), 4) == 1 << VECTOR % 32
    guest.run()
    assert guest.skipped == [VECTOR], "offered again on the way back"


@pytest.mark.parametrize("init", [True, False])
def test_a_reset_forgets_the_interrupt_and_the_offer(init: bool) -> None:
    guest = Guest({VECTOR: leaves})
    guest.send(VECTOR)
    guest.machine.run(guest.vcpu.run)
    guest.vcpu.reset(init_event=init)
    assert guest.vcpu.mp_state is MpState.RUNNABLE
    assert engine_of(guest.vcpu).at_boundary
    assert guest.assist.enabled is init
    guest.left = 10
    guest.machine.run(guest.vcpu.run)
    assert guest.bit == 0
    assert guest.apic.statistics().eois == 0


def test_the_page_may_be_switched_on_with_an_interrupt_in_service() -> None:
    guest = Guest({VECTOR: lambda _guest, _vector: wrmsr(msrs.HV_X64_MSR_VP_ASSIST_PAGE, ASSIST | 1)})
    guest.vcpu.set_guest_msr(msrs.HV_X64_MSR_VP_ASSIST_PAGE, 0)
    guest.send(VECTOR)
    guest.run()
    assert guest.bits == [0]
    assert guest.skipped == [VECTOR]
