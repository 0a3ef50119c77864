"""What a started guest finds: registers, boot information, contents; per protocol, and again after a reset."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vmm.loaders.image_rig import SparseMemory, elf, multiboot_header, pvh_note
from vtlkit.vmm.loaders import BootState, LoadOptions, load, memory_map, open_image, waking_vector_state
from vtlkit.vmm.loaders.memory import GIB, MIB
from vtlkit.x86.registers import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, RFLAGS_IF

TEXT = bytes(range(1, 200))
FLAT = elf(
    32, [(0x400000, multiboot_header() + TEXT, 0x3000), (0x403000, b"data", 0x5000)], entry=0x40000C, vaddr_offset=0
)


def start(
    tmp_path: Path, data: bytes, memory: SparseMemory, append: str = "", initrd: bytes | None = None, rsdp: int = 0
) -> BootState:
    image = tmp_path / "guest.flat"
    image.write_bytes(data)
    module = None
    if initrd is not None:
        module = tmp_path / "env"
        module.write_bytes(initrd)
    return load(image, memory, LoadOptions(append, module, rsdp))


def check_nothing_overlaps(state: BootState) -> None:
    for before, after in zip(state.loaded, state.loaded[1:], strict=False):
        assert before.end <= after.start


def multiboot_map(memory: SparseMemory, info: int) -> list[tuple[int, ...]]:
    position, end = memory.u32(info + 48), memory.u32(info + 48) + memory.u32(info + 44)
    entries = []
    while position < end:
        size = memory.u32(position)
        entries.append(struct.unpack("<QQI", memory.read(position + 4, size)))
        position += size + 4
    return entries


def test_flat_image_as_kvm_unit_tests_builds_them(tmp_path: Path) -> None:
    memory = SparseMemory(256 * MIB)
    state = start(tmp_path, FLAT, memory, "one two", b"NR_CPUS=4\n")
    regs, sregs = state.regs, state.sregs
    assert (regs.rax, regs.rip, state.entry, state.protocol) == (0x2BADB002, 0x40000C, 0x40000C, "multiboot")
    assert sregs.cr0 & (CR0_PE | CR0_PG) == CR0_PE
    assert not regs.rflags & RFLAGS_IF
    assert (sregs.cs.base, sregs.cs.limit, sregs.cs.db, sregs.cs.long) == (0, 0xFFFFFFFF, True, False)
    assert memory.read(0x40000C, len(TEXT)) == TEXT
    assert memory.read(0x403000, 8) == b"data\0\0\0\0"
    info = regs.rbx
    assert info == 0x9000
    assert memory.u32(info) == 0x24F
    assert (memory.u32(info + 4), memory.u32(info + 8)) == (639, 255 * 1024)
    assert memory.string(memory.u32(info + 16)) == b"guest.flat one two"
    assert memory.string(memory.u32(info + 64)) == b"vtlkit"
    assert multiboot_map(memory, info) == memory_map(256 * MIB)
    assert memory.u32(info + 20) == 1
    first, last, name, _ = struct.unpack("<4I", memory.read(memory.u32(info + 24), 16))
    assert (first, memory.read(first, last - first), memory.string(name)) == (0x408000, b"NR_CPUS=4\n", b"env")
    check_nothing_overlaps(state)


def test_boot_information_moves_out_of_a_low_image_s_way(tmp_path: Path) -> None:
    memory = SparseMemory(16 * MIB)
    state = start(tmp_path, elf(32, [(0x8000, multiboot_header() + TEXT, 0x5A00)], entry=0x8000), memory, initrd=b"x")
    assert state.regs.rbx == 0xE000
    assert [item.what for item in state.loaded] == ["segment 0", "boot data", "initrd"]
    assert state.loaded[2].start == MIB


def test_descriptor_table_in_memory_matches_the_registers(tmp_path: Path) -> None:
    memory = SparseMemory(16 * MIB)
    state = start(tmp_path, FLAT, memory)
    for segment in (state.sregs.cs, state.sregs.ds, state.sregs.tr):
        descriptor = memory.u64(state.sregs.gdt.base + segment.selector)
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
        attributes = descriptor >> 40 & 0xFF | descriptor >> 44 & 0xF00
        assert attributes == segment.attributes
        assert segment.limit == (limit << 12 | 0xFFF if segment.granularity else limit)


@pytest.mark.parametrize("load_end", [0, 0x200000 + 64])
def test_multiboot_addresses_in_the_header(tmp_path: Path, load_end: int) -> None:
    header = multiboot_header(1 << 16, (0x200010, 0x200000, load_end, 0x202000, 0x200030))
    data = b"junk" * 4 + b"\xcc" * 16 + header + bytes(range(48, 128))
    assert data.index(header) == 32
    memory = SparseMemory(16 * MIB)
    memory.write(0x201000, b"stale")
    state = start(tmp_path, data, memory)
    assert (state.regs.rip, state.regs.rax) == (0x200030, 0x2BADB002)
    size = 64 if load_end else len(data) - 16
    assert memory.read(0x200000, size) == data[16 : 16 + size]
    assert memory.read(0x201000, 5) == bytes(5), "bss is cleared"


def test_64_bit_elf_with_multiboot_header_starts_in_32_bit_mode(tmp_path: Path) -> None:
    state = start(
        tmp_path, elf(64, [(0x400000, multiboot_header() + TEXT, 0x1000)], entry=0x40000C), SparseMemory(MIB * 8)
    )
    assert (state.protocol, state.regs.rip, state.sregs.cr0 & CR0_PG) == ("multiboot", 0x40000C, 0)


def start_info(memory: SparseMemory, gpa: int) -> tuple[int, ...]:
    return struct.unpack("<IIIIQQQQII", memory.read(gpa, 56))


def test_pvh(tmp_path: Path) -> None:
    memory = SparseMemory(5 * GIB)
    data = elf(64, [(0x1000000, TEXT, 0x2000)], entry=0xFFFFFFFF81000000, note=pvh_note(0x1000010))
    state = start(tmp_path, data, memory, "console=ttyS0", b"cpio" * 1000, 0xE0000)
    regs = state.regs
    assert (state.protocol, regs.rip, state.sregs.cr0 & (CR0_PE | CR0_PG)) == ("PVH", 0x1000010, CR0_PE)
    magic, version, _, modules, modlist, line, rsdp, map_gpa, map_count, _ = start_info(memory, regs.rbx)
    assert (magic, version, modules, rsdp) == (0x336EC578, 1, 1, 0xE0000)
    assert memory.string(line) == b"console=ttyS0"
    entries = [struct.unpack("<QQII", memory.read(map_gpa + 24 * index, 24))[:3] for index in range(map_count)]
    assert entries == memory_map(5 * GIB)
    first, size, name, _ = struct.unpack("<4Q", memory.read(modlist, 32))
    assert (memory.read(first, size), memory.string(name)) == (b"cpio" * 1000, b"env")
    assert 3 * GIB - 8192 < first < 3 * GIB
    check_nothing_overlaps(state)


def translate(memory: SparseMemory, cr3: int, address: int) -> int:
    entry = cr3
    for shift in (39, 30):
        entry = memory.u64((entry & ~0xFFF) + 8 * (address >> shift & 511))
        assert entry & 3 == 3
    entry = memory.u64((entry & ~0xFFF) + 8 * (address >> 21 & 511))
    assert entry & 0x83 == 0x83
    return (entry & ~0x1FFFFF) + (address & 0x1FFFFF)


def test_plain_elf64_starts_in_long_mode(tmp_path: Path) -> None:
    memory = SparseMemory(64 * MIB)
    state = start(tmp_path, elf(64, [(0x200000, TEXT, 0x1000)], entry=0x200005), memory, "a", rsdp=0xE0000)
    regs, sregs = state.regs, state.sregs
    assert (state.protocol, regs.rip) == ("ELF64", 0x200005)
    assert sregs.efer == EFER_LME | EFER_LMA
    assert sregs.cr4 & CR4_PAE
    assert sregs.cr0 & CR0_PG
    assert (sregs.cs.long, sregs.cs.db) == (True, False)
    assert regs.rdi == regs.rsi
    assert start_info(memory, regs.rdi)[:2] == (0x336EC578, 1)
    assert regs.rsp % 16 == 8
    assert memory.u64(regs.rsp) == 0
    boot_data = next(item for item in state.loaded if item.what == "boot data")
    assert boot_data.start < regs.rsp - 0x1000 < regs.rsp < boot_data.end
    for address in (0, 0x9000, 0x200005, 0xFEE00000, 0xFFFFFFFF):
        assert translate(memory, sregs.cr3, address) == address
    check_nothing_overlaps(state)


def test_entry_in_virtual_addresses_is_translated(tmp_path: Path) -> None:
    data = elf(64, [(0x200000, TEXT, 0x1000)], entry=0x40200010, vaddr_offset=0x40000000)
    assert start(tmp_path, data, SparseMemory(64 * MIB)).regs.rip == 0x200010


def test_reset_loads_the_same_image_though_the_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "guest.flat"
    path.write_bytes(FLAT)
    image = open_image(path, LoadOptions("x"))
    path.unlink()
    memory, fresh = SparseMemory(16 * MIB), SparseMemory(16 * MIB)
    first = image.load(memory)
    for gpa in (0x400000, 0x403000, 0x407FF0, 0x9000):
        memory.write(gpa, b"\xff" * 16)
    assert image.load(memory) == first == image.load(fresh)
    for item in first.loaded:
        assert memory.read(item.start, item.end - item.start) == fresh.read(item.start, item.end - item.start)


@given(st.integers(1, 0xFFFFF))
def test_waking_vector_reaches_its_address_in_real_mode(vector: int) -> None:
    regs, sregs = waking_vector_state(vector)
    assert sregs.cs.base + regs.rip == vector
    assert (sregs.cs.selector << 4, sregs.cr0 & (CR0_PE | CR0_PG)) == (sregs.cs.base, 0)
    assert regs.rip < 16


def test_waking_vector_out_of_reach_is_refused() -> None:
    for vector in (0, 1 << 20):
        with pytest.raises(ValueError, match="not a real-mode address"):
            waking_vector_state(vector)
