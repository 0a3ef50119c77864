"""Begin, commit and abort: what is staged, what is seen, who waits, what is refused."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, Script
from vtlkit.engine.api import PAGE_SIZE, Access, RamBlock
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.address_space import AddressSpace
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.memory import GuestMemory
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vm import Vm

RAM = 16 << 12
"""Behind the rig's RAM, slot 0."""
PAGE = RAM + PAGE_SIZE
HOSTS: tuple[Callable[[], RunnableHost], ...] = (Simulator, ThreadHost)


def region(slot: int, gpa: int, pages: int, block: RamBlock | None = None) -> MemoryRegion:
    size = pages * PAGE_SIZE
    return MemoryRegion(slot, gpa, size, block or RamBlock(size) if size else None)


def published(memory: GuestMemory) -> list[AddressSpace]:
    """Every state that is published from now on."""
    states: list[AddressSpace] = []
    cell = memory._space
    store = cell.store_release

    class Watched:
        def store_release(self, space: AddressSpace) -> None:
            states.append(space)
            store(space)

        def __getattr__(self, name: str) -> object:
            return getattr(cell, name)

    memory._space = Watched()  # type: ignore[assignment]
    return states


@pytest.fixture
def vm() -> Vm:
    vm = Machine().vm
    vm.set_user_memory_region(region(1, RAM, 2))
    return vm


def test_a_commit_publishes_everything_in_one_step(vm: Vm) -> None:
    states = published(vm.memory)
    vm.vcpus[0].check_request(Req.MEMORY_CHANGED)
    vm.begin_memory_transaction()
    vm.set_user_memory_region(region(1, RAM, 0))
    vm.set_user_memory_region(region(1, RAM, 1))
    vm.set_user_memory_region_list([region(2, PAGE, 1), region(3, PAGE + PAGE_SIZE, 1)])
    vm.set_memory_attributes(RAM, PAGE_SIZE, Access.READ)
    assert not states
    assert not vm.vcpus[0].requests.test(Req.MEMORY_CHANGED)
    assert vm.memory.attributes.at(RAM) == Access.ALL
    vm.commit_memory_transaction()
    assert len(states) == 1
    assert [slot.slot for slot in vm.memory.slots] == [0, 1, 2, 3]
    assert vm.memory.attributes.at(RAM) == Access.READ
    assert vm.vcpus[0].requests.test(Req.MEMORY_CHANGED)
    assert vm.vcpus[0].map.behind()
    vm.vcpus[0].map.sync()
    assert not vm.vcpus[0].map.behind()


@pytest.mark.parametrize("empty", [True, False])
def test_of_an_abort_nothing_is_seen(vm: Vm, empty: bool) -> None:
    before, states, log = vm.memory.space, published(vm.memory), len(vm.memory.log)
    vm.begin_memory_transaction()
    if not empty:
        vm.set_user_memory_region(region(1, RAM, 0))
        vm.set_memory_attributes(0, PAGE_SIZE, Access.NONE)
    vm.abort_memory_transaction()
    assert not states
    assert vm.memory.space is before
    assert len(vm.memory.log) == log
    vm.set_user_memory_region(region(5, 1 << 30, 1))
    assert vm.memory.slots.by_id(1) is not None


def test_a_block_that_raises_aborts(vm: Vm) -> None:
    before = vm.memory.space

    def change() -> None:
        with vm.memory_transaction():
            vm.set_user_memory_region(region(1, RAM, 0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change()
    assert vm.memory.space is before
    with vm.memory_transaction():
        vm.set_user_memory_region(region(1, RAM, 0))
    assert vm.memory.slots.by_id(1) is None


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda vm: vm.set_user_memory_region(region(9, RAM, 0)), errno.EINVAL),
        (lambda vm: vm.set_user_memory_region(region(9, PAGE, 1)), errno.EEXIST),
        (lambda vm: vm.set_user_memory_region_list([region(1, RAM, 0), region(9, 0, 1)]), errno.EEXIST),
        (lambda vm: vm.set_memory_attributes(RAM + 1, PAGE_SIZE, Access.READ), errno.EINVAL),
        (lambda vm: vm.set_memory_attributes(RAM, PAGE_SIZE, Access.WRITE), errno.EINVAL),
        (lambda vm: vm.set_memory_attributes(1 << 40, PAGE_SIZE, Access.READ), errno.EINVAL),
    ],
)
def test_a_call_that_cannot_be_done_fails_at_once_and_leaves_the_rest(
    vm: Vm, call: Callable[[Vm], None], error: int
) -> None:
    vm.begin_memory_transaction()
    vm.set_user_memory_region(region(4, 1 << 30, 1))
    with pytest.raises(KvmError) as refused:
        call(vm)
    assert refused.value.errno == error
    vm.commit_memory_transaction()
    assert [slot.slot for slot in vm.memory.slots] == [0, 1, 4]


def test_calls_are_checked_against_what_is_staged(vm: Vm) -> None:
    with vm.memory_transaction():
        vm.set_user_memory_region(region(1, RAM, 0))
        with pytest.raises(KvmError, match="does not exist"):
            vm.set_user_memory_region(region(1, RAM, 0))
        vm.set_user_memory_region(region(2, RAM, 1))
        with pytest.raises(KvmError, match="overlaps"):
            vm.set_user_memory_region(region(3, RAM, 1))


def test_misuse_is_refused(vm: Vm) -> None:
    for call, word in ((vm.commit_memory_transaction, "commit"), (vm.abort_memory_transaction, "abort")):
        with pytest.raises(KvmError, match=f"nothing to {word}") as refused:
            call()
        assert refused.value.errno == errno.EINVAL
    vm.begin_memory_transaction()
    with pytest.raises(KvmError, match="is open") as refused:
        vm.begin_memory_transaction()
    assert refused.value.errno == errno.EBUSY
    with pytest.raises(KvmError, match="transaction open") as refused:
        vm.wait_for_memory()
    assert refused.value.errno == errno.EDEADLK
    vm.abort_memory_transaction()
    vm.wait_for_memory()


@pytest.mark.parametrize("make_host", HOSTS)
def test_transactions_of_two_tasks_exclude_each_other(make_host: Callable[[], RunnableHost]) -> None:
    """Each sees the slots as the one before has left them, and plain changes of slots wait too."""
    machine = Machine(host=make_host())
    vm = machine.vm
    block = RamBlock(PAGE_SIZE)
    vm.set_user_memory_region(MemoryRegion(1, RAM, PAGE_SIZE, block))
    inside = machine.host.cell(0, "inside")

    def mover() -> None:
        for _ in range(20):
            with vm.memory_transaction():
                assert inside.fetch_add(1) == 0
                (slot,) = [slot for slot in vm.memory.slots if slot.slot]
                vm.set_user_memory_region(MemoryRegion(slot.slot, slot.gpa, 0))
                machine.host.relax()
                vm.set_user_memory_region(MemoryRegion(slot.slot % 7 + 1, slot.gpa + PAGE_SIZE, PAGE_SIZE, block))
                assert inside.fetch_add(-1) == 1

    def plain() -> None:
        for number in range(20):
            vm.set_user_memory_region(MemoryRegion(0, 0, (8 + number % 8) * PAGE_SIZE, machine.ram))
            machine.host.relax()

    machine.run(mover, mover, plain)
    assert [slot.gpa for slot in vm.memory.slots if slot.slot] == [RAM + 40 * PAGE_SIZE]


def test_a_plain_change_of_slots_waits_for_the_transaction() -> None:
    machine = Machine()
    vm, order = machine.vm, list[str]()

    def owner() -> None:
        with vm.memory_transaction():
            while "other" not in order:
                machine.host.relax()
            for _ in range(20):
                machine.host.relax()
            order.append("commit")

    def other() -> None:
        order.append("other")
        vm.set_user_memory_region(region(1, RAM, 1))
        order.append("changed")

    machine.run(owner, other)
    assert order == ["other", "commit", "changed"]


def test_attributes_and_overlays_do_not_wait_and_survive_the_commit() -> None:
    machine = Machine()
    vm, overlay = machine.vm, RamBlock(PAGE_SIZE)
    done = machine.host.cell(False, "done")

    def owner() -> None:
        with vm.memory_transaction():
            vm.set_user_memory_region(region(1, RAM, 1))
            vm.set_memory_attributes(0x1000, PAGE_SIZE, Access.READ)
            while not done.load():
                machine.host.relax()

    def other() -> None:
        vm.set_memory_attributes(0x1000, 2 * PAGE_SIZE, Access.NONE)
        vm.memory.map_overlay(0x4000, overlay)
        done.store(True)

    machine.run(owner, other)
    assert vm.memory.overlay_at(0x4000) is not None
    # The transaction is the later one where both say something.
    assert vm.memory.attributes.at(0x1000) == Access.READ
    assert vm.memory.attributes.at(0x2000) == Access.NONE
    assert vm.memory.slots.by_id(1) is not None


def test_a_task_that_ends_with_a_transaction_open_is_found_out() -> None:
    machine = Machine()
    with pytest.raises(AssertionError, match="vm-memory-transaction"):
        machine.run(machine.vm.begin_memory_transaction)


def test_a_host_access_sees_one_state() -> None:
    """A read over two slots, between whose halves both move to blocks with other contents."""
    memory = Machine().vm.memory
    blocks = [RamBlock(2 * PAGE_SIZE), RamBlock(2 * PAGE_SIZE)]
    blocks[1].view[:] = b"\1" * (2 * PAGE_SIZE)

    def slots(block: RamBlock) -> list[MemoryRegion]:
        return [MemoryRegion(1 + n, RAM + n * PAGE_SIZE, PAGE_SIZE, block, n * PAGE_SIZE) for n in range(2)]

    memory.set_regions(slots(blocks[0]))
    cell = memory._space
    loads: list[AddressSpace] = []

    class Moving:
        """Every load is followed by a move."""

        def load_acquire(self) -> AddressSpace:
            loads.append(cell.load_acquire())
            memory._space = cell
            memory.set_regions(slots(blocks[len(loads) % 2]))
            memory._space = self  # type: ignore[assignment]
            return loads[-1]

    memory._space = Moving()  # type: ignore[assignment]
    for value in range(2, 6):
        found = memory.read(PAGE - 8, 16)
        assert len(set(found)) == 1, found
        memory.write(PAGE - 8, bytes([value]) * 16)
        written = [bytes(block.view[PAGE_SIZE - 8 : PAGE_SIZE + 8]).count(value) for block in blocks]
        assert sorted(written) == [0, 16]
    memory._space = cell


@pytest.mark.parametrize("published_when", ["behind", "find"])
def test_an_access_judged_by_a_newer_state_is_tried_again(published_when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest reads where there was no memory until a moment ago: it is no error of the guest's."""
    block = RamBlock(PAGE_SIZE)
    block.words(4)[0] = 0x1234

    def program(_engine: object) -> Script:
        found = yield ops.Read(RAM, 4)
        yield ops.Out(DONE, 4, found)

    machine = Machine(program)
    memory = machine.vm.memory
    owner, name = (machine.vcpu.map, "behind") if published_when == "behind" else (memory, "find")
    right = getattr(owner, name)
    changes: list[None] = []

    def wrapped(*arguments: int) -> object:
        # The answer of `behind` is from before the change, that of `find` from after it.
        before = right(*arguments) if name == "behind" else None
        if not changes:
            changes.append(None)
            memory.set_regions([MemoryRegion(1, RAM, PAGE_SIZE, block)])
            # As on another processor: the vCPU has looked at its requests for this time.
            machine.vcpu.requests.clear(Req.MEMORY_CHANGED)
        return before if name == "behind" else right(*arguments)

    monkeypatch.setattr(type(owner), name, lambda _self, *arguments: wrapped(*arguments))
    exits: list[object] = []
    machine.run(lambda: exits.append(machine.vcpu.run()))
    exit_ = exits[0]
    assert isinstance(exit_, Io), exit_
    assert exit_.data == 0x1234


def test_the_log_is_ahead_before_the_state_is_new() -> None:
    memory = Machine().vm.memory
    seen: list[int] = []
    cell = memory._space

    class Watched:
        def store_release(self, space: AddressSpace) -> None:
            seen.append(len(memory.log))
            cell.store_release(space)

        def __getattr__(self, name: str) -> object:
            return getattr(cell, name)

    before = len(memory.log)
    memory._space = Watched()  # type: ignore[assignment]
    memory.set_regions([region(1, RAM, 1)])
    assert seen == [before + 1]
