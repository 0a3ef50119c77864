"""Every way in which an image is refused, in one clear line; and that hostile images do nothing worse than that."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vmm.loaders.image_rig import SparseMemory, elf, multiboot_header, pvh_note
from vtlkit.vmm.loaders import LoadError, LoadOptions, load, ram_ranges, sniff
from vtlkit.vmm.loaders.image import COMMAND_LINE_LIMIT
from vtlkit.vmm.loaders.memory import GIB, MIB

FLAT = elf(32, [(0x400000, multiboot_header() + b"text" * 20, 0x1000)], entry=0x40000C)
ELF64 = elf(64, [(0x200000, b"text" * 20, 0x1000)], entry=0x200000)
PVH = elf(64, [(0x200000, b"text" * 20, 0x1000)], entry=0x200000, note=pvh_note(0x200004))
KLUDGE = multiboot_header(1 << 16, (0x200000, 0x200000, 0, 0, 0x200000)) + b"text" * 20
BZIMAGE = bytes(0x1FE) + b"\x55\xaa" + b"\xeb\x66HdrS" + bytes(1024)


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def one(paddr: int, memsz: int = 0x1000, data: bytes = b"x" * 16, entry: int | None = None) -> bytes:
    return elf(64, [(paddr, data, memsz)], entry=paddr if entry is None else entry)


REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"#!/bin/sh\n", "not a boot image: multiboot"),
    "bzimage": (BZIMAGE, "looks like a Linux bzImage: not supported yet"),
    "short ident": (b"\x7fELF\x02\x01", "truncated ELF file: 6 bytes"),
    "short header": (ELF64[:40], "header takes 64 bytes and the file has 40"),
    "bad class": (patched(ELF64, 4, b"\x07"), "class 7"),
    "big endian": (patched(ELF64, 5, b"\x02"), "big-endian"),
    "aarch64": (elf(64, [(0x200000, b"x", 1)], entry=0x200000, machine=183), "for aarch64"),
    "other machine": (elf(64, [(0x200000, b"x", 1)], entry=0x200000, machine=9999), "machine type 9999"),
    "i386 in elf64": (elf(64, [(0x200000, b"x", 1)], entry=0x200000, machine=3), "64-bit ELF file for 32-bit x86"),
    "elf32 bare": (elf(32, [(0x200000, b"x", 1)], entry=0x200000), "32-bit ELF file without a multiboot header"),
    "object": (elf(64, [(0x200000, b"x", 1)], entry=0, e_type=1), "relocatable object"),
    "pie": (elf(64, [(0, b"x", 1)], entry=0, e_type=3), "position-independent"),
    "dynamic": (elf(64, [(0, b"x", 1)], entry=0, e_type=3, extra_types=[3]), "needs an interpreter"),
    "core": (elf(64, [(0x200000, b"x", 1)], entry=0, e_type=4), "core dump"),
    "odd type": (elf(64, [(0x200000, b"x", 1)], entry=0, e_type=77), "type 77"),
    "no segments": (elf(64, [], entry=0), "without a loadable segment"),
    "phentsize": (patched(ELF64, 54, b"\x07\x00"), "program headers of 7 bytes make no sense"),
    "phnum": (patched(ELF64, 56, b"\xff\xff"), "65535 program headers"),
    "phdrs cut": (patched(ELF64, 56, b"\x09\x00"), "its 9 program headers end at byte 568"),
    "segment cut": (ELF64[:-1], "segment 0 ends at byte 200 and the file has 199"),
    "filesz > memsz": (one(0x200000, memsz=8), "segment 0 has 16 bytes for 8 bytes of memory"),
    "overlap": (elf(64, [(0x200000, b"x", 0x1001), (0x201000, b"y", 1)], entry=0x200000), "both occupy"),
    "entry": (one(0x200000, entry=0x300000), "entry point 0x300000 is in no loaded segment"),
    "pvh entry": (elf(64, [(0x200000, b"x", 1)], entry=0, note=pvh_note(0x9)), "entry point 0x9 is in no"),
    "pvh note": (elf(64, [(0x200000, b"x", 1)], entry=0, note=pvh_note(9)[:4] + b"\x03" + pvh_note(9)[5:]), "3 bytes"),
    "high entry": (one(5 * GIB), "above 4 GiB"),
    "too big": (one(0x200000, memsz=20 * MIB), "needs 22 MiB of memory and the machine has 16 MiB: say --memory 22M"),
    "beyond": (elf(64, [(0x200000, b"x", 1), (5 * GIB, b"x", 1)], entry=0x200000), "needs 4097 MiB of memory"),
    "hole": (one(0x200000, memsz=3 * GIB), "device hole 0xc0000000"),
    "firmware area": (one(0x90000, memsz=0x20000), "overlaps 0x9fc00..0x100000"),
    "video mode": (elf(32, [(0x400000, multiboot_header(4), 64)], entry=0x400000), "demands a video mode"),
    "unknown flag": (elf(32, [(0x400000, multiboot_header(8), 64)], entry=0x400000), "unknown features"),
    "multiboot raw": (multiboot_header() + b"text", "is no ELF file and has no address fields"),
    "kludge cut": (KLUDGE[:20], "goes past the file's end"),
    "kludge start": (multiboot_header(1 << 16, (0x201000, 0x200000, 0, 0, 0x200000)) + b"x", "contradict"),
    "kludge order": (
        multiboot_header(1 << 16, (0x200000, 0x200000, 0x1000, 0, 0x200000)) + b"x",
        "not above its start",
    ),
    "kludge text": (multiboot_header(1 << 16, (0x200000, 0x200000, 0x202000, 0, 0x200000)) + b"x", "text ends at byte"),
    "kludge bss": (multiboot_header(1 << 16, (0x200000, 0x200000, 0, 0x200001, 0x200000)) + b"x", "is below load end"),
    "kludge entry": (multiboot_header(1 << 16, (0x200000, 0x200000, 0, 0, 0x100000)) + b"x", "is outside"),
    "multiboot high": (
        elf(64, [(0x400000, multiboot_header(), 64), (5 * GIB, b"x", 1)], entry=0x400000),
        "32-bit code cannot reach it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_clear_line(tmp_path: Path, case: str) -> None:
    data, message = REFUSED[case]
    path = tmp_path / "guest"
    path.write_bytes(data)
    memory = SparseMemory(16 * MIB)
    with pytest.raises(LoadError) as caught:
        load(path, memory)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert "guest" in text
    assert memory.writes == [], "nothing is written before everything is known to fit"


def refusal(path: Path | str, options: LoadOptions | None = None, size: int = 16 * MIB) -> str:
    with pytest.raises(LoadError) as caught:
        load(path, SparseMemory(size), options)
    return str(caught.value)


def test_paths_that_lead_to_no_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none")
    assert "is a directory" in refusal(tmp_path)
    assert "is no path" in refusal("a\0b")
    assert "cannot be read: Not a directory" in refusal(Path(__file__) / "x")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "no regular file" in refusal(pipe)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "guest"
    path.write_bytes(FLAT)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "permission denied" in refusal(path)


def test_initrd_and_command_line(tmp_path: Path) -> None:
    path, initrd = tmp_path / "guest", tmp_path / "initrd"
    path.write_bytes(FLAT)
    assert "initrd" in refusal(path, LoadOptions(initrd=initrd))
    assert "is a directory" in refusal(path, LoadOptions(initrd=tmp_path))
    initrd.write_bytes(bytes(12 * MIB))
    assert "initrd takes 12 MiB" in refusal(path, LoadOptions(initrd=initrd))
    load(path, SparseMemory(32 * MIB), LoadOptions(initrd=initrd))
    longest = "x" * (COMMAND_LINE_LIMIT - 1 - len("guest "))
    load(path, SparseMemory(32 * MIB), LoadOptions(longest))
    assert "shorten it" in refusal(path, LoadOptions(longest + "x"))
    assert "NUL" in refusal(path, LoadOptions("a\0b"))
    assert "cannot be encoded" in refusal(path, LoadOptions("\ud800"))


def test_machine_without_room_for_boot_information(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    path.write_bytes(elf(32, [(0, multiboot_header() + b"text", 0x4000)], entry=0))
    assert "boot information" in refusal(path, size=0x4000)


def try_image(data: bytes, size: int) -> None:
    """The property: a LoadError, or a start with everything inside RAM and apart."""
    memory = SparseMemory(size)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "guest"
        path.write_bytes(data)
        refused: str | None
        try:
            state = load(path, memory, LoadOptions("a b", path))
        except LoadError as error:
            refused = str(error)
        else:
            refused = None
    if refused is not None:
        assert "\n" not in refused
        assert memory.writes == []
        return
    for before, after in zip(state.loaded, state.loaded[1:], strict=False):
        assert before.end <= after.start
    assert any(start <= state.entry < end for start, end in ram_ranges(size))
    for gpa, length in memory.writes:
        assert gpa + length <= 0x9FC00 or gpa >= 0x100000


SIZES = st.sampled_from([4096, MIB, 16 * MIB, 3 * GIB, 5 * GIB])
BASES = st.sampled_from([FLAT, ELF64, PVH, KLUDGE])


@given(BASES, st.lists(st.tuples(st.integers(0, 220), st.binary(min_size=1, max_size=8)), max_size=4), SIZES)
def test_mutated_images(base: bytes, changes: list[tuple[int, bytes]], size: int) -> None:
    for offset, value in changes:
        base = patched(base, offset, value)
    try_image(base, size)


@given(BASES, st.integers(0, 300), SIZES)
def test_truncated_images(base: bytes, length: int, size: int) -> None:
    try_image(base[:length], size)


_SEGMENT = st.tuples(
    st.one_of(st.integers(0, 6 * GIB), st.integers(0, 0x120000)), st.binary(max_size=64), st.integers(0, 4 * MIB)
)


@given(st.sampled_from([32, 64]), st.lists(_SEGMENT, max_size=5), st.data(), SIZES)
def test_arbitrary_segments(bits: int, segments: list[tuple[int, bytes, int]], data: st.DataObject, size: int) -> None:
    if bits == 32:
        segments = [(paddr & 0x7FFFFFFF, content, memsz) for paddr, content, memsz in segments]
    entries = [paddr for paddr, _, _ in segments] or [0]
    entry = data.draw(st.sampled_from(entries))
    header = multiboot_header() if data.draw(st.booleans()) else b""
    segments = [(paddr, header + content, max(memsz, len(header + content))) for paddr, content, memsz in segments]
    try_image(elf(bits, segments, entry=entry), size)


@given(st.binary(max_size=300))
def test_random_bytes_are_no_image(data: bytes) -> None:
    with pytest.raises(LoadError):
        sniff(data)
