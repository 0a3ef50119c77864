"""Whether a KVM executes guest code or emulates it, found out by a guest of a few instructions.

Kernels that keep guests apart by page tables alone execute user mode and emulate kernel mode, at a hundredth of the
speed and without floating point; nothing that KVM tells of itself says so.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Final

from vtlkit.engine.api import Access, Hlt, RamBlock
from vtlkit.engine.devkvm.engine import DevKvmEngine
from vtlkit.engine.devkvm.factory import DevKvmFactory
from vtlkit.x86.registers import CR0_ET, CR0_NE, CR0_PE, Segment, Sregs

_CODE: Final = 0x1000
_XORPS: Final = b"\x0f\x57\xc0"
_HLT: Final = b"\xf4"
_CR4_SSE: Final = 0x600
_PROBE_S: Final = 2.0


def _flat(engine: DevKvmEngine, code: bytes) -> None:
    """32-bit protected mode without paging, at `code`."""
    ram = RamBlock(0x4000)
    ram.view[_CODE : _CODE + len(code)] = code
    engine.map_ram(0, ram.size, ram, 0, Access.ALL)
    sregs = Sregs.reset()
    sregs.cs = Segment(8, 0, 0xFFFFFFFF, 0xC9B)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, Segment(16, 0, 0xFFFFFFFF, 0xC93))
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE
    sregs.cr4 = _CR4_SSE
    engine.set_sregs(sregs)
    engine.regs.rip = _CODE


@cache
def emulates_kernel_mode() -> bool:
    """Whether SSE at CPL 0 is more than this KVM can execute.

    Raises:
        EngineError: it cannot be used at all.
    """
    factory = DevKvmFactory()
    try:
        engine = factory.create("probe")
        assert isinstance(engine, DevKvmEngine)
        _flat(engine, _XORPS + _HLT)
        # No guest of two instructions takes that long; a kernel that fails in another way shall not hang us.
        alarm = threading.Timer(_PROBE_S, engine.kick)
        alarm.start()
        try:
            return type(engine.run(None)) is not Hlt
        finally:
            alarm.cancel()
            alarm.join()
    finally:
        factory.close()
