"""Linear memory as the CPU's own microcode sees it: page walk, accessed and dirty bits, RAM.

Used for what the processor does by itself (descriptor tables, task state, exception frames) and for reading the bytes
of an instruction that exited. Faults are Python exceptions here because they unwind a delivery; they never leave the
engine.
"""

from __future__ import annotations

from mmap import mmap
from typing import Final, NamedTuple

from vtlkit.engine.api import PAGE_SIZE, Access
from vtlkit.engine.unicorn.memory import GuestPhysicalMap
from vtlkit.engine.unicorn.state import HF_CPL, CpuState
from vtlkit.x86.exceptions import PFERR_FETCH, PFERR_USER, PFERR_WRITE, Vector
from vtlkit.x86.paging import EXECUTE, READ, SUPERVISOR, WRITE, Outcome, PagingState, walk
from vtlkit.x86.registers import CR0_PG, RFLAGS_AC

_KNOWN_MAX: Final = 4096


class GuestFault(Exception):
    """The access raises an exception in the guest."""

    def __init__(self, vector: int, error_code: int | None, address: int = 0) -> None:
        super().__init__(vector)
        self.vector = vector
        self.error_code = error_code
        self.address = address


class PhysicalFault(Exception):
    """The guest-physical map does not permit the access."""

    def __init__(self, gpa: int, size: int, access: Access, mapped: bool, gva: int) -> None:
        super().__init__(hex(gpa))
        self.gpa = gpa
        self.size = size
        self.access = access
        self.mapped = mapped
        self.gva = gva


class _Known(NamedTuple):
    """A translation and the entries that it was read from."""

    page: int
    trail: tuple[tuple[mmap, int, int, bytes], ...]


class LinearMemory:
    """Reads and writes through the present paging state. Belongs to the vCPU's task, between instructions."""

    def __init__(self, state: CpuState, memory: GuestPhysicalMap, maxphyaddr: int) -> None:
        self._state = state
        self._cr = state.cr
        self._memory = memory
        self._maxphyaddr = maxphyaddr
        self._known: dict[tuple[int, int, bool], _Known] = {}
        """Translations made under `_known_for`, each with the table entries it rests on."""
        self._known_for: tuple[int, ...] = ()
        self._trail: list[tuple[mmap, int, int, bytes]] = []

    def paging(self) -> PagingState:
        """The registers that decide translations, now."""
        state = self._state
        return PagingState(
            state.cr[0],
            state.cr[3],
            state.cr[4],
            state.efer,
            bool(state.eflags & RFLAGS_AC),
            state.hflags & HF_CPL,
            state.pkru,
            self._maxphyaddr,
        )

    def forget(self) -> None:
        """Drop what is remembered of guest memory."""
        self._known.clear()
        self._trail.clear()

    def physical_read(self, gpa: int, size: int, gva: int) -> bytes:
        found = self._memory.ram(gpa, Access.READ)
        if found is None:
            raise self._physical_fault(gpa, size, Access.READ, gva)
        block, offset = found
        return block.mapping[offset : offset + size]

    def physical_write(self, gpa: int, data: bytes, gva: int) -> None:
        found = self._memory.ram(gpa, Access.WRITE)
        if found is None:
            raise self._physical_fault(gpa, len(data), Access.WRITE, gva)
        block, offset = found
        block.mapping[offset : offset + len(data)] = data

    def _physical_fault(self, gpa: int, size: int, access: Access, gva: int) -> PhysicalFault:
        item = self._memory.find(gpa)
        return PhysicalFault(gpa, size, access, item is not None and item.block is not None, gva)

    def _read_entry(self, gpa: int, size: int) -> int | None:
        found = self._memory.ram(gpa, Access.READ)
        if found is None:
            return None
        block, offset = found
        raw = block.mapping[offset : offset + size]
        self._trail.append((block.mapping, offset, offset + size, raw))
        return int.from_bytes(raw, "little")

    def translate(self, gva: int, access: int, *, implicit: bool = False) -> int:
        """The guest-physical address, accessed and dirty bits set.

        Raises:
            GuestFault: #PF, or #GP where the address is not canonical.
            PhysicalFault: a page table cannot be read or updated.
        """
        state = self._state
        control = self._cr
        if not control[0] & CR0_PG:
            return gva & 0xFFFFFFFF
        # A walk is a function of these registers and of the entries it read: as long as neither has changed,
        # its result stands, whatever the processor's own TLB holds.
        registers = (
            control[0],
            control[3],
            control[4],
            state.efer,
            state.eflags & RFLAGS_AC,
            state.hflags & HF_CPL,
            state.pkru,
            self._memory.generation,
        )
        if registers != self._known_for:
            self._known.clear()
            self._known_for = registers
        key = (gva >> 12, access, implicit)
        known = self._known.get(key)
        if known is not None:
            for memory, start, end, raw in known.trail:
                if memory[start:end] != raw:
                    break
            else:
                return known.page | gva & 0xFFF
        self._trail.clear()
        result = walk(self.paging(), gva, access, self._read_entry, implicit_supervisor=implicit)
        if result.outcome is Outcome.PAGE_FAULT:
            raise GuestFault(Vector.PF, result.error_code, gva)
        if result.outcome is Outcome.NON_CANONICAL:
            raise GuestFault(Vector.GP, 0)
        if result.outcome is Outcome.GPA_FAULT:
            hidden = self._physical_fault(result.gpa, 8, Access.READ, gva)
            if hidden.mapped:
                raise hidden
            # A table where there is no memory: an entry that is not present, as KVM's walker has it.
            raise GuestFault(Vector.PF, self._error_code(access, implicit=implicit), gva)
        if not result.updates:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[key] = _Known(result.gpa & ~0xFFF, tuple(self._trail))
        for update in result.updates:
            self.physical_write(update.gpa, update.new.to_bytes(update.size, "little"), gva)
        return result.gpa

    def _error_code(self, access: int, *, implicit: bool) -> int:
        """The page fault's error code for an entry that is not present."""
        user = not implicit and not access & SUPERVISOR and self._state.hflags & HF_CPL == 3
        code = PFERR_USER if user else 0
        if access & WRITE:
            code |= PFERR_WRITE
        if access & EXECUTE:
            code |= PFERR_FETCH
        return code

    def read(self, gva: int, size: int, access: int = READ | SUPERVISOR, *, implicit: bool = True) -> bytes:
        """`size` bytes at a linear address, by default as the processor's own implicit supervisor read."""
        first = PAGE_SIZE - gva % PAGE_SIZE
        gpa = self.translate(gva, access, implicit=implicit)
        if size <= first:
            return self.physical_read(gpa, size, gva)
        return self.physical_read(gpa, first, gva) + self.read(gva + first, size - first, access, implicit=implicit)

    def fetch(self, gva: int, size: int) -> bytes:
        """Instruction bytes, fewer where the next page cannot be fetched."""
        first = min(size, PAGE_SIZE - gva % PAGE_SIZE)
        data = self.physical_read(self.translate(gva, EXECUTE), first, gva)
        if first < size:
            try:
                data += self.fetch(gva + first, size - first)
            except (GuestFault, PhysicalFault):
                return data
        return data

    def write(self, gva: int, data: bytes, access: int = WRITE | SUPERVISOR, *, implicit: bool = False) -> None:
        """Write, by default as supervisor; nothing is written unless every page permits it."""
        if gva % PAGE_SIZE + len(data) <= PAGE_SIZE:
            self.physical_write(self.translate(gva, access, implicit=implicit), data, gva)
            return
        pieces = []
        at = 0
        while at < len(data):
            size = min(len(data) - at, PAGE_SIZE - (gva + at) % PAGE_SIZE)
            gpa = self.translate(gva + at, access, implicit=implicit)
            if self._memory.ram(gpa, Access.WRITE) is None:
                raise self._physical_fault(gpa, size, Access.WRITE, gva + at)
            pieces.append((gpa, data[at : at + size], gva + at))
            at += size
        for gpa, piece, address in pieces:
            self.physical_write(gpa, piece, address)
