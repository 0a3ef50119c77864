"""The page walk against a processor: random tables in every paging mode, for `paging.walk` and for the embedded CPU.

Each example builds one path of table entries for one linear address with random bits, and lets the CPU make a real
load, store and fetch there from CPL 0 and CPL 3. Both must agree on success and physical address, or on the vector and
error code; and afterwards on every byte of the tables. What QEMU's translator does otherwise is listed, one by one:

* Accessed bits of a walk that faults. QEMU sets them level by level on its way down, so that those above the entry that
  faults are set. The walk sets none unless it succeeds, as KVM's does; processors are free to do either.
* Bits 1, 2 and 8:5 of a PAE page-directory-pointer entry. They are reserved; QEMU looks at the reserved high bits only.
  Examples leave them clear.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest

from vtlkit.engine.api import (
    Access,
    ExceptionExit,
    Exit,
    Hypercall,
    Intercept,
    MemoryFault,
    RamBlock,
)
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.engine.unicorn.engine import UnicornEngine
from vtlkit.engine.unicorn.registers import MAXPHYADDR
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.paging import (
    EXECUTE,
    PTE_A,
    PTE_D,
    PTE_G,
    PTE_NX,
    PTE_P,
    PTE_PCD,
    PTE_PKEY_SHIFT,
    PTE_PS,
    PTE_PWT,
    PTE_U,
    PTE_W,
    READ,
    WRITE,
    Outcome,
    PagingMode,
    PagingState,
    walk,
)
from vtlkit.x86.registers import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    RFLAGS_AC,
    RFLAGS_FIXED,
    Segment,
)

RAM_SIZE: Final = 8 << 20
TABLES: Final = 0x10000
TABLES_END: Final = 0x20000
CODE_PAGE: Final = 0x8000
USER_CODE_PAGE: Final = 0x9000
MAGIC: Final = 0x5A5AA5A5_C3C33C3C
LOAD, STORE, FETCH = 0, 0x40, 0x80
"""Offsets of the three instructions in the code page."""
ACCESSES: Final = {LOAD: READ, STORE: WRITE, FETCH: EXECUTE}

EXAMPLES: Final = 120


def _word(gpa: int) -> int:
    """`mov eax, gpa >> 3; vmmcall`: says where it lies, to who loads it and to who executes it."""
    return 0xB8 | (gpa >> 3) << 8 | 0xD9010F << 40


class Cpu:
    """The embedded CPU, its memory, and the tables under test."""

    def __init__(self) -> None:
        self.factory = UnicornFactory()
        engine = self.factory.create("cpu")
        assert isinstance(engine, UnicornEngine)
        self.engine = engine
        self.ram = RamBlock(RAM_SIZE)
        words = range(0, RAM_SIZE, 8)
        self.ram.view[:] = struct.pack(f"<{len(words)}Q", *(_word(gpa) for gpa in words))
        for page in (CODE_PAGE, USER_CODE_PAGE):
            for offset, short, long in ((LOAD, b"\x8b\x03", b"\x48\x8b\x03"), (STORE, b"\x89\x03", b"\x48\x89\x03")):
                for at, code in ((page + offset, short), (page + offset + 32, long)):
                    self.ram.view[at : at + len(code) + 3] = code + b"\x0f\x01\xd9"
            for at in (page + FETCH, page + FETCH + 32):
                self.ram.view[at : at + 2] = b"\xff\xe3"
        engine.map_ram(0, RAM_SIZE, self.ram, 0, Access.ALL)
        engine.set_intercepts(Intercept.NONE, 1 << Vector.PF | 1 << Vector.GP)

    def put(self, gpa: int, size: int, value: int) -> None:
        self.ram.view[gpa : gpa + size] = value.to_bytes(size, "little")

    def get(self, gpa: int, size: int) -> int | None:
        if gpa + size > RAM_SIZE:
            return None
        return int.from_bytes(self.ram.view[gpa : gpa + size], "little")

    def tables(self) -> bytes:
        return bytes(self.ram.view[TABLES:TABLES_END])


@dataclass
class Example:
    """One set of tables and registers."""

    mode: PagingMode
    cr0: int
    cr3: int
    cr4: int
    efer: int
    pkru: int
    gva: int
    code_gva: int
    path: list[int] = field(default_factory=list)
    """Addresses of the entries that `gva` is translated by, topmost first."""

    @property
    def long(self) -> bool:
        return self.mode in (PagingMode.LONG_4LEVEL, PagingMode.LONG_5LEVEL)

    @property
    def entry_size(self) -> int:
        return 4 if self.mode is PagingMode.LEGACY_32BIT else 8


def _chance(rng: random.Random, probability: float) -> bool:
    return rng.random() < probability


def _bits(rng: random.Random, example: Example, level: int) -> int:
    """Random permission, cache, accessed and dirty bits of one entry."""
    bits = 0 if _chance(rng, 0.04) else PTE_P
    for bit, probability in (
        (PTE_W, 0.7),
        (PTE_U, 0.7),
        (PTE_A, 0.5),
        (PTE_D, 0.5),
        (PTE_PWT, 0.2),
        (PTE_PCD, 0.2),
        (PTE_G, 0.3),
    ):
        bits |= bit if _chance(rng, probability) else 0
    if example.entry_size == 8:
        bits |= PTE_NX if _chance(rng, 0.15) else 0
        if example.long and _chance(rng, 0.5):
            bits |= rng.randrange(16) << PTE_PKEY_SHIFT
        if _chance(rng, 0.03):
            bits |= 1 << rng.randrange(MAXPHYADDR, 63)
    if level > 1 and _chance(rng, 0.2):
        bits |= PTE_PS
    return bits


def _target(rng: random.Random, example: Example, level: int, bits: int, table: int) -> int:
    """The address that an entry holds: of the next table, or of a page of its level, now and then misaligned."""
    small = example.mode is PagingMode.LEGACY_32BIT
    large = level > 1 and bits & PTE_PS and not (small and not example.cr4 & CR4_PSE)
    if level > 1 and not large:
        return table
    shift = 12 + (10 if small else 9) * (level - 1)
    address = rng.randrange(RAM_SIZE >> 12) << 12 >> shift << shift
    if level == 1 and address in range(TABLES, TABLES_END):
        address = TABLES_END
    if large and _chance(rng, 0.1):
        address |= 1 << rng.randrange(12, shift)
    return address


def _levels(mode: PagingMode) -> int:
    return 2 if mode is PagingMode.LEGACY_32BIT else int(mode)


def _index_bits(mode: PagingMode, level: int) -> tuple[int, int]:
    """(shift, number of bits) of the index into a table of `level`."""
    if mode is PagingMode.LEGACY_32BIT:
        return 12 + 10 * (level - 1), 10
    if mode is PagingMode.PAE and level == 3:
        return 30, 2
    return 12 + 9 * (level - 1), 9


def _build(cpu: Cpu, rng: random.Random, mode: PagingMode) -> Example:
    cpu.ram.view[TABLES:TABLES_END] = bytes(TABLES_END - TABLES)
    cr4 = 0 if mode is PagingMode.LEGACY_32BIT else CR4_PAE
    cr4 |= CR4_LA57 if mode is PagingMode.LONG_5LEVEL else 0
    for bit in (CR4_PSE, CR4_SMEP, CR4_SMAP, CR4_PKE):
        cr4 |= bit if _chance(rng, 0.5) else 0
    efer = EFER_NX if _chance(rng, 0.8) else 0
    if mode in (PagingMode.LONG_4LEVEL, PagingMode.LONG_5LEVEL):
        efer |= EFER_LME | EFER_LMA
    cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | (CR0_WP if _chance(rng, 0.5) else 0)
    pkru = rng.getrandbits(32) if _chance(rng, 0.7) else 0
    levels = _levels(mode)
    example = Example(mode, cr0, TABLES, cr4, efer, pkru, 0, 0)
    _map_code(cpu, example, levels)
    top_shift, top_bits = _index_bits(mode, levels)
    gva = rng.randrange((1 << top_bits) - 1) << top_shift | rng.getrandbits(top_shift) & ~7
    # A large page has room for more than the RAM there is: stay low in it, mostly.
    if _chance(rng, 0.8):
        gva = gva >> 21 << 21 | gva & 0x1FFFF8
    width = top_shift + top_bits
    if example.long and gva >> (width - 1):
        gva |= -1 << width & 0xFFFFFFFFFFFFFFFF
    if example.long and _chance(rng, 0.06):
        gva ^= 1 << rng.randrange(width, 64)
    example.gva = gva
    table = TABLES
    for level in range(levels, 0, -1):
        shift, bits = _index_bits(mode, level)
        entry_at = table + (gva >> shift & (1 << bits) - 1) * example.entry_size
        example.path.append(entry_at)
        next_table = TABLES + 0x1000 * (levels - level + 1)
        if mode is PagingMode.PAE and level == 3:
            value = next_table | (0 if _chance(rng, 0.04) else PTE_P)
            if _chance(rng, 0.05):
                value |= 1 << rng.randrange(MAXPHYADDR, 64)
        else:
            flags = _bits(rng, example, level)
            value = flags | _target(rng, example, level, flags, next_table)
        cpu.put(entry_at, example.entry_size, value & ((1 << 8 * example.entry_size) - 1))
        table = next_table
    return example


def _map_code(cpu: Cpu, example: Example, levels: int) -> None:
    """The last entry of the top table leads to the two code pages, the supervisor's and the user's."""
    table, size = TABLES, example.entry_size
    example.code_gva = 0
    for level in range(levels, 1, -1):
        shift, bits = _index_bits(example.mode, level)
        last = (1 << bits) - 1
        below = TABLES_END - 0x1000 * (level - 1)
        pae_top = example.mode is PagingMode.PAE and level == 3
        cpu.put(table + last * size, size, below | PTE_P | (0 if pae_top else PTE_W | PTE_U | PTE_A))
        example.code_gva |= last << shift
        table = below
    width = sum(_index_bits(example.mode, levels))
    if example.long:
        example.code_gva |= -1 << width & 0xFFFFFFFFFFFFFFFF
    cpu.put(table, size, CODE_PAGE | PTE_P | PTE_A)
    cpu.put(table + size, size, USER_CODE_PAGE | PTE_P | PTE_U | PTE_A)


def _run(cpu: Cpu, example: Example, offset: int, cpl: int, ac: bool) -> Exit:
    engine = cpu.engine
    sregs = engine.get_sregs()
    code = 0x29B if example.long else 0xC9B
    sregs.cs = Segment(0x08 | cpl, 0, 0xFFFFFFFF, code | cpl << 5)
    data = Segment(0x10 | cpl, 0, 0xFFFFFFFF, 0xC93 | cpl << 5)
    sregs.ss, sregs.ds, sregs.es = data, data.copy(), data.copy()
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = example.cr0, example.cr3, example.cr4, example.efer
    engine.rflags = RFLAGS_FIXED | (RFLAGS_AC if ac else 0)
    engine.regs.pkru = example.pkru
    engine.set_sregs(sregs)
    engine.regs.rip = example.code_gva + (0x1000 if cpl else 0) + offset + (32 if example.long else 0)
    engine.regs.rax, engine.regs.rbx = MAGIC, example.gva
    return engine.run(10)


def _fault_of(reason: Exit, gva: int) -> str:
    assert isinstance(reason, ExceptionExit), reason
    if reason.vector == Vector.PF:
        assert reason.address == gva, (hex(reason.address), hex(gva))
    return f"{Vector(reason.vector).name} {reason.error_code:#x}"


def _physical(cpu: Cpu, example: Example, offset: int, reason: Exit, gpa: int) -> int:
    """Where the access went, by what was loaded, executed or stored."""
    if isinstance(reason, MemoryFault):
        return reason.gpa
    assert isinstance(reason, Hypercall), reason
    width = 8 if example.long else 4
    rax = cpu.engine.regs.rax
    if offset == STORE:
        stored = cpu.get(gpa, width)
        assert stored == MAGIC & ((1 << 8 * width) - 1), "the store is not where it belongs"
        cpu.put(gpa, 8, _word(gpa))
        return gpa
    if offset == FETCH:
        return int(rax << 3)
    return int((rax >> 8 & (0xFFFFFFFF if width == 8 else 0xFFFFFF)) << 3)


def _check(cpu: Cpu, example: Example, offset: int, cpl: int, ac: bool) -> str:
    before = cpu.tables()
    state = PagingState(
        example.cr0, example.cr3, example.cr4, example.efer, ac, cpl, example.pkru, MAXPHYADDR, gib_pages=True
    )
    expected = walk(state, example.gva, ACCESSES[offset], cpu.get)
    if expected.outcome is Outcome.OK and TABLES <= expected.gpa < TABLES_END:
        return "own tables"
    if expected.outcome is Outcome.GPA_FAULT:
        return "table in a hole"
    reason = _run(cpu, example, offset, cpl, ac)
    after = cpu.tables()
    wanted = bytearray(before)
    for update in expected.updates:
        at = update.gpa - TABLES
        wanted[at : at + update.size] = update.new.to_bytes(update.size, "little")
    if expected.outcome is Outcome.OK:
        if expected.gpa >= RAM_SIZE and offset == FETCH and isinstance(reason, MemoryFault):
            assert reason.access is Access.EXECUTE
        assert _physical(cpu, example, offset, reason, expected.gpa) == expected.gpa
        assert after == wanted, "accessed and dirty bits differ"
    else:
        wanted_fault = f"PF {expected.error_code:#x}" if expected.outcome is Outcome.PAGE_FAULT else "GP 0x0"
        assert _fault_of(reason, example.gva) == wanted_fault
        # The one deviation that the module lists.
        for entry in example.path:
            at = entry - TABLES
            if not before[at] & PTE_A and after[at] == before[at] | PTE_A and entry != example.path[-1]:
                wanted[at] |= PTE_A
        assert after == wanted, "a fault changed the tables"
    cpu.ram.view[TABLES:TABLES_END] = before
    return expected.outcome.name


@pytest.fixture(scope="module")
def cpu() -> Iterator[Cpu]:
    made = Cpu()
    yield made
    made.factory.close()


MODES: Final = [mode for mode in PagingMode if mode is not PagingMode.NONE]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_walk_agrees_with_the_cpu(cpu: Cpu, mode: PagingMode, seed: int) -> None:
    rng = random.Random(f"{mode.name} {seed}")
    outcomes: dict[str, int] = {}
    for number in range(EXAMPLES):
        example = _build(cpu, rng, mode)
        for offset in (LOAD, STORE, FETCH):
            for cpl in (0, 3):
                ac = _chance(rng, 0.3)
                try:
                    outcome = _check(cpu, example, offset, cpl, ac)
                except AssertionError as error:
                    entries = [hex(cpu.get(at, example.entry_size) or 0) for at in example.path]
                    raise AssertionError(
                        f"example {number}: {error}; access {ACCESSES[offset]} CPL {cpl} AC {ac} gva {example.gva:#x} "
                        f"CR0 {example.cr0:#x} CR4 {example.cr4:#x} EFER {example.efer:#x} PKRU {example.pkru:#x} "
                        f"entries {entries}"
                    ) from error
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert min(outcomes["OK"], outcomes["PAGE_FAULT"]) > EXAMPLES // 2
    if mode in (PagingMode.LONG_4LEVEL, PagingMode.LONG_5LEVEL):
        assert outcomes["NON_CANONICAL"]
