"""A guest that resets its machine, in every way there is: the image is booted again and finds its memory as it was."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.integration.cli_rig import run
from vtlkit.testing.assembler import Assembler, Mem

LOAD = 0x100000
HEADER_BYTES = 32
BOOTS = 0x2000
"""How often the guest has booted: memory that no loader writes to."""
DEBUG_EXIT = 0xF4
RESETS = {
    "hard reset by the reset control register": [(0xCF9, 0x06)],
    "soft reset by the reset control register": [(0xCF9, 0x04)],
    "pulse of the keyboard controller": [(0x64, 0xFE)],
    "output port of the keyboard controller": [(0x64, 0xD1), (0x60, 0x02)],
    "port 92h": [(0x92, 0x00), (0x92, 0x01)],
}


def _image(writes: list[tuple[int, int]], boots: int) -> bytes:
    """A multiboot image that makes the port writes at each boot but the last, which ends with debug exit value 7."""
    entry = LOAD + HEADER_BYTES
    code = Assembler(32, entry)
    code.inc(Mem(None, BOOTS, size=4))
    code.cmp(Mem(None, BOOTS, size=4), boots)
    code.je("end")
    for port, value in writes:
        code.mov("edx", port)
        code.mov("eax", value)
        code.out("dx", "al")
    code.label("wait")
    code.hlt()
    code.jmp("wait")
    code.label("end")
    code.mov("eax", 7)
    code.out(DEBUG_EXIT, "al")
    body = code.code()
    magic, flags = 0x1BADB002, 1 << 16
    end = entry + len(body)
    header = struct.pack("<8I", magic, flags, -(magic + flags) & 0xFFFFFFFF, LOAD, LOAD, end, end, entry)
    return header + body


@pytest.mark.parametrize("mode", [[], ["--seed", "5"], ["--realtime"]], ids=["fifo", "seed", "realtime"])
@pytest.mark.parametrize("way", RESETS)
def test_the_image_is_booted_again(way: str, mode: list[str], tmp_path: Path) -> None:
    image = tmp_path / "guest"
    image.write_bytes(_image(RESETS[way], 3))
    done = run(str(image), "--cpus", "2", "--timeout", "60", *mode)
    assert done.status == 15, done.errors
