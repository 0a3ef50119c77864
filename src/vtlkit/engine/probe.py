"""Guests of a few instructions, by which an engine is tried out."""

from __future__ import annotations

from typing import Final

from vtlkit.engine.api import Access, Engine, RamBlock
from vtlkit.x86.registers import CR0_ET, CR0_NE, CR0_PE, CR4_OSFXSR, CR4_OSXMMEXCPT, Segment, Sregs

_CODE: Final = 0x1000
_SIZE: Final = 0x4000
XORPS: Final = b"\x0f\x57\xc0"
HLT: Final = b"\xf4"


def flat(engine: Engine, code: bytes) -> None:
    """Put `code` into the memory of a new engine, about to execute in 32-bit protected mode at CPL 0."""
    ram = RamBlock(_SIZE)
    ram.view[_CODE : _CODE + len(code)] = code
    engine.map_ram(0, _SIZE, ram, 0, Access.ALL)
    sregs = Sregs.reset()
    sregs.cs = Segment(8, 0, 0xFFFFFFFF, 0xC9B)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, Segment(16, 0, 0xFFFFFFFF, 0xC93))
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE
    sregs.cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT
    engine.set_sregs(sregs)
    engine.regs.rip = _CODE


def loop(turns: int) -> bytes:
    """Two instructions, `turns` times, and HLT."""
    return b"\xb9" + turns.to_bytes(4, "little") + b"\x49\x75\xfd" + HLT
