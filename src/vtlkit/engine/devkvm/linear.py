"""Linear memory as the guest's code sees it, for what the kernel does not tell.

Which address a refused access had, the bytes of the instruction at RIP, operands read or written on the hypervisor's
behalf. Sets no accessed or dirty bits but for what is written.
"""

from __future__ import annotations

from typing import Final

from vtlkit.engine.api import Access
from vtlkit.engine.devkvm.live import Live
from vtlkit.engine.linear import Deciding, GuestFault, LinearWalk, PhysicalFault
from vtlkit.engine.memory_map import MemoryMap
from vtlkit.x86.paging import EXECUTE, READ, WRITE
from vtlkit.x86.registers import RFLAGS_AC


class LinearMemory(LinearWalk):
    """See the module."""

    def __init__(self, live: Live, memory: MemoryMap, maxphyaddr: int) -> None:
        super().__init__(memory, maxphyaddr)
        self._live = live

    def _registers(self) -> Deciding:
        live = self._live
        sregs = live.sregs
        flags = live.regs.rflags & RFLAGS_AC
        return (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, flags, live.cpl, live.pkru, self._memory.generation)

    def _marks(self, access: int) -> bool:
        return bool(access & WRITE)

    def check(self, gva: int, size: int, access: Access, mode: int = 0) -> None:
        """Whether the guest may make this access, byte for byte.

        Raises:
            GuestFault: its own tables refuse.
            PhysicalFault: the guest-physical map does; the first page that does.
        """
        self._permitted(gva, size, _WALK[access] | mode, False, access)

    def read(self, gva: int, size: int, access: Access = Access.READ, mode: int = 0) -> bytes:
        """`size` bytes as the guest reads them at its privilege (`mode` SUPERVISOR: as the processor itself does).

        Raises:
            GuestFault, PhysicalFault: it cannot.
        """
        return self._load(gva, size, _WALK[access] | mode, False, access)

    def fetch(self, gva: int, size: int) -> bytes:
        """Instruction bytes, fewer where they cannot be fetched."""
        try:
            return super().fetch(gva, size)
        except (GuestFault, PhysicalFault):
            return b""

    def write(self, gva: int, data: bytes) -> None:
        """Write at the guest's privilege; nothing is written unless every page permits it.

        Raises:
            GuestFault, PhysicalFault: it cannot.
        """
        self._store(gva, data, WRITE, False)


_WALK: Final = {Access.READ: READ, Access.WRITE: WRITE, Access.EXECUTE: EXECUTE}
