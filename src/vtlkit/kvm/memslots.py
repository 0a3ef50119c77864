"""Memory slots: which ranges of guest-physical memory user space backs with what (KVM_SET_USER_MEMORY_REGION).

Mirrors the memslot code of virt/kvm/kvm_main.c. Slots of one VM never overlap. A set is immutable: a change makes a new
one, so that a reader sees all of a transaction or none of it.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vtlkit.engine.api import PAGE_SIZE, RamBlock
from vtlkit.kvm.errors import KvmError

KVM_MEM_READONLY = 1 << 1
_FLAGS = KVM_MEM_READONLY
MAX_SLOTS = 32764
MAXPHYADDR = 40
"""Physical address bits of the processors that engines offer."""
MAX_GPA = 1 << MAXPHYADDR
"""No processor addresses more (`kvm_mmu_max_gfn`)."""


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """`struct kvm_userspace_memory_region`: `size` 0 deletes it. `block` and `offset` stand for userspace_addr."""

    slot: int
    gpa: int
    size: int
    block: RamBlock | None = None
    offset: int = 0
    flags: int = 0

    @property
    def end(self) -> int:
        return self.gpa + self.size

    @property
    def readonly(self) -> bool:
        return bool(self.flags & KVM_MEM_READONLY)


class Memslots:
    """An immutable set of slots, found by number and by address."""

    __slots__ = ("_by_id", "_ordered", "_starts", "generation")

    def __init__(self, regions: Iterable[MemoryRegion] = (), generation: int = 0) -> None:
        self._ordered = tuple(sorted(regions, key=lambda region: region.gpa))
        self._starts = [region.gpa for region in self._ordered]
        self._by_id = {region.slot: region for region in self._ordered}
        self.generation = generation

    def __iter__(self) -> Iterator[MemoryRegion]:
        return iter(self._ordered)

    def __len__(self) -> int:
        return len(self._ordered)

    def by_id(self, slot: int) -> MemoryRegion | None:
        return self._by_id.get(slot)

    def at(self, gpa: int) -> MemoryRegion | None:
        """The slot that holds `gpa`."""
        index = bisect_right(self._starts, gpa) - 1
        if index < 0:
            return None
        region = self._ordered[index]
        return region if gpa < region.end else None

    def within(self, gpa: int, end: int) -> Iterator[MemoryRegion]:
        """Slots that overlap [gpa, end), in order."""
        index = max(bisect_right(self._starts, gpa) - 1, 0)
        while index < len(self._ordered) and self._ordered[index].gpa < end:
            if self._ordered[index].end > gpa:
                yield self._ordered[index]
            index += 1

    def changed(self, changes: Iterable[MemoryRegion]) -> tuple[Memslots, list[tuple[int, int]]]:
        """The set after all `changes` at once, and the ranges (gpa, size) whose backing they touch.

        Raises:
            KvmError: EINVAL for a malformed region or one that does not exist, EEXIST for an overlap. Nothing changed.
        """
        slots = dict(self._by_id)
        touched: list[tuple[int, int]] = []
        for region in changes:
            _check(region)
            old = slots.pop(region.slot, None)
            if not region.size:
                if old is None:
                    raise KvmError(errno.EINVAL, f"slot {region.slot} does not exist: nothing to delete")
            else:
                slots[region.slot] = region
                touched.append((region.gpa, region.size))
            if old is not None:
                touched.append((old.gpa, old.size))
        result = Memslots(slots.values(), self.generation + 1)
        previous: MemoryRegion | None = None
        for region in result:
            if previous is not None and previous.end > region.gpa:
                raise KvmError(
                    errno.EEXIST,
                    f"slot {region.slot} at {region.gpa:#x} overlaps slot {previous.slot}, "
                    f"which ends at {previous.end:#x}",
                )
            previous = region
        return result, touched


def _check(region: MemoryRegion) -> None:
    what = f"slot {region.slot}"
    if not 0 <= region.slot < MAX_SLOTS:
        raise KvmError(errno.EINVAL, f"slot number {region.slot} is not below {MAX_SLOTS}")
    if region.gpa % PAGE_SIZE or region.size % PAGE_SIZE or region.size < 0 or region.gpa < 0:
        raise KvmError(errno.EINVAL, f"{what}: {region.gpa:#x}+{region.size:#x} is not made of whole pages")
    if region.end > MAX_GPA:
        raise KvmError(errno.EINVAL, f"{what}: {region.gpa:#x}+{region.size:#x} is above {MAX_GPA:#x}")
    if region.flags & ~_FLAGS:
        raise KvmError(errno.EINVAL, f"{what}: unknown flags {region.flags & ~_FLAGS:#x}")
    if region.size:
        if region.block is None:
            raise KvmError(errno.EINVAL, f"{what}: no host memory given")
        if region.offset % PAGE_SIZE or not 0 <= region.offset <= region.block.size - region.size:
            raise KvmError(errno.EINVAL, f"{what}: host memory {region.offset:#x}+{region.size:#x} is out of its block")
