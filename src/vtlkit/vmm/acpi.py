"""The ACPI tables of the machine (ACPI specification, chapter 5; QEMU's hw/i386/acpi-build.c for its pc machine).

Promise: `build_tables` is a pure function of the APIC IDs and the place; every table's checksum is right and every
pointer leads to the table that it names. The hardware named here is that of `vtlkit.vmm.devices`: the port numbers come
from there. The tables are to be written again on every reset: the guest may change the FACS.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vtlkit.vmm import aml
from vtlkit.vmm.devices.acpi_pm import (
    ACPI_DISABLE,
    ACPI_ENABLE,
    GPE0_PORT,
    GPE0_PORTS,
    PM1_CONTROL_PORT,
    PM1_EVENT_PORT,
    PM_TIMER_PORT,
    SCI_IRQ,
    SLP_TYP_S3,
    SLP_TYP_S5,
    SMI_COMMAND_PORT,
)
from vtlkit.vmm.devices.cmos import CMOS_PORT, CMOS_PORTS, RTC_IRQ, Cmos
from vtlkit.vmm.devices.i8042 import (
    I8042_COMMAND_PORT,
    I8042_DATA_PORT,
    I8042_IRQ,
    RESET_CONTROL_PORT,
    ResetControl,
)
from vtlkit.vmm.devices.uart16550 import COM1_IRQ, COM1_PORT, UART_PORTS

ApicId = int

BIOS_AREA_START: Final = 0xE0000
BIOS_AREA_END: Final = 0x100000
LOCAL_APIC_BASE: Final = 0xFEE00000
IOAPIC_BASE: Final = 0xFEC00000
IOAPIC_ID: Final = 0

_OEM_ID: Final = b"VTLKIT"
_OEM_TABLE_ID: Final = b"VTLKITPC"
_CREATOR_ID: Final = b"VTLK"
_REVISION: Final = 1
_HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_OFFSET: Final = 9

_RSDP: Final = struct.Struct("<8sB6sBIIQB3x")
_RSDP_V1_SIZE: Final = 20
_RSDP_CHECKSUM_OFFSET: Final = 8
_RSDP_EXTENDED_CHECKSUM_OFFSET: Final = 32
_RSDP_REVISION: Final = 2

_FACS: Final = struct.Struct("<4sIIIII40x")
_FACS_WAKING_VECTOR_OFFSET: Final = 12
_FACS_ALIGNMENT: Final = 64
_TABLE_ALIGNMENT: Final = 16

_FADT_REVISION: Final = 3
_FADT_LEGACY: Final = struct.Struct("<IIBBHIBBBBIIIIIIIIBBBBBBBBHHHHBBBBBHBI")
_FADT_WBINVD: Final = 1 << 0
_FADT_PROC_C1: Final = 1 << 2
_FADT_NO_SLEEP_BUTTON: Final = 1 << 5
_FADT_RESET_REGISTER: Final = 1 << 10
_FADT_FLAGS: Final = _FADT_WBINVD | _FADT_PROC_C1 | _FADT_NO_SLEEP_BUTTON | _FADT_RESET_REGISTER
_BOOT_LEGACY_DEVICES: Final = 1 << 0
_BOOT_8042: Final = 1 << 1
_NO_C2: Final = 0xFFF
_NO_C3: Final = 0xFFF
_PM1_EVENT_SIZE: Final = 4
_PM1_CONTROL_SIZE: Final = 2
_PM_TIMER_SIZE: Final = 4
_GAS: Final = struct.Struct("<BBBBQ")
_GAS_SYSTEM_IO: Final = 1
_NO_GAS: Final = bytes(_GAS.size)

_MADT_REVISION: Final = 3
_MADT_PCAT_COMPAT: Final = 1
_MADT_ENABLED: Final = 1
_XAPIC_ID_LIMIT: Final = 255
_ALL_PROCESSORS_XAPIC: Final = 0xFF
_ALL_PROCESSORS: Final = 0xFFFFFFFF
_ACTIVE_HIGH_LEVEL: Final = 0x000D

_DSDT_REVISION: Final = 2
_PROCESSOR_LIMIT: Final = 0x1000
"""Processor devices are named C000 to CFFF."""
_PCI_MEMORY_FIRST: Final = 0xC0000000
_PCI_MEMORY_LAST: Final = 0xFEBFFFFF


@dataclass(frozen=True, slots=True)
class AcpiTables:
    """What to write into guest memory: `blobs` are (guest-physical address, bytes), in ascending order."""

    blobs: tuple[tuple[int, bytes], ...]
    rsdp_gpa: int
    facs_gpa: int


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of `data` and itself 0 modulo 256."""
    return -sum(data) & 0xFF


def waking_vector(facs: bytes) -> int:
    """The real-mode address, as a physical address, where the guest wants to go on after S3; 0 if it gave none."""
    return int.from_bytes(facs[_FACS_WAKING_VECTOR_OFFSET : _FACS_WAKING_VECTOR_OFFSET + 4], "little")


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    size = _HEADER.size + len(body)
    header = _HEADER.pack(signature, size, revision, 0, _OEM_ID, _OEM_TABLE_ID, _REVISION, _CREATOR_ID, _REVISION)
    data = bytearray(header + body)
    data[_CHECKSUM_OFFSET] = checksum(data)
    return bytes(data)


def _io_register(port: int, size: int) -> bytes:
    """A generic address of `size` bytes of I/O space; access width undefined, as ACPI 2.0 has it."""
    return _GAS.pack(_GAS_SYSTEM_IO, 8 * size, 0, 0, port)


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    data = bytearray(_RSDP.pack(b"RSD PTR ", 0, _OEM_ID, _RSDP_REVISION, rsdt, _RSDP.size, xsdt, 0))
    data[_RSDP_CHECKSUM_OFFSET] = checksum(data[:_RSDP_V1_SIZE])
    data[_RSDP_EXTENDED_CHECKSUM_OFFSET] = checksum(data)
    return bytes(data)


def _facs() -> bytes:
    return _FACS.pack(b"FACS", _FACS.size, 0, 0, 0, 0)


def _fadt(facs: int, dsdt: int) -> bytes:
    legacy = _FADT_LEGACY.pack(
        *(facs, dsdt, 0, 0, SCI_IRQ, SMI_COMMAND_PORT, ACPI_ENABLE, ACPI_DISABLE, 0, 0),
        *(PM1_EVENT_PORT, 0, PM1_CONTROL_PORT, 0, 0, PM_TIMER_PORT, GPE0_PORT, 0),
        *(_PM1_EVENT_SIZE, _PM1_CONTROL_SIZE, 0, _PM_TIMER_SIZE, GPE0_PORTS, 0, 0, 0),
        *(_NO_C2, _NO_C3, 0, 0, 0, 0, 0, 0, int(Cmos.CENTURY)),
        *(_BOOT_LEGACY_DEVICES | _BOOT_8042, 0, _FADT_FLAGS),
    )
    reset = _io_register(RESET_CONTROL_PORT, 1)
    reset_value = ResetControl.SYSTEM_RESET | ResetControl.RESET_CPU
    extended = struct.pack("<QQ", facs, dsdt) + b"".join(
        (
            _io_register(PM1_EVENT_PORT, _PM1_EVENT_SIZE),
            _NO_GAS,
            _io_register(PM1_CONTROL_PORT, _PM1_CONTROL_SIZE),
            _NO_GAS,
            _NO_GAS,
            _io_register(PM_TIMER_PORT, _PM_TIMER_SIZE),
            _io_register(GPE0_PORT, GPE0_PORTS),
            _NO_GAS,
        )
    )
    return _table(b"FACP", _FADT_REVISION, legacy + reset + bytes((reset_value, 0, 0, 0)) + extended)


def _madt(cpus: Sequence[ApicId], *, has_8259: bool) -> bytes:
    entries = [struct.pack("<II", LOCAL_APIC_BASE, _MADT_PCAT_COMPAT if has_8259 else 0)]
    x2apic = False
    for uid, apic_id in enumerate(cpus):
        if apic_id < _XAPIC_ID_LIMIT and uid < _XAPIC_ID_LIMIT:
            entries.append(struct.pack("<BBBBI", 0, 8, uid, apic_id, _MADT_ENABLED))
        else:
            x2apic = True
            entries.append(struct.pack("<BBHIII", 9, 16, 0, apic_id, _MADT_ENABLED, uid))
    entries.append(struct.pack("<BBBBII", 1, 12, IOAPIC_ID, 0, IOAPIC_BASE, 0))
    entries.append(struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0))
    entries.append(struct.pack("<BBBBIH", 2, 10, 0, SCI_IRQ, SCI_IRQ, _ACTIVE_HIGH_LEVEL))
    entries.append(struct.pack("<BBBHB", 4, 6, _ALL_PROCESSORS_XAPIC, 0, 1))
    if x2apic:
        entries.append(struct.pack("<BBHIB3x", 10, 12, 0, _ALL_PROCESSORS, 1))
    return _table(b"APIC", _MADT_REVISION, b"".join(entries))


def _isa_devices() -> bytes:
    serial = aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501"))
        + aml.name("_UID", aml.integer(1))
        + aml.name("_CRS", aml.resources(aml.io_ports(COM1_PORT, UART_PORTS), aml.irq(COM1_IRQ))),
    )
    clock = aml.device(
        "RTC",
        aml.name("_HID", aml.eisa_id("PNP0B00"))
        + aml.name("_CRS", aml.resources(aml.io_ports(CMOS_PORT, CMOS_PORTS), aml.irq(RTC_IRQ))),
    )
    keyboard_ports = aml.io_ports(I8042_DATA_PORT, 1) + aml.io_ports(I8042_COMMAND_PORT, 1)
    keyboard = aml.device(
        "KBD",
        aml.name("_HID", aml.eisa_id("PNP0303")) + aml.name("_CRS", aml.resources(keyboard_ports, aml.irq(I8042_IRQ))),
    )
    return serial + clock + keyboard


def _dsdt(cpus: Sequence[ApicId]) -> bytes:
    root_bus = aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03"))
        + aml.name("_UID", aml.integer(0))
        + aml.name(
            "_CRS",
            aml.resources(
                aml.bus_numbers(0, 0xFF),
                aml.io_ports(0xCF8, 8),
                aml.io_window(0x0000, 0x0CF7),
                aml.io_window(0x0D00, 0xFFFF),
                aml.memory_window(_PCI_MEMORY_FIRST, _PCI_MEMORY_LAST),
            ),
        )
        + aml.device("ISA", aml.name("_ADR", aml.integer(0x00010000)) + _isa_devices()),
    )
    processors = b"".join(
        aml.device(f"C{uid:03X}", aml.name("_HID", aml.string("ACPI0007")) + aml.name("_UID", aml.integer(uid)))
        for uid in range(len(cpus))
    )
    sleep_states = b"".join(
        aml.name(f"\\_{state}", aml.package(*(aml.integer(field) for field in (slp_typ, slp_typ, 0, 0))))
        for state, slp_typ in (("S3", SLP_TYP_S3), ("S5", SLP_TYP_S5))
    )
    return _table(b"DSDT", _DSDT_REVISION, sleep_states + aml.scope("\\_SB", root_bus + processors))


class _Layout:
    """Puts tables one after the other."""

    def __init__(self, base: int) -> None:
        self.next = base
        self.blobs: list[tuple[int, bytes]] = []

    def place(self, data: bytes, alignment: int = _TABLE_ALIGNMENT) -> int:
        gpa = -(-self.next // alignment) * alignment
        self.blobs.append((gpa, data))
        self.next = gpa + len(data)
        return gpa


def build_tables(cpus: Sequence[ApicId], *, base: int = BIOS_AREA_START, has_8259: bool = True) -> AcpiTables:
    """All tables for processors with these APIC IDs, from guest-physical address `base` up.

    The RSDP is at `base` if that is in the BIOS area, else at the area's start: operating systems scan for it there.
    `has_8259` says whether the machine also has the two legacy interrupt controllers. ValueError if there is no
    processor or more than 4096, an ID is not unique or not 32 bits, or the tables leave their area or 32-bit memory.
    """
    if not 0 < len(cpus) <= _PROCESSOR_LIMIT:
        raise ValueError(f"ACPI tables for {len(cpus)} processors: 1 to {_PROCESSOR_LIMIT} are supported")
    if len(set(cpus)) != len(cpus) or not all(0 <= apic_id < _ALL_PROCESSORS for apic_id in cpus):
        raise ValueError("APIC IDs must be unique and below 0xffffffff")
    in_bios_area = BIOS_AREA_START <= base < BIOS_AREA_END
    layout = _Layout(base)
    rsdp_gpa = BIOS_AREA_START
    if in_bios_area:
        rsdp_gpa = layout.place(bytes(_RSDP.size))
        layout.blobs.clear()
    facs = layout.place(_facs(), _FACS_ALIGNMENT)
    dsdt = layout.place(_dsdt(cpus))
    fadt = layout.place(_fadt(facs, dsdt))
    madt = layout.place(_madt(cpus, has_8259=has_8259))
    rsdt = layout.place(_table(b"RSDT", 1, struct.pack("<II", fadt, madt)))
    xsdt = layout.place(_table(b"XSDT", 1, struct.pack("<QQ", fadt, madt)))
    if layout.next > (BIOS_AREA_END if in_bios_area else 1 << 32) or base < 0:
        raise ValueError(f"ACPI tables at {base:#x} end at {layout.next:#x}: too far")
    layout.blobs.append((rsdp_gpa, _rsdp(rsdt, xsdt)))
    return AcpiTables(tuple(sorted(layout.blobs)), rsdp_gpa, facs)
