"""Linear memory as the CPU's own microcode sees it: page walk, accessed and dirty bits, RAM.

Used for what the processor does by itself (descriptor tables, task state, exception frames) and for reading the bytes
of an instruction that exited.
"""

from __future__ import annotations

from typing import ClassVar

from vtlkit.engine.api import Access
from vtlkit.engine.linear import Deciding, LinearWalk
from vtlkit.engine.unicorn.memory import GuestPhysicalMap
from vtlkit.engine.unicorn.state import HF_CPL, CpuState
from vtlkit.x86.paging import READ, SUPERVISOR, WRITE
from vtlkit.x86.registers import RFLAGS_AC


class LinearMemory(LinearWalk):
    """Reads and writes through the present paging state. Belongs to the vCPU's task, between instructions."""

    _FETCHED: ClassVar[Access] = Access.READ

    def __init__(self, state: CpuState, memory: GuestPhysicalMap, maxphyaddr: int) -> None:
        super().__init__(memory, maxphyaddr)
        self._state = state
        self._cr = state.cr

    def _registers(self) -> Deciding:
        state = self._state
        control = self._cr
        return (
            control[0],
            control[3],
            control[4],
            state.efer,
            state.eflags & RFLAGS_AC,
            state.hflags & HF_CPL,
            state.pkru,
            self._memory.generation,
        )

    def _marks(self, access: int) -> bool:
        return True

    def read(self, gva: int, size: int, access: int = READ | SUPERVISOR, *, implicit: bool = True) -> bytes:
        """`size` bytes at a linear address, by default as the processor's own implicit supervisor read."""
        return self._load(gva, size, access, implicit, Access.READ)

    def write(self, gva: int, data: bytes, access: int = WRITE | SUPERVISOR, *, implicit: bool = False) -> None:
        """Write, by default as supervisor; nothing is written unless every page permits it."""
        self._store(gva, data, access, implicit)
