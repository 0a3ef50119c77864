"""Checksums, lengths and pointers of the ACPI tables, walked as an operating system does; and AML well-formedness."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.vmm import aml
from vtlkit.vmm.acpi import AcpiTables, build_tables, checksum, waking_vector

CPUS = st.lists(st.integers(0, 0xFFFFFFFE), min_size=1, max_size=300, unique=True)
BASES = st.one_of(st.integers(0xE0000, 0xF0000), st.integers(0x100000, 0x7F000000))


class Memory:
    def __init__(self, tables: AcpiTables) -> None:
        self.blobs = dict(tables.blobs)

    def table(self, gpa: int) -> bytes:
        data = self.blobs[gpa]
        assert int.from_bytes(data[4:8], "little") == len(data)
        assert sum(data) & 0xFF == 0
        return data


def find_rsdp(tables: AcpiTables) -> bytes:
    found = [(gpa, data) for gpa, data in tables.blobs if data.startswith(b"RSD PTR ")]
    ((gpa, data),) = found
    assert gpa == tables.rsdp_gpa
    assert 0xE0000 <= gpa < 0x100000
    assert gpa % 16 == 0
    assert sum(data[:20]) & 0xFF == 0
    assert sum(data) & 0xFF == 0
    assert int.from_bytes(data[20:24], "little") == len(data) == 36
    return data


@given(CPUS, BASES)
def test_every_pointer_leads_to_its_table(cpus: list[int], base: int) -> None:
    tables = build_tables(cpus, base=base)
    memory = Memory(tables)
    rsdp = find_rsdp(tables)
    rsdt_gpa, _, xsdt_gpa = struct.unpack_from("<IIQ", rsdp, 16)
    rsdt, xsdt = memory.table(rsdt_gpa), memory.table(xsdt_gpa)
    assert (rsdt[:4], xsdt[:4]) == (b"RSDT", b"XSDT")
    pointers = struct.unpack_from("<2I", rsdt, 36)
    assert struct.unpack_from("<2Q", xsdt, 36) == pointers
    assert [memory.table(pointer)[:4] for pointer in pointers] == [b"FACP", b"APIC"]
    fadt = memory.table(pointers[0])
    assert len(fadt) == 244
    facs_gpa, dsdt_gpa = struct.unpack_from("<II", fadt, 36)
    assert struct.unpack_from("<QQ", fadt, 132) == (facs_gpa, dsdt_gpa)
    assert memory.table(dsdt_gpa)[:4] == b"DSDT"
    facs = memory.blobs[facs_gpa]
    assert (facs[:4], facs_gpa % 64, len(facs), facs_gpa) == (b"FACS", 0, 64, tables.facs_gpa)


@given(CPUS, BASES)
def test_tables_do_not_overlap(cpus: list[int], base: int) -> None:
    blobs = build_tables(cpus, base=base).blobs
    for (before, data), (after, _) in pairwise(blobs):
        assert before + len(data) <= after


@given(CPUS)
def test_madt_lists_every_processor_once(cpus: list[int]) -> None:
    tables = build_tables(cpus)
    madt = next(data for _, data in tables.blobs if data.startswith(b"APIC"))
    position, ids, kinds = 44, [], []
    while position < len(madt):
        kind, size = madt[position], madt[position + 1]
        entry = madt[position : position + size]
        kinds.append(kind)
        if kind == 0:
            assert struct.unpack_from("<I", entry, 4) == (1,)
            ids.append(entry[3])
        elif kind == 9:
            ids.append(struct.unpack_from("<I", entry, 4)[0])
            assert struct.unpack_from("<I", entry, 8) == (1,)
        elif kind == 1:
            assert struct.unpack_from("<II", entry, 4) == (0xFEC00000, 0)
        position += size
    assert position == len(madt)
    assert ids == cpus
    assert (kinds.count(1), kinds.count(2), kinds.count(4)) == (1, 2, 1)
    assert (kinds.count(10) == 1) == (9 in kinds)


def test_fadt_names_the_hardware() -> None:
    fadt = next(data for _, data in build_tables([0]).blobs if data.startswith(b"FACP"))
    sci, smi, enable, disable = struct.unpack_from("<HIBB", fadt, 46)
    assert (sci, smi, enable, disable) == (9, 0xB2, 0xF1, 0xF0)
    assert struct.unpack_from("<I", fadt, 56) == (0x600,)
    assert struct.unpack_from("<I", fadt, 64) == (0x604,)
    assert struct.unpack_from("<I", fadt, 76) == (0x608,)
    assert fadt[108] == 0x32
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 0, 0xCF9, 6)
    assert struct.unpack_from("<BBBBQ", fadt, 208) == (1, 32, 0, 0, 0x608)


def test_legacy_pic_flag() -> None:
    for has_8259 in (False, True):
        madt = next(data for _, data in build_tables([0], has_8259=has_8259).blobs if data.startswith(b"APIC"))
        assert struct.unpack_from("<I", madt, 40) == (int(has_8259),)


def test_bad_requests_are_refused() -> None:
    for cpus in ([], [0, 0], [-1], [0xFFFFFFFF], list(range(5000))):
        with pytest.raises(ValueError):
            build_tables(cpus)
    with pytest.raises(ValueError, match="too far"):
        build_tables([0], base=0xFFFC0)


def test_waking_vector_is_where_the_guest_writes_it() -> None:
    facs = bytearray(64)
    assert waking_vector(bytes(facs)) == 0
    struct.pack_into("<I", facs, 12, 0x1000)
    assert waking_vector(bytes(facs)) == 0x1000


@given(st.binary(max_size=300))
def test_checksum_completes_to_zero(data: bytes) -> None:
    assert (sum(data) + checksum(data)) & 0xFF == 0


def decode_package_length(data: bytes) -> tuple[int, int]:
    extra = data[0] >> 6
    if not extra:
        return data[0] & 0x3F, 1
    value = data[0] & 0xF
    for index in range(extra):
        value |= data[1 + index] << (4 + 8 * index)
    return value, 1 + extra


@given(st.integers(0, (1 << 28) - 5))
def test_package_length_counts_itself(size: int) -> None:
    encoded = aml.package_length(size)
    assert decode_package_length(encoded) == (size + len(encoded), len(encoded))


def walk(data: bytes) -> list[str]:
    """Names of the objects in a term list, nested ones after their parent; fails on what the encoder cannot make."""
    names: list[str] = []
    position = 0
    while position < len(data):
        if data[position] == 0x08:
            start = position + 1 + (data[position + 1] == 0x5C)
            names.append(data[start : start + 4].decode())
            position = start + 4 + value_size(data[start + 4 :])
            continue
        opcode_size = 1 if data[position] == 0x10 else 2
        assert data[position : position + opcode_size] in (b"\x10", b"\x5b\x82")
        size, width = decode_package_length(data[position + opcode_size :])
        end = position + opcode_size + size
        start = position + opcode_size + width
        start += data[start] == 0x5C
        names.append(data[start : start + 4].decode())
        names.extend(walk(data[start + 4 : end]))
        position = end
    assert position == len(data)
    return names


def value_size(data: bytes) -> int:
    fixed = {0x00: 1, 0x01: 1, 0x0A: 2, 0x0B: 3, 0x0C: 5, 0x0E: 9}
    if data[0] in fixed:
        return fixed[data[0]]
    if data[0] == 0x0D:
        return data.index(b"\0") + 1
    assert data[0] in (0x11, 0x12)
    return 1 + decode_package_length(data[1:])[0]


@given(st.integers(1, 300))
def test_dsdt_is_well_formed(count: int) -> None:
    dsdt = next(data for _, data in build_tables(list(range(count))).blobs if data.startswith(b"DSDT"))
    names = walk(dsdt[36:])
    assert names[:3] == ["_S3_", "_S5_", "_SB_"]
    assert [name for name in names if name.startswith(("C0", "C1"))] == [f"C{uid:03X}" for uid in range(count)]
    assert {"PCI0", "ISA_", "COM1", "RTC_", "KBD_"} <= set(names)


def test_sleep_types_match_the_hardware() -> None:
    dsdt = next(data for _, data in build_tables([0]).blobs if data.startswith(b"DSDT"))
    assert b"\x08\\_S3_\x12\x06\x04\x01\x01\x00\x00" in dsdt
    assert b"\x08\\_S5_\x12\x06\x04\x00\x00\x00\x00" in dsdt


def test_aml_scalars() -> None:
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"
    assert [aml.integer(value) for value in (0, 1, 0xFF, 0x100, 0x10000, 1 << 32)] == [
        b"\0",
        b"\1",
        b"\x0a\xff",
        b"\x0b\0\x01",
        b"\x0c\0\0\x01\0",
        b"\x0e\0\0\0\0\x01\0\0\0",
    ]
    with pytest.raises(ValueError, match="one segment"):
        aml.name_string("TOOLONG")
