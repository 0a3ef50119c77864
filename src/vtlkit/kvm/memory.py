"""The guest-physical address space of one VM: slots, overlay pages over them, and attributes over both.

Counterpart: the memslot readers of virt/kvm/kvm_main.c (`kvm_read_guest` and friends). Overlay pages are the TLFS's: a
page that hides what lies under it until it is taken away (TLFS, "GPA Overlay Pages").

The hypervisor reads and writes here on a guest's behalf with no regard to attributes unless asked: those guard guest
accesses, and a parameter that a guest names is checked with `check`.

Changes are made under the SLOTS lock and logged; each vCPU brings its engine up to date by the log before it enters the
guest (`mmu`). Slots, overlays and attributes are one immutable value in one cell: a reader, which takes no lock, sees a
whole transaction or none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from vtlkit.engine.api import PAGE_SIZE, Access, RamBlock
from vtlkit.host.api import Cell, Host, LockRank
from vtlkit.kvm.address_space import AddressSpace, AttributeChange, Change, Overlay, SlotChange, merged
from vtlkit.kvm.attributes import MemoryAttributes
from vtlkit.kvm.errors import GuestMemoryError
from vtlkit.kvm.memslots import MAX_GPA, MemoryRegion, Memslots

if TYPE_CHECKING:
    from vtlkit.trace.tracer import VmTrace

_PAGE_MASK = PAGE_SIZE - 1
_READ_ONLY = Access.READ | Access.EXECUTE


LOG_MAX: Final = 1024
"""Changes kept for a follower that does not come: one that is further behind maps everything anew."""
_EVERYTHING: Final = Change(0, MAX_GPA, True)


class Follower(Protocol):
    """Somebody who applies the log of changes."""

    @property
    def position(self) -> int: ...

    def restart_log(self, dropped: int) -> None: ...


class GuestMemory:
    """Slots, overlays and attributes of one VM."""

    def __init__(self, host: Host, name: str) -> None:
        self.lock = host.lock(f"{name}-slots", LockRank.SLOTS)
        self._space = host.cell(AddressSpace(Memslots(), {}, MemoryAttributes()), f"{name}-address-space")
        self.log: list[Change] = []
        """Changes that some follower has not applied, oldest first."""
        self.version = host.cell(0, f"{name}-version")
        """How many changes there have been; who looks without the lock looks here. Written under it."""
        self._host, self._name = host, name
        self.on_change: Callable[[], None] = lambda: None
        """Told after each change, with no lock held: requests MEMORY_CHANGED of every vCPU."""
        self.on_write: Callable[[int, int], None] = lambda _gpa, _size: None
        """Told of each write from the host's side: translated code may lie there."""

        self.trace: VmTrace | None = None
        self._followers: list[Follower] = []

    def follow(self, follower: Follower) -> int:
        """Keep the log for `follower` too; returns the position of one that knows everything up to now. The caller
        holds the lock if others may be changing memory."""
        self._followers.append(follower)
        return len(self.log)

    def marker(self) -> Cell[int]:
        """Where a follower says which version it is up to: this one, so far. The caller holds the lock."""
        return self._host.cell(self.version.load(), f"{self._name}-map-version")

    def unfollow(self, follower: Follower) -> None:
        # Others may be going through the followers to cut the log: one that they skip would miss changes.
        with self.lock:
            self._followers.remove(follower)

    def trim(self) -> None:
        """Drop what every follower has applied. The caller holds the lock."""
        done = min((follower.position for follower in self._followers), default=len(self.log))
        if done:
            # In this order: one who looks at its position without the lock may look behind, never up to date.
            for follower in self._followers:
                follower.restart_log(done)
            del self.log[:done]

    def _publish(self, space: AddressSpace, changes: list[Change]) -> None:
        """Make a new state visible and log what changed. The caller holds the lock."""
        if len(self.log) > LOG_MAX:
            self._forget_log()
        # In this order: who has judged by the new state finds its map behind (`memory_faults`).
        self.log.extend(changes)
        self.version.store(self.version.load() + len(changes))
        self._space.store_release(space)
        if self.trace is not None:
            self.trace.memory_change((change.gpa, change.size, change.backing) for change in changes)

    def _forget_log(self) -> None:
        """A follower (a processor that never runs, say) has fallen too far behind to be led there step by step."""
        last = len(self.log)
        behind = [follower for follower in self._followers if follower.position < last]
        # In this order: one who looks at its position without the lock may look behind, never up to date.
        for follower in behind:
            follower.restart_log(follower.position)
        self.log[:] = [_EVERYTHING]
        for follower in self._followers:
            if follower not in behind:
                follower.restart_log(last - 1)

    @property
    def space(self) -> AddressSpace:
        """The present state of all three layers."""
        return self._space.load_acquire()

    @property
    def slots(self) -> Memslots:
        return self._space.load_acquire().slots

    @property
    def attributes(self) -> MemoryAttributes:
        return self._space.load_acquire().attributes

    # --- changes --------------------------------------------------------------------------------------------------

    def set_regions(self, regions: Iterable[MemoryRegion]) -> None:
        """Change several slots in one step.

        Raises:
            KvmError: as `Memslots.changed`; nothing changed.
        """
        self.change([SlotChange(tuple(regions))])

    def set_attributes(self, gpa: int, size: int, access: Access) -> None:
        """Permit guests `access` to whole pages, and nothing else.

        Raises:
            KvmError: EINVAL if the range is not made of whole pages or too high, or if `access` lacks READ alone.
        """
        self.change([AttributeChange(gpa, size, access)])

    def change(self, steps: Iterable[SlotChange | AttributeChange]) -> None:
        """Do all of these, one after the other, as one step.

        Raises:
            KvmError: as the first that cannot be done; nothing changed.
        """
        with self.lock:
            space = self._space.load()
            touched: list[Change] = []
            for step in steps:
                space, where = step.apply(space)
                touched += where
            self._publish(space, list(merged(touched)))
        self.on_change()

    def map_overlay(self, gpa: int, block: RamBlock, offset: int = 0, access: Access = Access.ALL) -> None:
        """Put a page over `gpa`, in place of an overlay that is there."""
        assert not gpa & _PAGE_MASK
        with self.lock:
            space = self._space.load()
            overlays = {**space.overlays, gpa: Overlay(block, offset, access)}
            self._publish(replace(space, overlays=overlays), [Change(gpa, PAGE_SIZE, True)])
        self.on_change()

    def unmap_overlay(self, gpa: int) -> None:
        """Take the overlay away; what lies under it shows again."""
        with self.lock:
            space = self._space.load()
            if gpa not in space.overlays:
                return
            overlays = {page: overlay for page, overlay in space.overlays.items() if page != gpa}
            self._publish(replace(space, overlays=overlays), [Change(gpa, PAGE_SIZE, True)])
        self.on_change()

    def overlay_at(self, gpa: int) -> Overlay | None:
        return self._space.load_acquire().overlays.get(gpa & ~_PAGE_MASK)

    # --- what lies where ------------------------------------------------------------------------------------------

    def find(self, gpa: int) -> tuple[RamBlock, int, Access, int] | None:
        """(block, offset, access, bytes that follow contiguously) at `gpa`; access is of slot or overlay alone."""
        return _find(self._space.load_acquire(), gpa)

    def pieces(self, gpa: int, size: int) -> list[tuple[int, int, RamBlock, int, Access]]:
        """Backed parts of whole pages [gpa, gpa + size): (gpa, size, block, offset, access), attributes applied."""
        space = self._space.load_acquire()
        found: list[tuple[int, int, RamBlock, int, Access]] = []
        end = gpa + size
        over = sorted(page for page in space.overlays if gpa <= page < end)
        for region in space.slots.within(gpa, end):
            assert region.block is not None
            base = _READ_ONLY if region.readonly else Access.ALL
            low, high = max(region.gpa, gpa), min(region.end, end)
            cuts = [page for page in over if low <= page < high]
            for start, stop in _without(low, high, cuts):
                for first, last, access in space.attributes.runs(start, stop):
                    found.append(
                        (first, last - first, region.block, region.offset + (first - region.gpa), base & access)
                    )
        for page in over:
            overlay = space.overlays[page]
            found.append((page, PAGE_SIZE, overlay.block, overlay.offset, overlay.access & space.attributes.at(page)))
        return found

    def check(self, gpa: int, size: int, access: Access) -> bool:
        """Whether a guest may make this access to all of [gpa, gpa + size)."""
        space = self._space.load_acquire()
        wanted = int(access)
        while size > 0:
            found = _find(space, gpa)
            if found is None or wanted & ~(int(found[2]) & int(space.attributes.at(gpa))):
                return False
            step = min(size, found[3], PAGE_SIZE - (gpa & _PAGE_MASK))
            gpa += step
            size -= step
        return True

    # --- host accesses --------------------------------------------------------------------------------------------

    def read(self, gpa: int, size: int) -> bytes:
        """`size` bytes from `gpa` (`kvm_read_guest`).

        Raises:
            GuestMemoryError: part of the range has no memory.
        """
        parts: list[bytes | memoryview] = []
        space = self._space.load_acquire()
        while True:
            found = _find(space, gpa)
            if found is None:
                raise GuestMemoryError(gpa, size, write=False)
            block, offset, _, left = found
            if size <= left:
                part = bytes(block.view[offset : offset + size])
                return part if not parts else b"".join((*parts, part))
            parts.append(block.view[offset : offset + left])
            gpa += left
            size -= left

    def write(self, gpa: int, data: bytes) -> None:
        """Write `data` at `gpa` (`kvm_write_guest`).

        Raises:
            GuestMemoryError: part of the range has no writable memory; what lies before it has been written.
        """
        written, size = 0, len(data)
        space = self._space.load_acquire()
        while True:
            found = _find(space, gpa)
            if found is None or not found[2] & Access.WRITE:
                raise GuestMemoryError(gpa, size - written, write=True)
            block, offset, _, left = found
            left = min(left, size - written)
            block.view[offset : offset + left] = data[written : written + left]
            self.on_write(gpa, left)
            written += left
            if written == size:
                return
            gpa += left

    # --- accesses by the rights of a guest -------------------------------------------------------------------------

    def read_for_guest(self, gpa: int, size: int) -> bytes:
        """As `read`, of what a guest may read at some moment of the call: what was forbidden before it is not read.

        Raises:
            GuestMemoryError: part of the range is not there, or forbidden.
        """
        while True:
            space = self.space
            if not self.check(gpa, size, Access.READ):
                raise GuestMemoryError(gpa, size, write=False)
            data = self.read(gpa, size)
            if self._space.load_acquire() is space:
                return data
            # Something changed meanwhile: what was read may be somebody else's by now.

    def write_for_guest(self, gpa: int, data: bytes) -> None:
        """As `write`, where a guest may write: when `set_attributes` has returned, nothing of an access that it forbids
        is still to come. The range lies in one page.

        Raises:
            GuestMemoryError: it is not there, or forbidden; nothing has been written.
        """
        size = len(data)
        assert (gpa & _PAGE_MASK) + size <= PAGE_SIZE
        with self.lock:
            block, offset = self._writable(gpa, size)
            block.view[offset : offset + size] = data
        self.on_write(gpa, size)

    def _writable(self, gpa: int, size: int) -> tuple[RamBlock, int]:
        """Where a guest's write to a range in one page goes, now. The caller holds the lock."""
        found = self.find(gpa) if self.check(gpa, size, Access.WRITE) else None
        if found is None:
            raise GuestMemoryError(gpa, size, write=True)
        block, offset, _, _ = found
        return block, offset

    def compare_exchange(self, gpa: int, size: int, old: int, new: int) -> bool:
        """Replace a naturally aligned number of 4 or 8 bytes if it is `old` still (`cmpxchg_gpte`); whether it was.

        Rights count as in `write_for_guest`.

        Raises:
            GuestMemoryError: there is no memory that a guest may write.
        """
        with self.lock:
            block, offset = self._writable(gpa, size)
            word, index = block.words(size), offset // size
            # One step for the hypervisor's tasks, and for guest code on a deterministic host. Guest code that another
            # thread executes may come between: nothing here can lock the bus (docs/LIMITS.md).
            if word[index] != old:
                return False
            word[index] = new
        self.on_write(gpa, size)
        return True


def _find(space: AddressSpace, gpa: int) -> tuple[RamBlock, int, Access, int] | None:
    overlay = space.overlays.get(gpa & ~_PAGE_MASK) if space.overlays else None
    if overlay is not None:
        inside = gpa & _PAGE_MASK
        return overlay.block, overlay.offset + inside, overlay.access, PAGE_SIZE - inside
    region = space.slots.at(gpa)
    if region is None:
        return None
    assert region.block is not None
    left = region.end - gpa
    if space.overlays:
        left = min(left, PAGE_SIZE - (gpa & _PAGE_MASK))
    return region.block, region.offset + (gpa - region.gpa), _READ_ONLY if region.readonly else Access.ALL, left


def _without(low: int, high: int, pages: list[int]) -> Iterable[tuple[int, int]]:
    """[low, high) less whole pages."""
    for page in pages:
        if page > low:
            yield low, page
        low = page + PAGE_SIZE
    if low < high:
        yield low, high
