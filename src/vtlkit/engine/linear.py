"""Linear memory as an engine reads it on the guest's behalf: the page walk over the engine's map, page by page.

What engines share; each says which registers decide (`_registers`), whether an access sets accessed and dirty bits
(`_marks`) and what RAM must permit for an instruction to be read from it (`_FETCHED`). Faults are Python exceptions:
they unwind what an engine does for the guest and never leave it.

Belongs to the vCPU's task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from mmap import mmap
from typing import ClassVar, Final, NamedTuple

from vtlkit.engine.api import PAGE_SIZE, Access
from vtlkit.engine.memory_map import MemoryMap
from vtlkit.x86.exceptions import PFERR_FETCH, PFERR_USER, PFERR_WRITE, Vector
from vtlkit.x86.paging import EXECUTE, SUPERVISOR, WRITE, Outcome, PagingState, walk
from vtlkit.x86.registers import CR0_PG

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


Deciding = tuple[int, int, int, int, int, int, int, int]
"""What a translation depends on but for the tables: CR0, CR3, CR4, EFER, EFLAGS.AC in its place, CPL, PKRU and the
map's generation. Not a named tuple: making one would cost as much as the look-up that it is for."""


class _Known(NamedTuple):
    """A translation and the entries that it was read from."""

    page: int
    trail: tuple[tuple[mmap, int, int, bytes], ...]


class LinearWalk(ABC):
    """See the module. An `access` is one of `x86.paging` (READ, SUPERVISOR and so on); sizes are in bytes.

    What `implicit` says is said at `x86.paging.walk`: the processor's own access to a table.
    """

    _FETCHED: ClassVar[Access] = Access.EXECUTE
    """What RAM must permit for an instruction to be read from it."""

    def __init__(self, memory: MemoryMap, maxphyaddr: int) -> None:
        self._memory = memory
        self._maxphyaddr = maxphyaddr
        self._known: dict[tuple[int, int, bool], _Known] = {}
        """Translations made under `_known_for`, each with the table entries it rests on."""
        self._known_for: Deciding | None = None
        self._trail: list[tuple[mmap, int, int, bytes]] = []

    @abstractmethod
    def _registers(self) -> Deciding:
        """What decides translations, now."""

    @abstractmethod
    def _marks(self, access: int) -> bool:
        """Whether an access sets accessed and dirty bits."""

    def forget(self) -> None:
        """Drop what is remembered of guest memory."""
        self._known.clear()
        self._trail.clear()

    # --- guest-physical memory ------------------------------------------------------------------------------------

    def _physical_fault(self, gpa: int, size: int, access: Access, gva: int) -> PhysicalFault:
        item = self._memory.find(gpa)
        return PhysicalFault(gpa, size, access, item is not None and item.block is not None, gva)

    def _physical_read(self, gpa: int, size: int, gva: int, needs: Access) -> bytes:
        """Read within a page; raises PhysicalFault where the map does not permit what it `needs`."""
        found = self._memory.ram(gpa, needs)
        if found is None:
            raise self._physical_fault(gpa, size, needs, gva)
        block, offset = found
        return block.mapping[offset : offset + size]

    def _physical_write(self, gpa: int, data: bytes, gva: int) -> None:
        """Write within a page; raises PhysicalFault where the map does not permit it."""
        found = self._memory.ram(gpa, Access.WRITE)
        if found is None:
            raise self._physical_fault(gpa, len(data), Access.WRITE, gva)
        block, offset = found
        block.mapping[offset : offset + len(data)] = data

    # --- translation ----------------------------------------------------------------------------------------------

    def _read_entry(self, gpa: int, size: int) -> int | None:
        found = self._memory.ram(gpa, Access.READ)
        if found is None:
            return None
        block, offset = found
        raw = block.mapping[offset : offset + size]
        self._trail.append((block.mapping, offset, offset + size, raw))
        return int.from_bytes(raw, "little")

    def translate(self, gva: int, access: int, *, implicit: bool = False) -> int:
        """The guest-physical address; accessed and dirty bits are set where the engine sets them.

        Raises:
            GuestFault: #PF, or #GP where the address is not canonical.
            PhysicalFault: a page table cannot be read or updated.
        """
        # A walk is a function of these registers and of the entries it read: as long as neither has changed,
        # its result stands, whatever the processor's own TLB holds.
        registers = self._registers()
        if not registers[0] & CR0_PG:
            return gva & 0xFFFFFFFF
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
        cr0, cr3, cr4, efer, ac, cpl, pkru, _ = registers
        state = PagingState(cr0, cr3, cr4, efer, bool(ac), cpl, pkru, self._maxphyaddr)
        result = walk(state, gva, access, self._read_entry, implicit_supervisor=implicit)
        if result.outcome is Outcome.PAGE_FAULT:
            raise GuestFault(Vector.PF, result.error_code, gva)
        if result.outcome is Outcome.NON_CANONICAL:
            raise GuestFault(Vector.GP, 0)
        if result.outcome is Outcome.GPA_FAULT:
            hidden = self._physical_fault(result.gpa, 8, Access.READ, gva)
            if hidden.mapped:
                raise hidden
            # A table where there is no memory: an entry that is not present, as KVM's walker has it.
            raise GuestFault(Vector.PF, _not_present(access, cpl, implicit=implicit), gva)
        if result.updates and self._marks(access):
            for update in result.updates:
                self._physical_write(update.gpa, update.new.to_bytes(update.size, "little"), gva)
        else:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[key] = _Known(result.gpa & ~0xFFF, tuple(self._trail))
        return result.gpa

    # --- page by page ---------------------------------------------------------------------------------------------

    def _pages(self, gva: int, size: int, access: int, implicit: bool) -> Iterator[tuple[int, int, int]]:
        """(guest-physical address, size, linear address) of each page's part, translated when asked for."""
        end = gva + size
        while gva < end:
            step = min(end - gva, PAGE_SIZE - gva % PAGE_SIZE)
            yield self.translate(gva, access, implicit=implicit), step, gva
            gva += step

    def _permitted(self, gva: int, size: int, access: int, implicit: bool, needs: Access) -> list[tuple[int, int, int]]:
        """`_pages`, once the map permits what the access `needs` of all of them.

        Raises:
            GuestFault: the guest's own tables refuse.
            PhysicalFault: the guest-physical map does; the first page that does.
        """
        pieces = []
        for gpa, step, at in self._pages(gva, size, access, implicit):
            if self._memory.ram(gpa, needs) is None:
                raise self._physical_fault(gpa, step, needs, at)
            pieces.append((gpa, step, at))
        return pieces

    def _load(self, gva: int, size: int, access: int, implicit: bool, needs: Access) -> bytes:
        """`size` bytes; raises as `_permitted`."""
        if gva % PAGE_SIZE + size <= PAGE_SIZE:
            return self._physical_read(self.translate(gva, access, implicit=implicit), size, gva, needs)
        return b"".join(
            self._physical_read(gpa, step, at, needs) for gpa, step, at in self._pages(gva, size, access, implicit)
        )

    def _store(self, gva: int, data: bytes, access: int, implicit: bool) -> None:
        """Write; nothing is written unless every page permits it. Raises as `_permitted`."""
        if gva % PAGE_SIZE + len(data) <= PAGE_SIZE:
            self._physical_write(self.translate(gva, access, implicit=implicit), data, gva)
            return
        first = gva
        for gpa, step, at in self._permitted(gva, len(data), access, implicit, Access.WRITE):
            self._physical_write(gpa, data[at - first : at - first + step], at)

    def fetch(self, gva: int, size: int) -> bytes:
        """Instruction bytes, fewer where the next page cannot be fetched; raises as `translate` if the first cannot."""
        data = b""
        try:
            for gpa, step, at in self._pages(gva, size, EXECUTE, False):
                data += self._physical_read(gpa, step, at, self._FETCHED)
        except (GuestFault, PhysicalFault):
            if not data:
                raise
        return data


def _not_present(access: int, cpl: int, *, implicit: bool) -> int:
    """The page fault's error code for an entry that is not present."""
    code = PFERR_USER if not implicit and not access & SUPERVISOR and cpl == 3 else 0
    return code | (PFERR_WRITE if access & WRITE else 0) | (PFERR_FETCH if access & EXECUTE else 0)
