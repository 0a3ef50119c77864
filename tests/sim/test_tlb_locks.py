"""TLB locks of VTLs under many schedules: flushes through the hypervisor and through user space, interrupts meanwhile.

VP 0's VTL 1 locks VTL 0's TLB, translates, uses, and returns, which releases; VP 1 changes an entry and flushes, from
VTL 0 and, naming VTL 0, from VTL 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.sim.known_bad import end_within, fails
from tests.sim.test_vtl_switch import give_back, simulator
from tests.unit.vmm.vsm.designs import tlb_flush_inhibit as tlb_flush_inhibit
from tests.unit.vmm.vsm.test_tlb_locks import CONFIG0, LOCKED, VECTOR, flush, wait_for
from tests.unit.vmm.vsm.vsm_rig import Body, Guest, Script, VsmRig
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.hvdef.status import HvStatus
from vtlkit.vmm.vsm.tlb_locks import TlbLocks
from vtlkit.vmm.vsm.vp import Vp
from vtlkit.x86.apic import DeliveryMode

pytestmark = pytest.mark.usefixtures("tlb_flush_inhibit")

SEEDS = range(24)
ROUNDS = 3
LIMIT_NS = 2_000_000
"""Several times what a run takes."""


class World:
    """The entry, and how far flushes of it have come."""

    def __init__(self, host: Simulator, *, flusher_vtl: int, interrupts: int = 0, holds: int = ROUNDS) -> None:
        self.entry = host.cell(0, "entry")
        self.completed = host.cell(0, "completed")
        self.flusher_vtl = flusher_vtl
        self.interrupts = interrupts
        self.holds = holds
        guests: dict[tuple[int, int], Body] = {
            (vp, vtl): self._vtl1 if vtl else self._vtl0 for vp in range(2) for vtl in range(2)
        }
        # VTL 2 of VP 1 is who gets interrupts while VTL 1 waits.
        guests[0, 2] = self._enabler
        guests[1, 2] = self._top
        self.rig = VsmRig(guests, cpus=2, vtls=3, host=host)

    def _vtl0(self, guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
            while True:
                yield ops.Pause()
                if self.holds:
                    yield from guest.vtl_call()
        yield from wait_for(guest, "enabled")
        yield from guest.vtl_call()
        yield from self._flusher(guest)

    def _vtl1(self, guest: Guest) -> Script:
        if guest.vp == 1:
            yield from guest.vtl_call()
            if self.flusher_vtl:
                yield from self._flusher(guest)
            while True:
                yield from give_back(guest)
        yield from guest.enable(2)
        yield from guest.vtl_call()
        while True:
            yield from guest.set(CONFIG0, LOCKED)
            translated = self.entry.load()
            guest.note("locked")
            if self.interrupts:
                yield from self._interrupt(guest)
            for _ in range(4):
                yield ops.Pause()
            done = self.completed.load()
            assert translated >= done, f"used entry {translated}, and a flush of {done} has completed"
            self.holds = max(0, self.holds - 1)
            yield from guest.vtl_return()

    def _interrupt(self, guest: Guest) -> Script:
        target = guest.rig.partition.vps[1].vcpus[2]
        # The flush that comes now cannot complete.
        while not self.entry.load():
            yield ops.Pause()
        for _ in range(self.interrupts):
            seen = len(guest.rig.taken)
            target.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False)
            while len(guest.rig.taken) == seen:
                yield ops.Pause()
        self.interrupts = 0

    def _enabler(self, guest: Guest) -> Script:
        yield from guest.enable_vp_vtl(1, vp=1)
        yield from guest.enable_vp_vtl(2, vp=1)
        guest.note("enabled")
        yield from guest.vtl_return()

    def _top(self, guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield ops.Sti()
        while True:
            yield from give_back(guest)

    def _flusher(self, guest: Guest) -> Script:
        yield from wait_for(guest, "locked")
        for version in range(1, 2 * ROUNDS):
            self.entry.store(version)
            assert (yield from flush(guest, 0b01, named=self.flusher_vtl)) == HvStatus.SUCCESS
            self.completed.store(version)
        yield from guest.end()


@pytest.mark.parametrize("flusher_vtl", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_flush_completes_under_a_lock(seed: int, flusher_vtl: int) -> None:
    world = World(simulator(seed), flusher_vtl=flusher_vtl, interrupts=seed % 3)
    world.rig.run()
    assert world.completed.load() == 2 * ROUNDS - 1
    assert len(world.rig.taken) == seed % 3


# --- the testers ------------------------------------------------------------------------------------------------------


def flush_under_no_lock(self: TlbLocks, vp: Vp, level: int, vtls: Any, targets: int) -> bool:
    for vtl in vtls:
        self._partition.vtls[vtl].vm.request_tlb_flush(targets)
    return True


def end_wait_without_waking(self: TlbLocks, waiting: tuple[int, int]) -> None:
    del self._awaited[waiting]
    index, level = waiting
    self._partition.vps[index].tlb_waits.clear(level)


def kicked_that_wakes_nobody(self: Vp, level: int) -> None:
    """As `_kicked`, but for the processor that waits for TLB locks."""
    if self.active.load() == level:
        return
    self._look.set(level)
    self.host.smp_mb()
    vcpu = self.vcpus.get(self.active.load())
    if vcpu is not None:
        vcpu.signal()


def release_nothing(_self: TlbLocks, _vp: Vp, _holder: int) -> None:
    """A VTL that returns keeps its locks."""


@pytest.mark.parametrize(
    ("where", "what", "bad", "interrupts"),
    [
        (TlbLocks, "flush", flush_under_no_lock, 0),
        (TlbLocks, "_end_wait", end_wait_without_waking, 0),
        (TlbLocks, "release_all", release_nothing, 0),
        (Vp, "_kicked", kicked_that_wakes_nobody, 2),
    ],
)
def test_each_broken_step_is_found(
    monkeypatch: pytest.MonkeyPatch, where: Any, what: str, bad: Callable[..., Any], interrupts: int
) -> None:
    def attempt(seed: int) -> None:
        end_within(LIMIT_NS, World(simulator(seed), flusher_vtl=1, interrupts=interrupts).rig)

    assert not fails(attempt, range(5))
    monkeypatch.setattr(where, what, bad)
    assert fails(attempt, range(60))
