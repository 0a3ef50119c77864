"""KVM_TRANSLATE2: a linear address to a guest-physical one, as an access of the vCPU's own guest would have it.

Mirrors the proposed `kvm_arch_vcpu_ioctl_translate2` over `paging_tmpl.h`; the walk is `x86/paging`.

Promise: a page table is read and written only where the vCPU's guest could do so itself. One in a page that memory
attributes forbid is reported (FORBIDDEN) and not followed. Nothing a guest puts into its tables raises.

The vCPU does not run meanwhile. Guest memory may change at any time: an accessed or dirty bit is compared and
exchanged, and if the entry has changed since it was read the walk begins anew (`FNAME(update_accessed_dirty_bits)`).
What lies at the address found is not looked at.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Access
from vtlkit.kvm.errors import GuestMemoryError, KvmError
from vtlkit.x86 import paging
from vtlkit.x86.exceptions import PFERR_PRESENT, PFERR_RSVD
from vtlkit.x86.paging import EntryUpdate, Outcome, PagingState, WalkResult
from vtlkit.x86.registers import CR4_PKE, CR4_SMAP, CR4_SMEP

if TYPE_CHECKING:
    from vtlkit.kvm.memory import GuestMemory
    from vtlkit.kvm.vcpu import Vcpu

_U64: Final = 0xFFFFFFFFFFFFFFFF


class TranslateAccess(enum.IntFlag):
    """What the translation is for. Without READ, WRITE or EXECUTE no permission is checked; without USER or SUPERVISOR
    the privilege level decides, and with both each must be allowed."""

    NONE = 0
    WRITE = 1 << 0
    USER = 1 << 1
    EXECUTE = 1 << 2
    READ = 1 << 3
    SUPERVISOR = 1 << 4
    EXEMPT = 1 << 5
    """No check that depends on the privilege level: supervisor access with SMEP and SMAP off. Overrides the two."""
    ENFORCE_SMAP = 1 << 6
    """As if RFLAGS.AC were clear."""
    OVERRIDE_SMAP = 1 << 7
    """As if RFLAGS.AC were set; overrides ENFORCE_SMAP."""


class TranslateFlags(enum.IntFlag):
    """KVM_TRANSLATE_FLAGS_*."""

    NONE = 0
    SET_ACCESSED = 1 << 0
    """Set the accessed bit in every entry used, if the translation succeeds."""
    SET_DIRTY = 1 << 1
    """Set the dirty bit too, if it is for writing."""
    FORCE_SET_ACCESSED = 1 << 2
    """Set the accessed bit in the entries above the one at which a translation fails, as a processor may."""


_ACCESS_MASK: Final = int(sum(TranslateAccess))
_FLAGS_MASK: Final = int(sum(TranslateFlags))


class TranslateFault(enum.IntEnum):
    """KVM_TRANSLATE_FAULT_*; FORBIDDEN is ours."""

    NONE = 0
    NOT_PRESENT = 1
    PRIVILEGE_VIOLATION = 2
    RESERVED_BITS = 3
    INVALID_GVA = 4
    """Not canonical."""
    INVALID_GPA = 5
    """A page table where there is no memory."""
    FORBIDDEN = 6
    """A page table, or with `set_bits_succeeded` False an accessed or dirty bit, in a page that forbids the access."""


@dataclass(frozen=True, slots=True)
class Translation:
    """`struct kvm_translation2`. Without `valid` only the fields that say so have a meaning."""

    valid: bool
    gpa: int = 0
    """The translation; INVALID_GPA and FORBIDDEN: the entry that cannot be accessed."""
    fault: TranslateFault = TranslateFault.NONE
    error_code: int = 0
    """NOT_PRESENT, PRIVILEGE_VIOLATION, RESERVED_BITS: the page fault's error code (PFERR_*)."""
    set_bits_succeeded: bool = True
    """False: an entry lies where the guest may not write. The translation is valid; `gpa_unwritable` says where."""
    gpa_unwritable: int = 0
    page_size: int = 0
    permissions: int = 0
    """`x86.paging` READ, WRITE, EXECUTE, USER as the tables grant them."""
    level: int = 0
    """Of the entry that maps the page, 1 for 4 KiB; 0 without paging."""
    entry: int = 0
    """That entry."""


def translate(
    vcpu: Vcpu, gva: int, access: TranslateAccess, flags: TranslateFlags = TranslateFlags.NONE
) -> Translation:
    """KVM_TRANSLATE2: translate a linear address in the vCPU's present context, as its own guest may read memory.

    The vCPU does not run meanwhile: the caller is its task or holds its mutex.

    Raises:
        KvmError: EINVAL, unknown bits in `access` or `flags`, or an address of more than 64 bits.
    """
    if int(access) & ~_ACCESS_MASK or int(flags) & ~_FLAGS_MASK:
        raise KvmError(errno.EINVAL, f"translate2 knows neither access {access:#x} nor flags {flags:#x} in full")
    if not 0 <= gva <= _U64:
        raise KvmError(errno.EINVAL, f"{gva:#x} is no linear address")
    engine = vcpu.engine
    state = PagingState.of(
        engine.get_sregs(), engine.rflags, engine.cpl, pkru=engine.pkru, maxphyaddr=vcpu.cpuid.maxphyaddr()
    )
    attempts = _attempts(state, int(access))
    memory = _Tables(vcpu)
    while True:
        # Every mode of access that was asked for must be allowed; the last one's bits are the union's.
        for wanted in attempts:
            result = paging.walk(state, gva, wanted, memory.read)
            if not result.ok:
                break
        stuck = _set_bits(memory, result, int(flags))
        if stuck is not _CHANGED:
            return _translation(memory, result, stuck)


def _attempts(state: PagingState, access: int) -> tuple[int, ...]:
    """The accesses to walk for, in a context from which `access` takes checks away."""
    wanted = _WANTED[access & 0xF]
    if not wanted:
        # What asks for nothing is refused nothing; a read, so that accessed bits can be set.
        state.cr4 &= ~(CR4_SMEP | CR4_SMAP | CR4_PKE)
        return (paging.READ | paging.SUPERVISOR,)
    if access & _OVERRIDE_SMAP:
        state.rflags_ac = True
    elif access & _ENFORCE_SMAP:
        state.rflags_ac = False
    if access & _EXEMPT:
        state.cr4 &= ~(CR4_SMEP | CR4_SMAP)
        return (wanted | paging.SUPERVISOR,)
    if access & _SUPERVISOR:
        supervisor = wanted | paging.SUPERVISOR
        return (supervisor, wanted | paging.USER) if access & _USER else (supervisor,)
    return (wanted | paging.USER,) if access & _USER else (wanted,)


# Plain numbers: arithmetic on flags of an enumeration takes longer than the walk.
_USER: Final = int(TranslateAccess.USER)
_SUPERVISOR: Final = int(TranslateAccess.SUPERVISOR)
_EXEMPT: Final = int(TranslateAccess.EXEMPT)
_ENFORCE_SMAP: Final = int(TranslateAccess.ENFORCE_SMAP)
_OVERRIDE_SMAP: Final = int(TranslateAccess.OVERRIDE_SMAP)
_SET_ACCESSED: Final = int(TranslateFlags.SET_ACCESSED)
_SET_DIRTY: Final = int(TranslateFlags.SET_DIRTY)
_FORCE_SET_ACCESSED: Final = int(TranslateFlags.FORCE_SET_ACCESSED)
_KINDS: Final = (
    (TranslateAccess.READ, paging.READ),
    (TranslateAccess.WRITE, paging.WRITE),
    (TranslateAccess.EXECUTE, paging.EXECUTE),
)
_WANTED: Final = tuple(sum(bit for kind, bit in _KINDS if access & kind) for access in range(16))
"""What the low four bits of an access ask the walk for."""

_CHANGED: Final = -1
_WRITTEN: Final = -2


class _Tables:
    """Guest memory as the page walker of one vCPU may access it."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._memory: GuestMemory = vcpu.vm.memory
        self._device_at = vcpu.devices.device_at

    def read(self, gpa: int, size: int) -> int | None:
        if self._device_at(gpa & ~0xFFF) is not None:
            return None
        try:
            return int.from_bytes(self._memory.read_for_guest(gpa, size), "little")
        except GuestMemoryError:
            return None

    def exists(self, gpa: int) -> bool:
        """Whether there is memory, forbidden or not."""
        return self._memory.find(gpa) is not None and self._device_at(gpa & ~0xFFF) is None

    def exchange(self, update: EntryUpdate) -> int:
        """Make the update: _WRITTEN, or _CHANGED, or the address of the entry if it may not be written."""
        if not self._memory.check(update.gpa, update.size, Access.WRITE):
            return update.gpa
        try:
            done = self._memory.compare_exchange(update.gpa, update.size, update.old, update.new)
        except GuestMemoryError:
            # Taken away between the two.
            return _CHANGED
        return _WRITTEN if done else _CHANGED


def _set_bits(memory: _Tables, result: WalkResult, flags: int) -> int:
    """Set what `flags` ask for: _WRITTEN, _CHANGED (walk again), or the address of an entry that may not be written."""
    wanted = 0
    if flags & (_SET_ACCESSED if result.ok else _FORCE_SET_ACCESSED):
        wanted |= paging.PTE_A
    if flags & _SET_DIRTY:
        wanted |= paging.PTE_D
    if not wanted:
        return _WRITTEN
    stuck = _WRITTEN
    merged: dict[int, EntryUpdate] = {}
    for update in result.updates:
        # A table may be its own lower level: one entry, marked for both at once.
        earlier = merged.get(update.gpa, update)
        merged[update.gpa] = update._replace(new=(earlier.new | update.new) & wanted | update.old)
    for update in merged.values():
        if update.new != update.old:
            outcome = memory.exchange(update)
            if outcome == _CHANGED:
                return _CHANGED
            if outcome != _WRITTEN and stuck == _WRITTEN:
                stuck = outcome
    return stuck


def _translation(memory: _Tables, result: WalkResult, stuck: int) -> Translation:
    written = stuck == _WRITTEN
    unwritable = 0 if written else stuck
    if result.ok:
        return Translation(
            True,
            result.gpa,
            set_bits_succeeded=written,
            gpa_unwritable=unwritable,
            page_size=result.page_size,
            permissions=result.permissions,
            level=result.level,
            entry=result.entry,
        )
    gpa = 0
    if result.outcome is Outcome.NON_CANONICAL:
        fault = TranslateFault.INVALID_GVA
    elif result.outcome is Outcome.GPA_FAULT:
        gpa = result.gpa
        fault = TranslateFault.FORBIDDEN if memory.exists(gpa) else TranslateFault.INVALID_GPA
    elif result.error_code & PFERR_RSVD:
        fault = TranslateFault.RESERVED_BITS
    elif result.error_code & PFERR_PRESENT:
        fault = TranslateFault.PRIVILEGE_VIOLATION
    else:
        fault = TranslateFault.NOT_PRESENT
    return Translation(
        False,
        gpa,
        fault,
        result.error_code,
        set_bits_succeeded=written,
        gpa_unwritable=unwritable,
        level=result.level,
    )
