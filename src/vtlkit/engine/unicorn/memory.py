"""The guest-physical map of one instance: the common map, and Unicorn's own following it.

Unicorn's forgets what a hypervisor needs: a page that permits no reads is not mapped there at all (its page walker
would read through mere protection), yet it is still RAM, and an access to it is a violation and not a hole.

Belongs to the vCPU's task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vtlkit.engine.api import Access
from vtlkit.engine.memory_map import Kind, MemoryMap, Range
from vtlkit.engine.unicorn import binding
from vtlkit.engine.unicorn.binding import Library, MmioReadCallback, MmioWriteCallback
from vtlkit.engine.unicorn.state import CpuState

CHUNK: Final = 2 << 20
_CHUNKS_MAX: Final = 128

MmioReadHook = Callable[[int, int, int, int], int]
"""(instance, offset, size in bytes, user data) -> value"""
MmioWriteHook = Callable[[int, int, int, int, int], None]
"""(instance, offset, size in bytes, value, user data)"""

__all__ = ["GuestPhysicalMap", "Kind", "Range"]


class GuestPhysicalMap(MemoryMap):
    """Applies every change to the Unicorn instance and remembers it."""

    def __init__(self, lib: Library, handle: int, state: CpuState) -> None:
        super().__init__()
        self._state = state
        self._lib = lib
        self._handle = handle
        self.hides = False
        """Whether RAM has ever been hidden from the instance because it permits no reads."""

    def map_hooks(self, gpa: int, size: int, kind: Kind, read: MmioReadHook, write: MmioWriteHook) -> None:
        """Loads and stores call back straight from C, with the offset into the range."""
        self.insert(gpa, size, kind, (MmioReadCallback(read), MmioWriteCallback(write)))

    def _appear(self, item: Range) -> None:
        if item.kind is Kind.RAM:
            self._show(item)
            return
        read_callback, write_callback = item.callbacks
        self._lib.check(
            self._lib.mmio_map(self._handle, item.gpa, item.end - item.gpa, read_callback, None, write_callback, None),
            "an I/O range",
        )
        self._lib.widen_io(self._handle, item.gpa)

    def _vanish(self, item: Range) -> None:
        if item.visible:
            self._changing(self._lib.mem_unmap, item.gpa, item.end - item.gpa)
            item.visible = False

    def _permit(self, item: Range, was: Access) -> None:
        if not item.visible:
            self._show(item)
        elif item.access & Access.READ:
            self._note_writer(item)
            self._changing(self._lib.mem_protect, item.gpa, item.end - item.gpa, int(item.access))
        else:
            self.hides = True
            self._vanish(item)

    @staticmethod
    def _note_writer(item: Range) -> None:
        assert item.block is not None
        if item.access & Access.WRITE:
            item.block.guest_writable = True

    def _show(self, item: Range) -> None:
        assert item.block is not None
        self._note_writer(item)
        item.visible = bool(item.access & Access.READ)
        if not item.visible:
            self.hides = True
            return
        # Unicorn undoes a whole mapping page by page to change one page of it: small mappings keep changes cheap.
        size = item.end - item.gpa
        step = max(CHUNK, -(-size // (_CHUNKS_MAX * CHUNK)) * CHUNK)
        gpa = item.gpa
        while gpa < item.end:
            end = min(item.end, gpa - gpa % step + step)
            address = item.block.address + item.offset + (gpa - item.gpa)
            self._lib.check(
                self._lib.mem_map_ptr(self._handle, gpa, end - gpa, int(item.access), address), "a RAM range"
            )
            gpa = end

    def _changing(self, change: Callable[..., int], gpa: int, *arguments: int) -> None:
        """Undo or change a mapping, and what Unicorn leaves wrong by taking the address for a linear one.

        It looks the address up in the guest's page tables (and may leave a page fault's traces in CR2 and the error
        code), and drops cached translations of that linear page only.
        """
        state = self._state
        cr2, error_code = state.cr[2], state.error_code
        self._lib.check(change(self._handle, gpa, *arguments), "a change of the memory map")
        state.cr[2], state.error_code = cr2, error_code
        self._lib.check(self._lib.ctl(self._handle, binding.CTL_TLB_FLUSH, 0, 0), "a TLB flush")


assert (int(Access.READ), int(Access.WRITE), int(Access.EXECUTE)) == (
    binding.UC_PROT_READ,
    binding.UC_PROT_WRITE,
    binding.UC_PROT_EXEC,
)
