"""Real guest code reads a region without pause while its slots are split, merged and moved thousands of times.

Every page says which it is, and the generation of the block that backs it: each move is to another block, of the next
generation. A guest that sees a hole exits with MMIO; one that sees a wrong page, or memory of a move before it after
memory of the move itself, says so. docs/design/memory-transactions.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tests.conformance import devkvm_here
from vtlkit.engine.api import PAGE_SIZE, EngineFactory, RamBlock
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.uapi import Intr, Io, Kvm, MemoryRegion, Vcpu, Vm
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.testing.guest_builder import CODE, FREE, RAM_SIZE, Guest

PAGES: Final = 12
REGION: Final = RAM_SIZE
REGION_SIZE: Final = PAGES * PAGE_SIZE
STOP: Final = FREE
"""Not 0: the guests end."""
ROUNDS: Final = FREE + 0x1000
"""Rounds over the region, 8 bytes a processor."""
DONE: Final = 0x80
WRONG: Final = 0x81
_MAGIC: Final = 0x5AFE << 32


def guest_code() -> Assembler:
    """RDI: where to count. RBX: the newest generation seen."""
    a = Assembler(64, CODE)
    a.label("round")
    a.mov("rsi", REGION)
    a.mov("rdx", _MAGIC)
    a.mov("ecx", PAGES)
    a.label("page")
    a.mov("rax", Mem("rsi"))
    a.cmp("rax", "rdx")
    a.jne("wrong")
    a.mov("rax", Mem("rsi", 8))
    a.cmp("rax", "rbx")
    a.jb("wrong")
    a.mov("rbx", "rax")
    a.add("rsi", PAGE_SIZE)
    a.inc("rdx")
    a.dec("ecx")
    a.jne("page")
    a.inc(Mem("rdi", size=8))
    a.mov("rax", STOP)
    a.cmp(Mem("rax", size=8), 0)
    a.je("round")
    a.out(DONE, "al")
    a.label("wrong")
    a.out(WRONG, "al")
    return a


class Slots:
    """The slots of the region: from which pages they begin, and their backing."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.blocks = [RamBlock(REGION_SIZE), RamBlock(REGION_SIZE)]
        for block in self.blocks:
            for page in range(PAGES):
                block.words(8)[page * PAGE_SIZE // 8] = _MAGIC + page
        self._generation = 0
        self._starts: tuple[int, ...] = (0,)
        vm.set_user_memory_region_list(self._regions())

    @property
    def _block(self) -> RamBlock:
        return self.blocks[self._generation % 2]

    def _regions(self) -> list[MemoryRegion]:
        ends = (*self._starts[1:], PAGES)
        return [
            MemoryRegion(
                1 + number, REGION + start * PAGE_SIZE, (end - start) * PAGE_SIZE, self._block, start * PAGE_SIZE
            )
            for number, (start, end) in enumerate(zip(self._starts, ends, strict=True))
        ]

    def change(self, number: int) -> None:
        """Split, merge, and every third time move: as one list, as a transaction, or with every vCPU kicked."""
        gone = [MemoryRegion(slot, REGION, 0) for slot in range(1, 1 + len(self._starts))]
        cuts = {number * 5 % PAGES, number * 7 % PAGES, number * 11 % PAGES} if number % 4 else set()
        self._starts = tuple(sorted({0} | cuts))
        if number % 3 == 0:
            # Nobody may read the other block any more, in which the next generation is written.
            self._vm.wait_for_memory()
            self._generation += 1
            for page in range(PAGES):
                self._block.words(8)[page * PAGE_SIZE // 8 + 1] = self._generation
        steps = [*gone, *self._regions()]
        way = number // 3 % 3
        if way == 0:
            self._vm.set_user_memory_region_list({step.slot: step for step in steps}.values())
            return
        if way == 1:
            with self._vm.memory_transaction():
                self._one_by_one(steps)
            return
        self._vm.kick_all_running_vcpus()
        self._one_by_one(steps)
        self._vm.resume_all_kicked_vcpus()

    def _one_by_one(self, steps: list[MemoryRegion]) -> None:
        for step in steps:
            self._vm.set_user_memory_region(step)


class World:
    """A VM whose processors all run `guest_code`."""

    def __init__(self, host: RunnableHost, engines: EngineFactory, cpus: int) -> None:
        self.host = host
        self.vm = Kvm(host, engines).create_vm()
        self.vcpus = [self.vm.create_vcpu(number) for number in range(cpus)]
        self.ram = RamBlock(RAM_SIZE)
        self.vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, self.ram))
        tables = Guest(self.vcpus[0].engine, map_ram=False)
        self.ram.view[:] = tables.ram.view
        for vcpu in self.vcpus:
            guest = Guest(vcpu.engine, self.ram, map_ram=False)
            guest.long_mode()
            guest.load(guest_code())
            vcpu.engine.regs.rdi = ROUNDS + 8 * vcpu.vcpu_id
            vcpu.engine.regs.rbx = 0
            vcpu.start_runnable()
        self.slots = Slots(self.vm)

    def rounds(self) -> list[int]:
        return list(self.ram.words(8)[ROUNDS // 8 : ROUNDS // 8 + len(self.vcpus)])

    def more_rounds(self) -> None:
        """Until every processor has gone over the region once more."""
        before = self.rounds()
        while any(now < old + 2 for now, old in zip(self.rounds(), before, strict=True)):
            self.host.relax()

    def processor(self, vcpu: Vcpu) -> None:
        while True:
            exit_ = vcpu.run()
            if isinstance(exit_, Io):
                assert exit_.port == DONE, f"{vcpu.name} has read what was never there"
                return
            assert isinstance(exit_, Intr), f"{vcpu.name}: a hole: {exit_}"
            vcpu.wait_until_resumed()

    def run(self, changes: int) -> None:
        def changer() -> None:
            self.more_rounds()
            for number in range(changes):
                self.slots.change(number)
                self.host.relax()
            # Nobody is lost.
            self.more_rounds()
            self.ram.words(8)[STOP // 8] = 1

        for vcpu in self.vcpus:
            self.host.spawn(lambda vcpu=vcpu: self.processor(vcpu), vcpu.name)  # type: ignore[misc]
        self.host.spawn(changer, "changer")
        self.host.run()


def on_the_simulator() -> tuple[RunnableHost, EngineFactory, int, int]:
    return Simulator(seed=1, slice_ns=1500), UnicornFactory(), 4, 10_000


def on_threads() -> tuple[RunnableHost, EngineFactory, int, int]:
    return ThreadHost(), UnicornFactory(counting=False, threaded=True), 2, 1_000


def on_kvm() -> tuple[RunnableHost, EngineFactory, int, int]:
    if (reason := devkvm_here.why_not()) is not None:
        pytest.skip(reason)
    return ThreadHost(), DevKvmFactory(), 2, 500


@pytest.mark.parametrize("make", [on_the_simulator, on_threads, on_kvm])
def test_no_access_sees_a_hole_and_no_vcpu_is_lost(
    make: Callable[[], tuple[RunnableHost, EngineFactory, int, int]],
) -> None:
    host, engines, cpus, changes = make()
    try:
        world = World(host, engines, cpus)
        world.run(changes)
        assert min(world.rounds()) > changes // 20
        assert all(vcpu.statistics.kicked_exits > changes // 20 for vcpu in world.vcpus)
        assert world.slots.blocks[0].words(8)[1] >= changes // 3 - 1
    finally:
        engines.close()


def test_one_by_one_without_a_transaction_the_hole_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest of this test sees what it is there to see."""
    monkeypatch.setattr(Vm, "kick_all_running_vcpus", lambda vm: vm.host.relax())
    monkeypatch.setattr(Vm, "resume_all_kicked_vcpus", lambda vm: vm.host.relax())
    monkeypatch.setattr(
        Vm, "set_user_memory_region", lambda vm, region: (vm.memory.set_regions([region]), vm.host.relax())
    )
    engines = UnicornFactory()
    try:
        with pytest.raises(AssertionError, match="a hole: Mmio"):
            World(Simulator(seed=1, slice_ns=1500), engines, 2).run(200)
    finally:
        engines.close()
