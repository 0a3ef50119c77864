"""Flushes against inhibits under many schedules: what docs/design/tlb-flush-inhibit.md forbids does not happen, and a
broken step shows.

Every access to a shared word is a scheduling point here. A failure prints the token that replays it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.sim.test_vtl_switch import simulator
from tests.unit.kvm.core_rig import Script, engine_of
from tests.unit.kvm.hyperv.flush_rig import FlushMachine
from vtlkit.engine.scripted import ops
from vtlkit.host.api import Cell
from vtlkit.host.sim import Deadlock
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv import tlb_flush
from vtlkit.kvm.hyperv.handlers import HANDLERS
from vtlkit.kvm.hyperv.parameters import Hypercall
from vtlkit.kvm.hyperv.vcpu import HvVcpu
from vtlkit.kvm.hyperv.vp_set import ALL_VPS
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86.apic import DeliveryMode

SEEDS = range(150)
BAD_SEEDS = range(400)
ROUNDS = 4
VECTOR = 0x41


def linger(machine: FlushMachine, steps: int = 12) -> None:
    """Let the others go ahead by up to so many accesses."""
    for _ in range(machine.host.choose(steps, "linger")):
        machine.vcpu.hv.waiting_on.load()


class World:
    """One page table entry, which flushers change; and how far their flushes have come."""

    def __init__(self, seed: int, *, flushers: int, runs_target: bool = False) -> None:
        """The target is the last vCPU; its guest uses the entry as a processor with a TLB does."""
        self.flushers = flushers
        self.rounds = ROUNDS
        guests: list[Callable[[FlushMachine, int], Script]] = [self._flusher] * flushers
        guests.append(self._user if runs_target else self._idle)
        host = simulator(seed)
        self.machine = FlushMachine(guests, host=host, interrupts=True, handlers={VECTOR: self._handler})
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


@pytest.mark.parametrize("first", range(0, len(SEEDS), 50))
def test_an_inhibited_translation_outlives_no_flush(first: int) -> None:
    suspends = 0
    for seed in SEEDS[first : first + 50]:
        world = World(seed, flushers=1 + seed % 2)
        world.run(world.inhibitor, *[world.disturber] * (seed // 2 % 2))
        suspends += sum(vcpu.statistics.suspends for vcpu in world.machine.vcpus)
    assert suspends


def test_no_call_completes_whose_request_came_after_the_inhibit() -> None:
    for seed in SEEDS:
        world = World(seed, flushers=1)
        world.run(world.strict_inhibitor)


def test_a_completed_flush_has_reached_a_running_target() -> None:
    uses = 0
    for seed in SEEDS:
        world = World(seed, flushers=1 + seed % 2, runs_target=True)
        world.run(world.inhibitor, world.disturber)
        uses += world.uses
    assert uses > len(SEEDS)


def test_an_inhibitor_that_is_destroyed_leaves_nobody_asleep() -> None:
    for seed in SEEDS:
        world = World(seed, flushers=2)
        world.target.hyperv_set_tlb_flush_inhibit(True)
        machine = world.machine

        def close(world: World = world) -> None:
            linger(world.machine, 60)
            world.target.close()

        flushers = [lambda vcpu=vcpu, machine=machine: machine.until_done(vcpu) for vcpu in machine.vcpus[:-1]]
        machine.run(*flushers, close)


# --- the testers ------------------------------------------------------------------------------------------------------


def suspend_that_looks_before_it_says_so(hv: HvVcpu, call: Hypercall, target: HvVcpu) -> None:
    """The inhibit is cleared between the look and the word: nobody is found waiting, and nobody wakes this vCPU."""
    call.reissue = True
    if target.tlb_flush_inhibit.load():
        hv.waiting_on.store(target)
        hv.vcpu.suspend()
    hv.waiting_on.store(None)


def clear_that_looks_for_waiters_first(self: HvVcpu, inhibit: bool) -> None:
    """Who begins to wait after the look is not woken."""
    if not inhibit:
        for other in self.hv_vm.vps(ALL_VPS):
            if other.waiting_on.load() is self:
                other.vcpu.make_request(Req.UNBLOCK)
                other.vcpu.kick()
    self.tlb_flush_inhibit.store(inhibit)


def wake_without_a_request(self: HvVcpu, inhibit: bool) -> None:
    """A kick alone is lost on a vCPU that is about to sleep."""
    self.tlb_flush_inhibit.store(inhibit)
    if not inhibit:
        for other in self.hv_vm.vps(ALL_VPS):
            if other.waiting_on.load() is self:
                other.vcpu.kick()


def flush_that_checks_before_it_requests(hv: HvVcpu, call: Hypercall) -> HvStatus | None:
    """The order of the posted series, without its grace period."""
    request = tlb_flush.decode_flush(hv, call)
    assert isinstance(request, tlb_flush.FlushRequest)
    targets = list(hv.hv_vm.vps(request.targets))
    inhibited = next((target for target in targets if target.tlb_flush_inhibit.load()), None)
    if inhibited is not None:
        tlb_flush._suspend(hv, call, inhibited)
        return HvStatus.SUCCESS
    for target in targets:
        target.vcpu.request_tlb_flush()
    for target in targets:
        while target is not hv and target.vcpu.may_run_on_old_translations():
            hv.vcpu.host.relax()
    return HvStatus.SUCCESS


def flush_that_ignores_the_inhibit(hv: HvVcpu, call: Hypercall) -> HvStatus | None:
    request = tlb_flush.decode_flush(hv, call)
    assert isinstance(request, tlb_flush.FlushRequest)
    for target in hv.hv_vm.vps(request.targets):
        target.vcpu.request_tlb_flush()
    return HvStatus.SUCCESS


def never_old(_self: Vcpu) -> bool:
    """A flusher that does not wait for its targets."""
    return False


def fails(seeds: range, run: Callable[[int], None]) -> bool:
    for seed in seeds:
        try:
            run(seed)
        except (AssertionError, Deadlock):
            return True
    return False


def plain(seed: int) -> None:
    world = World(seed, flushers=1)
    world.run(world.inhibitor)


def strict(seed: int) -> None:
    world = World(seed, flushers=1)
    world.run(world.strict_inhibitor)


def running(seed: int) -> None:
    World(seed, flushers=1, runs_target=True).run()


FLUSH = "flush_virtual_addresses"


@pytest.mark.parametrize(
    ("where", "what", "bad", "run"),
    [
        (tlb_flush, "_suspend", suspend_that_looks_before_it_says_so, plain),
        (HvVcpu, "set_tlb_flush_inhibit", clear_that_looks_for_waiters_first, plain),
        (HvVcpu, "set_tlb_flush_inhibit", wake_without_a_request, plain),
        (None, FLUSH, flush_that_checks_before_it_requests, strict),
        (None, FLUSH, flush_that_ignores_the_inhibit, plain),
        (Vcpu, "may_run_on_old_translations", never_old, running),
    ],
)
def test_each_broken_step_is_found(
    monkeypatch: pytest.MonkeyPatch, where: Any, what: str, bad: Any, run: Callable[[int], None]
) -> None:
    assert not fails(range(30), run)
    if where is None:
        handlers = {**HANDLERS, Call.HvCallFlushVirtualAddressSpace: bad}
        monkeypatch.setattr("vtlkit.kvm.hyperv.hypercall.HANDLERS", handlers)
    else:
        monkeypatch.setattr(where, what, bad)
    assert fails(BAD_SEEDS, run)
