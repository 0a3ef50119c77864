"""The run loop under adversarial schedules: no wake event and no request is lost, and the wrong orders are caught.

Two orders carry the promise (docs/design/wait.md, docs/design/requests.md): the waiter enters its queue before it
checks, and the vCPU stores its mode before it looks at its requests. For each a known-bad variant is put in place of
the right one, and must be caught.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, Script
from vtlkit.checker.scenarios.rig import EOI, NMI, halting
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.host.api import Bitmap
from vtlkit.host.sim import Deadlock, Simulator
from vtlkit.kvm import wait
from vtlkit.kvm.kvm_run import Intr, Io, KvmRun
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Mode, Vcpu
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.registers import RFLAGS_IF

SEEDS = range(200)
VECTORS = (0x31, 0x41, 0x51)


def linger(machine: Machine, steps: int) -> None:
    """Let the others go ahead by up to so many accesses."""
    for _ in range(machine.host.choose(steps, "linger")):
        machine.vcpu.apic.irr.load()


# --- waking -----------------------------------------------------------------------------------------------------------


def sleepy_machine(seed: int) -> tuple[Machine, list[int]]:
    """A guest that halts whenever it can and goes to user space when it has seen every event; handlers end in EOI."""
    seen: list[int] = []
    program, handlers = halting(seen, (NMI, *VECTORS))
    return Machine(program, handlers=handlers, host=Simulator(seed=seed, instrument=True)), seen


def wakers(machine: Machine) -> list[Callable[[], None]]:
    """An IPI, an NMI, a line through the I/O APIC, and a timer of the host: each wakes once."""
    vcpu, vm = machine.vcpu, machine.vm
    assert vm.ioapic is not None
    assert vm.pic is not None
    vm.pic.port_write(0x21, 1, 0xFF)
    vm.ioapic.mmio_write(0, 4, 0x10 + 2 * 5)
    vm.ioapic.mmio_write(0x10, 4, VECTORS[1])
    timer = machine.host.timer(lambda: accept(VECTORS[2]), "timer")

    def accept(vector: int) -> None:
        vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)

    def line() -> None:
        vm.irq_line(5, 1)

    return [lambda: accept(VECTORS[0]), vcpu.nmi, line, lambda: timer.start(100)]


def sleep_and_wake(seed: int) -> None:
    machine, seen = sleepy_machine(seed)
    machine.cpu.rflags |= RFLAGS_IF
    exits: list[KvmRun] = []

    def sender(wake: Callable[[], None]) -> Callable[[], None]:
        def body() -> None:
            linger(machine, 200)
            wake()

        return body

    machine.run(lambda: exits.append(machine.vcpu.run()), *map(sender, wakers(machine)))
    assert [type(exit_) for exit_ in exits] == [Io]
    assert sorted(seen) == sorted((NMI, *VECTORS))


def sleep_and_wake_every(seeds: range) -> None:
    for seed in seeds:
        sleep_and_wake(seed)


@pytest.mark.parametrize("first", range(0, len(SEEDS), 50))
def test_no_wake_event_is_lost(first: int) -> None:
    sleep_and_wake_every(SEEDS[first : first + 50])


def check_then_prepare(vcpu: Vcpu, _ready: object = None) -> bool:
    """`wait.block` in the wrong order: what comes between the check and the queue wakes nobody."""
    while True:
        ended = wait.check_block(vcpu)
        if ended is not wait.Ended.NOT_YET:
            return ended is wait.Ended.RUNNABLE
        vcpu.wait_queue.prepare()
        vcpu.host.schedule()
        vcpu.wait_queue.finish()


def test_checking_before_queueing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "_block", check_then_prepare)
    with pytest.raises(Deadlock, match="vm-vcpu0-wait"):
        sleep_and_wake_every(SEEDS)


def test_no_signal_is_lost_to_a_sleeper() -> None:
    for seed in SEEDS:
        machine, _seen = sleepy_machine(seed)
        exits: list[KvmRun] = []

        def user(machine: Machine = machine, exits: list[KvmRun] = exits) -> None:
            exits.append(machine.vcpu.run())

        def sender(machine: Machine = machine) -> None:
            linger(machine, 150)
            machine.vcpu.signal()

        machine.run(user, sender)
        assert [type(exit_) for exit_ in exits] == [Intr]


# --- ending an interrupt ----------------------------------------------------------------------------------------------


SAME_CLASS = (0x61, 0x63, 0x65)
"""Each holds the others back while it is in service."""


def taken_by_a_busy_guest(seed: int, before_run: Callable[[Machine], None] = lambda _machine: None) -> list[int]:
    """What a guest that never halts has taken when all vectors of a class have been sent and it has run on a while."""
    seen: list[int] = []
    sent: list[int] = []

    def program(_engine: object) -> Script:
        # A while longer than the handlers take, counted from the last sender's last step.
        left = 10
        while left:
            yield ops.Compute(100)
            left -= len(sent) == len(SAME_CLASS)
        yield ops.Out(DONE, 1, 0)

    def handler(_engine: object, event: Event) -> Script:
        seen.append(event.vector)
        return body()

    def body() -> Script:
        yield ops.Compute(2)
        yield EOI

    machine = Machine(program, handlers=dict.fromkeys(SAME_CLASS, handler), host=Simulator(seed=seed, instrument=True))
    machine.cpu.rflags |= RFLAGS_IF
    before_run(machine)

    def sender(vector: int) -> Callable[[], None]:
        def body() -> None:
            linger(machine, 60)
            machine.vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)
            sent.append(vector)

        return body

    machine.run(machine.vcpu.run, *map(sender, SAME_CLASS))
    return sorted(seen)


def test_an_interrupt_that_an_eoi_uncovers_is_delivered_without_an_exit_of_its_own() -> None:
    assert all(taken_by_a_busy_guest(seed) == list(SAME_CLASS) for seed in SEEDS)


def test_an_eoi_that_looks_before_it_lowers_the_priority_is_caught() -> None:
    def look_too_early(machine: Machine) -> None:
        apic: Any = machine.vcpu.apic
        end = type(apic).set_eoi

        class Early(type(apic)):  # type: ignore[misc]
            __slots__ = ()

            def set_eoi(self) -> None:
                held_back = self.has_interrupt() < 0
                end(self)
                if held_back:
                    self._owner.requests.clear(Req.EVENT)

        apic.__class__ = Early

    assert any(taken_by_a_busy_guest(seed, look_too_early) != list(SAME_CLASS) for seed in SEEDS)


# --- kicking ----------------------------------------------------------------------------------------------------------


class StoreBuffer:
    """What a processor of the TSO model does to `mode`: the store is seen by others after a barrier, or later.

    The store is held back until the vCPU's task passes a barrier or makes any locked access; without the barrier, until
    it has looked at its requests. `barrier` False is a run loop that has forgotten `smp_mb`, or that has the two
    accesses in the other order: the same runs.
    """

    def __init__(self, machine: Machine, *, barrier: bool) -> None:
        vcpu = machine.vcpu
        self.cell: Any = vcpu.mode
        self.held: list[Mode] = []
        self.load, self.cmpxchg = self.cell.load, self.cell.cmpxchg
        vcpu.mode = self  # type: ignore[assignment]
        vcpu.requests = Watched(vcpu.requests, self.flush)
        if barrier:
            machine.host.smp_mb = self.flush  # type: ignore[method-assign]

    def store(self, value: Mode) -> None:
        if value == Mode.IN_GUEST_MODE:
            self.held.append(value)
        else:
            self.held.clear()
            self.cell.store(value)

    def flush(self) -> None:
        while self.held:
            self.cell.store(self.held.pop(0))


class Watched(Bitmap):
    """A bitmap after whose `load` something happens."""

    def __init__(self, bitmap: Bitmap, after_load: Callable[[], None]) -> None:
        self._after_load = after_load
        self._load = bitmap.load
        for name in ("test", "set", "clear", "test_and_set", "test_and_clear"):
            setattr(self, name, getattr(bitmap, name))

    def load(self) -> int:
        bits = self._load()
        self._after_load()
        return bits

    def test(self, bit: int) -> bool:
        raise NotImplementedError

    set = clear = test_and_set = test_and_clear = test  # type: ignore[assignment]


def missed_request(seed: int, *, barrier: bool | None) -> bool:
    """Whether guest code runs in spite of a request made and kicked before it; `barrier` None: no store buffer."""

    def program(_engine: object) -> Script:
        for _ in range(6):
            yield ops.Compute(3)
            yield ops.Rdtsc()
        yield ops.Out(DONE, 1, 0)

    machine = Machine(program, host=Simulator(seed=seed, instrument=True))
    vcpu, cpu = machine.vcpu, machine.cpu
    if barrier is not None:
        StoreBuffer(machine, barrier=barrier)
    sent: list[int] = []
    missed: list[int] = []

    def sender() -> None:
        linger(machine, 60)
        vcpu.make_request(Req.TLB_FLUSH)
        vcpu.kick()
        sent.append(cpu.kicks)

    def entering() -> None:
        if sent and not cpu.flushes and not cpu.kicks:
            missed.append(seed)

    cpu.on_run = entering
    machine.run(vcpu.run, sender)
    assert vcpu.mode.load() == Mode.OUTSIDE_GUEST_MODE
    return bool(missed)


def test_a_request_made_while_entering_is_never_missed() -> None:
    assert not [seed for seed in SEEDS if missed_request(seed, barrier=None)]


def test_the_barrier_between_mode_and_requests_is_enough() -> None:
    assert not [seed for seed in SEEDS if missed_request(seed, barrier=True)]


def test_reading_the_requests_before_storing_the_mode_is_caught() -> None:
    assert any(missed_request(seed, barrier=False) for seed in SEEDS)


def test_no_signal_is_lost_to_a_running_vcpu() -> None:
    for seed in SEEDS:

        def program(_engine: object) -> Script:
            while True:
                yield ops.Compute(2)
                yield ops.Cpuid()

        machine = Machine(program, host=Simulator(seed=seed, instrument=True))
        exits: list[KvmRun] = []
        executed: list[int] = []

        def user(machine: Machine = machine, exits: list[KvmRun] = exits) -> None:
            exits.append(machine.vcpu.run())

        def sender(machine: Machine = machine, executed: list[int] = executed) -> None:
            linger(machine, 60)
            machine.vcpu.signal()
            executed.append(machine.cpu.executed)

        machine.run(user, sender)
        assert [type(exit_) for exit_ in exits] == [Intr]
        assert machine.cpu.executed - executed[0] <= 3
