"""What kick-all costs: by design, by number of vCPUs, and against a transaction of the same changes of memory.

On real threads, with scripted processors that compute until they are kicked; times are of the kicking task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Final

from vtlkit.checker.scenarios.rig import Rig
from vtlkit.cli.measure import Case
from vtlkit.engine.api import PAGE_SIZE, RamBlock
from vtlkit.engine.scripted import Guest, ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.kick_all import KickDesign
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.vcpu import Vcpu

VCPUS: Final = (1, 4, 16, 64)
TIMES: Final = 20
REGION: Final = 1 << 20
_DONE: Final = 0x99


class World:
    """A VM on threads; every vCPU is in the guest when the clock starts."""

    def __init__(self, vcpus: int, design: KickDesign = KickDesign.STICKY) -> None:
        self.host = ThreadHost()
        self._stop = self.host.cell(False, "stop")
        self._turns = [0] * vcpus
        self.rig = Rig(self.host, [self._program(number) for number in range(vcpus)])
        self.vm = self.rig.vm
        self.vm.set_kick_design(design)
        self.block = RamBlock(2 * PAGE_SIZE)
        self.vm.set_user_memory_region(MemoryRegion(1, REGION, 2 * PAGE_SIZE, self.block))

    def _program(self, number: int) -> Guest:
        return lambda _engine: self._guest(number)

    def _guest(self, number: int) -> Generator[Op, int, None]:
        while not self._stop.load():
            self._turns[number] += 1
            # One interpreter runs all threads: a guest that computed without end would be what is measured.
            yield ops.Host(self.host.relax)
        yield ops.Out(_DONE, 1, 0)

    def _all_inside(self) -> None:
        before = list(self._turns)
        while any(now < old + 2 for now, old in zip(self._turns, before, strict=True)):
            self.host.relax()

    def _processor(self, vcpu: Vcpu) -> None:
        while not isinstance(vcpu.run(), Io):
            vcpu.wait_until_resumed()

    def measure(self, operation: Callable[[], None]) -> float:
        """Seconds that `operation` takes once the guests run, the mean of `TIMES`."""
        taken = 0.0

        def body() -> None:
            nonlocal taken
            for _ in range(TIMES):
                self._all_inside()
                begin = time.perf_counter()
                operation()
                taken += time.perf_counter() - begin
            self._stop.store(True)

        self.rig.run(*(partial(self._processor, vcpu) for vcpu in self.rig.vcpus), body)
        return taken / TIMES

    def kick_and_resume(self) -> None:
        self.vm.kick_all_running_vcpus()
        self.vm.resume_all_kicked_vcpus()

    def changes(self) -> None:
        """Take a slot of two pages apart and put it together again."""
        for region in (
            MemoryRegion(1, REGION, 0),
            MemoryRegion(1, REGION, PAGE_SIZE, self.block),
            MemoryRegion(2, REGION + PAGE_SIZE, PAGE_SIZE, self.block, PAGE_SIZE),
            MemoryRegion(1, REGION, 0),
            MemoryRegion(2, REGION, 0),
            MemoryRegion(1, REGION, 2 * PAGE_SIZE, self.block),
        ):
            self.vm.set_user_memory_region(region)

    def in_a_transaction(self) -> None:
        with self.vm.memory_transaction():
            self.changes()

    def in_a_transaction_and_wait(self) -> None:
        self.in_a_transaction()
        self.vm.wait_for_memory()

    def with_all_kicked(self) -> None:
        self.vm.kick_all_running_vcpus()
        self.changes()
        self.vm.resume_all_kicked_vcpus()


def kick_and_resume(vcpus: int, design: KickDesign) -> float:
    """Seconds for one kick and its resume."""
    world = World(vcpus, design)
    return world.measure(world.kick_and_resume)


def transaction(vcpus: int, *, wait: bool) -> float:
    """Seconds for six changes in one transaction; `wait`: until no vCPU is left on the old map."""
    world = World(vcpus)
    return world.measure(world.in_a_transaction_and_wait if wait else world.in_a_transaction)


def all_kicked(vcpus: int) -> float:
    """Seconds for the same six changes with all vCPUs kicked."""
    world = World(vcpus)
    return world.measure(world.with_all_kicked)


def cases() -> list[Case]:
    found = [
        Case(
            f"kick-{design.value}-{vcpus}",
            partial(kick_and_resume, vcpus, design),
            f"sticky, {vcpus} vCPUs",
            partial(kick_and_resume, vcpus, KickDesign.STICKY),
        )
        for vcpus in VCPUS
        for design in (KickDesign.CLEARED_BY_FIRST_EXIT, KickDesign.CLEARED_BEFORE_UNLOCK)
    ]
    found += [
        Case(
            f"memory-transaction{'-wait' * wait}-{vcpus}",
            partial(transaction, vcpus, wait=wait),
            f"kick-all, {vcpus} vCPUs",
            partial(all_kicked, vcpus),
        )
        for vcpus in VCPUS[:3]
        for wait in (False, True)
    ]
    return found
