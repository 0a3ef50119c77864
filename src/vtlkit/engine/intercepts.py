"""What a CPU leaves the guest for beside what always does. Part of the contract: import from `engine.api`.

Counterpart: the intercept words of the VMCB (AMD APM volume 2, appendix B).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Protocol


class Intercept(enum.Flag):
    """Instructions that exit besides those that always do (CPUID, HLT, VMMCALL, I/O, intercepted MSRs)."""

    NONE = 0
    PAUSE = enum.auto()
    RDTSC = enum.auto()
    INVLPG = enum.auto()
    CR_READ = enum.auto()
    CR_WRITE = enum.auto()
    DR_READ = enum.auto()
    DR_WRITE = enum.auto()
    DESCRIPTOR_TABLE_READ = enum.auto()
    GDTR_WRITE = enum.auto()
    IDTR_WRITE = enum.auto()
    LDTR_WRITE = enum.auto()
    TR_WRITE = enum.auto()
    DESCRIPTOR_TABLE_WRITE = GDTR_WRITE | IDTR_WRITE | LDTR_WRITE | TR_WRITE
    XSETBV = enum.auto()
    IRET = enum.auto()
    RDPMC = enum.auto()
    PUSHF = enum.auto()
    POPF = enum.auto()
    SOFTWARE_INTERRUPT = enum.auto()
    """INT n, not INT3 and INTO, which are exceptions."""
    INVALIDATE_CACHES = enum.auto()
    """INVD and WBINVD."""


@dataclass(frozen=True, slots=True)
class RegisterIntercepts:
    """MOVs to and from control (0, 2, 3, 4) and debug registers that exit one by one: a bit per register number."""

    cr_read: int = 0
    cr_write: int = 0
    dr_read: int = 0
    dr_write: int = 0


class PortBitmap(Protocol):
    """A bit per port, 8192 bytes or more. May be a view: what counts is what it holds when a port is accessed."""

    def __getitem__(self, part: slice, /) -> bytes | memoryview: ...


NO_REGISTERS: Final = RegisterIntercepts()
PORT_BITMAP_SIZE: Final = 0x10000 // 8


def touches_port(bitmap: PortBitmap | None, port: int, size: int) -> bool:
    """Whether an access of `size` bytes at `port` touches a port whose bit is set; none is set beyond the last."""
    if bitmap is None:
        return False
    bits = int.from_bytes(bitmap[port >> 3 : (port >> 3) + 2], "little") >> (port & 7)
    return bool(bits & ((1 << size) - 1))
