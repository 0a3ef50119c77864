"""The page walk against an independent oracle on random tables in every mode, and against cases worked out by hand."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.x86.paging_oracle import oracle
from vtlkit.x86 import paging
from vtlkit.x86.paging import (
    EXECUTE,
    READ,
    SUPERVISOR,
    USER,
    WRITE,
    EntryUpdate,
    Outcome,
    PagingMode,
    PagingState,
    is_canonical,
    walk,
)
from vtlkit.x86.registers import RFLAGS_AC, Sregs

PG, WP = 1 << 31, 1 << 16
PSE, PAE, LA57, SMEP, SMAP, PKE = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21, 1 << 22
LMA, NX = 1 << 10, 1 << 11

FORCED = {
    "none": (0, 0, 0),
    "32-bit": (PG, 0, 0),
    "pae": (PG, PAE, 0),
    "pae registers": (PG, PAE, 0),
    "4-level": (PG, PAE, LMA),
    "5-level": (PG, PAE | LA57, LMA),
}
KINDS = {"read": READ, "write": WRITE, "execute": EXECUTE}
RIGHTS = {"read": READ, "write": WRITE, "execute": EXECUTE, "user": USER}
ERRORS = {"present": 1, "write": 2, "user": 4, "reserved": 8, "fetch": 16, "key": 32}
OUTCOMES = {
    "ok": Outcome.OK,
    "fault": Outcome.PAGE_FAULT,
    "non-canonical": Outcome.NON_CANONICAL,
    "gpa": Outcome.GPA_FAULT,
}
ACCESSES = [
    (set(kinds), user, implicit)
    for kinds in ((), ("read",), ("write",), ("execute",), ("read", "write"), ("read", "execute"))
    for user, implicit in ((True, False), (False, False), (False, True))
]


class Machine:
    """Random registers and tables. Every address holds one of a few entries; some pages hold nothing."""

    def __init__(self, mode: str, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        cr0, cr4, efer = FORCED[mode]
        self.long = bool(efer & LMA)
        self.width = 8 if cr4 & PAE else 4
        cr0 |= WP * rng.getrandbits(1)
        cr4 |= sum(flag for flag in (PSE, SMEP, SMAP, PKE) if rng.getrandbits(1))
        efer |= NX * (rng.random() < 0.7)
        self.maxphyaddr = rng.choice((32, 36, 39, 40, 46, 52, 52, 52))
        self.entries = [self.entry() for _ in range(7)]
        self.holes = rng.random() < 0.15
        self.state = PagingState(
            cr0,
            self.frame() | rng.getrandbits(12),
            cr4,
            efer,
            bool(rng.getrandbits(1)),
            rng.randrange(4),
            pkru=rng.getrandbits(32) & rng.getrandbits(32),
            maxphyaddr=self.maxphyaddr,
            gib_pages=rng.random() < 0.8,
        )
        if mode == "pae registers":
            a, b, c, d = (self.pdpte() for _ in range(4))
            self.state.pdptes = (a, b, c, d)
        self.gva = self.address()

    def frame(self) -> int:
        return self.rng.getrandbits(20) << 12

    def pdpte(self) -> int:
        return self.frame() | (self.rng.random() < 0.9)

    def entry(self) -> int:
        rng = self.rng
        if self.width == 8 and not self.long and rng.random() < 0.5:
            return self.pdpte()
        value = (
            (rng.random() < 0.93) | rng.getrandbits(7) << 1 & rng.choice((0xFE, 0x7E, 0x66)) | rng.getrandbits(4) << 8
        )
        value |= 0x6 * (rng.random() < 0.6)
        if rng.random() < 0.3:
            frame = rng.getrandbits(9) << 30 if self.long and rng.random() < 0.6 else rng.getrandbits(10) << 22
            return value | 0x80 | frame | (rng.random() < 0.1) << rng.randrange(12, 22)
        value |= self.frame()
        if self.width == 8:
            value |= rng.getrandbits(4) << 59 if self.long and rng.random() < 0.5 else 0
            value |= (rng.random() < 0.15) << 63
            value |= (rng.random() < 0.1) << rng.randrange(12, 63)
        return value

    def address(self) -> int:
        rng = self.rng
        gva = rng.getrandbits(64)
        if not self.long:
            return gva & 0xFFFFFFFF
        choice = rng.random()
        if choice < 0.1:
            return gva
        bits = 56 if self.state.cr4 & LA57 else 47
        return gva >> (64 - bits) if choice < 0.55 else gva | (1 << 64) - (1 << bits)

    def read(self, gpa: int, size: int) -> int | None:
        assert size == self.width
        assert gpa % size == 0
        if self.holes and (gpa >> 12) % 3 == 0:
            return None
        return self.entries[(gpa * 0x9E3779B97F4A7C15 >> 20) % len(self.entries)]


def flags(names: frozenset[str] | set[str], table: dict[str, int]) -> int:
    return sum(table[name] for name in names)


def compare(machine: Machine, seen: Counter[str]) -> None:
    """Every kind of access to one random machine, both walks."""
    for kinds, user, implicit in ACCESSES:
        log: list[tuple[int, int]] = []
        expected_log: list[tuple[int, int]] = []

        def read(gpa: int, size: int, log: list[tuple[int, int]] = log) -> int | None:
            log.append((gpa, size))
            return machine.read(gpa, size)

        def oracle_read(gpa: int, size: int, log: list[tuple[int, int]] = expected_log) -> int | None:
            log.append((gpa, size))
            return machine.read(gpa, size)

        access = flags(kinds, KINDS) | (USER if user else SUPERVISOR)
        result = walk(machine.state, machine.gva, access, read, implicit_supervisor=implicit)
        expected = oracle(machine.state, machine.gva, kinds, user, implicit, oracle_read)
        assert log == expected_log
        assert result.outcome is OUTCOMES[expected.kind]
        assert result.error_code == flags(expected.error, ERRORS)
        assert result.gpa == expected.gpa
        assert result.page_size == expected.size
        assert result.permissions == flags(expected.rights, RIGHTS)
        assert list(result.updates) == [EntryUpdate(g, machine.width, old, new) for g, old, new in expected.updates]
        seen[expected.kind] += 1
        for name in expected.error:
            seen[name] += 1
        seen[f"size {expected.size:#x}"] += 1
        seen["updates"] += bool(expected.updates)


EXPECTED = {
    "none": {"ok", "size 0x1000"},
    "32-bit": {"ok", "fault", "gpa", "present", "write", "user", "reserved", "fetch", "size 0x1000", "size 0x400000"},
    "pae": {"ok", "fault", "gpa", "present", "write", "user", "reserved", "fetch", "size 0x1000", "size 0x200000"},
    "4-level": {"ok", "fault", "gpa", "non-canonical", *ERRORS, "size 0x1000", "size 0x200000", "size 0x40000000"},
}
EXPECTED["pae registers"] = EXPECTED["pae"]
EXPECTED["5-level"] = EXPECTED["4-level"]


@pytest.mark.parametrize("mode", FORCED)
def test_sweep_reaches_every_outcome(mode: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(700):
        compare(Machine(mode, seed), seen)
    assert {name for name in EXPECTED[mode] if seen[name] < 3} == set()
    assert mode == "none" or seen["updates"] > 30


@given(st.sampled_from(sorted(FORCED)), st.integers(0, 2**64 - 1))
def test_walk_agrees_with_the_oracle(mode: str, seed: int) -> None:
    compare(Machine(mode, seed), Counter())


@given(st.sampled_from(sorted(FORCED)), st.integers(0, 2**64 - 1))
def test_cpl_decides_where_the_access_does_not(mode: str, seed: int) -> None:
    machine = Machine(mode, seed)
    override = USER if machine.state.cpl == 3 else SUPERVISOR
    for access in (READ, WRITE, EXECUTE):
        implied = walk(machine.state, machine.gva, access, machine.read)
        assert implied == walk(machine.state, machine.gva, access | override, machine.read)


@given(st.sampled_from(sorted(FORCED)), st.integers(0, 2**64 - 1))
def test_applying_the_updates_leaves_none(mode: str, seed: int) -> None:
    machine = Machine(mode, seed)
    memory: dict[int, int] = {}

    def read(gpa: int, size: int) -> int | None:
        return memory[gpa] if gpa in memory else machine.read(gpa, size)

    for _ in range(6):
        result = walk(machine.state, machine.gva, WRITE, read)
        if not result.updates:
            break
        for update in result.updates:
            if read(update.gpa, update.size) == update.old:
                memory[update.gpa] = update.new
    assert not walk(machine.state, machine.gva, WRITE, read).updates


@given(st.integers(0, 2**64 - 1))
def test_canonical_addresses(gva: int) -> None:
    signed = gva - (1 << 64) if gva >> 63 else gva
    assert is_canonical(gva, False) == (-(1 << 47) <= signed < 1 << 47)
    assert is_canonical(gva, True) == (-(1 << 56) <= signed < 1 << 56)


@pytest.mark.parametrize(
    ("gva", "four", "five"),
    [
        (0x00007FFFFFFFFFFF, True, True),
        (0x0000800000000000, False, True),
        (0xFFFF7FFFFFFFFFFF, False, True),
        (0xFFFF800000000000, True, True),
        (0x00FFFFFFFFFFFFFF, False, True),
        (0x0100000000000000, False, False),
        (0xFEFFFFFFFFFFFFFF, False, False),
        (0xFF00000000000000, False, True),
    ],
)
def test_canonical_edges(gva: int, four: bool, five: bool) -> None:
    assert is_canonical(gva, False) is four
    assert is_canonical(gva, True) is five


class Flipped(Machine):
    """A valid mapping whose every entry permits everything, with one bit of one level's entry changed."""

    def __init__(self, mode: str, level: int, number: int, seed: int) -> None:
        super().__init__(mode, seed)
        state = self.state
        state.pdptes = None
        state.maxphyaddr = (52, 46, 40)[seed % 3]
        # Tables lie so high that their own address sets no bit that is reserved in a large page.
        self.shift = 40 if self.width == 8 and state.maxphyaddr == 52 else 23
        state.cr3 = 7 << 23
        self.order: list[int] = []
        self.flip = {level: 1 << number}
        self.gva &= 0x3FFFFFFF

    def read(self, gpa: int, size: int) -> int | None:
        page = gpa >> 12
        if page not in self.order:
            self.order.append(page)
        depth = self.order.index(page)
        rights = 0x1 if self.width == 8 and not self.long and depth == 0 else 0x7
        return ((depth + 1) << self.shift | rights) ^ self.flip.get(depth, 0)


@pytest.mark.parametrize(("mode", "levels"), [("32-bit", 2), ("pae", 3), ("4-level", 4), ("5-level", 5)])
def test_every_single_bit_of_every_entry(mode: str, levels: int) -> None:
    seen: Counter[str] = Counter()
    for level, number in itertools.product(range(levels), range(32 if mode == "32-bit" else 64)):
        for seed in range(6):
            compare(Flipped(mode, level, number, seed), seen)
    assert seen["ok"] > 100
    assert seen["fault"] > 100


class Tables(dict[int, int]):
    """Tables by hand: address to entry; nothing elsewhere."""

    def read(self, gpa: int, size: int) -> int | None:
        return self.get(gpa)


def long_mode(**changes: int | bool) -> PagingState:
    state = PagingState(PG | WP | 1, 0x1000, PAE, LMA | 0x100 | NX, False, 0)
    for name, value in changes.items():
        setattr(state, name, value)
    return state


def test_four_level_example() -> None:
    gva = 0xFFFF_8123_4567_8ABC
    tables = Tables()
    tables[0x1000 + (gva >> 39 & 511) * 8] = 0x2007
    tables[0x2000 + (gva >> 30 & 511) * 8] = 0x3027
    tables[0x3000 + (gva >> 21 & 511) * 8] = 0x4023
    leaf = 0x4000 + (gva >> 12 & 511) * 8
    tables[leaf] = 0x8000_0000_7654_3023
    result = walk(long_mode(), gva, WRITE, tables.read)
    assert result.ok
    assert (result.gpa, result.page_size, result.level) == (0x76543ABC, 4096, 1)
    assert result.permissions == READ | WRITE
    assert result.updates == (
        EntryUpdate(0x1000 + (gva >> 39 & 511) * 8, 8, 0x2007, 0x2027),
        EntryUpdate(leaf, 8, 0x8000_0000_7654_3023, 0x8000_0000_7654_3063),
    )
    assert walk(long_mode(), gva, EXECUTE, tables.read).error_code == 0x11
    assert walk(long_mode(cpl=3), gva, READ, tables.read).error_code == 0x5
    del tables[leaf]
    assert walk(long_mode(), gva, READ, tables.read) == paging.WalkResult(
        Outcome.GPA_FAULT, leaf, level=1, updates=result.updates[:1]
    )
    assert walk(long_mode(), gva, 0, tables.read).updates == ()


def test_pse36_reaches_above_4_gib() -> None:
    state = PagingState(PG | 1, 0x1000, PSE, 0, False, 0, maxphyaddr=40)
    tables = Tables({0x1000 + 3 * 4: 0x0040_0083 | 0xAB << 13})
    result = walk(state, 3 << 22 | 0x12345, READ, tables.read)
    assert (result.gpa, result.page_size) == (0xAB_0041_2345, 1 << 22)
    state.maxphyaddr = 36
    assert walk(state, 3 << 22, READ, tables.read).error_code == 0x9


def test_smap_smep_and_protection_keys() -> None:
    tables = Tables({0x1000: 0x2027, 0x2000: 0x3027, 0x3000: 0xE7 | 5 << 59})
    read = tables.read
    smap = long_mode(cr4=PAE | SMAP)
    assert walk(smap, 0, READ, read).error_code == 0x1
    smap.rflags_ac = True
    assert walk(smap, 0, READ, read).ok
    assert walk(smap, 0, READ, read, implicit_supervisor=True).error_code == 0x1
    smap.cpl = 3
    assert walk(smap, 0, READ, read, implicit_supervisor=True).error_code == 0x1
    assert walk(smap, 0, READ, read).ok
    smep = long_mode(cr4=PAE | SMEP, efer=LMA)
    assert walk(smep, 0, EXECUTE, read).error_code == 0x11
    assert walk(smep, 0, EXECUTE | USER, read).ok
    keys = long_mode(cr4=PAE | PKE, pkru=2 << 10)
    assert walk(keys, 0, READ, read).ok
    assert walk(keys, 0, WRITE, read).error_code == 0x23
    keys.cr0 &= ~WP
    assert walk(keys, 0, WRITE, read).ok
    assert walk(keys, 0, WRITE | USER, read).error_code == 0x27
    keys.pkru = 1 << 10
    assert walk(keys, 0, READ, read).error_code == 0x21
    assert walk(keys, 0, EXECUTE | USER, read).ok


def test_write_protect() -> None:
    tables = Tables({0x1000: 0x2027, 0x2000: 0x3027, 0x3000: 0xA5})
    assert walk(long_mode(), 0, WRITE, tables.read).error_code == 0x3
    assert walk(long_mode(cr0=PG | 1), 0, WRITE, tables.read).ok
    assert walk(long_mode(cr0=PG | 1), 0, WRITE | USER, tables.read).error_code == 0x7


def test_no_execute_is_reserved_without_nxe() -> None:
    tables = Tables({0x1000: 0x2027, 0x2000: 0x3027 | 1 << 63, 0x3000: 0xA7})
    assert walk(long_mode(efer=LMA), 0, READ, tables.read).error_code == 0x9
    assert walk(long_mode(), 0, READ, tables.read).ok


def test_state_of_a_vcpu() -> None:
    sregs = Sregs.reset()
    state = PagingState.of(sregs, RFLAGS_AC, 2, pkru=7, maxphyaddr=46)
    assert (state.rflags_ac, state.cpl, state.pkru, state.maxphyaddr) == (True, 2, 7, 46)
    modes = []
    for pg, pae, lma, la57 in itertools.product((0, PG), (0, PAE), (0, LMA), (0, LA57)):
        sregs.cr0, sregs.cr4, sregs.efer = pg, pae | la57, lma
        modes.append(PagingState.of(sregs, 0, 0).mode)
    N, L, P = PagingMode.NONE, PagingMode.LEGACY_32BIT, PagingMode.PAE
    assert modes == [N] * 8 + [L] * 4 + [P, P, PagingMode.LONG_4LEVEL, PagingMode.LONG_5LEVEL]
