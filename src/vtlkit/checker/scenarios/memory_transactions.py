"""Memory that changes under running guests (docs/design/memory-transactions.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from vtlkit.checker.scenarios import Scenario
from vtlkit.checker.scenarios.rig import DONE, RAM_SIZE, Rig, Script
from vtlkit.engine.api import PAGE_SIZE, Access, RamBlock
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.kvm.kvm_run import Intr, Io
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vm import Vm

LOW: Final = RAM_SIZE
HIGH: Final = RAM_SIZE + PAGE_SIZE
"""The two pages that the guests read."""
VALUES: Final = {LOW: 0x1111, HIGH: 0x2222}
OVERLAY_PORT: Final = 0x55
"""A device of the hypervisor that maps and unmaps an overlay page, as writing some MSRs does."""
_OVERLAID: Final = 0x3000


class TwoPages:
    """LOW and HIGH as one slot or two, in one of two blocks with the same contents."""

    def __init__(self, vm: Vm) -> None:
        self.blocks = [RamBlock(2 * PAGE_SIZE) for _ in range(2)]
        for block in self.blocks:
            for gpa, value in VALUES.items():
                block.words(4)[(gpa - LOW) // 4] = value
        self._block = self.blocks[0]
        self._split = False
        vm.set_user_memory_region(MemoryRegion(1, LOW, 2 * PAGE_SIZE, self._block))

    def steps(self, choice: int) -> list[MemoryRegion]:
        """Split or merge the slots, to another block if `choice` is odd, one KVM call after the other."""
        gone = [MemoryRegion(slot, LOW, 0) for slot in ((1, 2) if self._split else (1,))]
        self._split = not self._split
        if choice & 1:
            self._block = self.blocks[self._block is self.blocks[0]]
        if not self._split:
            return [*gone, MemoryRegion(1, LOW, 2 * PAGE_SIZE, self._block)]
        new = [MemoryRegion(slot, gpa, PAGE_SIZE, self._block, gpa - LOW) for slot, gpa in ((1, LOW), (2, HIGH))]
        return [*gone, *new]


def one_by_one(rig: Rig, steps: list[MemoryRegion]) -> None:
    """Plain calls, with time between them."""
    for region in steps:
        rig.vm.set_user_memory_region(region)
        rig.linger(30)


def as_list(rig: Rig, steps: list[MemoryRegion]) -> None:
    """One call. A slot that is deleted and added in it is changed: the last word of the list about it counts."""
    rig.vm.set_user_memory_region_list({region.slot: region for region in steps}.values())


def transaction(rig: Rig, steps: list[MemoryRegion]) -> None:
    """Begin, the plain calls, commit."""
    with rig.vm.memory_transaction():
        one_by_one(rig, steps)


def kicked(rig: Rig, steps: list[MemoryRegion]) -> None:
    """The plain calls with every vCPU out."""
    rig.vm.kick_all_running_vcpus()
    one_by_one(rig, steps)
    rig.vm.resume_all_kicked_vcpus()


Way: TypeAlias = Callable[[Rig, list[MemoryRegion]], None]
WAYS: Final[tuple[Way, ...]] = (as_list, transaction, kicked)


def reader(rig: Rig, rounds: int) -> Script:
    """A guest that reads both pages again and again, and stops where it finds what was never there."""
    for _ in range(rounds):
        yield from look(rig)
    yield ops.Out(DONE, 1, 0)


def look(rig: Rig) -> Script:
    """Read both pages; others may go ahead before each."""
    for gpa, value in VALUES.items():
        yield rig.hesitation
        found = yield ops.Read(gpa, 4)
        assert found == value, f"{found:#x} at {gpa:#x}"


def run_to_the_end(vcpu: Vcpu) -> None:
    """Until the guest says so: any exit but that and INTR is a hole."""
    while True:
        exit_ = vcpu.run()
        if isinstance(exit_, Io):
            return
        assert isinstance(exit_, Intr), f"a hole: {exit_}"
        vcpu.wait_until_resumed()


def reading_while(host: RunnableHost, ways: tuple[Way, ...]) -> None:
    """Two vCPUs read; a task changes memory three times."""
    rig = Rig(host, [lambda _engine: reader(rig, 4), lambda _engine: reader(rig, 3)])
    pages = TwoPages(rig.vm)

    def changer() -> None:
        for _ in range(3):
            rig.linger(20)
            way = ways[host.choose(len(ways), "way")]
            way(rig, pages.steps(host.choose(2, "block")))

    rig.run(*(lambda vcpu=vcpu: run_to_the_end(vcpu) for vcpu in rig.vcpus), changer)


def _no_hole(host: RunnableHost) -> None:
    reading_while(host, WAYS)


def _exclusion(host: RunnableHost) -> None:
    """Two tasks, each of which takes both pages away and puts them back in a transaction; now and then one aborts. A
    vCPU maps overlays meanwhile, from inside `run`, and protects a page."""
    overlay = RamBlock(PAGE_SIZE)

    def program(_engine: object) -> Script:
        for _ in range(2):
            yield ops.Out(OVERLAY_PORT, 1, 1)
            yield ops.Out(OVERLAY_PORT, 1, 0)
            yield from look(rig)
        yield ops.Out(DONE, 1, 0)

    def switch(_port: int, _size: int, value: int) -> None:
        memory = rig.vm.memory
        if value:
            memory.map_overlay(_OVERLAID, overlay)
        else:
            memory.unmap_overlay(_OVERLAID)
        rig.vm.set_memory_attributes(_OVERLAID, PAGE_SIZE, Access.ALL if value else Access.READ)

    rig = Rig(host, [program])
    TwoPages(rig.vm)
    rig.vm.port_bus.register(range(OVERLAY_PORT, OVERLAY_PORT + 1), lambda _port, _size: 0, switch)
    block = RamBlock(2 * PAGE_SIZE)
    block.view[:] = rig.vm.memory.read(LOW, 2 * PAGE_SIZE)

    def changer(kicks: bool) -> None:
        vm = rig.vm
        vm.begin_memory_transaction()
        vm.set_user_memory_region(MemoryRegion(1, LOW, 0))
        rig.linger(10)
        if kicks:
            vm.kick_all_running_vcpus()
        if host.choose(2, "abort"):
            vm.abort_memory_transaction()
        else:
            vm.set_user_memory_region(MemoryRegion(1, LOW, 2 * PAGE_SIZE, block))
            vm.commit_memory_transaction()
        if kicks:
            vm.resume_all_kicked_vcpus()

    rig.run(lambda: run_to_the_end(rig.vcpus[0]), lambda: changer(False), lambda: changer(True))
    memory = rig.vm.memory
    assert [region.slot for region in memory.slots] == [0, 1]
    assert memory.overlay_at(_OVERLAID) is None
    assert memory.attributes.at(_OVERLAID) == Access.READ


SCENARIOS = (
    Scenario("memory.no-hole", "memory that is split, merged and moved has no hole for a running guest", _no_hole),
    Scenario("memory.exclusion", "transactions exclude each other and keep no vCPU inside run", _exclusion),
)
