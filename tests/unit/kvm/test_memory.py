"""The guest-physical address space against a dictionary of pages, and the log that keeps engines up to date."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.unit.kvm.page_oracle import (
    ACCESSES,
    BLOCKS,
    OVERLAYS,
    PAGES,
    READ_ONLY,
    Oracle,
    by_page,
    page_ranges,
    pages_of,
    regions,
)
from vtlkit.engine.api import PAGE_SIZE, Access, RamBlock
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.address_space import Change
from vtlkit.kvm.errors import GuestMemoryError, KvmError
from vtlkit.kvm.memory import LOG_MAX, GuestMemory
from vtlkit.kvm.memslots import KVM_MEM_READONLY, MemoryRegion
from vtlkit.kvm.mmu import forbids

LIMIT = PAGES * PAGE_SIZE


def guest_memory() -> GuestMemory:
    return GuestMemory(Simulator(), "vm")


class Follower:
    """Knows which pages it has been told of."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.position = memory.follow(self)
        self.told: set[int] = set()

    def restart_log(self, dropped: int) -> None:
        assert self.position <= len(self.memory.log), "the log is cut only when all followers know"
        self.position -= dropped
        assert self.position >= 0

    def catch_up(self, steps: int) -> None:
        """What `EngineMap.sync` does, up to `steps` changes of it."""
        with self.memory.lock:
            while steps and self.position < len(self.memory.log):
                change = self.memory.log[self.position]
                self.told.update(pages_of(change.gpa, change.size))
                self.position += 1
                steps -= 1
            self.memory.trim()


class MemoryModel(RuleBasedStateMachine):
    """Slots, overlays and attributes change; every question is answered as the pages say."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = guest_memory()
        self.oracle = Oracle()
        self.followers = [Follower(self.memory), Follower(self.memory)]
        self.owed: list[set[int]] = [set(), set()]
        self.changes = 0
        self.memory.on_change = self.count

    def count(self) -> None:
        assert not self.memory.lock.held()
        self.changes += 1

    def changing(self, change: Callable[[], None], *, refused: bool = False) -> None:
        before = [self.oracle.permitted(page) for page in range(PAGES)]
        told = self.changes
        change()
        assert self.changes == told + (not refused)
        different = {page for page in range(PAGES) if self.oracle.permitted(page) != before[page]}
        for owed in self.owed:
            owed.update(different)

    @rule(changes=st.lists(regions(), min_size=1, max_size=3))
    def change_slots(self, changes: list[MemoryRegion]) -> None:
        def change() -> None:
            accepted = self.oracle.apply(changes)
            if accepted:
                self.memory.set_regions(changes)
            else:
                log = len(self.memory.log)
                with pytest.raises(KvmError):
                    self.memory.set_regions(changes)
                assert len(self.memory.log) == log
                self.changes += 1

        self.changing(change)

    @rule(where=page_ranges(), access=ACCESSES)
    def change_attributes(self, where: tuple[int, int], access: Access) -> None:
        def change() -> None:
            first, count = where
            self.memory.set_attributes(first * PAGE_SIZE, count * PAGE_SIZE, access)
            self.oracle.attributes.update(dict.fromkeys(range(first, first + count), access))

        self.changing(change)

    @rule(page=st.integers(0, PAGES - 1), number=st.integers(0, 3), access=st.sampled_from([Access.ALL, READ_ONLY]))
    def put_overlay(self, page: int, number: int, access: Access) -> None:
        def change() -> None:
            self.memory.map_overlay(page * PAGE_SIZE, OVERLAYS, number * PAGE_SIZE, access)
            self.oracle.overlays[page] = OVERLAYS, number * PAGE_SIZE, access

        self.changing(change)

    @rule(page=st.integers(0, PAGES - 1))
    def take_overlay(self, page: int) -> None:
        there = self.oracle.overlays.get(page) is not None

        def change() -> None:
            self.memory.unmap_overlay(page * PAGE_SIZE)
            self.oracle.overlays.pop(page, None)

        self.changing(change, refused=not there)

    @rule(which=st.integers(0, 1), steps=st.integers(0, 4))
    def follow(self, which: int, steps: int) -> None:
        self.followers[which].catch_up(steps)

    @rule(which=st.integers(0, 1))
    def follow_to_the_end(self, which: int) -> None:
        follower = self.followers[which]
        follower.catch_up(1 << 30)
        assert follower.position == len(self.memory.log)
        assert self.owed[which] <= follower.told, "a page changed and the follower was not told"
        self.owed[which].clear()
        follower.told.clear()

    @rule(where=page_ranges())
    def ask_pieces(self, where: tuple[int, int]) -> None:
        first, count = where
        found = by_page(iter(self.memory.pieces(first * PAGE_SIZE, count * PAGE_SIZE)))
        expected = {page: self.oracle.permitted(page) for page in range(first, first + count)}
        assert found == {page: backing for page, backing in expected.items() if backing is not None}

    @rule(gpa=st.integers(0, LIMIT - 1), size=st.integers(0, 3 * PAGE_SIZE), access=ACCESSES)
    def ask_check(self, gpa: int, size: int, access: Access) -> None:
        size = min(size, LIMIT - gpa)
        touched = range(gpa // PAGE_SIZE, -(-(gpa + size) // PAGE_SIZE)) if size else range(0)
        backings = [self.oracle.permitted(page) for page in touched]
        expected = all(backing is not None and not access & ~backing[2] for backing in backings)
        assert self.memory.check(gpa, size, access) is expected

    @rule(gpa=st.integers(0, LIMIT - 1), size=st.integers(1, 3 * PAGE_SIZE))
    def read(self, gpa: int, size: int) -> None:
        expected = b""
        for address in range(gpa, min(gpa + size, LIMIT)):
            if address == gpa or not address % PAGE_SIZE:
                backing = self.oracle.page(address // PAGE_SIZE)
                if backing is None:
                    break
                inside = address % PAGE_SIZE
                left = min(PAGE_SIZE - inside, gpa + size - address)
                expected += bytes(backing[0].view[backing[1] + inside : backing[1] + inside + left])
        if len(expected) == size:
            assert self.memory.read(gpa, size) == expected
        else:
            with pytest.raises(GuestMemoryError):
                self.memory.read(gpa, size)

    @rule(gpa=st.integers(0, LIMIT - 1), size=st.integers(1, 2 * PAGE_SIZE + 5), fill=st.integers(1, 255))
    def write(self, gpa: int, size: int, fill: int) -> None:
        """Attributes do not matter, read-only slots do; what comes before the refusal is written."""
        data = bytes([fill]) * size
        told: list[tuple[int, int]] = []
        self.memory.on_write = lambda where, length: told.append((where, length))
        touched = range(gpa // PAGE_SIZE, -(-(gpa + size) // PAGE_SIZE))
        backings = [self.oracle.page(page) if page < PAGES else None for page in touched]
        good = 0
        for backing in backings:
            if backing is None or not backing[2] & Access.WRITE:
                break
            good += 1
        end = min(gpa + size, (touched[0] + good) * PAGE_SIZE)
        if good == len(touched):
            self.memory.write(gpa, data)
        else:
            with pytest.raises(GuestMemoryError):
                self.memory.write(gpa, data)
        if good:
            last = self.oracle.page((end - 1) // PAGE_SIZE)
            assert last is not None
            assert last[0].view[last[1] + (end - 1) % PAGE_SIZE] == fill
            assert sum(length for _where, length in told) == end - gpa
            assert told[0][0] == gpa
        else:
            assert not told

    @invariant()
    def single_pages(self) -> None:
        for page in range(PAGES):
            expected = self.oracle.page(page)
            found = self.memory.find(page * PAGE_SIZE + 5)
            assert (found is None) == (expected is None)
            if found is not None and expected is not None:
                assert found[:3] == (expected[0], expected[1] + 5, expected[2])
                assert found[3] > 0
            assert (self.memory.overlay_at(page * PAGE_SIZE + 7) is None) == (page not in self.oracle.overlays)
            forbidden = Access.WRITE not in self.oracle.attributes[page]
            assert forbids(self.memory, page * PAGE_SIZE, Access.WRITE) is forbidden

    @invariant()
    def the_log_holds_what_somebody_needs(self) -> None:
        assert all(0 <= follower.position <= len(self.memory.log) for follower in self.followers)


TestMemoryModel = MemoryModel.TestCase


def test_the_log_is_cut_behind_the_last_follower() -> None:
    memory = guest_memory()
    quick, slow = Follower(memory), Follower(memory)
    for number in range(5):
        memory.map_overlay(number * PAGE_SIZE, OVERLAYS)
    quick.catch_up(5)
    assert len(memory.log) == 5
    slow.catch_up(2)
    assert len(memory.log) == 3
    assert (quick.position, slow.position) == (3, 0)
    memory.unfollow(slow)
    quick.catch_up(0)
    assert memory.log == []


def test_a_follower_that_goes_while_the_log_is_cut_hides_no_other() -> None:
    """A vCPU is destroyed while another one cuts the log: the one in the list behind it has not heard of the change."""
    host = ThreadHost()
    memory = GuestMemory(host, "vm")

    class Opening(Follower):
        """In the middle of the look at all positions the first one goes, if it can."""

        @property
        def position(self) -> int:
            if memory.lock.held() and leaver.ident is None:
                leaver.start()
                leaver.join(0.1)
            return int(self.__dict__["position"])

        @position.setter
        def position(self, value: int) -> None:
            self.__dict__["position"] = value

    goes, quick, behind = Follower(memory), Opening(memory), Follower(memory)
    leaver = threading.Thread(target=lambda: memory.unfollow(goes))
    memory.map_overlay(0, OVERLAYS)
    with memory.lock:
        goes.position = quick.position = 1
        memory.trim()
    leaver.join()
    assert (behind.position, len(memory.log)) == (0, 1), "it has heard of nothing"
    behind.catch_up(1)
    assert (behind.told, memory.log) == ({0}, [])
    host.shutdown()


def test_a_new_follower_need_not_hear_the_past() -> None:
    memory = guest_memory()
    old = Follower(memory)
    memory.map_overlay(0, OVERLAYS)
    new = Follower(memory)
    assert new.position == 1
    old.catch_up(1)
    assert (old.position, new.position) == (0, 0)


def test_whoever_is_behind_looks_so_while_the_log_is_cut() -> None:
    """`EngineMap.behind` takes no lock: between the steps of `trim` it may say so in vain, but not deny it."""
    memory = guest_memory()
    seen: list[bool] = []

    class Watcher(Follower):
        def restart_log(self, dropped: int) -> None:
            super().restart_log(dropped)
            seen.append(behind.position < len(memory.log))

    Watcher(memory).position = 4
    behind = Follower(memory)
    for number in range(5):
        memory.map_overlay(number * PAGE_SIZE, OVERLAYS)
    behind.catch_up(3)
    assert seen == [True]


@given(data=st.binary(min_size=1, max_size=3 * PAGE_SIZE), start=st.integers(0, PAGE_SIZE))
def test_what_is_written_is_read(data: bytes, start: int) -> None:
    memory = guest_memory()
    blocks = [RamBlock(2 * PAGE_SIZE), RamBlock(4 * PAGE_SIZE)]
    memory.set_regions(
        [MemoryRegion(0, 0, 2 * PAGE_SIZE, blocks[0]), MemoryRegion(1, 2 * PAGE_SIZE, 4 * PAGE_SIZE, blocks[1])]
    )
    memory.map_overlay(PAGE_SIZE, OVERLAYS, PAGE_SIZE)
    memory.write(start, data)
    assert memory.read(start, len(data)) == data
    memory.unmap_overlay(PAGE_SIZE)
    assert memory.read(start, len(data))[: max(PAGE_SIZE - start, 0)] == data[: max(PAGE_SIZE - start, 0)]


def test_an_overlay_does_not_limit_how_much_is_read_at_once() -> None:
    memory = guest_memory()
    size = 16 << 20
    memory.set_regions([MemoryRegion(0, 0, size, RamBlock(size))])
    memory.map_overlay(0, OVERLAYS)
    data = bytes(range(256)) * (size // 256)
    memory.write(0, data)
    assert memory.read(0, size) == data


@pytest.mark.parametrize(("gpa", "size"), [(1, PAGE_SIZE), (0, 5), (0, 0), (-PAGE_SIZE, PAGE_SIZE), (0, -PAGE_SIZE)])
def test_attributes_are_for_whole_pages(gpa: int, size: int) -> None:
    memory = guest_memory()
    with pytest.raises(KvmError):
        memory.set_attributes(gpa, size, Access.READ)
    assert not memory.log


def test_an_error_says_what_was_asked_for() -> None:
    memory = guest_memory()
    memory.set_regions([MemoryRegion(0, 0, PAGE_SIZE, BLOCKS[0], 0, KVM_MEM_READONLY)])
    with pytest.raises(GuestMemoryError, match=r"no writable memory at 0x10\+0x2") as caught:
        memory.write(0x10, b"ab")
    assert (caught.value.gpa, caught.value.size, caught.value.write) == (0x10, 2, True)
    with pytest.raises(GuestMemoryError, match=r"no readable memory at 0x1000\+0x4"):
        memory.read(0xFFC, 8)


def test_a_follower_that_never_comes_does_not_make_the_log_grow_for_ever() -> None:
    host = Simulator()
    memory = GuestMemory(host, "vm")
    late, keen = FollowerOf(memory), FollowerOf(memory)
    late.position = memory.follow(late)
    keen.position = memory.follow(keen)
    for number in range(5 * LOG_MAX):
        memory.set_attributes(number % 7 * PAGE_SIZE, PAGE_SIZE, Access.READ)
        # The keen one applies each change, and must not be told to begin again.
        assert memory.log[keen.position :] == [Change(number % 7 * PAGE_SIZE, PAGE_SIZE, False)]
        keen.position = len(memory.log)
    assert len(memory.log) <= LOG_MAX + 1
    assert late.position < len(memory.log)
    first = memory.log[late.position]
    assert (first.gpa, first.backing) == (0, True)
    assert first.size > 1 << 32


class FollowerOf:
    """A follower whose position the test moves."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.position = 0

    def restart_log(self, dropped: int) -> None:
        self.position -= dropped


def test_protections_are_never_seen_half_changed() -> None:
    """Readers on other threads take no lock: what one change does not touch must not flicker while it is made."""
    host = ThreadHost()
    memory = GuestMemory(host, "vm")
    block = RamBlock(0x100 * PAGE_SIZE)
    memory.set_regions([MemoryRegion(0, 0, block.size, block)])
    memory.set_attributes(0x50 * PAGE_SIZE, PAGE_SIZE, Access.NONE)
    stop = host.cell(False, "stop")
    seen: list[bool] = []

    def toggle() -> None:
        for number in range(3000):
            memory.set_attributes(0x10 * PAGE_SIZE, PAGE_SIZE, Access.ALL if number & 1 else Access.READ)
        stop.store(True)

    def look() -> None:
        while not stop.load():
            if memory.check(0x50 * PAGE_SIZE, 8, Access.READ):
                seen.append(True)

    with host:
        host.spawn(toggle, "toggler")
        host.spawn(look, "reader")
        host.run()
    assert not seen
