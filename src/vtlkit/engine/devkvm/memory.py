"""The guest-physical map of one engine in its kernel VM: memslots over address space of this process that is ours.

A memslot is a window: address space reserved for one engine, in which the pages of RAM blocks are mapped a second time
wherever the guest is to see them. What a page permits is the protection of the window's page, so a change of memory
attributes or of an overlay page is an mprotect or an mremap, and no memslot changes: the kernel hears of it by its MMU
notifier, before the call returns. An access that the protection forbids makes KVM_RUN fail with EFAULT at the
instruction's start, without effect.

Only where loads and stores are to reach a device is there no slot: the kernel then emulates the instruction
(KVM_EXIT_MMIO). Windows are cut there, a page at a time, and only then do memslots change. RAM that may be read but not
executed is such a place too, as page tables of KVM cannot express it from user space: the engine makes those accesses
itself.

Belongs to the vCPU's task.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from vtlkit.engine.api import PAGE_SIZE, Access
from vtlkit.engine.devkvm import abi, syscalls
from vtlkit.engine.memory_map import Kind, MemoryMap, Range

_SCRATCH_GPA: Final = (1 << 36) - 2 * PAGE_SIZE
"""Where a slot comes and goes: at the end of what every processor can address, and not where windows are."""
_RW: Final = Access.READ | Access.WRITE


class Window:
    """[gpa, end), seen at `address` in this process."""

    __slots__ = ("address", "end", "gpa", "slot")

    def __init__(self, gpa: int, end: int, address: int, slot: int) -> None:
        self.gpa = gpa
        self.end = end
        self.address = address
        self.slot = slot


class GuestPhysicalMap(MemoryMap):
    """Applies every change to the kernel VM and remembers it."""

    def __init__(self, vm: int, slots_max: int, *, emulates_no_execute: bool) -> None:
        super().__init__()
        self._emulates_no_execute = emulates_no_execute
        self._vm = vm
        self._slots_max = slots_max
        self._edges: list[int] = []
        self._windows: list[Window] = []
        self._free: list[int] = []
        self._next_slot = 0
        self._reserved: list[tuple[int, int]] = []
        self.refused: int | None = None
        """Where there was to be memory that may not be executed, if nobody wants that emulated."""
        self._scratch = 0
        self.slot_changes = 0
        """How often the kernel has been given or taken a slot."""

    # --- the map follows --------------------------------------------------------------------------------------------

    def _appear(self, item: Range) -> None:
        if item.kind is not Kind.RAM or not _expressible(item.access):
            if item.kind is Kind.RAM:
                self._emulate(item)
            else:
                self._cut_out(item.gpa, item.end)
            return
        self._cover(item.gpa, item.end)
        self._show(item)

    def _vanish(self, item: Range) -> None:
        for address, _, size in self._seen(item.gpa, item.end):
            syscalls.hide(address, size)

    def _permit(self, item: Range, was: Access) -> None:
        if not _expressible(item.access):
            self._emulate(item)
        elif not _expressible(was):
            self._appear(item)
        else:
            protection = _protection(item.access)
            for address, _, size in self._seen(item.gpa, item.end):
                syscalls.protect(address, size, protection)

    def _emulate(self, item: Range) -> None:
        """Have every access come as one of a device."""
        if not self._emulates_no_execute:
            self.refused = item.gpa
        self._cut_out(item.gpa, item.end)

    def _show(self, item: Range) -> None:
        assert item.block is not None
        protection = _protection(item.access)
        for address, gpa, size in self._seen(item.gpa, item.end):
            syscalls.alias(item.block.address + item.offset + (gpa - item.gpa), size, address)
            if protection != syscalls.PROT_READ | syscalls.PROT_WRITE:
                syscalls.protect(address, size, protection)

    def drop_translations(self) -> None:
        """Have a kernel that shadows the guest's page tables forget its shadows: it does when a slot goes."""
        if not self._scratch:
            self._scratch = syscalls.reserve(PAGE_SIZE)
            self._reserved.append((self._scratch, PAGE_SIZE))
        for size in (PAGE_SIZE, 0):
            self._set_slot(self._slots_max - 1, _SCRATCH_GPA, size, self._scratch)

    def hold_back(self, gpa: int, size: int) -> None:
        """Let nothing be written to a range until `let_go`: not even by the kernel on the guest's behalf."""
        for address, _, length in self._seen(gpa & ~0xFFF, (gpa + size + 0xFFF) & ~0xFFF):
            syscalls.protect(address, length, syscalls.PROT_NONE)

    def let_go(self, gpa: int, size: int) -> None:
        """The end of `hold_back`."""
        for page in range(gpa & ~0xFFF, gpa + size, 0x1000):
            item = self.find(page)
            if item is not None and item.kind is Kind.RAM and _expressible(item.access):
                for address, _, length in self._seen(page, page + 0x1000):
                    syscalls.protect(address, length, _protection(item.access))

    # --- windows ----------------------------------------------------------------------------------------------------

    def _seen(self, gpa: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Pieces of [gpa, end) that windows show: (address, gpa, size)."""
        index = max(bisect_right(self._edges, gpa) - 1, 0)
        while index < len(self._windows) and (window := self._windows[index]).gpa < end:
            low, high = max(gpa, window.gpa), min(end, window.end)
            if low < high:
                yield window.address + (low - window.gpa), low, high - low
            index += 1

    def _cover(self, gpa: int, end: int) -> None:
        """Have windows all over [gpa, end)."""
        at = gpa
        for _, low, size in list(self._seen(gpa, end)):
            if low > at:
                self._open(at, low)
            at = low + size
        if at < end:
            self._open(at, end)

    def _open(self, gpa: int, end: int) -> None:
        address = syscalls.reserve(end - gpa)
        self._reserved.append((address, end - gpa))
        self._insert_window(gpa, end, address)

    def _insert_window(self, gpa: int, end: int, address: int) -> None:
        if self._free:
            slot = self._free.pop()
        else:
            slot, self._next_slot = self._next_slot, self._next_slot + 1
            if slot >= self._slots_max - 1:
                raise OSError(f"this KVM has {self._slots_max} memory slots, and the guest's memory needs more")
        self._set_slot(slot, gpa, end - gpa, address)
        index = bisect_right(self._edges, gpa)
        self._edges.insert(index, gpa)
        self._windows.insert(index, Window(gpa, end, address, slot))

    def _cut_out(self, gpa: int, end: int) -> None:
        """Have no window in [gpa, end)."""
        for _, low, size in list(self._seen(gpa, end)):
            index = bisect_right(self._edges, low) - 1
            window = self._windows.pop(index)
            self._edges.pop(index)
            self._set_slot(window.slot, window.gpa, 0, window.address)
            self._free.append(window.slot)
            syscalls.hide(window.address + (low - window.gpa), size)
            if window.gpa < low:
                self._insert_window(window.gpa, low, window.address)
            if low + size < window.end:
                self._insert_window(low + size, window.end, window.address + (low + size - window.gpa))

    def _set_slot(self, slot: int, gpa: int, size: int, address: int) -> None:
        region = abi.UserspaceMemoryRegion(slot, 0, gpa, size, address)
        syscalls.ioctl(self._vm, abi.SET_USER_MEMORY_REGION, region.pack(), f"memory slot at {gpa:#x}")
        self.slot_changes += 1

    def close(self) -> None:
        """Give the address space back. The kernel VM is gone."""
        self.forget()
        self._windows.clear()
        self._edges.clear()
        for address, size in self._reserved:
            syscalls.unmap(address, size)
        self._reserved.clear()


def _expressible(access: Access) -> bool:
    """Whether a protection of host memory says just this: what may be read may be executed."""
    return not access & _RW or bool(access & Access.EXECUTE)


def _protection(access: Access) -> int:
    if not access & Access.READ:
        return syscalls.PROT_NONE
    return syscalls.PROT_READ | (syscalls.PROT_WRITE if access & Access.WRITE else 0)
