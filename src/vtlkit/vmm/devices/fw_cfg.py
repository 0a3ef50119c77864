"""QEMU's firmware configuration device (QEMU's docs/specs/fw_cfg.rst): named blobs for the guest, by port or by DMA.

Promise: numbers in items are little-endian, the file directory and the DMA descriptor big-endian, as specified. Reading
past an item's end, or an item that is not there, gives zeroes. Nothing is writable by the guest: a DMA write ends with
the error bit. A DMA address that is not RAM ends the transfer with the error bit, or silently if the descriptor itself
cannot be reached. Called under the bus's lock.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable
from typing import Final

FW_CFG_PORT: Final = 0x510
FW_CFG_PORTS: Final = 12
_SELECTOR_PORT: Final = FW_CFG_PORT
_DATA_PORT: Final = FW_CFG_PORT + 1
_DMA_PORT: Final = FW_CFG_PORT + 4
_DMA_LOW_PORT: Final = _DMA_PORT + 4

FILE_NAME_SIZE: Final = 56
FILE_SLOTS: Final = 0x4000 - 0x20

ReadMemory = Callable[[int, int], bytes | None]
"""`read_memory(gpa, size)`: the bytes, or None if any of them is not RAM."""
WriteMemory = Callable[[int, bytes], bool]
"""`write_memory(gpa, data)`: False, with nothing promised about RAM, if any byte is not RAM."""


class Selector(enum.IntEnum):
    """Well-known item keys."""

    SIGNATURE = 0x00
    ID = 0x01
    UUID = 0x02
    RAM_SIZE = 0x03
    NOGRAPHIC = 0x04
    NB_CPUS = 0x05
    MACHINE_ID = 0x06
    KERNEL_ADDR = 0x07
    KERNEL_SIZE = 0x08
    KERNEL_CMDLINE = 0x09
    INITRD_ADDR = 0x0A
    INITRD_SIZE = 0x0B
    BOOT_DEVICE = 0x0C
    NUMA = 0x0D
    BOOT_MENU = 0x0E
    MAX_CPUS = 0x0F
    KERNEL_ENTRY = 0x10
    KERNEL_DATA = 0x11
    INITRD_DATA = 0x12
    CMDLINE_ADDR = 0x13
    CMDLINE_SIZE = 0x14
    CMDLINE_DATA = 0x15
    FILE_DIR = 0x19
    FILE_FIRST = 0x20
    IRQ0_OVERRIDE = 0x8002


class DmaControl(enum.IntFlag):
    """FWCfgDmaAccess.control, bits 15:0; bits 31:16 are the selector for SELECT."""

    ERROR = 0x01
    READ = 0x02
    SKIP = 0x04
    SELECT = 0x08
    WRITE = 0x10


_SIGNATURE: Final = b"QEMU"
_ID_TRADITIONAL_AND_DMA: Final = 3
_DMA_SIGNATURE: Final = 0x51454D5520434647
"""The bytes "QEMU CFG", big-endian."""
_DMA_DESCRIPTOR: Final = struct.Struct(">IIQ")
_DIRECTORY_ENTRY: Final = struct.Struct(f">IHH{FILE_NAME_SIZE}s")
_DMA_CHUNK: Final = 0x10000
_UUID_SIZE: Final = 16
_NO_BOOT_ORDER: Final = b""


class FwCfg:
    """Register at FW_CFG_PORT for FW_CFG_PORTS ports. `ram_size` in bytes; `cpus` <= `max_cpus`."""

    __slots__ = (
        "_data",
        "_dma_high",
        "_files",
        "_items",
        "_next_file",
        "_offset",
        "_read_memory",
        "_selector",
        "_write_memory",
    )

    def __init__(
        self, *, ram_size: int, cpus: int, max_cpus: int, read_memory: ReadMemory, write_memory: WriteMemory
    ) -> None:
        self._read_memory = read_memory
        self._write_memory = write_memory
        self._items: dict[int, bytes] = {}
        self._files: dict[str, int] = {}
        self._next_file = int(Selector.FILE_FIRST)
        self.add_item(Selector.SIGNATURE, _SIGNATURE)
        self.add_item(Selector.ID, _ID_TRADITIONAL_AND_DMA.to_bytes(4, "little"))
        self.add_item(Selector.UUID, bytes(_UUID_SIZE))
        self.add_item(Selector.RAM_SIZE, ram_size.to_bytes(8, "little"))
        self.add_item(Selector.NOGRAPHIC, (1).to_bytes(2, "little"))
        self.add_item(Selector.NB_CPUS, cpus.to_bytes(2, "little"))
        self.add_item(Selector.MAX_CPUS, max_cpus.to_bytes(2, "little"))
        self.add_item(Selector.NUMA, bytes(8))
        self.add_item(Selector.BOOT_MENU, bytes(2))
        self.add_item(Selector.IRQ0_OVERRIDE, b"\x01")
        self._publish_directory()
        self.add_file("bootorder", _NO_BOOT_ORDER)
        self.reset()

    def reset(self) -> None:
        """Machine reset: the selector goes back to the signature; items stay."""
        self._dma_high = 0
        self._select(Selector.SIGNATURE)

    def add_item(self, selector: int, data: bytes) -> None:
        """Set item `selector` (16 bits), replacing what was there."""
        self._items[selector] = bytes(data)

    def add_file(self, name: str, data: bytes) -> int:
        """Add or replace the file `name` (1 to 55 ASCII characters); returns its selector, or raises ValueError."""
        encoded = name.encode("ascii")
        if not 0 < len(encoded) < FILE_NAME_SIZE:
            raise ValueError(f"fw_cfg file name of {len(encoded)} bytes: 1 to {FILE_NAME_SIZE - 1} are allowed")
        selector = self._files.get(name)
        if selector is None:
            if len(self._files) == FILE_SLOTS:
                raise ValueError(f"fw_cfg holds {FILE_SLOTS} files and no more")
            selector = self._next_file
            self._next_file += 1
            self._files[name] = selector
        self.add_item(selector, data)
        self._publish_directory()
        return selector

    def add_kernel(self, address: int, size: int, entry: int) -> None:
        """Where the loader put the kernel: guest-physical addresses below 4 GiB, size in bytes."""
        for selector, value in (
            (Selector.KERNEL_ADDR, address),
            (Selector.KERNEL_SIZE, size),
            (Selector.KERNEL_ENTRY, entry),
        ):
            self.add_item(selector, value.to_bytes(4, "little"))

    def add_initrd(self, address: int, data: bytes) -> None:
        """Where the loader put the initrd, and its bytes."""
        self.add_item(Selector.INITRD_ADDR, address.to_bytes(4, "little"))
        self.add_item(Selector.INITRD_SIZE, len(data).to_bytes(4, "little"))
        self.add_item(Selector.INITRD_DATA, data)

    def add_command_line(self, address: int, text: bytes) -> None:
        """Where the loader put the command line; `text` without its terminator."""
        data = text + b"\0"
        self.add_item(Selector.CMDLINE_ADDR, address.to_bytes(4, "little"))
        self.add_item(Selector.CMDLINE_SIZE, len(data).to_bytes(4, "little"))
        self.add_item(Selector.CMDLINE_DATA, data)

    def add_e820(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        """The file etc/e820 from (base, size, type) triples."""
        self.add_file("etc/e820", b"".join(struct.pack("<QQI", *entry) for entry in ranges))

    def _publish_directory(self) -> None:
        entries = [
            _DIRECTORY_ENTRY.pack(len(self._items[selector]), selector, 0, name.encode("ascii"))
            for name, selector in sorted(self._files.items())
        ]
        self.add_item(Selector.FILE_DIR, len(entries).to_bytes(4, "big") + b"".join(entries))

    def _select(self, selector: int) -> None:
        self._selector = selector
        self._data = self._items.get(selector, b"")
        self._offset = 0

    def _take(self, size: int) -> bytes:
        data = self._data[self._offset : self._offset + size]
        self._offset += size
        return data if len(data) == size else data.ljust(size, b"\0")

    def read(self, port: int, size: int) -> int:
        if port == _DATA_PORT:
            return int.from_bytes(self._take(size), "little")
        if port >= _DMA_PORT:
            # The register is big-endian: the byte at the lowest port is the most significant one.
            data = _DMA_SIGNATURE.to_bytes(8, "big")[port - _DMA_PORT :][:size]
            return int.from_bytes(data.ljust(size, b"\xff"), "little")
        return 0

    def write(self, port: int, size: int, value: int) -> None:
        if port == _SELECTOR_PORT and size == 2:
            self._select(value)
        elif size == 4 and port == _DMA_PORT:
            self._dma_high = int.from_bytes(value.to_bytes(4, "little"), "big")
        elif size == 4 and port == _DMA_LOW_PORT:
            address = self._dma_high << 32 | int.from_bytes(value.to_bytes(4, "little"), "big")
            self._dma_high = 0
            self._transfer(address)
        # The data port ignores writes: no item is writable.

    def _transfer(self, descriptor_gpa: int) -> None:
        descriptor = self._read_memory(descriptor_gpa, _DMA_DESCRIPTOR.size)
        if descriptor is None:
            return
        control, length, address = _DMA_DESCRIPTOR.unpack(descriptor)
        if control & DmaControl.SELECT:
            self._select(control >> 16)
        result = 0
        if control & DmaControl.READ:
            result = 0 if self._dma_read(address, length) else DmaControl.ERROR
        elif control & DmaControl.WRITE:
            result = DmaControl.ERROR
        elif control & DmaControl.SKIP:
            self._offset += length
        self._write_memory(descriptor_gpa, int(result).to_bytes(4, "big"))

    def _dma_read(self, address: int, length: int) -> bool:
        while length:
            size = min(length, _DMA_CHUNK)
            if not self._write_memory(address, self._take(size)):
                return False
            address += size
            length -= size
        return True
