"""The guest's code as the instance has it: what is translated, whether that is still true, how long instructions are.

Belongs to the vCPU's task. `codepages` says why comparing bytes on entry is enough.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import (
    PAGE_SIZE,
    Access,
    Event,
    MemoryFault,
    RamBlock,
)
from vtlkit.engine.decode import MAX_LENGTH, Decoded, decode, length
from vtlkit.engine.linear import GuestFault, PhysicalFault
from vtlkit.engine.unicorn.codepages import TranslatedCode
from vtlkit.engine.unicorn.delivery import CS
from vtlkit.engine.unicorn.instance import Instance
from vtlkit.engine.unicorn.memory import CHUNK, Range
from vtlkit.engine.unicorn.operands import Operand
from vtlkit.engine.unicorn.state import (
    HF_CPL,
    HF_CS32,
    HF_CS64,
)
from vtlkit.x86.paging import SUPERVISOR

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.factory import UnicornFactory

_WORD: Final = 8
_XSETBV: Final = b"\x0f\x01\xd1"


_LENGTHS_MAX: Final = 4096
"""Addresses of which the length is remembered: a guest chooses them, so there is an end to it."""


class UndefinedInstruction(Exception):
    """The instruction that exited does not decode: the translator takes some that no processor does (LOCK CPUID)."""


class Code(Instance):
    """Coherence of translated code, and instructions looked at."""

    def __init__(self, factory: UnicornFactory, name: str) -> None:
        super().__init__(factory, name)
        self._lengths: dict[int, tuple[int, int, ctypes.c_uint64, int, int, int]] = {}
        self._code: dict[int, TranslatedCode] = {}
        self._host_wrote = False
        self._code_moved = False
        self._xsetbv_exits = False
        self._software_exits = False

    # --- translated code ----------------------------------------------------------------------------------------------

    def _note_code(self, address: int, size: int) -> None:
        """Remember that bytes at a linear address have been translated."""
        try:
            gpa = self.linear.translate(address, SUPERVISOR)
        except (GuestFault, PhysicalFault):
            return
        found = self._map.ram(gpa, Access.NONE)
        if found is None:
            return
        block, offset = found
        first = min(size, 4096 - offset % 4096)
        known = self._code.get(id(block))
        if known is None:
            known = self._code[id(block)] = TranslatedCode(block)
        known.add(offset, first)
        if first < size:
            self._note_code(address + first, size - first)

    def _forget_changed_code(self) -> None:
        host_wrote, self._host_wrote = self._host_wrote, False
        for known in self._code.values():
            # Where no guest may write only the host does, and says so.
            if host_wrote or known.block.guest_writable:
                for offset, data in known.changed():
                    self._drop_translations(known.block, offset, len(data))

    def _drop_translations(self, block: RamBlock, offset: int, size: int) -> None:
        def visit(item: Range) -> None:
            if item.block is not block or not item.visible:
                return
            low = max(offset, item.offset)
            high = min(offset + size, item.offset + (item.end - item.gpa))
            if low < high:
                self._lib.drop_translations(self._handle, item.gpa + (low - item.offset), high - low)

        self._map.each(visit)

    def memory_written(self, gpa: int, size: int) -> None:
        self._host_wrote = self._chores = True

    def _forget_moved_code(self, gpa: int, size: int) -> None:
        """A change of the map may give memory another address inside Unicorn, by which it finds translated code."""
        for known in self._code.values():
            found = self._map.ram(gpa, Access.NONE)
            if (
                found is None
                or found[0] is not known.block
                or known.overlaps(found[1] - CHUNK, found[1] + size + CHUNK)
            ):
                self._code_moved = self._chores = True

    # --- instructions -------------------------------------------------------------------------------------------------

    def _length(self) -> int:
        """Length of the instruction at RIP. Remembered by address and checked against the bytes that lie there now."""
        rip = self._rip.value
        hflags = self._hflags.value
        if not hflags & HF_CS64:
            rip = (rip + self.regs.segs[CS].base) & 0xFFFFFFFF
        known = self._lengths.get(rip)
        if known is not None:
            cr3, mode, code, mask, expected, size = known
            if code.value & mask == expected and cr3 == self._cr3.value and mode == hflags & (HF_CS64 | HF_CS32):
                return size
        return self._decode_length(rip)

    def _decode_length(self, rip: int) -> int:
        code = self.linear.fetch(rip, MAX_LENGTH)
        size = length(code, self._bits())
        if not size:
            raise UndefinedInstruction
        found = self._map.ram(self.linear.translate(rip, SUPERVISOR), Access.NONE)
        if found is not None and rip % PAGE_SIZE + size <= PAGE_SIZE and size <= _WORD:
            block, offset = found
            if offset + _WORD <= block.size:
                view = ctypes.c_uint64.from_address(block.address + offset)
                mask = (1 << 8 * size) - 1
                mode = self._hflags.value & (HF_CS64 | HF_CS32)
                if len(self._lengths) >= _LENGTHS_MAX:
                    self._lengths.clear()
                self._lengths[rip] = (self._cr3.value, mode, view, mask, view.value & mask, size)
        return size

    def _decoded(self) -> Decoded:
        rip = self._linear_rip()
        code = self.linear.fetch(rip, MAX_LENGTH)
        decoded = decode(code, self._bits())
        if decoded is None:
            raise UndefinedInstruction
        return decoded

    def _xsetbv(self) -> int:
        """Length of the instruction at RIP if it is XSETBV and only its operands can be at fault, else 0.

        The translator has no intercept for it. Instead the instance offers no component for XCR0, so that each faults.
        """
        if self.regs.hflags & HF_CPL:
            return 0
        code = self.instruction_bytes(MAX_LENGTH)
        # Its prefixes are #UD, but for those that mean nothing.
        if _XSETBV not in code:
            return 0
        decoded = decode(code, self._bits())
        return decoded.length if decoded is not None and decoded.mnemonic == "xsetbv" else 0

    def instruction_length(self, code: bytes) -> int:
        return length(code, self._bits())

    def store_operand(self, value: int, size: int) -> Event | MemoryFault | None:
        return Operand(self).store(value, size)

    def operand_address(self) -> int | None:
        return Operand(self).address()

    def load_operand16(self) -> int | Event | MemoryFault:
        return Operand(self).load16()
