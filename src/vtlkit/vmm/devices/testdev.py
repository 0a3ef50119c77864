"""The test devices of kvm-unit-tests (QEMU's hw/misc/pc-testdev.c); the one for Hyper-V is `hyperv_testdev`.

Four independent parts, each registered where kvm-unit-tests looks for it:
* ports 0x2000 + n, n in 0..23: a write sets ISA interrupt line n to (value != 0);
* ports 0xE0..0xE3: four bytes that read back what was written, at any size and offset;
* ports 0xE4..0xE7: a 32-bit guest-physical address whose page the VMM unmaps and maps again, so that whatever caches a
  translation of it (shadow pages, the embedded CPU's TLB) must take it anew. Contents do not change;
* MMIO 0xFF000000, 64 KiB: memory that the hypervisor sees as MMIO.
Called under the bus's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vtlkit.vmm.devices.bus import ALL_ONES

IRQ_LINE_PORT: Final = 0x2000
IRQ_LINE_COUNT: Final = 24
SCRATCH_PORT: Final = 0xE0
SCRATCH_PORTS: Final = 4
FLUSH_PAGE_PORT: Final = 0xE4
FLUSH_PAGE_PORTS: Final = 4
MMIO_BASE: Final = 0xFF000000
MMIO_SIZE: Final = 0x10000
_PAGE_MASK: Final = 0xFFFFF000


class TestIrqLines:
    """The 24 lines. `set_gsi(n, level)` is the ISA line n as the machine routes it."""

    __test__ = False
    __slots__ = ("_set_gsi",)

    def __init__(self, set_gsi: Callable[[int, int], None]) -> None:
        self._set_gsi = set_gsi

    def read(self, port: int, size: int) -> int:
        return 0

    def write(self, port: int, size: int, value: int) -> None:
        self._set_gsi(port - IRQ_LINE_PORT, 1 if value else 0)


class ScratchPorts:
    """Bytes that read back. An access past the last one sees a floating bus there."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray(SCRATCH_PORTS)

    def read(self, port: int, size: int) -> int:
        offset = port - SCRATCH_PORT
        data = bytes(self._data[offset : offset + size])
        return int.from_bytes(data.ljust(size, b"\xff"), "little")

    def write(self, port: int, size: int, value: int) -> None:
        offset = port - SCRATCH_PORT
        room = min(size, SCRATCH_PORTS - offset)
        self._data[offset : offset + room] = value.to_bytes(size, "little")[:room]


class FlushPagePort:
    """`flush_page(gpa)` gets the page-aligned address; the machine refuses what is not RAM by doing nothing."""

    __slots__ = ("_flush_page",)

    def __init__(self, flush_page: Callable[[int], None]) -> None:
        self._flush_page = flush_page

    def read(self, port: int, size: int) -> int:
        return 0

    def write(self, port: int, size: int, value: int) -> None:
        self._flush_page(value & _PAGE_MASK)


class ScratchMmio:
    """Memory behind MMIO exits. An access past the end reads ones and is cut off when writing."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray(MMIO_SIZE)

    def read(self, offset: int, size: int) -> int:
        if offset + size > MMIO_SIZE:
            return ALL_ONES[size]
        return int.from_bytes(self._data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        room = min(size, MMIO_SIZE - offset)
        self._data[offset : offset + room] = value.to_bytes(size, "little")[:room]
