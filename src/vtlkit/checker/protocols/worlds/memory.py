"""Memory that changes under running guests (docs/design/memory-transactions.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from vtlkit.checker.protocols.rig import CheckedRig
from vtlkit.checker.protocols.worlds.common import broken, settle
from vtlkit.checker.scenarios.rig import RAM_SIZE, Script
from vtlkit.engine.api import PAGE_SIZE, Access, RamBlock
from vtlkit.engine.scripted import Guest, ops
from vtlkit.host.api import Host
from vtlkit.kvm.address_space import AddressSpace, AttributeChange, Change, SlotChange
from vtlkit.kvm.kvm_run import Mmio, Shutdown
from vtlkit.kvm.memory import GuestMemory
from vtlkit.kvm.memory_transactions import MemoryTransactions
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86.exceptions import Vector

LOW: Final = RAM_SIZE
HIGH: Final = RAM_SIZE + PAGE_SIZE
"""Two pages, one slot each, which are replaced together."""
_OLD, _NEW = 0x11, 0x22
ALL_OLD, ALL_NEW = _OLD * 0x0101, _NEW * 0x0101
"""What an instruction reads that reaches from one page to the other."""


Spoil = Callable[[CheckedRig], object]


def nothing(_rig: CheckedRig) -> None:
    """The code that ships."""


class Pages:
    """Both pages, before and after; and whether nobody can execute on what was before any more."""

    def __init__(self, host: Host, vcpus: int, spoil: Spoil) -> None:
        programs: list[Guest] = [self._reader] * vcpus
        self.done = host.cell(0, "done")
        self.rig = CheckedRig(host, programs)
        self.vm = self.rig.vm
        blocks = [RamBlock(2 * PAGE_SIZE) for _ in range(2)]
        for block, value in zip(blocks, (_OLD, _NEW), strict=True):
            block.view[:] = bytes([value]) * (2 * PAGE_SIZE)
        old, self.new = blocks
        self.vm.set_user_memory_region_list(self.slots(old))
        for vcpu in self.rig.vcpus:
            vcpu.map.sync()
            settle(vcpu)
        spoil(self.rig)

    @staticmethod
    def slots(block: RamBlock) -> list[MemoryRegion]:
        return [MemoryRegion(slot, gpa, PAGE_SIZE, block, gpa - LOW) for slot, gpa in ((1, LOW), (2, HIGH))]

    def _reader(self, _engine: object) -> Script:
        done = yield ops.Host(self.done.load_acquire)
        found = yield ops.Read(HIGH - 1, 2)
        assert found in (ALL_OLD, ALL_NEW), f"one instruction finds {found:#x}, half of a change"
        assert found == ALL_NEW or not done, "memory from before the change is used after everybody has left it"
        yield ops.Fault(Vector.UD)

    def spawn(self, *changers: tuple[str, Callable[[], None]]) -> None:
        """The vCPUs, and who changes memory."""
        for number, vcpu in enumerate(self.rig.vcpus):
            self.rig.spawn(partial(_run, vcpu), f"vcpu {number}")
        for name, changer in changers:
            self.rig.spawn(changer, name)


def _run(vcpu: Vcpu) -> None:
    """Without a handler for its fault the guest ends in a shutdown, between two instructions."""
    exit_ = vcpu.run()
    assert isinstance(exit_, Shutdown), f"a hole: {exit_}"


def changed(host: Host, *, vcpus: int, transaction: bool, waits: bool, spoil: Spoil = nothing) -> None:
    """Both pages are replaced at once, by a list or a transaction. `waits`: until nobody executes on the old ones."""
    pages = Pages(host, vcpus, spoil)
    vm = pages.vm

    def change() -> None:
        if transaction:
            vm.begin_memory_transaction()
            for region in (MemoryRegion(1, LOW, 0), MemoryRegion(2, HIGH, 0), *pages.slots(pages.new)):
                vm.set_user_memory_region(region)
            vm.commit_memory_transaction()
        else:
            vm.set_user_memory_region_list(pages.slots(pages.new))
        if waits:
            vm.wait_for_memory()
            pages.done.store_release(1)

    pages.spawn(("changer", change))


def added(host: Host, *, spoil: Spoil = nothing) -> None:
    """A guest reads a page while memory is put there: it asks user space, or finds the memory."""

    def program(_engine: object) -> Script:
        assert (yield ops.Read(LOW, 1)) in (0, _NEW)
        yield ops.Fault(Vector.UD)

    rig = CheckedRig(host, [program])
    vcpu = rig.vcpus[0]
    settle(vcpu)
    spoil(rig)
    block = RamBlock(PAGE_SIZE)
    block.view[:] = bytes([_NEW]) * PAGE_SIZE

    def run() -> None:
        exit_ = vcpu.run()
        assert isinstance(exit_, Mmio | Shutdown), f"neither memory nor a device: {exit_}"

    rig.spawn(run, "vcpu")
    rig.spawn(partial(rig.vm.set_user_memory_region, MemoryRegion(1, LOW, PAGE_SIZE, block)), "changer")


def excluded(host: Host, *, plain: int, attributes: int, spoil: Spoil = nothing) -> None:
    """A transaction replaces both pages, while others add slots by plain calls, and change what guests may do with a
    page. Nothing of it is lost."""
    pages = Pages(host, 0, spoil)
    vm, left = pages.vm, host.cell(1 + plain + attributes, "left")
    more = [RamBlock(PAGE_SIZE) for _ in range(plain)]

    def ended() -> None:
        if left.fetch_add(-1) > 1:
            return
        slots = {region.slot: region.block for region in vm.memory.slots}
        wanted = [pages.new, pages.new, *more]
        assert [slots.get(number) for number in range(1, 3 + plain)] == wanted, "a change of slots is lost"
        for number in range(attributes):
            assert vm.memory.attributes.at(number * PAGE_SIZE) == Access.READ, "a change of attributes is lost"

    def transaction() -> None:
        with vm.memory_transaction():
            for region in (MemoryRegion(1, LOW, 0), MemoryRegion(2, HIGH, 0), *pages.slots(pages.new)):
                vm.set_user_memory_region(region)
        ended()

    def add(number: int) -> None:
        vm.set_user_memory_region(MemoryRegion(3 + number, HIGH + (1 + number) * PAGE_SIZE, PAGE_SIZE, more[number]))
        ended()

    def protect(number: int) -> None:
        vm.set_memory_attributes(number * PAGE_SIZE, PAGE_SIZE, Access.READ)
        ended()

    pages.spawn(
        ("transaction", transaction),
        *[(f"plain change {number}", partial(add, number)) for number in range(plain)],
        *[(f"attributes {number}", partial(protect, number)) for number in range(attributes)],
    )


# --- known-bad ------------------------------------------------------------------------------------------------------


class _OneByOne(GuestMemory):
    """Each slot of a list is published for itself."""

    def change(self, steps: Iterable[SlotChange | AttributeChange]) -> None:
        for step in steps:
            if isinstance(step, SlotChange):
                for region in step.regions:
                    super().change([SlotChange((region,))])
            else:
                super().change([step])


class _ValueFirst(GuestMemory):
    """The new state is there before the log says so: who judges an access by it finds its map up to date."""

    def _publish(self, space: AddressSpace, changes: list[Change]) -> None:
        self._space.store_release(space)
        self.log.extend(changes)
        self.version.store(self.version.load() + len(changes))


class _PublishesWhatItStaged(MemoryTransactions):
    """The commit stores what memory was at the begin, with the transaction's changes."""

    def commit(self) -> None:
        self._end("commit")
        memory = self._memory
        with memory.lock:
            memory._publish(self._space, [Change(LOW, 2 * PAGE_SIZE, True)])
        memory.on_change()
        self._lock.release()


def one_by_one(rig: CheckedRig) -> None:
    broken(rig.vm.memory, _OneByOne)


def value_first(rig: CheckedRig) -> None:
    broken(rig.vm.memory, _ValueFirst)


def publishes_what_it_staged(rig: CheckedRig) -> None:
    broken(rig.vm.transactions, _PublishesWhatItStaged)


def no_request(rig: CheckedRig) -> None:
    """vCPUs are not told that memory has changed: they look when they are behind at a fault."""
    rig.vm.memory.on_change = lambda: None


SPOILS: Final[Mapping[str, Spoil]] = {
    "": nothing,
    "one-by-one": one_by_one,
    "no-request": no_request,
    "value-first": value_first,
    "stale-commit": publishes_what_it_staged,
}
