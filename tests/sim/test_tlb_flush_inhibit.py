"""Flushes against inhibits under many schedules: what docs/design/tlb-flush-inhibit.md forbids does not happen.

Every access to a shared word is a scheduling point here. A failure prints the token that replays it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.sim.test_vtl_switch import simulator
from tests.unit.kvm.core_rig import DONE, Script, engine_of
from tests.unit.kvm.hyperv.flush_rig import FlushMachine
from vtlkit.engine.scripted import ops
from vtlkit.host.api import Cell, RunnableHost
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86.apic import DeliveryMode

OURS, POSTED = FlushInhibitDesign
each_design = pytest.mark.parametrize("design", FlushInhibitDesign)
SEEDS = range(150)
REAL_RUNS = 10
ROUNDS = 4
VECTOR = 0x41


def linger(machine: FlushMachine, steps: int = 12) -> None:
    """Let the others go ahead by up to so many accesses."""
    for _ in range(machine.host.choose(steps, "linger")):
        machine.vcpu.hv.flush_inhibit.waits_for()


class World:
    """One page table entry, which flushers change; and how far their flushes have come."""

    def __init__(
        self, seed: int, design: FlushInhibitDesign = OURS, *, flushers: int, runs_target: bool = False
    ) -> None:
        """The target is the last vCPU; its guest uses the entry as a processor with a TLB does."""
        self.flushers = flushers
        self.rounds = ROUNDS
        guests: list[Callable[[FlushMachine, int], Script]] = [self._flusher] * flushers
        guests.append(self._user if runs_target else self._idle)
        host = simulator(seed)
        self.machine = FlushMachine(guests, host=host, interrupts=True, handlers={VECTOR: self._handler}, design=design)
        self.entries: list[Cell[int]] = [host.cell(0, f"entry{number}") for number in range(flushers)]
        self.completed: list[Cell[int]] = [host.cell(0, f"completed{number}") for number in range(flushers)]
        self.ended = host.cell(0, "ended")
        self.target: Vcpu = self.machine.vcpus[-1]
        self.cached: list[int] | None = None
        self.uses = 0
        if runs_target:
            cpu: Any = engine_of(self.target)
            cpu.flush_tlb = self._drop

    # --- guests -----------------------------------------------------------------------------------------------------

    def _flusher(self, machine: FlushMachine, number: int) -> Script:
        for version in range(1, self.rounds + 1):
            yield ops.Host(partial(self.entries[number].store, version))
            yield from machine.flush(number, 1 << self.flushers)
            yield ops.Host(partial(self.completed[number].store, version))
        yield ops.Host(lambda: self.ended.fetch_add(1))

    def _idle(self, _machine: FlushMachine, _number: int) -> Script:
        yield ops.Compute()

    def _user(self, _machine: FlushMachine, _number: int) -> Script:
        while self.ended.load() < self.flushers:
            yield ops.Host(self._use)
            yield ops.Compute(2)

    def _handler(self, _engine: object, _event: object) -> Script:
        yield ops.Write(0xFEE000B0, 4, 0)

    def _use(self) -> None:
        done = [cell.load() for cell in self.completed]
        if self.cached is None:
            self.cached = [cell.load() for cell in self.entries]
        self.uses += 1
        assert all(used >= flushed for used, flushed in zip(self.cached, done, strict=True)), (self.cached, done)

    def _drop(self) -> None:
        self.cached = None

    # --- tasks ------------------------------------------------------------------------------------------------------

    def run(self, *others: Callable[[], None]) -> None:
        machine = self.machine
        runs = [lambda vcpu=vcpu: machine.until_done(vcpu) for vcpu in machine.vcpus]
        machine.run(*runs, *others)

    def inhibitor(self) -> None:
        """Inhibit, translate, use, release, a few times: who is not woken then sleeps for ever."""
        for _ in range(2 * self.rounds):
            self.target.hyperv_set_tlb_flush_inhibit(True)
            translated = [cell.load() for cell in self.entries]
            linger(self.machine)
            done = [cell.load() for cell in self.completed]
            assert all(used >= flushed for used, flushed in zip(translated, done, strict=True)), (translated, done)
            self.target.hyperv_set_tlb_flush_inhibit(False)
            linger(self.machine)

    def strict_inhibitor(self) -> None:
        """While the inhibit is set, no call completes whose request comes after it. For one flusher."""
        for _ in range(2 * self.rounds):
            self.target.hyperv_set_tlb_flush_inhibit(True)
            self.target.requests.clear(Req.TLB_FLUSH)
            before = self.completed[0].load()
            linger(self.machine, 40)
            requested = self.target.requests.test(Req.TLB_FLUSH)
            after = self.completed[0].load()
            assert not (after > before and requested), f"flush {after} took effect on an inhibited vCPU"
            self.target.hyperv_set_tlb_flush_inhibit(False)
            linger(self.machine)

    def disturber(self) -> None:
        """Signals and interrupts for the flushers."""
        while self.ended.load() < self.flushers:
            vcpu = self.machine.vcpus[self.machine.host.choose(self.flushers, "whom")]
            if self.machine.host.choose(2, "how"):
                vcpu.signal()
            else:
                vcpu.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False)
            linger(self.machine, 60)


@each_design
@pytest.mark.parametrize("first", range(0, len(SEEDS), 50))
def test_an_inhibited_translation_outlives_no_flush(first: int, design: FlushInhibitDesign) -> None:
    suspends = 0
    for seed in SEEDS[first : first + 50]:
        world = World(seed, design, flushers=1 + seed % 2)
        world.run(world.inhibitor, *[world.disturber] * (seed // 2 % 2))
        suspends += sum(vcpu.statistics.suspends for vcpu in world.machine.vcpus)
    assert suspends


@each_design
def test_no_call_completes_whose_request_came_after_the_inhibit(design: FlushInhibitDesign) -> None:
    for seed in SEEDS:
        world = World(seed, design, flushers=1)
        world.run(world.strict_inhibitor)


@each_design
def test_a_completed_flush_has_reached_a_running_target(design: FlushInhibitDesign) -> None:
    uses = 0
    for seed in SEEDS:
        world = World(seed, design, flushers=1 + seed % 2, runs_target=True)
        world.run(world.inhibitor, world.disturber)
        uses += world.uses
    assert uses > len(SEEDS)


@each_design
def test_an_inhibitor_that_is_destroyed_leaves_nobody_asleep(design: FlushInhibitDesign) -> None:
    for seed in SEEDS:
        world = World(seed, design, flushers=2)
        world.target.hyperv_set_tlb_flush_inhibit(True)
        machine = world.machine

        def close(world: World = world) -> None:
            linger(world.machine, 60)
            world.target.close()

        flushers = [lambda vcpu=vcpu, machine=machine: machine.until_done(vcpu) for vcpu in machine.vcpus[:-1]]
        machine.run(*flushers, close)


# --- several inhibitors, and a flusher that is reset ------------------------------------------------------------------


def two_targets(host: RunnableHost, design: FlushInhibitDesign) -> None:
    """Two flushers flush two vCPUs, each with an inhibitor of its own, and one that inhibits now this, now that."""
    machine = FlushMachine([flush_both, flush_both, nothing, nothing], host=host, design=design)
    targets = machine.vcpus[2:]

    def inhibitor(number: int) -> None:
        for turn in range(ROUNDS):
            target = targets[number % 2 if number < 2 else turn % 2]
            target.hyperv_set_tlb_flush_inhibit(True)
            linger(machine)
            target.hyperv_set_tlb_flush_inhibit(False)
            linger(machine)

    flushers = [lambda vcpu=vcpu: machine.until_done(vcpu) for vcpu in machine.vcpus[:2]]
    machine.run(*flushers, *(partial(inhibitor, number) for number in range(3)))


def flush_both(machine: FlushMachine, number: int) -> Script:
    for _ in range(ROUNDS):
        yield from machine.flush(number, 0b1100)


def nothing(_machine: FlushMachine, _number: int) -> Script:
    yield ops.Compute()


@each_design
def test_several_inhibitors_and_flushers_leave_nobody_asleep(design: FlushInhibitDesign) -> None:
    for seed in SEEDS:
        two_targets(simulator(seed), design)


@each_design
def test_several_inhibitors_and_flushers_on_threads(design: FlushInhibitDesign) -> None:
    for _ in range(REAL_RUNS):
        with ThreadHost() as host:
            two_targets(host, design)


def reset_while_suspended(host: RunnableHost, design: FlushInhibitDesign) -> None:
    """INIT and SIPI come to a flusher while its target is inhibited, released, inhibited: it starts anew, and ends."""
    started: list[int] = []

    def begin(_engine: object) -> Script:
        started.append(1)
        yield ops.Out(DONE, 1, 0)

    machine = FlushMachine([nothing, flush_target, nothing], host=host, design=design, extra={0x6000: begin})
    vcpu, target = machine.vcpus[1:]

    def inhibitor() -> None:
        for _ in range(ROUNDS):
            target.hyperv_set_tlb_flush_inhibit(True)
            linger(machine, 40)
            target.hyperv_set_tlb_flush_inhibit(False)
            linger(machine)

    def sender() -> None:
        linger(machine, 60)
        vcpu.init()
        linger(machine, 60)
        while not started:
            vcpu.deliver_sipi(6)
            vcpu.kick()
            machine.host.relax()

    machine.run(lambda: until_started(machine, vcpu, started), inhibitor, sender)
    assert started == [1]


def until_started(machine: FlushMachine, vcpu: Vcpu, started: list[int]) -> None:
    while not started:
        machine.until_done(vcpu)


def flush_target(machine: FlushMachine, number: int) -> Script:
    for _ in range(50 * ROUNDS):
        yield from machine.flush(number, 0b100)


@each_design
def test_a_flusher_that_is_reset_while_it_is_suspended_starts_anew(design: FlushInhibitDesign) -> None:
    for seed in SEEDS:
        reset_while_suspended(simulator(seed), design)


@each_design
def test_a_flusher_that_is_reset_while_it_is_suspended_on_threads(design: FlushInhibitDesign) -> None:
    for _ in range(REAL_RUNS):
        with ThreadHost() as host:
            reset_while_suspended(host, design)
