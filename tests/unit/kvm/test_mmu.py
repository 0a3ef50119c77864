"""An engine's map against a dictionary of pages, after any history of slots, overlays, attributes and device pages."""

from __future__ import annotations

from typing import cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.kvm.core_rig import RAM_SIZE, Machine, engine_of
from tests.unit.kvm.page_oracle import ACCESSES, BLOCKS, OVERLAYS, PAGES, READ_ONLY, Oracle, page_ranges, regions
from vtlkit.engine.api import PAGE_SIZE, Access, Engine, MmioRead8, MmioWrite8, RamBlock
from vtlkit.engine.memory_map import Kind, MemoryMap
from vtlkit.host.sim import Simulator
from vtlkit.kvm.memory import GuestMemory
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.mmu import EngineMap
from vtlkit.x86.msr import APICBASE_BSP, APICBASE_ENABLE, X2APIC_ENABLE


class Recorder:
    """The memory half of an engine. The map itself refuses a range that is in use."""

    def __init__(self) -> None:
        self.map = MemoryMap()
        self.calls = 0

    def map_ram(self, gpa: int, size: int, block: RamBlock, offset: int, access: Access) -> None:
        self.calls += 1
        self.map.map_ram(gpa, size, block, offset, access)

    def map_exit(self, gpa: int, size: int) -> None:
        self.map.map_io(gpa, size, Kind.EXIT, _read, _write)

    def map_device(self, gpa: int, size: int, read: MmioRead8, write: MmioWrite8) -> None:
        self.map.map_io(gpa, size, Kind.DEVICE, read, write)

    def unmap(self, gpa: int, size: int) -> None:
        self.calls += 1
        self.map.unmap(gpa, size)

    def protect(self, gpa: int, size: int, access: Access) -> None:
        self.calls += 1
        self.map.protect(gpa, size, access)


def _read(_offset: int, _size: int) -> int:
    return 0


def _write(_offset: int, _size: int, _value: int) -> None:
    """A device that forgets."""


class Devices:
    """One page that does not move, one that does."""

    def __init__(self) -> None:
        self.pages = {PAGES - 1}

    def device_at(self, page: int) -> tuple[MmioRead8, MmioWrite8] | None:
        return (_read, _write) if page // PAGE_SIZE in self.pages else None

    def device_pages(self) -> tuple[int, ...]:
        return tuple(page * PAGE_SIZE for page in self.pages)


class Follower:
    """An engine map and what it was made for."""

    def __init__(self, memory: GuestMemory, apic: int | None) -> None:
        self.devices = Devices()
        if apic is not None:
            self.devices.pages.add(apic)
        self.apic = apic
        self.engine = Recorder()
        self.map = EngineMap(cast(Engine, self.engine), memory, self.devices)


class MapModel(RuleBasedStateMachine):
    """Two engines follow one memory, one of them perhaps made late."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = GuestMemory(Simulator(), "vm")
        self.oracle = Oracle()
        self.followers = [Follower(self.memory, None)]

    @rule(changes=st.lists(regions(), min_size=1, max_size=3))
    def change_slots(self, changes: list[MemoryRegion]) -> None:
        if self.oracle.apply(changes):
            self.memory.set_regions(changes)

    @rule(where=page_ranges(), access=ACCESSES)
    def change_attributes(self, where: tuple[int, int], access: Access) -> None:
        first, count = where
        self.memory.set_attributes(first * PAGE_SIZE, count * PAGE_SIZE, access)
        self.oracle.attributes.update(dict.fromkeys(range(first, first + count), access))

    @rule(page=st.integers(0, PAGES - 1), number=st.integers(0, 3), access=st.sampled_from([Access.ALL, READ_ONLY]))
    def put_overlay(self, page: int, number: int, access: Access) -> None:
        self.memory.map_overlay(page * PAGE_SIZE, OVERLAYS, number * PAGE_SIZE, access)
        self.oracle.overlays[page] = OVERLAYS, number * PAGE_SIZE, access

    @rule(page=st.integers(0, PAGES - 1))
    def take_overlay(self, page: int) -> None:
        self.memory.unmap_overlay(page * PAGE_SIZE)
        self.oracle.overlays.pop(page, None)

    @precondition(lambda self: len(self.followers) == 1)
    @rule(apic=st.none() | st.integers(0, PAGES - 1))
    def make_another(self, apic: int | None) -> None:
        self.followers.append(Follower(self.memory, apic))
        self.compare(self.followers[1])

    @rule(which=st.integers(0, 1), page=st.none() | st.integers(0, PAGES - 2))
    def move_device(self, which: int, page: int | None) -> None:
        """What a write of IA32_APICBASE does, in step with the log or not."""
        follower = self.followers[which % len(self.followers)]
        before, follower.apic = follower.apic, page
        follower.devices.pages = {PAGES - 1} if page is None else {PAGES - 1, page}
        for changed in (before, page):
            if changed is not None:
                follower.map.refresh(changed * PAGE_SIZE, PAGE_SIZE)

    @rule(which=st.integers(0, 1), page=st.integers(0, PAGES - 1))
    def touch(self, which: int, page: int) -> None:
        """The guest touches a page that its engine does not map."""
        follower = self.followers[which % len(self.followers)]
        follower.map.sync()
        if follower.engine.map.find(page * PAGE_SIZE) is None:
            assert follower.map.map_io(page * PAGE_SIZE + 0x30)
            found = follower.engine.map.find(page * PAGE_SIZE)
            assert found is not None
            assert found.kind is (Kind.DEVICE if page in follower.devices.pages else Kind.EXIT)
        elif page not in follower.devices.pages and self.oracle.page(page) is not None:
            assert not follower.map.map_io(page * PAGE_SIZE)

    @rule(which=st.integers(0, 1))
    def sync(self, which: int) -> None:
        follower = self.followers[which % len(self.followers)]
        follower.map.sync()
        assert not follower.map.behind()
        self.compare(follower)
        calls = follower.engine.calls
        follower.map.sync()
        assert follower.engine.calls == calls, "nothing is done twice"

    def compare(self, follower: Follower) -> None:
        for page in range(PAGES):
            found = follower.engine.map.find(page * PAGE_SIZE)
            expected = self.oracle.permitted(page)
            if page in follower.devices.pages:
                assert found is None or found.kind is Kind.DEVICE
            elif expected is None:
                assert found is None or found.kind is Kind.EXIT
            else:
                assert found is not None
                offset = found.offset + page * PAGE_SIZE - found.gpa
                assert (found.kind, found.block, offset, found.access) == (Kind.RAM, *expected)

    @invariant()
    def nobody_misses_a_change(self) -> None:
        assert len(self.memory.log) < 1000

    def teardown(self) -> None:
        for follower in self.followers:
            follower.map.sync()
            self.compare(follower)
        assert not self.memory.log


TestMapModel = MapModel.TestCase


def ram_at(machine: Machine, page: int) -> bool:
    found = machine.cpu._map.find(page)
    return found is not None and found.kind is Kind.RAM


def test_the_apic_page_of_a_vcpu_follows_its_base() -> None:
    machine = Machine()
    apic = machine.vcpu.apic
    base = APICBASE_ENABLE | APICBASE_BSP
    assert apic.set_base(0x3000 | base, True)
    assert not ram_at(machine, 0x3000)
    assert machine.vcpu.map.map_io(0x3080)
    assert apic.set_base(0x5000 | base, True)
    assert ram_at(machine, 0x3000)
    assert not ram_at(machine, 0x5000)
    assert apic.set_base(0x5000 | base | X2APIC_ENABLE, True)
    assert ram_at(machine, 0x5000)


def test_memory_under_the_apic_page_may_come_and_go() -> None:
    machine = Machine()
    machine.vcpu.apic.set_base(0x3000 | APICBASE_ENABLE, True)
    machine.vm.set_user_memory_region(MemoryRegion(0, 0, 0))
    machine.vcpu.map.sync()
    assert machine.cpu._map.find(0) is None
    machine.vcpu.apic.set_base(APICBASE_ENABLE, True)
    machine.vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, machine.ram))
    machine.vcpu.map.sync()
    assert ram_at(machine, 0x3000)
    assert not ram_at(machine, 0)


def test_a_vcpu_made_late_sees_pages_that_lie_over_nothing() -> None:
    machine = Machine()
    machine.vm.memory.map_overlay(0x7000_0000, BLOCKS[0])
    late = engine_of(machine.vm.create_vcpu(1))
    found = late._map.find(0x7000_0000)
    assert found is not None
    assert found.block is BLOCKS[0]
