"""The instruction at RIP: its bytes and operands, and which of its accesses the guest-physical map refuses.

The kernel says at best the page of a refused access (KVM_EXIT_MEMORY_FAULT), and nothing of what the access was. That
follows from the instruction, by iced-x86, and from the guest's page tables.

Belongs to the vCPU's task, between two instructions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

from vtlkit.engine.api import Access, Event, EventType, MemoryFault
from vtlkit.engine.decode import MAX_LENGTH
from vtlkit.engine.devkvm.abi import CS, FS, SEGMENT_NAMES, SS, SYNC_SREGS
from vtlkit.engine.devkvm.linear import LinearMemory
from vtlkit.engine.devkvm.live import Live
from vtlkit.engine.linear import GuestFault, PhysicalFault
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.paging import READ as _WALK_READ
from vtlkit.x86.paging import WRITE as _WALK_WRITE
from vtlkit.x86.paging import is_canonical
from vtlkit.x86.registers import CR4_LA57, EFER_LMA, GENERAL_REGISTERS

_LOOK_BACK: Final = 64
"""Bytes of code before an instruction by which its beginning is found."""
_U64: Final = (1 << 64) - 1
_U32: Final = (1 << 32) - 1


@cache
def _iced() -> Any:
    import iced_x86

    return iced_x86


@cache
def _info_factory() -> Any:
    return _iced().InstructionInfoFactory()


@cache
def _segment_numbers() -> dict[int, int]:
    register = _iced().Register
    return {getattr(register, name.upper()): number for number, name in enumerate(SEGMENT_NAMES[:6])}


class Reference(NamedTuple):
    """A memory access of an instruction."""

    gva: int
    size: int
    access: Access


class Instructions:
    """Looks at the code of one vCPU."""

    def __init__(self, live: Live, linear: LinearMemory) -> None:
        self._live = live
        self._linear = linear

    def bits(self) -> int:
        """16, 32 or 64: the size of the present code."""
        cs = self._live.segments[CS]
        if cs.l and self._live.sregs.efer & EFER_LMA:
            return 64
        return 32 if cs.db else 16

    def linear_rip(self) -> int:
        rip = self._live.regs.rip
        return rip if self.bits() == 64 else (rip + self._live.segments[CS].base) & _U32

    def fetch(self, size: int = MAX_LENGTH, back: int = 0) -> bytes:
        """Up to `size` bytes at RIP, or `back` bytes before it."""
        return self._linear.fetch((self.linear_rip() - back) & _U64, size)

    def decoded(self, code: bytes, ip: int) -> Any:
        """The instruction that `code` starts with, of `ip`; None if there is none."""
        instruction = _iced().Decoder(self.bits(), code, ip=ip).decode()
        return None if instruction.is_invalid else instruction

    # --- addresses --------------------------------------------------------------------------------------------------

    def _gpr(self, register: int) -> int:
        ext = _iced().RegisterExt
        value: int = getattr(self._live.regs, GENERAL_REGISTERS[ext.number(register)])
        return value & ((1 << 8 * int(ext.size(register))) - 1)

    def address(self, base: int, index: int, scale: int, displacement: int, segment: int, width: int) -> int:
        """A linear address from iced's parts; `width`: address size in bytes."""
        register = _iced().Register
        offset = displacement
        if base not in (register.NONE, register.RIP, register.EIP):
            offset += self._gpr(base)
        if index != register.NONE and _iced().RegisterExt.is_gpr(index):
            offset += self._gpr(index) * scale
        offset &= (1 << 8 * width) - 1
        number = _segment_numbers().get(segment, 3)
        if self.bits() == 64:
            return (offset + (self._live.segments[number].base if number in (FS, FS + 1) else 0)) & _U64
        return (offset + self._live.segments[number].base) & _U32

    def references(self, instruction: Any) -> Iterator[Reference]:
        """Every access to memory that an instruction makes by its operands and its use of the stack."""
        kinds = _iced().OpAccess
        reads = (kinds.READ, kinds.COND_READ, kinds.READ_WRITE, kinds.READ_COND_WRITE)
        writes = (kinds.WRITE, kinds.COND_WRITE, kinds.READ_WRITE, kinds.READ_COND_WRITE)
        for used in _info_factory().info(instruction).used_memory():
            size = max(int(_iced().MemorySizeExt.size(used.memory_size)), 1)
            width = _address_bytes(used.address_size)
            gva = self.address(used.base, used.index, used.scale, used.displacement, used.segment, width)
            if used.access in reads:
                yield Reference(gva, size, Access.READ)
            if used.access in writes:
                yield Reference(gva, size, Access.WRITE)

    # --- refused accesses -------------------------------------------------------------------------------------------

    def refused(self) -> MemoryFault | None:
        """The first access of the instruction at RIP, its fetch included, that the guest-physical map refuses."""
        rip = self.linear_rip()
        try:
            self._linear.check(rip, 1, Access.EXECUTE)
        except PhysicalFault as fault:
            return _memory_fault(fault)
        except GuestFault:
            return None
        code = self.fetch()
        instruction = self.decoded(code, self._live.regs.rip)
        if instruction is None:
            if len(code) < MAX_LENGTH:
                return self._refuses(Reference((rip + len(code)) & _U64, 1, Access.EXECUTE))
            return None
        return next(filter(None, map(self._refuses, self.references(instruction))), None)

    def accesses(self) -> list[Reference]:
        """What the operands of the instruction at RIP access."""
        instruction = self.decoded(self.fetch(), self._live.regs.rip)
        return [] if instruction is None else list(self.references(instruction))

    def leads_to(self, reference: Reference, gpa: int) -> bool:
        """Whether the page of an access is that of `gpa`."""
        try:
            return any(
                self._linear.translate(gva & _U64, _WALK_READ) >> 12 == gpa >> 12
                for gva in (reference.gva, reference.gva + reference.size - 1)
            )
        except (GuestFault, PhysicalFault):
            return False

    def places_written(self) -> Iterator[tuple[int, int]]:
        """(guest-physical address, size) of what the instruction at RIP stores to."""
        for gva, size, access in self.accesses():
            if access is Access.WRITE:
                for at in (gva, gva + size - 1):
                    try:
                        yield self._linear.translate(at & _U64, _WALK_WRITE), 1
                    except (GuestFault, PhysicalFault):
                        continue

    def _refuses(self, reference: Reference) -> MemoryFault | None:
        try:
            self._linear.check(*reference)
        except PhysicalFault as fault:
            return _memory_fault(fault)
        except GuestFault:
            pass
        return None

    def before_write(self, gpa: int, size: int) -> int:
        """Length of the instruction just before RIP that wrote `size` bytes at `gpa`; 0 if none is found.

        Of several that fit, as bytes before it may be taken for prefixes: the one that code read from further back
        arrives at most often, as decoders fall into step with code, wherever they begin; else the longest.
        """
        rip = self.linear_rip()
        code = self._linear.fetch((rip - _LOOK_BACK) & _U64, _LOOK_BACK)
        if len(code) < _LOOK_BACK:
            code = self._linear.fetch(rip & ~0xFFF, rip & 0xFFF)
        end, ip = len(code), self._live.regs.rip
        fits = []
        for length in range(1, min(MAX_LENGTH, end) + 1):
            instruction = self.decoded(code[end - length :], (ip - length) & _U64)
            if instruction is not None and instruction.len == length and self._writes(instruction, gpa, size):
                fits.append(length)
        if len(fits) < 2:
            return fits[0] if fits else 0
        votes = Counter(last for start in range(end - MAX_LENGTH) if (last := self._last_of(code[start:])) in fits)
        return max(fits, key=lambda length: (votes[length], length))

    def _last_of(self, code: bytes) -> int:
        """Length of the last instruction of `code`, read from its beginning; 0 if the end is not reached."""
        decoder = _iced().Decoder(self.bits(), code)
        last = 0
        for instruction in decoder:
            if instruction.is_invalid:
                return 0
            last = int(instruction.len)
        return last

    def _writes(self, instruction: Any, gpa: int, size: int) -> bool:
        for gva, length, access in self.references(instruction):
            if access is not Access.WRITE or size > length:
                continue
            # Of what moves a register along with the access, the address after it.
            for moved in (gva, gva + length, gva - length):
                # Across a page the kernel tells of each part by itself.
                behind = (moved | 0xFFF) + 1
                for part in (moved, behind) if behind < moved + length else (moved,):
                    try:
                        if self._linear.translate(part & _U64, _WALK_WRITE) == gpa:
                            return True
                    except (GuestFault, PhysicalFault):
                        continue
        return False

    # --- the operand on the hypervisor's behalf -----------------------------------------------------------------------

    def operand(self) -> Operand:
        return Operand(self, self._live, self._linear)


def _address_bytes(size: int) -> int:
    sizes = _iced().CodeSize
    return {sizes.CODE16: 2, sizes.CODE32: 4}.get(size, 8)


def _memory_fault(fault: PhysicalFault) -> MemoryFault:
    return MemoryFault(fault.gpa, fault.size, fault.access, fault.mapped, fault.gva)


class Operand:
    """The first operand of the instruction at RIP."""

    def __init__(self, instructions: Instructions, live: Live, linear: LinearMemory) -> None:
        iced = _iced()
        self._code = instructions
        self._live = live
        self._linear = linear
        self._instruction = instructions.decoded(instructions.fetch(), live.regs.rip)
        self._is_register = self._instruction.op_kind(0) == iced.OpKind.REGISTER

    def address(self) -> int | None:
        """Linear address of the memory operand, whatever may be wrong with it; None if it is a register."""
        if self._is_register:
            return None
        i = self._instruction
        width = 8 if self._code.bits() == 64 else 4
        if i.memory_base and not i.is_ip_rel_memory_operand:
            width = int(_iced().RegisterExt.size(i.memory_base))
        return self._code.address(
            i.memory_base, i.memory_index, i.memory_index_scale, i.memory_displacement, i.memory_segment, width
        )

    def _checked_address(self) -> int:
        address = self.address()
        assert address is not None
        if self._code.bits() == 64 and not is_canonical(address, bool(self._live.sregs.cr4 & CR4_LA57)):
            stack = _segment_numbers().get(self._instruction.memory_segment) == SS
            raise GuestFault(Vector.SS if stack else Vector.GP, 0)
        return address

    def store(self, value: int, size: int) -> Event | MemoryFault | None:
        """Store to memory, with the privilege of the guest, or to a register; why not, if it cannot be."""
        regs = self._live.regs
        if self._is_register:
            register = self._instruction.op_register(0)
            name = GENERAL_REGISTERS[_iced().RegisterExt.number(register)]
            width = _iced().RegisterExt.size(register)
            old = getattr(regs, name) if width == 2 else 0
            setattr(regs, name, (old & ~0xFFFF if width == 2 else 0) | value & ((1 << 8 * width) - 1))
            return None
        try:
            self._linear.write(self._checked_address(), (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
        except (GuestFault, PhysicalFault) as fault:
            return self._reason(fault)
        return None

    def load16(self) -> int | Event | MemoryFault:
        """The operand's low 16 bits, or why they cannot be read."""
        if self._is_register:
            register = self._instruction.op_register(0)
            return int(getattr(self._live.regs, GENERAL_REGISTERS[_iced().RegisterExt.number(register)])) & 0xFFFF
        try:
            return int.from_bytes(self._linear.read(self._checked_address(), 2), "little")
        except (GuestFault, PhysicalFault) as fault:
            return self._reason(fault)

    def _reason(self, fault: GuestFault | PhysicalFault) -> Event | MemoryFault:
        if isinstance(fault, PhysicalFault):
            return _memory_fault(fault)
        if fault.vector == Vector.PF:
            self._live.sregs.cr2 = fault.address
            self._live.dirty |= SYNC_SREGS
        return Event(EventType.EXCEPTION, fault.vector, fault.error_code)
