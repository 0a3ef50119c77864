"""What lies where in one VM, as one immutable value, and the changes that make another of it.

`GuestMemory` publishes the values; see there.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vtlkit.engine.api import PAGE_SIZE, Access, RamBlock
from vtlkit.kvm.attributes import MemoryAttributes
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.memslots import MAX_GPA, MemoryRegion, Memslots


@dataclass(frozen=True, slots=True)
class Overlay:
    """One page over the slots."""

    block: RamBlock
    offset: int
    access: Access


@dataclass(frozen=True, slots=True)
class Change:
    """A range whose backing (`backing` True) or permissions changed."""

    gpa: int
    size: int
    backing: bool


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """All three layers at one moment."""

    slots: Memslots
    overlays: Mapping[int, Overlay]
    attributes: MemoryAttributes


@dataclass(frozen=True, slots=True)
class SlotChange:
    """Several slots at once."""

    regions: tuple[MemoryRegion, ...]

    def apply(self, space: AddressSpace) -> tuple[AddressSpace, list[Change]]:
        """What it makes of `space`, and where that differs. Raises as `Memslots.changed`."""
        slots, touched = space.slots.changed(self.regions)
        return replace(space, slots=slots), [Change(gpa, size, True) for gpa, size in touched]


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """What guests may do to whole pages."""

    gpa: int
    size: int
    access: Access

    def apply(self, space: AddressSpace) -> tuple[AddressSpace, list[Change]]:
        """As `SlotChange.apply`. Raises as `GuestMemory.set_attributes`."""
        gpa, size, access = self.gpa, self.size, self.access
        if gpa % PAGE_SIZE or size % PAGE_SIZE or size <= 0 or gpa < 0:
            raise KvmError(errno.EINVAL, f"attribute range {gpa:#x}+{size:#x} is not made of whole pages")
        if gpa + size > MAX_GPA:
            raise KvmError(errno.EINVAL, f"attribute range {gpa:#x}+{size:#x} ends beyond {MAX_GPA:#x}")
        if access and not access & Access.READ:
            raise KvmError(errno.EINVAL, f"{access!r}: a page that permits something must permit reads")
        return replace(space, attributes=space.attributes.changed(gpa, size, access)), [Change(gpa, size, False)]


def merged(changes: list[Change]) -> Iterable[Change]:
    """The same pages, each range of new backing once: a slot that goes and those that take its place share theirs."""
    start = end = 0
    for change in sorted((change for change in changes if change.backing), key=lambda change: change.gpa):
        if change.gpa > end:
            if end > start:
                yield Change(start, end - start, True)
            start = change.gpa
        end = max(end, change.gpa + change.size)
    if end > start:
        yield Change(start, end - start, True)
    yield from (change for change in changes if not change.backing)
