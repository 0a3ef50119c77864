"""The committed guest images are what guests/ describes: by checksum, shape and, with the same compiler, by rebuild."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtlkit import guests

SOURCES = Path(__file__).resolve().parents[2] / "guests"
PT_LOAD, PT_NOTE = 1, 4
PF_X, PF_W = 1, 2
XEN_ELFNOTE_PHYS32_ENTRY = 18
SIZE_LIMIT = 40 * 1024


def _recorded_checksums() -> dict[str, str]:
    lines = (SOURCES / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def _compiler_here() -> str:
    """What `COMPILER` would say here, or "" where the tools are missing."""
    if not all(shutil.which(tool) for tool in ("make", "gcc", "ld")):
        return ""
    found = subprocess.run(["make", "-s", "-C", str(SOURCES), "--no-print-directory", "compiler"], capture_output=True)
    return found.stdout.decode() if found.returncode == 0 else ""


def _segments(image: bytes) -> Iterator[tuple[int, int, bytes, int, int]]:
    """Type, flags, contents, address and size in memory of each program header."""
    (offset,), (entry_size, count) = struct.unpack_from("<Q", image, 32), struct.unpack_from("<HH", image, 54)
    for i in range(count):
        kind, flags, start, _, address, file_size, memory_size, _ = struct.unpack_from(
            "<IIQQQQQQ", image, offset + i * entry_size
        )
        yield kind, flags, image[start : start + file_size], address, memory_size


def test_names_and_paths() -> None:
    assert guests.names() == ("bench", "demo", "vtls3")
    for name in guests.names():
        assert guests.path(name).is_file()
    with pytest.raises(KeyError, match="no guest image 'nonesuch'"):
        guests.path("nonesuch")


def test_checksums_match() -> None:
    recorded = _recorded_checksums()
    assert sorted(recorded) == [f"{name}.elf" for name in guests.names()]
    for name in guests.names():
        assert hashlib.sha256(guests.path(name).read_bytes()).hexdigest() == recorded[f"{name}.elf"]


@pytest.mark.parametrize("name", guests.names())
def test_image_is_small_pvh_elf(name: str) -> None:
    image = guests.path(name).read_bytes()
    assert len(image) <= SIZE_LIMIT
    assert image[:6] == b"\x7fELF\x02\x01"
    segments = list(_segments(image))
    (note,) = [contents for kind, _, contents, _, _ in segments if kind == PT_NOTE]
    owner_size, descriptor_size, kind, owner, entry = struct.unpack("<III4sQ", note)
    assert (owner_size, descriptor_size, kind, owner) == (4, 8, XEN_ELFNOTE_PHYS32_ENTRY, b"Xen\0")

    loads = [segment for segment in segments if segment[0] == PT_LOAD]
    assert any(flags & PF_X and address <= entry < address + len(contents) for _, flags, contents, address, _ in loads)
    assert not any(flags & PF_X and flags & PF_W for _, flags, _, _, _ in loads)
    assert min(address for *_, address, _ in loads) == 0x100000


def test_same_compiler_builds_the_same_bytes(tmp_path: Path) -> None:
    recorded, here = (SOURCES / "COMPILER").read_text(), _compiler_here()
    if recorded != here:
        pytest.skip(f"the images were built with {recorded.split(chr(10))[0]!r}; here is {here.split(chr(10))[0]!r}")
    sources = tmp_path / "guests"
    shutil.copytree(SOURCES, sources)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["make", "-s", "-C", str(sources), f"OUT={out}"], check=True)
    for name in guests.names():
        assert (out / f"{name}.elf").read_bytes() == guests.path(name).read_bytes(), (
            f"{name}.elf differs from its sources"
        )
