"""A second page walk, slow and built otherwise: modes are tables of levels, the walk is recursive, rights are sets.

It follows the wording of the SDM (volume 3, sections 4.3 to 4.7), not the structure of `vtlkit.x86.paging`, which it is
there to check. Bits are written as numbers so that a wrong constant there is not repeated here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vtlkit.x86.paging import PagingState


def bit(value: int, number: int) -> bool:
    return bool(value >> number & 1)


def field_of(value: int, high: int, low: int) -> int:
    return value >> low & (1 << high - low + 1) - 1


@dataclass
class Level:
    """One paging structure: which linear bits index it, what may be in its entries."""

    number: int
    index: tuple[int, int]
    has_rights: bool = True
    leaf_bits: int | None = None
    """Size of the page, as a power of two, that an entry with PS maps; None if PS means nothing or is reserved."""
    ps_reserved: bool = False
    reserved: Sequence[int] = ()
    leaf_reserved: Sequence[int] = ()


@dataclass
class Answer:
    kind: str
    gpa: int = 0
    size: int = 0
    rights: frozenset[str] = frozenset()
    error: frozenset[str] = frozenset()
    updates: list[tuple[int, int, int]] = field(default_factory=list)
    """(address of the entry, old, new); of a fault those of the entries above the one that failed."""


class Fault(Exception):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


def modes(state: PagingState) -> tuple[int, list[Level]]:
    """Width of an entry in bytes, and the levels from the root down."""
    pae, lma = bit(state.cr4, 5), bit(state.efer, 10)
    too_high = list(range(state.maxphyaddr, 52))
    no_nx = [] if bit(state.efer, 11) else [63]
    if not pae:
        top = min(state.maxphyaddr, 40)
        pse = bit(state.cr4, 4)
        large = Level(2, (31, 22), leaf_bits=22 if pse else None, leaf_reserved=range(top - 19, 22))
        return 4, [large, Level(1, (21, 12))]
    if not lma:
        high = [*too_high, *range(52, 63), *no_nx]
        directory = Level(2, (29, 21), leaf_bits=21, reserved=high, leaf_reserved=range(13, 21))
        pointers = [1, 2, 5, 6, 7, 8, *too_high, *range(52, 64)]
        root = Level(3, (31, 30), has_rights=False, reserved=pointers)
        return 8, [root, directory, Level(1, (20, 12), reserved=high)]
    high = [*too_high, *no_nx]
    levels = [
        Level(5, (56, 48), reserved=high, ps_reserved=True),
        Level(4, (47, 39), reserved=high, ps_reserved=True),
        Level(
            3,
            (38, 30),
            reserved=high,
            leaf_bits=30 if state.gib_pages else None,
            ps_reserved=not state.gib_pages,
            leaf_reserved=range(13, 30),
        ),
        Level(2, (29, 21), reserved=high, leaf_bits=21, leaf_reserved=range(13, 21)),
        Level(1, (20, 12), reserved=high),
    ]
    return 8, levels if bit(state.cr4, 12) else levels[1:]


def oracle(
    state: PagingState,
    gva: int,
    kinds: set[str],
    user: bool,
    implicit: bool,
    read: Callable[[int, int], int | None],
) -> Answer:
    """`kinds` is a subset of {"read", "write", "execute"}."""
    if not bit(state.cr0, 31):
        return Answer("ok", gva % 2**32, 4096, frozenset({"read", "write", "execute", "user"}))
    width, levels = modes(state)
    if bit(state.efer, 10) and bit(state.cr4, 5):
        bits = 57 if bit(state.cr4, 12) else 48
        extended = gva % 2**bits | (2**64 - 2**bits if bit(gva, bits - 1) else 0)
        if extended != gva:
            return Answer("non-canonical")
    about = {"user"} if user else set()
    about |= {"write"} & kinds
    if "execute" in kinds and (bit(state.cr4, 20) or (bit(state.cr4, 5) and bit(state.efer, 11))):
        about.add("fetch")
    alignment = 5 if width == 8 and not bit(state.efer, 10) else 12
    top = 32 if not bit(state.efer, 10) or width == 4 else 52
    root = state.cr3 % 2**top >> alignment << alignment
    try:
        path = descend(state, levels, width, root, gva, about, read)
    except Fault as fault:
        if not kinds:
            fault.answer.updates.clear()
        return fault.answer
    return judge(state, path, width, gva, kinds, user, implicit, about)


def descend(
    state: PagingState,
    levels: list[Level],
    width: int,
    table: int,
    gva: int,
    about: set[str],
    read: Callable[[int, int], int | None],
) -> list[tuple[Level, int, int]]:
    """(level, address, entry) of every entry used; `Fault` where one cannot be used."""
    level, rest = levels[0], levels[1:]
    address = table + field_of(gva, *level.index) * width
    entry = state.pdptes[field_of(gva, 31, 30)] if level.number == 3 and not level.has_rights and state.pdptes else None
    if entry is None:
        entry = read(address, width)
    if entry is None:
        raise Fault(Answer("gpa", address))
    if not bit(entry, 0):
        raise Fault(Answer("fault", error=frozenset(about)))
    leaf = not rest or (bit(entry, 7) and level.leaf_bits is not None)
    forbidden = set(level.reserved) | (set(level.leaf_reserved) if leaf and rest else set())
    if level.ps_reserved:
        forbidden.add(7)
    if any(bit(entry, number) for number in forbidden):
        raise Fault(Answer("fault", error=frozenset(about | {"present", "reserved"})))
    here = [(level, address, entry)]
    if leaf:
        return here
    next_table = entry % 2 ** (32 if width == 4 else 52) >> 12 << 12
    try:
        return here + descend(state, rest, width, next_table, gva, about, read)
    except Fault as fault:
        # This entry was used before the one below it failed.
        fault.answer.updates[:0] = accessed(here)
        raise


def accessed(path: list[tuple[Level, int, int]]) -> list[tuple[int, int, int]]:
    """The updates that mark these entries as used."""
    return [(where, entry, entry | 0x20) for level, where, entry in path if level.has_rights and not bit(entry, 5)]


def judge(
    state: PagingState,
    path: list[tuple[Level, int, int]],
    width: int,
    gva: int,
    kinds: set[str],
    user: bool,
    implicit: bool,
    about: set[str],
) -> Answer:
    ruling = [entry for level, _, entry in path if level.has_rights]
    user_page = all(bit(entry, 2) for entry in ruling)
    writable = all(bit(entry, 1) for entry in ruling)
    no_execute = width == 8 and any(bit(entry, 63) for entry in ruling)
    level, address, leaf = path[-1]

    wrong = False
    if user:
        wrong |= bool(kinds) and not user_page
        wrong |= "write" in kinds and not writable
        wrong |= "execute" in kinds and no_execute
    else:
        wrong |= "write" in kinds and not writable and bit(state.cr0, 16)
        wrong |= (
            bool(kinds & {"read", "write"}) and user_page and bit(state.cr4, 21) and (implicit or not state.rflags_ac)
        )
        wrong |= "execute" in kinds and (no_execute or (user_page and bit(state.cr4, 20)))
    key_error = False
    if bit(state.cr4, 22) and bit(state.efer, 10) and width == 8 and user_page and kinds & {"read", "write"}:
        key = field_of(leaf, 62, 59)
        access_disable, write_disable = bit(state.pkru, 2 * key), bit(state.pkru, 2 * key + 1)
        key_error = access_disable or (write_disable and "write" in kinds and (user or bit(state.cr0, 16)))
    if wrong or key_error:
        error = frozenset(about | {"present"} | ({"key"} if key_error else set()))
        return Answer("fault", error=error, updates=accessed(path[:-1]))

    size = 12 if level.number == 1 else level.leaf_bits or 0
    frame = leaf % 2 ** (32 if width == 4 else 52) >> size << size
    if width == 4 and size == 22:
        frame |= field_of(leaf, 20, 13) << 32
    answer = Answer("ok", frame + gva % 2**size, 2**size)
    names = {"read": True, "write": writable, "user": user_page, "execute": not no_execute}
    answer.rights = frozenset(name for name, granted in names.items() if granted)
    if kinds:
        for step, where, entry in path:
            new = entry | 0x20 if step.has_rights else entry
            if where == address and step is level and "write" in kinds:
                new |= 0x40
            if new != entry:
                answer.updates.append((where, entry, new))
    return answer
