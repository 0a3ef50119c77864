"""The r/m operand of the instruction at RIP: read or written on the hypervisor's behalf.

For the few intercepted instructions whose effect the hypervisor supplies and the processor only stores or loads (SGDT,
SIDT, SLDT, STR, SMSW, LMSW).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from vtlkit.engine.api import Event, EventType, MemoryFault
from vtlkit.engine.decode import MAX_LENGTH
from vtlkit.engine.linear import GuestFault, PhysicalFault
from vtlkit.engine.unicorn.state import HF_CS64
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.paging import READ, WRITE, is_canonical
from vtlkit.x86.registers import CR4_LA57, GENERAL_REGISTERS

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.instance import Instance

_SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS")


@cache
def _iced() -> Any:
    import iced_x86

    return iced_x86


class Operand:
    """The first operand of the instruction at RIP."""

    def __init__(self, engine: Instance) -> None:
        iced = _iced()
        self._engine = engine
        code = engine.instruction_bytes(MAX_LENGTH)
        bits = engine.code_bits()
        self._instruction = iced.Decoder(bits, code, ip=engine.regs.rip).decode()
        self.size_64 = bits == 64
        self._is_register = self._instruction.op_kind(0) == iced.OpKind.REGISTER

    def address(self) -> int | None:
        """Linear address of the memory operand, whatever may be wrong with it; None if it is a register."""
        return None if self._is_register else self._linear_address()[0]

    def _address(self) -> int:
        address, segment = self._linear_address()
        state = self._engine.regs
        if state.hflags & HF_CS64 and not is_canonical(address, bool(state.cr[4] & CR4_LA57)):
            raise GuestFault(Vector.SS if segment == _SEGMENTS.index("SS") else Vector.GP, 0)
        return address

    def _linear_address(self) -> tuple[int, int]:
        """(address, number of the segment register)"""
        iced = _iced()
        instruction = self._instruction
        state = self._engine.regs
        long_mode = bool(state.hflags & HF_CS64)
        address: int = instruction.memory_displacement
        base, index = instruction.memory_base, instruction.memory_index
        if base not in (iced.Register.NONE, iced.Register.RIP, iced.Register.EIP):
            address += self._gpr(base)
        if index != iced.Register.NONE:
            address += self._gpr(index) * instruction.memory_index_scale
        names = {getattr(iced.Register, name): number for number, name in enumerate(_SEGMENTS)}
        segment = names[instruction.memory_segment]
        if not long_mode:
            return int(address + state.segs[segment].base) & 0xFFFFFFFF, segment
        if segment >= _SEGMENTS.index("FS"):
            address += state.segs[segment].base
        return address & 0xFFFFFFFFFFFFFFFF, segment

    def _gpr(self, register: int) -> int:
        ext = _iced().RegisterExt
        value: int = getattr(self._engine.regs, GENERAL_REGISTERS[ext.number(register)])
        return value & ((1 << 8 * int(ext.size(register))) - 1)

    def store(self, value: int, size: int) -> Event | MemoryFault | None:
        """Store to memory, with the privilege of the guest, or to a register; why not, if it cannot be."""
        if self._is_register:
            register = self._instruction.op_register(0)
            name = GENERAL_REGISTERS[_iced().RegisterExt.number(register)]
            width = _iced().RegisterExt.size(register)
            old = getattr(self._engine.regs, name) if width == 2 else 0
            setattr(self._engine.regs, name, (old & ~0xFFFF if width == 2 else 0) | value & ((1 << 8 * width) - 1))
            return None
        try:
            data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
            self._engine.linear.write(self._address(), data, WRITE)
        except (GuestFault, PhysicalFault) as fault:
            return self._reason(fault)
        return None

    def load16(self) -> int | Event | MemoryFault:
        """The operand's low 16 bits, or why they cannot be read."""
        if self._is_register:
            return self._gpr(self._instruction.op_register(0)) & 0xFFFF
        try:
            return int.from_bytes(self._engine.linear.read(self._address(), 2, READ, implicit=False), "little")
        except (GuestFault, PhysicalFault) as fault:
            return self._reason(fault)

    def _reason(self, fault: GuestFault | PhysicalFault) -> Event | MemoryFault:
        if isinstance(fault, PhysicalFault):
            return MemoryFault(fault.gpa, fault.size, fault.access, fault.mapped, fault.gva)
        if fault.vector == Vector.PF:
            self._engine.regs.cr[2] = fault.address
        return Event(EventType.EXCEPTION, fault.vector, fault.error_code)
