"""An interrupt that arrives while the vCPU decides to block (docs/design/interrupts.md), on every kind of sender."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.kvm.irqchip_rig import Machine, write
from vtlkit.host.sim import Deadlock, Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.lapic import LocalApic
from vtlkit.kvm.pit import Pit
from vtlkit.x86 import apic as regs
from vtlkit.x86.apic import DeliveryMode

SEEDS = range(60)
VECTOR = 0x61


def halt_until_interrupt(machine: Machine, apic: LocalApic, *, prepare_first: bool = True) -> int:
    """The run loop's way to block, reduced to this: announce the sleep, look, sleep."""
    queue = machine.host.wait_queue("vcpu0")
    machine.owners[0].on_kick = lambda: woken(queue.wake())
    while True:
        if prepare_first:
            queue.prepare()
        if apic.pending_timer():
            apic.inject_pending_timer()
        if apic.has_interrupt() >= 0:
            break
        if not prepare_first:
            machine.host.relax()
            queue.prepare()
        machine.host.schedule()
    queue.finish()
    return apic.get_interrupt()


def woken(_was_asleep: bool) -> None:
    """Whether the queue had a sleeper is the queue's business."""


def race(seed: int, send: Callable[[Machine], None], *, prepare_first: bool = True) -> int:
    machine = Machine(host=Simulator(seed=seed, instrument=True))
    taken: list[int] = []

    def vcpu() -> None:
        taken.append(halt_until_interrupt(machine, machine.apics[0], prepare_first=prepare_first))

    machine.host.spawn(vcpu, "vcpu")
    machine.host.spawn(lambda: send(machine), "sender")
    machine.host.run()
    return taken[0]


def ipi(machine: Machine) -> None:
    assert machine.apics[0].accept_irq(DeliveryMode.FIXED, VECTOR, 1, True) == 1


def line(machine: Machine) -> None:
    machine.ioapic.mmio_write(0, 4, 0x10)
    machine.ioapic.mmio_write(0x10, 4, VECTOR)
    assert machine.ioapic.set_irq(0, 1) == 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("send", [ipi, line])
def test_no_wake_up_is_lost(seed: int, send: Callable[[Machine], None]) -> None:
    assert race(seed, send) == VECTOR


@pytest.mark.parametrize("mode", [regs.APIC_LVT_TIMER_ONESHOT, regs.APIC_LVT_TIMER_PERIODIC])
def test_the_timer_wakes_a_blocked_vcpu(mode: int) -> None:
    machine = Machine()

    def vcpu() -> None:
        apic = machine.apics[0]
        write(apic, regs.APIC_LVTT, mode | VECTOR)
        write(apic, regs.APIC_TMICT, 500_000)
        for _ in range(3 if mode == regs.APIC_LVT_TIMER_PERIODIC else 1):
            assert halt_until_interrupt(machine, apic) == VECTOR
            apic.set_eoi()

    machine.run(vcpu)
    assert machine.apics[0].statistics().timer_interrupts == (3 if mode == regs.APIC_LVT_TIMER_PERIODIC else 1)


def lost(attempt: Callable[[int], int]) -> int:
    """How many seeds end with the vCPU asleep for ever."""
    count = 0
    for seed in SEEDS:
        try:
            attempt(seed)
        except Deadlock:
            count += 1
    return count


def test_looking_before_the_announcement_is_caught() -> None:
    """The race is real: the same scheduler finds it as soon as the vCPU looks first."""
    assert lost(lambda seed: race(seed, ipi, prepare_first=False)) > 0


def test_kicking_before_the_interrupt_is_there_is_caught() -> None:
    def early(machine: Machine) -> None:
        machine.owners[0].kick()
        machine.host.relax()
        machine.apics[0].irr.set(VECTOR)

    assert lost(lambda seed: race(seed, early)) > 0


SENDERS, PER_SENDER = 4, 5
VECTORS = {0x20 + 16 * n + k for n in range(SENDERS) for k in range(PER_SENDER)}


def many_senders(machine: Machine) -> None:
    """Senders of distinct vectors against a vCPU that takes and ends them as they come."""
    apic = machine.apics[0]
    taken: list[int] = []

    def vcpu() -> None:
        while len(taken) < len(VECTORS):
            taken.append(halt_until_interrupt(machine, apic))
            apic.set_eoi()

    def sender(n: int) -> Callable[[], None]:
        def send() -> None:
            for k in range(PER_SENDER):
                apic.accept_irq(DeliveryMode.FIXED, 0x20 + 16 * n + k, 1, k % 2 == 0)

        return send

    machine.host.spawn(vcpu, "vcpu")
    for n in range(SENDERS):
        machine.host.spawn(sender(n), f"sender{n}")
    machine.host.run()
    assert sorted(taken) == sorted(VECTORS)
    assert sorted(machine.owners[0].eois) == sorted(vector for vector in VECTORS if vector % 16 % 2 == 0)


@pytest.mark.parametrize("seed", range(30))
def test_many_senders_lose_nothing(seed: int) -> None:
    many_senders(Machine(host=Simulator(seed=seed, instrument=True)))


def test_many_senders_lose_nothing_on_threads() -> None:
    for _ in range(10):
        many_senders(Machine(host=ThreadHost()))


def test_timer_and_pit_on_threads() -> None:
    """Real time: a one-shot, a periodic timer and the PIT's worker all come through."""
    machine = Machine(host=ThreadHost())
    ticks: list[int] = []

    def vcpu() -> None:
        apic = machine.apics[0]
        pit = Pit(machine.host, lambda level: ticks.append(level) if level else None, reinject=False)
        for port, value in ((0x43, 0x34), (0x40, 0xA9), (0x40, 0x04)):
            pit.port_write(port, 1, value)
        write(apic, regs.APIC_TDCR, 0xB)
        for mode in (regs.APIC_LVT_TIMER_ONESHOT, regs.APIC_LVT_TIMER_PERIODIC):
            write(apic, regs.APIC_LVTT, mode | VECTOR)
            write(apic, regs.APIC_TMICT, 1_000_000)
            for _ in range(5 if mode else 1):
                assert halt_until_interrupt(machine, apic) == VECTOR
                apic.set_eoi()
        write(apic, regs.APIC_TMICT, 0)
        pit.destroy()

    machine.run(vcpu)
    assert ticks
