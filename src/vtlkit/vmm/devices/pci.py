"""PCI configuration mechanism #1 with the few functions that a probing guest expects (PCI 3.0; QEMU's pc, Intel 440FX).

Promise: ports 0xCF8 (dword only) and 0xCFC..0xCFF reach a read-only configuration space that holds the host bridge
(8086:1237), the ISA bridge (8086:7000) and the power management function (8086:7113), which names the PM block's base.
Everything else is absent (all ones). Without BARs there is nothing to program, so writes are dropped. Called under the
bus's lock.
"""

from __future__ import annotations

import struct
from typing import Final

from vtlkit.vmm.devices.acpi_pm import PM_BASE, SCI_IRQ
from vtlkit.vmm.devices.bus import ALL_ONES

CONFIG_ADDRESS_PORT: Final = 0xCF8
CONFIG_DATA_PORT: Final = 0xCFC
CONFIG_DATA_PORTS: Final = 4

_ENABLE: Final = 1 << 31
_ADDRESS_BITS: Final = 0x80FFFFFC
_SPACE_SIZE: Final = 256
_HEADER_TYPE_OFFSET: Final = 0x0E
_MULTIFUNCTION: Final = 0x80
_INTERRUPT_OFFSET: Final = 0x3C
_PIIX4_PMBASE: Final = 0x40
_PIIX4_PMREGMISC: Final = 0x80
_IO_SPACE: Final = 1
_COMMAND_IO: Final = 1
_INTEL: Final = 0x8086


def _configuration(device: int, class_code: int, *, command: int = 0, multifunction: bool = False) -> bytearray:
    """A type 0 header: `class_code` is base class, subclass and interface in 24 bits."""
    space = bytearray(_SPACE_SIZE)
    struct.pack_into("<HHHHI", space, 0, _INTEL, device, command, 0, class_code << 8)
    space[_HEADER_TYPE_OFFSET] = _MULTIFUNCTION if multifunction else 0
    return space


def _power_management() -> bytearray:
    space = _configuration(0x7113, 0x068000, command=_COMMAND_IO)
    struct.pack_into("<I", space, _PIIX4_PMBASE, PM_BASE | _IO_SPACE)
    space[_PIIX4_PMREGMISC] = 1
    struct.pack_into("<BB", space, _INTERRUPT_OFFSET, SCI_IRQ, 1)
    return space


class PciHostBridge:
    """Register at CONFIG_ADDRESS_PORT for one port and at CONFIG_DATA_PORT for CONFIG_DATA_PORTS ports.

    0xCF9 belongs to another device, so only the address port's first byte is claimed: a dword there comes whole.
    """

    __slots__ = ("_address", "_functions")

    def __init__(self) -> None:
        self._address = 0
        # Key: bus 15:8, device 7:3, function 2:0. A device with any function must have function 0.
        self._functions: dict[int, bytearray] = {
            0 << 3: _configuration(0x1237, 0x060000),
            1 << 3: _configuration(0x7000, 0x060100, multifunction=True),
            1 << 3 | 3: _power_management(),
        }

    def reset(self) -> None:
        """Machine reset."""
        self._address = 0

    def read(self, port: int, size: int) -> int:
        if port == CONFIG_ADDRESS_PORT:
            return self._address if size == 4 else ALL_ONES[size]
        space = self._functions.get(self._address >> 8 & 0xFFFF)
        if space is None or not self._address & _ENABLE:
            return ALL_ONES[size]
        offset = (self._address & 0xFC) + (port - CONFIG_DATA_PORT)
        return int.from_bytes(space[offset : offset + size], "little")

    def write(self, port: int, size: int, value: int) -> None:
        if port == CONFIG_ADDRESS_PORT and size == 4:
            self._address = value & _ADDRESS_BITS
