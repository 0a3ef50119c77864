"""Event injection: priority, windows, combination, limits, and the INIT/SIPI latch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.core_rig import DONE, Cpu, Machine, engine_of, recorder, script
from vtlkit.engine.api import Event, EventType
from vtlkit.engine.scripted import ops
from vtlkit.kvm import events
from vtlkit.kvm.kvm_run import Intr, Io, Shutdown
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_IF

INTERRUPTED = 0x70
IRQ = 0x51
LOWER_IRQ = 0x41
ORDER = [Vector.UD, INTERRUPTED, 2, IRQ]


def send(machine: Machine, vector: int = IRQ) -> None:
    assert machine.vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False) == 1


def cut_short(machine: Machine) -> Event | None:
    return machine.vcpu.events.interrupted


def open_interrupts(machine: Machine) -> None:
    machine.cpu.rflags |= RFLAGS_IF


@given(kinds=st.sets(st.sampled_from(ORDER)))
def test_events_are_delivered_in_order_of_priority(kinds: set[int]) -> None:
    log: list[int] = []
    handlers = {vector: recorder(log) for vector in ORDER}
    machine = Machine(script(ops.Compute(50), ops.Out(DONE, 1, 0)), handlers=handlers)
    open_interrupts(machine)
    queue = machine.vcpu.events
    if IRQ in kinds:
        send(machine)
    if 2 in kinds:
        queue.queue_nmi()
    if INTERRUPTED in kinds:
        queue.interrupted = Event(EventType.INTERRUPT, INTERRUPTED)
    if Vector.UD in kinds:
        queue.queue_exception(Vector.UD)
    assert isinstance(machine.vcpu.run(), Io)
    assert log == [vector for vector in ORDER if vector in kinds]
    assert not any(machine.cpu.windows.values())


@given(
    irqs=st.integers(0, 2),
    nmis=st.integers(0, 2),
    exception=st.booleans(),
    interrupted=st.booleans(),
    injected=st.booleans(),
    flag=st.booleans(),
    shadow=st.booleans(),
    in_nmi=st.booleans(),
)
def test_a_window_is_asked_for_exactly_when_something_waits(
    irqs: int, nmis: int, exception: bool, interrupted: bool, injected: bool, flag: bool, shadow: bool, in_nmi: bool
) -> None:
    machine = Machine()
    vcpu, cpu = machine.vcpu, machine.cpu
    for vector in (IRQ, LOWER_IRQ)[:irqs]:
        send(machine, vector)
    for _ in range(nmis):
        vcpu.events.queue_nmi()
    if exception:
        vcpu.events.queue_exception(Vector.UD)
    if interrupted:
        vcpu.events.interrupted = Event(EventType.INTERRUPT, INTERRUPTED)
    if injected:
        cpu.inject(Event(EventType.EXCEPTION, Vector.DB))
    cpu.rflags = RFLAGS_IF if flag else 0
    cpu.interrupt_shadow, cpu.nmi_blocked = shadow, in_nmi
    if nmis:
        vcpu.events.process_nmi()
    nmis = min(nmis, 2 - in_nmi)
    vcpu.requests.clear(Req.EVENT)
    cpu.injections.clear()

    force_immediate_exit = events.inject_pending(vcpu)

    busy = injected or interrupted or exception
    nmi_taken = nmis > 0 and not busy and not shadow and not in_nmi
    irq_taken = irqs > 0 and not busy and not nmi_taken and flag and not shadow
    taken = 0 if injected else interrupted or exception or nmi_taken or irq_taken
    assert len(cpu.injections) == taken
    if taken:
        vector = cpu.injections[0].vector
        assert vector == (Vector.UD if exception else INTERRUPTED if interrupted else 2 if nmi_taken else IRQ)
    nmis_left = nmis - nmi_taken
    # While the first is in service, its priority keeps the second back: that asks again when it ends.
    irq_waits = irqs > 0 and not irq_taken
    assert vcpu.events.nmi_pending == nmis_left
    # An NMI that only the event before it holds up comes right after that one, not at a window.
    soon = nmis_left > 0 and busy and not in_nmi
    queued = injected + interrupted + exception > 1
    assert force_immediate_exit is (soon or queued)
    assert cpu.windows == {"interrupt": irq_waits, "nmi": nmis_left > 0 and not soon}
    assert vcpu.requests.test(Req.EVENT) is force_immediate_exit


@pytest.mark.parametrize(
    ("first", "second", "delivered"),
    [
        (Vector.UD, Vector.GP, (Vector.GP, 0)),
        (Vector.GP, Vector.PF, (Vector.PF, 0)),
        (Vector.GP, Vector.NP, (Vector.DF, 0)),
        (Vector.DE, Vector.SS, (Vector.DF, 0)),
        (Vector.PF, Vector.PF, (Vector.DF, 0)),
        (Vector.PF, Vector.TS, (Vector.DF, 0)),
        (Vector.PF, Vector.UD, (Vector.UD, None)),
    ],
)
def test_two_exceptions_combine_as_the_processors(first: int, second: int, delivered: tuple[int, int | None]) -> None:
    queue = Machine().vcpu.events
    queue.queue_exception(first)
    queue.queue_exception(second)
    assert queue.exception is not None
    assert (queue.exception.vector, queue.exception.error_code) == delivered


@pytest.mark.parametrize("type_", [EventType.INTERRUPT, EventType.NMI, EventType.SOFTWARE])
def test_a_fault_in_the_delivery_of_an_interrupt_comes_first(type_: EventType) -> None:
    """The interrupt would only fault again; INT is executed again anyway."""
    log: list[int] = []
    machine = Machine(
        script(ops.Compute(50), ops.Out(DONE, 1, 0)), handlers={INTERRUPTED: recorder(log), Vector.GP: recorder(log)}
    )
    machine.vcpu.events.interrupted = Event(type_, INTERRUPTED, None, 1 if type_ is EventType.SOFTWARE else 0)
    machine.vcpu.queue_exception(Vector.GP, 0)
    assert isinstance(machine.vcpu.run(), Io)
    assert log == [Vector.GP] + [INTERRUPTED] * (type_ is not EventType.SOFTWARE)


def test_a_fault_in_the_delivery_of_an_exception_combines_with_it() -> None:
    machine = Machine()
    queue = machine.vcpu.events
    queue.interrupted = Event(EventType.EXCEPTION, Vector.NP, 8)
    queue.queue_exception(Vector.GP)
    assert cut_short(machine) is None
    assert queue.exception == Event(EventType.EXCEPTION, Vector.DF, 0)


@pytest.mark.parametrize("third", [Vector.GP, Vector.PF])
def test_a_fault_after_a_double_fault_is_shutdown(third: int) -> None:
    machine = Machine()
    for vector in (Vector.PF, Vector.PF, third):
        machine.vcpu.queue_exception(vector)
    assert machine.vcpu.events.exception is None
    assert isinstance(machine.vcpu.run(), Shutdown)


def test_no_more_than_two_nmis_are_kept() -> None:
    log: list[int] = []
    machine = Machine(script(ops.Compute(50), ops.Out(DONE, 1, 0)), handlers={2: recorder(log)})
    for _ in range(5):
        machine.vcpu.nmi()
    assert isinstance(machine.vcpu.run(), Io)
    assert log == [2, 2]


def test_one_nmi_is_kept_while_one_is_handled() -> None:
    log: list[int] = []

    def flood(_engine: Any) -> Any:
        yield ops.Compute(10)
        yield ops.Out(DONE, 1, 0)

    def three_more() -> int:
        for _ in range(3):
            machine.vcpu.nmi()
        return 0

    def handler(engine: Any, event: Event) -> Any:
        log.append(event.vector)

        def body() -> Any:
            if len(log) == 1:
                yield ops.Host(three_more)
            yield ops.Compute(5)

        return body()

    machine = Machine(flood, handlers={2: handler})
    machine.vcpu.nmi()
    assert isinstance(machine.vcpu.run(), Io)
    assert log == [2, 2]


def test_an_nmi_held_up_by_the_interrupt_shadow_alone_comes_after_one_instruction() -> None:
    at: list[int] = []
    machine = Machine(
        script(ops.Compute(9), ops.Out(DONE, 1, 0)),
        handlers={2: lambda engine, _event: at.append(engine.regs.rip) or script()(engine)},  # type: ignore[func-returns-value]
    )
    machine.cpu.interrupt_shadow = True
    machine.vcpu.nmi()
    machine.run(machine.vcpu.run)
    assert at == [0xFFF1]
    assert machine.vcpu.statistics.all_exits().total() < 10


def test_an_event_whose_entry_a_signal_cancelled_is_not_lost() -> None:
    log: list[int] = []
    machine = Machine(script(ops.Compute(5), ops.Out(DONE, 1, 0)), handlers={IRQ: recorder(log)})
    open_interrupts(machine)
    send(machine)
    machine.vcpu.signal()
    assert isinstance(machine.vcpu.run(), Intr)
    assert isinstance(machine.vcpu.run(), Io)
    assert log == [IRQ]


def start_up(machine: Machine) -> list[MpState]:
    """States of vCPU 1 as its events are accepted one by one."""
    target = machine.vcpus[1]
    seen = []
    for _ in range(2):
        events.accept_apic_events(target)
        seen.append(target.mp_state)
    return seen


def test_init_then_sipi_starts_an_application_processor() -> None:
    machine = Machine(vcpus=2)
    target = machine.vcpus[1]
    engine_of(target).rflags |= RFLAGS_IF
    target.apic.accept_irq(DeliveryMode.INIT, 0, 1, False)
    events.accept_apic_events(target)
    assert target.get_mp_state() is MpState.INIT_RECEIVED
    assert not engine_of(target).rflags & RFLAGS_IF
    target.apic.accept_irq(DeliveryMode.STARTUP, 0x9A, 1, False)
    events.accept_apic_events(target)
    assert target.get_mp_state() is MpState.RUNNABLE
    assert (target.get_sregs().cs.selector, target.get_sregs().cs.base, target.get_regs().rip) == (0x9A00, 0x9A000, 0)


def test_init_and_sipi_that_come_together_both_count() -> None:
    machine = Machine(vcpus=2)
    target = machine.vcpus[1]
    target.apic.accept_irq(DeliveryMode.INIT, 0, 1, False)
    target.apic.accept_irq(DeliveryMode.STARTUP, 0x12, 1, False)
    assert start_up(machine) == [MpState.RUNNABLE] * 2
    assert target.get_sregs().cs.base == 0x12000


def test_init_forgets_an_earlier_sipi() -> None:
    machine = Machine(vcpus=2)
    target = machine.vcpus[1]
    target.apic.accept_irq(DeliveryMode.STARTUP, 0x12, 1, False)
    target.apic.accept_irq(DeliveryMode.INIT, 0, 1, False)
    assert start_up(machine) == [MpState.INIT_RECEIVED] * 2


@pytest.mark.parametrize("state", [MpState.RUNNABLE, MpState.HALTED, MpState.UNINITIALIZED])
def test_a_sipi_without_init_is_dropped(state: MpState) -> None:
    machine = Machine(vcpus=2)
    target = machine.vcpus[1]
    target.mp_state = state
    before = target.get_sregs()
    target.apic.accept_irq(DeliveryMode.STARTUP, 0x12, 1, False)
    assert start_up(machine) == [state] * 2
    assert target.get_sregs() == before
    # And it is gone: a later INIT waits for a SIPI of its own.
    target.apic.accept_irq(DeliveryMode.INIT, 0, 1, False)
    assert start_up(machine) == [MpState.INIT_RECEIVED] * 2


def test_init_of_the_bootstrap_processor_starts_it_anew() -> None:
    machine = Machine()
    machine.cpu.regs.rip = 0x1234
    machine.vcpu.apic.accept_irq(DeliveryMode.INIT, 0, 1, False)
    events.accept_apic_events(machine.vcpu)
    assert machine.vcpu.mp_state is MpState.RUNNABLE
    assert machine.vcpu.get_regs().rip == 0xFFF0


def test_init_forgets_events_and_windows() -> None:
    machine = Machine(vcpus=2)
    target, cpu = machine.vcpus[1], engine_of(machine.vcpus[1])
    target.mp_state = MpState.RUNNABLE
    cpu.inject(Event(EventType.INTERRUPT, IRQ))
    target.events.interrupted = Event(EventType.INTERRUPT, INTERRUPTED)
    target.events.queue_exception(Vector.UD)
    target.events.queue_nmi()
    cpu.request_interrupt_window(True)
    cpu.nmi_blocked = True
    target.apic.accept_irq(DeliveryMode.FIXED, IRQ, 1, False)
    target.apic.accept_irq(DeliveryMode.INIT, 0, 1, False)
    events.accept_apic_events(target)
    assert cpu.injected() is None
    assert not target.events.has_events()
    assert not events.has_interrupt(target)
    assert not cpu.windows["interrupt"]
    assert not cpu.nmi_blocked


def test_user_space_may_say_that_a_sipi_was_received() -> None:
    """KVM takes SIPI_RECEIVED for INIT_RECEIVED with a SIPI in the latch."""
    machine = Machine(vcpus=2)
    target = machine.vcpus[1]
    target.set_mp_state(MpState.SIPI_RECEIVED)
    assert target.get_mp_state() is MpState.INIT_RECEIVED
    events.accept_apic_events(target)
    assert target.get_mp_state() is MpState.RUNNABLE


def test_setting_registers_drops_a_queued_exception() -> None:
    machine = Machine()
    machine.vcpu.queue_exception(Vector.GP, 0)
    machine.vcpu.set_regs(machine.vcpu.get_regs())
    assert machine.vcpu.events.exception is None


def test_the_rig_remembers() -> None:
    cpu = Cpu("cpu", {}, {})
    cpu.request_nmi_window(True)
    assert cpu.windows == {"interrupt": False, "nmi": True}
