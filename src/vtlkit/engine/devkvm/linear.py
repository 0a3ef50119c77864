"""Linear memory as the guest's code sees it: the page walk over the engine's map, for what the kernel does not tell.

Which address a refused access had, the bytes of the instruction at RIP, operands read or written on the hypervisor's
behalf. Sets no accessed or dirty bits but for what is written. Faults are Python exceptions; none leaves the engine.

Belongs to the vCPU's task.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vtlkit.engine.api import PAGE_SIZE, Access, RamBlock
from vtlkit.engine.devkvm.live import Live
from vtlkit.engine.memory_map import MemoryMap
from vtlkit.x86.exceptions import PFERR_FETCH, PFERR_USER, PFERR_WRITE, Vector
from vtlkit.x86.paging import EXECUTE, READ, SUPERVISOR, WRITE, EntryUpdate, Outcome, PagingState, walk
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
    trail: tuple[tuple[RamBlock, int, int, bytes], ...]


class LinearMemory:
    """See the module."""

    def __init__(self, live: Live, memory: MemoryMap, maxphyaddr: int) -> None:
        self._live = live
        self._memory = memory
        self._maxphyaddr = maxphyaddr
        self._known: dict[tuple[int, int], _Known] = {}
        self._known_for: tuple[int, ...] = ()
        self._trail: list[tuple[RamBlock, int, int, bytes]] = []

    def _registers(self) -> tuple[int, ...]:
        live = self._live
        sregs = live.sregs
        flags = live.regs.rflags & RFLAGS_AC
        return sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, flags, live.cpl, live.pkru, self._memory.generation

    def _read_entry(self, gpa: int, size: int) -> int | None:
        found = self._memory.ram(gpa, Access.READ)
        if found is None:
            return None
        block, offset = found
        raw = block.mapping[offset : offset + size]
        self._trail.append((block, offset, offset + size, raw))
        return int.from_bytes(raw, "little")

    def translate(self, gva: int, access: int) -> int:
        """The guest-physical address; a translation by which the guest writes sets accessed and dirty bits.

        Raises:
            GuestFault: #PF, or #GP where the address is not canonical.
            PhysicalFault: a page table cannot be read or updated.
        """
        registers = self._registers()
        if not registers[0] & CR0_PG:
            return gva & 0xFFFFFFFF
        if registers != self._known_for:
            self._known.clear()
            self._known_for = registers
        known = self._known.get((gva >> 12, access))
        if known is not None and all(b.mapping[low:high] == raw for b, low, high, raw in known.trail):
            return known.page | gva & 0xFFF
        self._trail.clear()
        cr0, cr3, cr4, efer, flags, cpl, pkru, _ = registers
        state = PagingState(cr0, cr3, cr4, efer, bool(flags), cpl, pkru, self._maxphyaddr)
        result = walk(state, gva, access, self._read_entry)
        if result.outcome is Outcome.PAGE_FAULT:
            raise GuestFault(Vector.PF, result.error_code, gva)
        if result.outcome is Outcome.NON_CANONICAL:
            raise GuestFault(Vector.GP, 0)
        if result.outcome is Outcome.GPA_FAULT:
            hidden = self._physical_fault(result.gpa, 8, Access.READ, gva)
            if hidden.mapped:
                raise hidden
            # A table where there is no memory: an entry that is not present, as KVM's walker has it.
            raise GuestFault(Vector.PF, self._error_code(access, cpl), gva)
        if access & WRITE:
            self._update(result.updates, gva)
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[gva >> 12, access] = _Known(result.gpa & ~0xFFF, tuple(self._trail))
        return result.gpa

    def _update(self, updates: tuple[EntryUpdate, ...], gva: int) -> None:
        for update in updates:
            self.physical_write(update.gpa, update.new.to_bytes(update.size, "little"), gva)

    @staticmethod
    def _error_code(access: int, cpl: int) -> int:
        code = PFERR_USER if not access & SUPERVISOR and cpl == 3 else 0
        return code | (PFERR_WRITE if access & WRITE else 0) | (PFERR_FETCH if access & EXECUTE else 0)

    def _physical_fault(self, gpa: int, size: int, access: Access, gva: int) -> PhysicalFault:
        item = self._memory.find(gpa)
        return PhysicalFault(gpa, size, access, item is not None and item.block is not None, gva)

    def check(self, gva: int, size: int, access: Access, mode: int = 0) -> None:
        """Whether the guest may make this access, byte for byte.

        Raises:
            GuestFault: its own tables refuse.
            PhysicalFault: the guest-physical map does; the first page that does.
        """
        end = gva + size
        while gva < end:
            step = min(end - gva, PAGE_SIZE - gva % PAGE_SIZE)
            gpa = self.translate(gva, _WALK[access] | mode)
            if self._memory.ram(gpa, access) is None:
                raise self._physical_fault(gpa, step, access, gva)
            gva += step

    def physical_write(self, gpa: int, data: bytes, gva: int) -> None:
        """Write within a page.

        Raises:
            PhysicalFault: the map does not permit it.
        """
        found = self._memory.ram(gpa, Access.WRITE)
        if found is None:
            raise self._physical_fault(gpa, len(data), Access.WRITE, gva)
        block, offset = found
        block.mapping[offset : offset + len(data)] = data

    def read(self, gva: int, size: int, access: Access = Access.READ, mode: int = 0) -> bytes:
        """`size` bytes as the guest reads them at its privilege (`mode` SUPERVISOR: as the processor itself does).

        Raises:
            GuestFault, PhysicalFault: it cannot.
        """
        data = b""
        while size:
            step = min(size, PAGE_SIZE - gva % PAGE_SIZE)
            gpa = self.translate(gva, _WALK[access] | mode)
            found = self._memory.ram(gpa, access)
            if found is None:
                raise self._physical_fault(gpa, step, access, gva)
            block, offset = found
            data += block.mapping[offset : offset + step]
            gva += step
            size -= step
        return data

    def fetch(self, gva: int, size: int) -> bytes:
        """Instruction bytes, fewer where they cannot be fetched."""
        first = min(size, PAGE_SIZE - gva % PAGE_SIZE)
        data = b""
        for at, length in ((gva, first), (gva + first, size - first)):
            if length:
                try:
                    data += self.read(at, length, Access.EXECUTE)
                except (GuestFault, PhysicalFault):
                    break
        return data

    def write(self, gva: int, data: bytes) -> None:
        """Write at the guest's privilege; nothing is written unless every page permits it.

        Raises:
            GuestFault, PhysicalFault: it cannot.
        """
        self.check(gva, len(data), Access.WRITE)
        while data:
            step = min(len(data), PAGE_SIZE - gva % PAGE_SIZE)
            self.physical_write(self.translate(gva, WRITE), data[:step], gva)
            gva += step
            data = data[step:]


_WALK: Final = {Access.READ: READ, Access.WRITE: WRITE, Access.EXECUTE: EXECUTE}
