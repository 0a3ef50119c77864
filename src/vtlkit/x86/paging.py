"""The page walk: linear to physical addresses (SDM volume 3, chapter 4; AMD APM volume 2, chapter 5; `paging_tmpl.h`).

The only one in the project: page-fault injection, TranslateVirtualAddress, `translate2` and the debugger's view all use
it. It is a pure function of the registers and a read callback. It writes nothing: the accessed and dirty bits that the
access would set come back as a list of entry updates, for the caller to compare-and-exchange (and walk again if one has
changed meanwhile, as `FNAME(update_accessed_dirty_bits)` does).

A processor with 1 GiB pages and NX is described; a table-entry bit that a mode reserves faults as the manuals say. Not
here: nested paging (walk each level's GPA through another `walk`), shadow stacks, protection keys for supervisor pages.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from vtlkit.x86.exceptions import PFERR_FETCH, PFERR_PK, PFERR_PRESENT, PFERR_RSVD, PFERR_USER, PFERR_WRITE
from vtlkit.x86.registers import (
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NX,
    RFLAGS_AC,
    Sregs,
)

READ: Final = 1
WRITE: Final = 2
EXECUTE: Final = 4
USER: Final = 8
"""Access made in user mode; without USER or SUPERVISOR the CPL decides."""
SUPERVISOR: Final = 16
"""Access made in supervisor mode whatever the CPL (HV_TRANSLATE_GVA_PRIVILEGE_EXEMPT and the like)."""

PTE_P: Final = 1 << 0
PTE_W: Final = 1 << 1
PTE_U: Final = 1 << 2
PTE_PWT: Final = 1 << 3
PTE_PCD: Final = 1 << 4
PTE_A: Final = 1 << 5
PTE_D: Final = 1 << 6
PTE_PS: Final = 1 << 7
PTE_PAT: Final = 1 << 7
"""In an entry that maps 4 KiB; PTE_PAT_LARGE in one that maps more."""
PTE_G: Final = 1 << 8
PTE_PAT_LARGE: Final = 1 << 12
PTE_PKEY_SHIFT: Final = 59
PTE_NX: Final = 1 << 63

PKRU_AD: Final = 1
PKRU_WD: Final = 2

_PSE36_MAXPHYADDR: Final = 40
_PHYSICAL_MASK: Final = 0x000FFFFFFFFFF000
PDPTE_RESERVED: Final = 0xFFF0000000000000 | 0x1E6
"""Of PAE paging, at any physical address width."""
PAE_CR3_MASK: Final = 0xFFFFFFE0
"""Where PAE paging's table of four lies."""

Read: TypeAlias = Callable[[int, int], int | None]
"""(guest-physical address, size 4 or 8) -> value, or None where there is nothing to read."""


class PagingMode(enum.IntEnum):
    NONE = 0
    LEGACY_32BIT = 2
    PAE = 3
    LONG_4LEVEL = 4
    LONG_5LEVEL = 5


@dataclass(slots=True)
class PagingState:
    """What of a vCPU's state decides a translation."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    rflags_ac: bool
    cpl: int
    pkru: int = 0
    maxphyaddr: int = 52
    gib_pages: bool = True
    """CPUID.80000001H:EDX.Page1GB: PS in a PDPTE of long mode is reserved without."""
    pdptes: tuple[int, int, int, int] | None = None
    """PAE: the PDPTE registers, loaded by MOV to CR3; None reads the table in memory, as AMD processors do."""

    @classmethod
    def of(cls, sregs: Sregs, rflags: int, cpl: int, *, pkru: int = 0, maxphyaddr: int = 52) -> PagingState:
        """The state of a vCPU with these registers."""
        return cls(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, bool(rflags & RFLAGS_AC), cpl, pkru, maxphyaddr)

    @property
    def mode(self) -> PagingMode:
        if not self.cr0 & CR0_PG:
            return PagingMode.NONE
        if not self.cr4 & CR4_PAE:
            return PagingMode.LEGACY_32BIT
        if not self.efer & EFER_LMA:
            return PagingMode.PAE
        return PagingMode.LONG_5LEVEL if self.cr4 & CR4_LA57 else PagingMode.LONG_4LEVEL


class Outcome(enum.Enum):
    """How a walk ended."""

    OK = 0
    PAGE_FAULT = 1
    NON_CANONICAL = 2
    """#GP or #SS, not #PF: no table was read."""
    GPA_FAULT = 3
    """A table lies where nothing can be read; `gpa` is that entry's address."""


_OK: Final = Outcome.OK
_PAGE_FAULT: Final = Outcome.PAGE_FAULT


class EntryUpdate(NamedTuple):
    """An entry whose accessed or dirty bit the access sets: compare with `old`, exchange to `new`."""

    gpa: int
    size: int
    old: int
    new: int


@dataclass(slots=True)
class WalkResult:
    """A translation, or why there is none: then only `outcome`, `error_code`, `level`, `updates` and (GPA_FAULT) `gpa`
    count."""

    outcome: Outcome
    gpa: int = 0
    page_size: int = 0
    permissions: int = 0
    """READ, WRITE, EXECUTE and USER as the tables grant them (AND of all levels), before WP, SMEP, SMAP and PKRU."""
    error_code: int = 0
    """PFERR_* bits of the page fault."""
    level: int = 0
    """1 for the entry that maps 4 KiB, 2 and 3 for large pages; on failure the level of the entry that failed."""
    entry: int = 0
    """The entry that maps the page: its PAT, PCD, PWT, G and protection-key bits are the caller's to read."""
    updates: tuple[EntryUpdate, ...] = ()
    """On failure those of the entries above the one that failed, which a processor may have set by then."""

    @property
    def ok(self) -> bool:
        return self.outcome is _OK


def is_canonical(gva: int, la57: bool) -> bool:
    """Whether the bits above the linear-address width (57 or 48) of a 64-bit address equal its top bit."""
    top = gva >> (56 if la57 else 47)
    return top == 0 or top == (0xFF if la57 else 0x1FFFF)


def walk(state: PagingState, gva: int, access: int, read: Read, *, implicit_supervisor: bool = False) -> WalkResult:
    """Translate `gva` (a linear address; only its low 32 bits count outside long mode) for one access.

    `access`: READ, WRITE, EXECUTE or several, all of which must be granted; USER or SUPERVISOR overrides `state.cpl`.
    With none of the three the walk only looks: faults of the tables are reported, permissions are not checked and no
    bit would be set.
    `implicit_supervisor`: the access is to a descriptor table, TSS and the like: supervisor at any CPL, and EFLAGS.AC
    does not lift SMAP.
    """
    cr4 = state.cr4
    if implicit_supervisor:
        user = 0
    elif access & (USER | SUPERVISOR):
        user = PFERR_USER if access & USER else 0
    else:
        user = PFERR_USER if state.cpl == 3 else 0
    error = user
    if access & WRITE:
        error |= PFERR_WRITE
    nx = state.efer & EFER_NX
    if access & EXECUTE and (cr4 & CR4_SMEP or (nx and cr4 & CR4_PAE)):
        error |= PFERR_FETCH

    if not state.cr0 & CR0_PG:
        return WalkResult(_OK, gva & 0xFFFFFFFF, 4096, READ | WRITE | EXECUTE | USER)
    if not cr4 & CR4_PAE:
        return _walk_32bit(state, gva & 0xFFFFFFFF, access, read, error, implicit_supervisor)

    reserved = (0x000FFFFFFFFFFFFF >> state.maxphyaddr) << state.maxphyaddr
    if not nx:
        reserved |= PTE_NX
    if state.efer & EFER_LMA:
        la57 = cr4 & CR4_LA57
        top = gva >> (56 if la57 else 47)
        if top and top != (0xFF if la57 else 0x1FFFF):
            return WalkResult(Outcome.NON_CANONICAL)
        level = 5 if la57 else 4
        table = state.cr3 & _PHYSICAL_MASK
    else:
        gva &= 0xFFFFFFFF
        level = 2
        # Bits 62:52 are available to software in long mode only.
        reserved |= 0x7FF0000000000000
        pdpte = _pdpte(state, gva >> 30, read)
        if isinstance(pdpte, WalkResult):
            return pdpte
        if not pdpte & PTE_P:
            return WalkResult(_PAGE_FAULT, error_code=error, level=3)
        if pdpte & (PDPTE_RESERVED | (reserved & ~PTE_NX)):
            return WalkResult(_PAGE_FAULT, error_code=error | PFERR_PRESENT | PFERR_RSVD, level=3)
        table = pdpte & _PHYSICAL_MASK
    return _walk_64bit_entries(state, gva, access, read, error, implicit_supervisor, level, table, reserved)


def _pdpte(state: PagingState, index: int, read: Read) -> int | WalkResult:
    if state.pdptes is not None:
        return state.pdptes[index]
    address = (state.cr3 & PAE_CR3_MASK) + index * 8
    value = read(address, 8)
    return WalkResult(Outcome.GPA_FAULT, address, level=3) if value is None else value


def _walk_64bit_entries(
    state: PagingState,
    gva: int,
    access: int,
    read: Read,
    error: int,
    implicit: bool,
    level: int,
    table: int,
    reserved: int,
) -> WalkResult:
    """PAE from the page directory down, 4-level and 5-level paging."""
    # One AND accumulates what every level must grant; NX is inverted so that it accumulates too.
    grants = PTE_W | PTE_U | PTE_NX
    updates: list[EntryUpdate] = []
    shift = 12 + 9 * (level - 1)
    while True:
        address = table | ((gva >> shift) & 0x1FF) << 3
        entry = read(address, 8)
        if entry is None:
            return WalkResult(Outcome.GPA_FAULT, address, level=level, updates=tuple(updates))
        if not entry & PTE_P:
            return WalkResult(_PAGE_FAULT, error_code=error, level=level, updates=tuple(updates))
        if entry & reserved:
            return WalkResult(
                _PAGE_FAULT, error_code=error | PFERR_PRESENT | PFERR_RSVD, level=level, updates=tuple(updates)
            )
        grants &= entry ^ PTE_NX
        if level == 1:
            break
        if entry & PTE_PS:
            # Of a large page the address bits below its size are reserved, but for PAT in bit 12.
            if level > 3 or (level == 3 and not state.gib_pages) or entry & ((1 << shift) - 1) & 0xFFFFFFFFFFFFE000:
                return WalkResult(
                    _PAGE_FAULT, error_code=error | PFERR_PRESENT | PFERR_RSVD, level=level, updates=tuple(updates)
                )
            break
        if not entry & PTE_A and access & (READ | WRITE | EXECUTE):
            updates.append(EntryUpdate(address, 8, entry, entry | PTE_A))
        table = entry & _PHYSICAL_MASK
        level -= 1
        shift -= 9

    fault = _permission_fault(state, access, error, implicit, grants, entry)
    if fault:
        return WalkResult(_PAGE_FAULT, error_code=fault, level=level, updates=tuple(updates))
    low = (1 << shift) - 1
    gpa = (entry & _PHYSICAL_MASK & ~low) | (gva & low)
    return WalkResult(
        _OK,
        gpa,
        low + 1,
        _permissions(grants),
        level=level,
        entry=entry,
        updates=_updates(updates, address, 8, entry, access),
    )


def _walk_32bit(state: PagingState, gva: int, access: int, read: Read, error: int, implicit: bool) -> WalkResult:
    """Two levels of 4-byte entries, with 4 MiB pages (PSE, PSE-36)."""
    address = (state.cr3 & 0xFFFFF000) | (gva >> 22) << 2
    entry = read(address, 4)
    if entry is None:
        return WalkResult(Outcome.GPA_FAULT, address, level=2)
    if not entry & PTE_P:
        return WalkResult(_PAGE_FAULT, error_code=error, level=2)
    grants = (entry & (PTE_W | PTE_U)) | PTE_NX
    updates: list[EntryUpdate] = []
    if entry & PTE_PS and state.cr4 & CR4_PSE:
        level = 2
        high_bits = min(state.maxphyaddr, _PSE36_MAXPHYADDR) - 32
        # PSE-36: bits 20:13 hold physical address bits 39:32; those beyond MAXPHYADDR, and bit 21, are reserved.
        if entry & 0x3FE000 & ~(((1 << high_bits) - 1) << 13):
            return WalkResult(
                _PAGE_FAULT, error_code=error | PFERR_PRESENT | PFERR_RSVD, level=2, updates=tuple(updates)
            )
        page_size = 1 << 22
        gpa = (entry & 0xFFC00000) | ((entry & 0x1FE000) << 19) | (gva & 0x3FFFFF)
    else:
        level = 1
        if not entry & PTE_A and access & (READ | WRITE | EXECUTE):
            updates.append(EntryUpdate(address, 4, entry, entry | PTE_A))
        address = (entry & 0xFFFFF000) | ((gva >> 12) & 0x3FF) << 2
        entry = read(address, 4)
        if entry is None:
            return WalkResult(Outcome.GPA_FAULT, address, level=1, updates=tuple(updates))
        if not entry & PTE_P:
            return WalkResult(_PAGE_FAULT, error_code=error, level=1, updates=tuple(updates))
        grants &= entry | PTE_NX
        page_size = 4096
        gpa = (entry & 0xFFFFF000) | (gva & 0xFFF)
    fault = _permission_fault(state, access, error, implicit, grants, entry)
    if fault:
        return WalkResult(_PAGE_FAULT, error_code=fault, level=level, updates=tuple(updates))
    return WalkResult(
        _OK,
        gpa,
        page_size,
        _permissions(grants),
        level=level,
        entry=entry,
        updates=_updates(updates, address, 4, entry, access),
    )


def _permission_fault(state: PagingState, access: int, error: int, implicit: bool, grants: int, entry: int) -> int:
    """The error code if the page forbids the access, else 0."""
    denied = False
    if access & EXECUTE:
        # Without EFER.NXE bit 63 is reserved: a set one has faulted already.
        denied = not grants & PTE_NX
        if grants & PTE_U:
            denied = denied or (not error & PFERR_USER and bool(state.cr4 & CR4_SMEP))
        else:
            denied = denied or bool(error & PFERR_USER)
    if access & (READ | WRITE):
        if error & PFERR_USER:
            denied = denied or not grants & PTE_U or bool(access & WRITE and not grants & PTE_W)
        else:
            if access & WRITE and not grants & PTE_W and state.cr0 & CR0_WP:
                denied = True
            if grants & PTE_U and state.cr4 & CR4_SMAP and (implicit or not state.rflags_ac):
                denied = True
        if (
            grants & PTE_U
            and state.cr4 & CR4_PKE
            and state.efer & EFER_LMA
            and _pkey_denies(state, access, error, entry)
        ):
            return error | PFERR_PRESENT | PFERR_PK
    return error | PFERR_PRESENT if denied else 0


def _pkey_denies(state: PagingState, access: int, error: int, entry: int) -> bool:
    """Protection keys of user pages, for data accesses of either mode."""
    rights = state.pkru >> 2 * ((entry >> PTE_PKEY_SHIFT) & 0xF)
    if rights & PKRU_AD:
        return True
    return bool(access & WRITE and rights & PKRU_WD and (error & PFERR_USER or state.cr0 & CR0_WP))


def _permissions(grants: int) -> int:
    permissions = READ
    if grants & PTE_W:
        permissions |= WRITE
    if grants & PTE_U:
        permissions |= USER
    if grants & PTE_NX:
        permissions |= EXECUTE
    return permissions


def _updates(upper: list[EntryUpdate], address: int, size: int, entry: int, access: int) -> tuple[EntryUpdate, ...]:
    """Accessed in every entry used, dirty also in the one that maps the page."""
    if not access & (READ | WRITE | EXECUTE):
        return ()
    new = entry | (PTE_A | PTE_D if access & WRITE else PTE_A)
    if new == entry:
        return tuple(upper)
    return (*upper, EntryUpdate(address, size, entry, new))
