"""Items, directory and DMA of fw_cfg."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.vmm.devices.fw_cfg import DmaControl, FwCfg, Selector

RAM = 0x40000


class Rig:
    def __init__(self) -> None:
        self.ram = bytearray(RAM)
        self.device = FwCfg(ram_size=RAM, cpus=2, max_cpus=4, read_memory=self.read_memory, write_memory=self.write_ram)

    def read_memory(self, gpa: int, size: int) -> bytes | None:
        return bytes(self.ram[gpa : gpa + size]) if gpa + size <= RAM else None

    def write_ram(self, gpa: int, data: bytes) -> bool:
        if gpa + len(data) > RAM:
            return False
        self.ram[gpa : gpa + len(data)] = data
        return True

    def item(self, selector: int, size: int) -> bytes:
        self.device.write(0x510, 2, selector)
        return bytes(self.device.read(0x511, 1) for _ in range(size))

    def dma(self, control: int, length: int, address: int, descriptor: int = 0x100) -> int:
        self.write_ram(descriptor, struct.pack(">IIQ", control, length, address))
        self.device.write(0x514, 4, int.from_bytes((descriptor >> 32).to_bytes(4, "big"), "little"))
        self.device.write(0x518, 4, int.from_bytes((descriptor & 0xFFFFFFFF).to_bytes(4, "big"), "little"))
        return int(struct.unpack_from(">I", self.ram, descriptor)[0])


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_what_kvm_unit_tests_reads(rig: Rig) -> None:
    assert rig.item(Selector.SIGNATURE, 4) == b"QEMU"
    assert rig.item(Selector.ID, 4) == b"\x03\0\0\0"
    assert int.from_bytes(rig.item(Selector.NB_CPUS, 2), "little") == 2
    assert int.from_bytes(rig.item(Selector.MAX_CPUS, 2), "little") == 4
    assert int.from_bytes(rig.item(Selector.RAM_SIZE, 8), "little") == RAM
    assert rig.item(Selector.KERNEL_DATA, 8) == bytes(8), "absent: the guest takes it for its memory limit"


def directory(rig: Rig) -> dict[str, tuple[int, int]]:
    count = int.from_bytes(rig.item(Selector.FILE_DIR, 4), "big")
    data = rig.item(Selector.FILE_DIR, 4 + 64 * count)[4:]
    entries = [struct.unpack_from(">IHH56s", data, 64 * index) for index in range(count)]
    return {name.rstrip(b"\0").decode(): (select, size) for size, select, _, name in entries}


@given(st.dictionaries(st.from_regex(r"[a-z/]{1,55}", fullmatch=True), st.binary(max_size=50), max_size=8))
def test_files_are_found_by_name(files: dict[str, bytes]) -> None:
    rig = Rig()
    for name, data in files.items():
        rig.device.add_file(name, b"older")
        rig.device.add_file(name, data)
    listed = directory(rig)
    assert list(listed) == sorted({*files, "bootorder"})
    for name, data in files.items():
        select, size = listed[name]
        assert size == len(data)
        assert rig.item(select, size + 2) == data + b"\0\0"


def test_file_names_are_checked(rig: Rig) -> None:
    for name in ("", "x" * 56):
        with pytest.raises(ValueError, match="1 to 55"):
            rig.device.add_file(name, b"")


def test_boot_items(rig: Rig) -> None:
    rig.device.add_kernel(0x400000, 0x1234, 0x4000BC)
    rig.device.add_initrd(0x800000, b"A=1\n")
    rig.device.add_command_line(0x9100, b"x y")
    rig.device.add_e820([(0, 0x1000, 1)])
    assert rig.item(Selector.KERNEL_ENTRY, 4) == struct.pack("<I", 0x4000BC)
    assert rig.item(Selector.INITRD_SIZE, 4) == struct.pack("<I", 4)
    assert rig.item(Selector.INITRD_DATA, 4) == b"A=1\n"
    assert rig.item(Selector.CMDLINE_DATA, 4) == b"x y\0"
    select, size = directory(rig)["etc/e820"]
    assert rig.item(select, size) == struct.pack("<QQI", 0, 0x1000, 1)


def test_dma_signature_and_wide_data_reads(rig: Rig) -> None:
    assert rig.device.read(0x514, 4).to_bytes(4, "little") == b"QEMU"
    assert rig.device.read(0x518, 4).to_bytes(4, "little") == b" CFG"
    rig.device.write(0x510, 2, Selector.SIGNATURE)
    assert rig.device.read(0x511, 4).to_bytes(4, "little") == b"QEMU"


def test_dma_select_skip_read(rig: Rig) -> None:
    select = rig.device.add_file("blob", bytes(range(100)))
    assert rig.dma(select << 16 | DmaControl.SELECT | DmaControl.SKIP, 10, 0) == 0
    assert rig.dma(DmaControl.READ, 100, 0x1000) == 0
    assert rig.ram[0x1000:0x1064] == bytes(range(10, 100)) + bytes(10)


def test_dma_crosses_chunks(rig: Rig) -> None:
    blob = bytes(index * 7 & 0xFF for index in range(0x18000))
    select = rig.device.add_file("big", blob)
    assert rig.dma(select << 16 | DmaControl.SELECT | DmaControl.READ, len(blob), 0x2000) == 0
    assert rig.ram[0x2000 : 0x2000 + len(blob)] == blob


def test_dma_errors_are_values(rig: Rig) -> None:
    assert rig.dma(DmaControl.WRITE, 4, 0x1000) == DmaControl.ERROR
    assert rig.dma(DmaControl.READ, 4, RAM - 2) == DmaControl.ERROR
    before = bytes(rig.ram)
    rig.device.write(0x518, 4, int.from_bytes((RAM - 4).to_bytes(4, "big"), "little"))
    assert rig.ram == before, "an unreachable descriptor changes nothing"


@given(st.lists(st.tuples(st.integers(0x510, 0x51B), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF))))
def test_hostile_writes_never_fail(ops: list[tuple[int, int, int]]) -> None:
    rig = Rig()
    for port, size, value in ops:
        rig.device.write(port, size, value & ((1 << (8 * size)) - 1))
        assert 0 <= rig.device.read(port, size) < 1 << (8 * size)
