"""What wakes an inactive VTL's vCPU, and what does not: the same for each of the four ways to wait."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, recorder, script
from tests.unit.kvm.irqchip_rig import write
from tests.unit.kvm.test_wait import (
    VECTOR,
    block_nmi,
    cover,
    init,
    interrupt,
    lapic_timer,
    line,
    msi,
    nmi,
    pic,
    raise_tpr,
)
from tests.unit.kvm.wait_designs import DESIGNS, Design
from vtlkit.engine.api import Event, EventType
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Deadlock
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vendor.svm import SvmVendor
from vtlkit.x86.apic import APIC_LVTT, APIC_TMICT, DeliveryMode
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_IF

pytestmark = pytest.mark.parametrize("design", DESIGNS.values(), ids=str)


def quiet(*, nested: bool = False) -> Machine:
    """A guest that would go on at once, were it entered; RFLAGS.IF is clear."""
    handlers = {vector: recorder([]) for vector in (2, VECTOR)}
    return Machine(script(ops.Out(DONE, 1, 0)), handlers=handlers, nested=nested)


def waits(machine: Machine, design: Design, *others: Callable[[], object]) -> list[bool]:
    found: list[bool] = []
    machine.run(lambda: found.append(design.once(machine.vcpu)), *others)
    return found


WAKERS = [interrupt, line, pic, msi, nmi, lapic_timer]


@pytest.mark.parametrize("wake", WAKERS)
@pytest.mark.parametrize("early", [True, False])
def test_a_wake_event_ends_the_wait_whatever_the_interrupt_flag(
    design: Design, wake: Callable[[Machine], None], early: bool
) -> None:
    machine = quiet()
    assert not machine.cpu.rflags & RFLAGS_IF
    if early:
        wake(machine)
        assert waits(machine, design) == [True]
        if wake is not lapic_timer:
            assert machine.vcpu.statistics.blocks == 0, "an event that is pending already costs no sleep"
    else:
        assert waits(machine, design, lambda: wake(machine)) == [True]
    assert machine.cpu.entries == [], "the guest is not entered"
    assert machine.cpu.injections == []
    assert machine.vcpu.mp_state is MpState.RUNNABLE


def gif(machine: Machine) -> None:
    machine.vcpu.gif = False


@pytest.mark.parametrize("obstacle", [raise_tpr, cover, gif])
def test_priority_shadow_and_gif_still_count(design: Design, obstacle: Callable[[Machine], None]) -> None:
    machine = quiet(nested=obstacle is gif)
    obstacle(machine)
    with pytest.raises(Deadlock):
        waits(machine, design, lambda: interrupt(machine))


class _Nesting(SvmVendor):
    """A vendor that says what blocks an interrupt of L2."""

    def interrupt_blocked(self, vcpu: Vcpu) -> bool:
        return vcpu.guest_mode or super().interrupt_blocked(vcpu)


@pytest.mark.parametrize("nested", [True, False])
def test_what_the_vendor_says_of_l2_counts(design: Design, nested: bool) -> None:
    machine = quiet()
    machine.vcpu.vendor = _Nesting()
    machine.vcpu.guest_mode = nested
    if nested:
        with pytest.raises(Deadlock):
            waits(machine, design, lambda: interrupt(machine))
    else:
        assert waits(machine, design, lambda: interrupt(machine)) == [True]


def exception(machine: Machine) -> None:
    machine.vcpu.queue_exception(Vector.GP, 0)


def trap(machine: Machine) -> None:
    machine.cpu.inject(Event(EventType.EXCEPTION, Vector.DB))


def nmi_in_nmi(machine: Machine) -> None:
    machine.cpu.nmi_blocked = True
    machine.vcpu.nmi()


def sipi(machine: Machine) -> None:
    """For a processor that runs."""
    machine.vcpu.startup_blocked.store(True)
    machine.vcpu.apic.accept_irq(DeliveryMode.STARTUP, 8, 1, False)


@pytest.mark.parametrize("event", [exception, trap, block_nmi, nmi_in_nmi, sipi])
@pytest.mark.parametrize("early", [True, False])
def test_what_is_no_wake_event_ends_no_wait(design: Design, event: Callable[[Machine], None], early: bool) -> None:
    """Nor is it looked at again and again: the host finds that all sleep."""
    machine = quiet()
    if early:
        event(machine)
    with pytest.raises(Deadlock):
        waits(machine, design, *([] if early else [lambda: event(machine)]))


def kick(machine: Machine) -> None:
    machine.vcpu.kick()


def unblock(machine: Machine) -> None:
    machine.vcpu.make_request(Req.UNBLOCK)
    machine.vcpu.kick()


@pytest.mark.parametrize("spurious", [kick, unblock])
def test_a_spurious_wake_is_harmless(design: Design, spurious: Callable[[Machine], None]) -> None:
    machine = quiet()

    def others() -> None:
        for _ in range(3):
            spurious(machine)
            machine.host.relax()
        interrupt(machine)

    assert waits(machine, design, others) == [True]
    machine = quiet()
    with pytest.raises(Deadlock):
        waits(machine, design, lambda: spurious(machine))


def test_a_signal_interrupts_and_the_wait_can_go_on(design: Design) -> None:
    machine = quiet()
    vcpu = machine.vcpu
    found: list[bool] = []

    def user() -> None:
        design.prepare(vcpu)
        found.append(design.wait(vcpu))
        assert not vcpu.signal_pending(), "it has been taken"
        found.append(design.wait(vcpu))
        design.undo(vcpu)

    def others() -> None:
        vcpu.signal()
        while not found:
            machine.host.relax()
        interrupt(machine)

    machine.run(user, others)
    assert found == [False, True]


def test_init_is_a_wake_event_and_is_not_taken(design: Design) -> None:
    machine = quiet()
    machine.cpu.regs.rip = 0x1234
    assert waits(machine, design, lambda: init(machine)) == [True]
    assert machine.cpu.regs.rip == 0x1234


def test_it_is_told_again_until_the_event_is_taken_and_then_no_more(design: Design) -> None:
    log: list[int] = []
    program = script(ops.Sti(), ops.Compute(2), ops.Cli(), ops.Out(DONE, 1, 0))
    machine = Machine(program, handlers={VECTOR: recorder(log, ops.Compute(1))})
    vcpu = machine.vcpu
    interrupt(machine)

    def user() -> None:
        design.prepare(vcpu)
        assert design.wait(vcpu)
        assert design.wait(vcpu)
        design.undo(vcpu)
        assert isinstance(vcpu.run(), Io)
        assert log == [VECTOR]
        assert vcpu.complete_exit() is None
        vcpu.apic.set_tpr(0)
        design.prepare(vcpu)
        design.wait(vcpu)

    with pytest.raises(Deadlock):
        machine.run(user)


def test_a_processor_that_was_not_started_waits_for_its_start_alone(design: Design) -> None:
    """Only where the MP state is not what makes it wait."""
    if design.name == "mp-state":
        pytest.skip("the MP state says one thing at a time")
    machine = quiet()
    machine.vcpu.mp_state = MpState.INIT_RECEIVED
    with pytest.raises(Deadlock):
        waits(machine, design, lambda: nmi(machine))
    assert machine.vcpu.mp_state is MpState.INIT_RECEIVED


def test_on_threads(design: Design) -> None:
    for _ in range(20):
        machine = Machine(script(ops.Out(DONE, 1, 0)), host=ThreadHost())
        assert waits(machine, design, partial(interrupt, machine)) == [True]


class FakeHvTimer:
    """Fires in the guest alone, which is never entered here."""

    def __init__(self) -> None:
        self.armed: list[int | None] = []

    def set_hv_timer(self, deadline_ns: int) -> bool:
        self.armed.append(deadline_ns)
        return True

    def cancel_hv_timer(self) -> None:
        self.armed.append(None)


def with_timer(machine: Machine) -> FakeHvTimer:
    """The local APIC's timer is armed for 40 us: the divisor is 2 after reset. The vendor's, inside `run` alone."""
    timer = FakeHvTimer()
    machine.vcpu.apic.timer.use_hv_timer(timer)
    write(machine.vcpu.apic, APIC_LVTT, VECTOR)
    write(machine.vcpu.apic, APIC_TMICT, 20_000)
    assert timer.armed == []
    return timer


def test_the_timer_counts_on_in_software_while_the_vcpu_waits(design: Design) -> None:
    machine = quiet()
    timer = with_timer(machine)
    assert waits(machine, design) == [True]
    assert machine.host.now_ns() == 40_000
    # Those that wait in `run` have had it for a moment.
    assert timer.armed == ([] if design.name in ("wait", "poll") else [40_000, None])


def test_the_timer_goes_back_to_hardware_when_the_vcpu_runs(design: Design) -> None:
    machine = quiet()
    timer = with_timer(machine)
    assert waits(machine, design, machine.vcpu.signal) == [False]
    before = len(timer.armed)
    machine.run(machine.vcpu.run)
    assert timer.armed[before:] == [40_000, None]
    assert not machine.vcpu.apic.timer.hv_timer_in_use


def test_the_timer_of_a_vcpu_that_is_listened_to_is_the_hosts_outside_run(design: Design) -> None:
    machine = quiet()
    timer = with_timer(machine)
    heard: list[int] = []
    machine.vcpu.listen(lambda: heard.append(machine.host.now_ns()))
    machine.run(lambda: (machine.vcpu.run(), machine.vcpu.complete_exit()))
    assert timer.armed == [40_000, None]
    machine.host.run(until=50_000)
    assert heard == [40_000]
    assert waits(machine, design) == [True]
