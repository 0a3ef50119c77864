"""Translations over page tables of garbage, in every paging mode: none crashes, and an independent walk agrees.

Tables are random, hostile or nearly right; they lie in RAM, in pages that forbid reads or writes, in a ROM, where a
device hides memory and where there is nothing; they may be their own lower levels. The test and the benchmark use this
one generator.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Final

from tests.unit.kvm.core_rig import RAM_SIZE, Machine
from tests.unit.x86.paging_oracle import Answer, oracle
from vtlkit.engine.api import Access, RamBlock
from vtlkit.host.api import RunnableHost
from vtlkit.kvm.memslots import KVM_MEM_READONLY, MemoryRegion
from vtlkit.kvm.uapi import TranslateAccess, TranslateFault, TranslateFlags, Translation
from vtlkit.x86.paging import PagingState
from vtlkit.x86.registers import RFLAGS_AC, RFLAGS_FIXED, Segment

PG, PE, WP = 1 << 31, 1, 1 << 16
PSE, PAE, LA57, SMEP, SMAP, PKE = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21, 1 << 22
LME, LMA, NX = 1 << 8, 1 << 10, 1 << 11
MODES: Final = {
    "none": (0, 0, 0),
    "32-bit": (PG, 0, 0),
    "pae": (PG, PAE, 0),
    "4-level": (PG, PAE, LMA | LME),
    "5-level": (PG, PAE | LA57, LMA | LME),
}
MAXPHYADDR: Final = 40
FORBIDDEN, READ_ONLY, ROM = 0xE000, 0xF000, 0x40000
HIDDEN: Final = 0xFEE00000
"""RAM under the local APIC's page."""
NOWHERE: Final = 0x123000
PAGES: Final = (*range(0, RAM_SIZE, 0x1000), ROM, HIDDEN, NOWHERE)
CONTEXT_EACH: Final = 20
"""Translations between two changes of registers."""
KINDS: Final = ((TranslateAccess.READ, "read"), (TranslateAccess.WRITE, "write"), (TranslateAccess.EXECUTE, "execute"))
ACCESS_MASK: Final = sum(TranslateAccess)
ACCESSES: Final = tuple(TranslateAccess(bits) for bits in range(ACCESS_MASK + 1))
FLAGS: Final = tuple(TranslateFlags(bits) for bits in range(8))
PAIRS: Final = [
    TranslateAccess.READ | TranslateAccess.USER,
    TranslateAccess.READ | TranslateAccess.SUPERVISOR,
    TranslateAccess.WRITE | TranslateAccess.USER,
    TranslateAccess.WRITE | TranslateAccess.SUPERVISOR,
    TranslateAccess.EXECUTE | TranslateAccess.USER,
    TranslateAccess.READ | TranslateAccess.WRITE | TranslateAccess.SUPERVISOR,
    TranslateAccess.READ | TranslateAccess.EXECUTE | TranslateAccess.SUPERVISOR,
]
"""What the oracle knows: a kind of access, and its privilege."""


def put_state(machine: Machine, state: PagingState) -> None:
    vcpu = machine.vcpu
    sregs = vcpu.get_sregs()
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = state.cr0, state.cr3, state.cr4, state.efer
    sregs.cs = Segment(8 | state.cpl, 0, 0xFFFFFFFF, 0xA9B | state.cpl << 5)
    sregs.ss = Segment(0x10 | state.cpl, 0, 0xFFFFFFFF, 0xC93 | state.cpl << 5)
    vcpu.engine.set_sregs(sregs)
    vcpu.engine.rflags = RFLAGS_FIXED | (RFLAGS_AC if state.rflags_ac else 0)
    vcpu.engine.pkru = state.pkru
    assert vcpu.cpl() == state.cpl


class TranslateRig:
    """One machine of garbage. `found` counts the results."""

    def __init__(self, seed: int, host: RunnableHost | None = None) -> None:
        self.random = Random(seed)
        self.machine = Machine(host=host)
        self.vcpu = self.machine.vcpu
        self.found: Counter[str] = Counter()
        self.checked = 0
        vm = self.machine.vm
        self.rom, self.hidden = RamBlock(0x1000), RamBlock(0x1000)
        vm.set_user_memory_region(MemoryRegion(1, ROM, 0x1000, self.rom, flags=KVM_MEM_READONLY))
        vm.set_user_memory_region(MemoryRegion(2, HIDDEN, 0x1000, self.hidden))
        vm.set_memory_attributes(FORBIDDEN, 0x1000, Access.NONE)
        vm.set_memory_attributes(READ_ONLY, 0x1000, Access.READ)
        self.state = PagingState(PE, 0, 0, 0, False, 0)
        self.change_tables()
        self.change_registers()

    # --- garbage ----------------------------------------------------------------------------------------------------

    def change_tables(self) -> None:
        """Every page anew."""
        rng = self.random
        for view in (self.machine.ram.view, self.rom.view, self.hidden.view):
            for start in range(0, len(view), 0x1000):
                kind = rng.random()
                if kind < 0.1:
                    view[start : start + 0x1000] = rng.randbytes(0x1000)
                else:
                    pool = b"".join(self._entry(start).to_bytes(8, "little") for _ in range(16))
                    view[start : start + 0x1000] = pool * 32

    def _entry(self, page: int) -> int:
        """Mostly one that leads on: to any page there is, its own among them."""
        rng = self.random
        choice = rng.random()
        if choice < 0.08:
            return rng.getrandbits(64)
        target = page if choice < 0.15 else rng.choice(PAGES)
        low = rng.getrandbits(12) if choice < 0.4 else rng.getrandbits(7) & 0x67 | 7
        if choice < 0.92:
            low &= ~0x80
        return target | low | (rng.random() < 0.95) | (rng.random() < 0.05) << rng.randrange(64)

    def change_registers(self) -> None:
        """Another mode, another root, other rights."""
        rng = self.random
        cr0, cr4, efer = MODES[rng.choice(tuple(MODES))]
        cr4 |= sum(flag for flag in (PSE, SMEP, SMAP, PKE) if rng.random() < 0.5)
        cr0 |= PE | WP * rng.getrandbits(1)
        efer |= NX * (rng.random() < 0.7)
        root = rng.choice(PAGES) | rng.getrandbits(12) if rng.random() < 0.95 else rng.getrandbits(52)
        self.state = PagingState(
            cr0, root, cr4, efer, bool(rng.getrandbits(1)), rng.choice((0, 3)), rng.getrandbits(32), MAXPHYADDR
        )
        put_state(self.machine, self.state)

    def address(self) -> int:
        """Any, mostly a canonical one."""
        rng = self.random
        gva = rng.getrandbits(64)
        choice = rng.random()
        if choice < 0.1:
            return gva
        bits = 56 if self.state.cr4 & LA57 else 47
        return gva >> 64 - bits if choice < 0.7 else gva | -(1 << bits) & (1 << 64) - 1

    # --- translations -------------------------------------------------------------------------------------------------

    def run(self, count: int, *, check_each: int = 0) -> None:
        """So many translations; every `check_each`-th is compared with the oracle, and memory with what it says."""
        rng = self.random
        for number in range(count):
            if not number % CONTEXT_EACH:
                self.change_registers()
            if check_each and not number % check_each:
                self.check()
            else:
                access = ACCESSES[rng.getrandbits(8)]
                self.note(self.vcpu.translate2(self.address(), access, FLAGS[rng.getrandbits(3)]))

    def note(self, found: Translation) -> None:
        """Count it, and look at what holds whatever the tables say."""
        if found.valid:
            assert found.fault is TranslateFault.NONE
            assert 0 <= found.gpa < 1 << 52
            assert found.page_size in (1 << 12, 1 << 21, 1 << 22, 1 << 30)
            self.found["valid"] += 1
        else:
            assert found.fault is not TranslateFault.NONE
            self.found[found.fault.name] += 1
        if not found.set_bits_succeeded:
            self.found["bits not set"] += 1

    def check(self) -> None:
        """One translation against the oracle: result, address, error, and every byte of memory."""
        rng = self.random
        gva, access, flags = self.address(), rng.choice(PAIRS), rng.choice(FLAGS)
        before = self.contents()
        expected = oracle(
            self.state,
            gva,
            {name for kind, name in KINDS if access & kind},
            bool(access & TranslateAccess.USER),
            False,
            lambda gpa, size: None if unreadable(gpa) else word(before, gpa, size),
        )
        found = self.vcpu.translate2(gva, access, flags)
        self.note(found)
        compare(expected, found)
        self._compare_memory(before, expected, found, flags)
        self.checked += 1

    def contents(self) -> dict[int, bytes]:
        """All memory there is, by page."""
        pages = {page: bytes(self.machine.ram.view[page : page + 0x1000]) for page in range(0, RAM_SIZE, 0x1000)}
        return pages | {ROM: bytes(self.rom.view), HIDDEN: bytes(self.hidden.view)}

    def _compare_memory(
        self, before: dict[int, bytes], expected: Answer, found: Translation, flags: TranslateFlags
    ) -> None:
        """It has changed by the bits asked for, where the guest may write, and by nothing else."""
        width = 8 if self.state.cr4 & PAE else 4
        wanted = 0x20 if flags & (FLAGS[1] if found.valid else TranslateFlags.FORCE_SET_ACCESSED) else 0
        wanted |= 0x40 if flags & TranslateFlags.SET_DIRTY else 0
        after = {page: bytearray(data) for page, data in before.items()}
        succeeded = True
        for gpa, old, new in expected.updates:
            bits = new & ~old & wanted
            if bits and gpa & ~0xFFF in (READ_ONLY, ROM):
                succeeded = False
            elif bits:
                here = after[gpa & ~0xFFF]
                value = int.from_bytes(here[gpa & 0xFFF : (gpa & 0xFFF) + width], "little") | bits
                here[gpa & 0xFFF : (gpa & 0xFFF) + width] = value.to_bytes(width, "little")
        assert self.contents() == after
        assert found.set_bits_succeeded == succeeded


def unreadable(gpa: int) -> bool:
    """Whether a page table cannot be read there."""
    return gpa & ~0xFFF not in PAGES or gpa & ~0xFFF in (FORBIDDEN, HIDDEN, NOWHERE)


def word(pages: dict[int, bytes], gpa: int, size: int) -> int:
    return int.from_bytes(pages[gpa & ~0xFFF][gpa & 0xFFF : (gpa & 0xFFF) + size], "little")


def compare(expected: Answer, found: Translation) -> None:
    """The oracle's answer and the hypervisor's are one."""
    assert found.valid == (expected.kind == "ok"), (expected, found)
    if found.valid:
        assert (found.gpa, found.page_size) == (expected.gpa, expected.size)
        return
    kind = {"gpa": TranslateFault.INVALID_GPA, "non-canonical": TranslateFault.INVALID_GVA}.get(expected.kind)
    if expected.kind == "gpa" and expected.gpa & ~0xFFF == FORBIDDEN:
        kind = TranslateFault.FORBIDDEN
    if kind is None:
        present, reserved = "present" in expected.error, "reserved" in expected.error
        kind = TranslateFault.PRIVILEGE_VIOLATION if present else TranslateFault.NOT_PRESENT
        kind = TranslateFault.RESERVED_BITS if reserved else kind
        numbers = {"present": 1, "write": 2, "user": 4, "reserved": 8, "fetch": 16, "key": 32}
        assert found.error_code == sum(numbers[name] for name in expected.error)
    assert found.fault is kind, (expected, found)
    if expected.kind == "gpa":
        assert found.gpa == expected.gpa
