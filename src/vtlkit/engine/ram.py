"""Host memory as guest RAM, and what guests may do to memory. Part of the contract: import from `engine.api`.

A block is shared by all engines of a machine without a lock: each write is the writer's own business, as on hardware.
"""

from __future__ import annotations

import ctypes
import enum
import mmap

PAGE_SIZE = 4096


class Access(enum.IntFlag):
    """Kinds of access to guest-physical memory; also what a mapping permits."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXECUTE = 4
    ALL = 7


class RamBlock:
    """Host memory that backs guest RAM: an anonymous shared mapping, zeroed, page aligned, for a machine's engines."""

    __slots__ = ("__weakref__", "address", "guest_writable", "mapping", "size", "view")

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE_SIZE:
            raise ValueError(f"RAM block size {size:#x} is not a positive multiple of {PAGE_SIZE}")
        self.size = size
        self.guest_writable = False
        """Whether a guest has ever been allowed to write here; set by engines that need to know."""
        self.mapping = mmap.mmap(-1, size)
        self.view = memoryview(self.mapping)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))

    def words(self, size: int) -> memoryview:
        """The block as numbers of 4 or 8 bytes, little-endian as the host is."""
        return self.view.cast("Q" if size == 8 else "I")

    def zero(self, offset: int, size: int) -> None:
        """Zero whole pages; where the system can, by giving them back to it."""
        try:
            self.mapping.madvise(mmap.MADV_REMOVE, offset, size)
        except (AttributeError, OSError):
            for at in range(offset, offset + size, PAGE_SIZE):
                self.view[at : at + PAGE_SIZE] = bytes(PAGE_SIZE)
