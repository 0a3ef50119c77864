"""`Vcpu.translate2` against the oracle of the page walk on hostile tables, and against cases worked out by hand."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.core_rig import RAM_SIZE, Machine
from tests.unit.kvm.translate_rig import put_state
from tests.unit.x86.paging_oracle import oracle
from vtlkit.engine.api import Access, RamBlock
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.memory import GuestMemory
from vtlkit.kvm.memslots import KVM_MEM_READONLY, MemoryRegion
from vtlkit.kvm.uapi import TranslateAccess, TranslateFault, TranslateFlags, Translation
from vtlkit.x86.paging import PagingState
from vtlkit.x86.registers import RFLAGS_AC, RFLAGS_FIXED

PG, WP, PE = 1 << 31, 1 << 16, 1
PSE, PAE, LA57, SMEP, SMAP, PKE = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21, 1 << 22
LMA, LME, NX = 1 << 10, 1 << 8, 1 << 11
P, W, U, A, D, PS = 1, 2, 4, 0x20, 0x40, 0x80
MAXPHYADDR = 40
READ, WRITE, EXECUTE = TranslateAccess.READ, TranslateAccess.WRITE, TranslateAccess.EXECUTE
USER, SUPERVISOR, EXEMPT = TranslateAccess.USER, TranslateAccess.SUPERVISOR, TranslateAccess.EXEMPT
SET = TranslateFlags.SET_ACCESSED | TranslateFlags.SET_DIRTY
FORCE = TranslateFlags.FORCE_SET_ACCESSED
KINDS = {READ: "read", WRITE: "write", EXECUTE: "execute"}
ROOT, TABLE2, TABLE3, TABLE4 = 0x1000, 0x2000, 0x3000, 0x4000
PAGE = 0x9000


def machine_in(*, cr0: int = PE | PG | WP, cr4: int = PAE, efer: int = LMA | LME | NX, cpl: int = 0) -> Machine:
    machine = Machine()
    put_state(machine, PagingState(cr0, ROOT, cr4, efer, False, cpl))
    return machine


def put(machine: Machine, gpa: int, entry: int) -> None:
    machine.ram.view[gpa : gpa + 8] = struct.pack("<Q", entry)


def get(machine: Machine, gpa: int) -> int:
    return int.from_bytes(machine.ram.view[gpa : gpa + 8], "little")


def four_levels(machine: Machine, *, leaf: int = PAGE | P | W | U) -> None:
    """Address 0 through four tables."""
    for table, entry in ((ROOT, TABLE2), (TABLE2, TABLE3), (TABLE3, TABLE4)):
        put(machine, table, entry | P | W | U)
    put(machine, TABLE4, leaf)


def entries(machine: Machine) -> list[int]:
    return [get(machine, table) for table in (ROOT, TABLE2, TABLE3, TABLE4)]


# --- the oracle -------------------------------------------------------------------------------------------------------

MODES = {
    "none": (0, 0, 0),
    "32-bit": (PG, 0, 0),
    "pae": (PG, PAE, 0),
    "4-level": (PG, PAE, LMA | LME),
    "5-level": (PG, PAE | LA57, LMA | LME),
}
ENTRIES = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.builds(
        lambda page, low, high: page << 12 | low | P | high << 63,
        st.integers(0, (RAM_SIZE >> 12) + 1),
        st.integers(0, 0xFFF),
        st.booleans(),
    ),
    st.builds(lambda page, low: page << 12 | low & ~PS | P | W | U, st.integers(0, 15), st.integers(0, 0xFFF)),
    st.builds(lambda page: page << 12 | P | W | U, st.integers(0, 15)),
)
HOSTILE = Machine()
FORBIDDEN_PAGE, READ_ONLY_PAGE = 0xE000, 0xF000
HOSTILE.vm.set_memory_attributes(FORBIDDEN_PAGE, 0x1000, Access.NONE)
HOSTILE.vm.set_memory_attributes(READ_ONLY_PAGE, 0x1000, Access.READ)


@given(
    st.sampled_from(sorted(MODES)),
    st.lists(ENTRIES, min_size=1, max_size=6),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 10) - 1),
    st.tuples(st.sampled_from([0, 3]), st.integers(0, (1 << 32) - 1), st.integers(0, 15)),
    st.sampled_from([READ, WRITE, EXECUTE, READ | WRITE, READ | EXECUTE]),
    st.sampled_from([TranslateAccess.NONE, USER, SUPERVISOR]),
    st.sampled_from([TranslateFlags.NONE, SET, SET | FORCE]),
)
def test_hostile_tables(
    mode: str,
    pool: list[int],
    gva: int,
    options: int,
    context: tuple[int, int, int],
    access: TranslateAccess,
    privilege: TranslateAccess,
    flags: TranslateFlags,
) -> None:
    """Every table holds entries of the pool, in turn: the walk goes through, round or nowhere, and says which."""
    cr0, cr4, efer = MODES[mode]
    bits = (WP, PSE, SMEP, SMAP, PKE, NX, 0)
    chosen = [flag if options >> number & 1 else 0 for number, flag in enumerate(bits)]
    cpl, pkru, root = context
    state = PagingState(
        cr0 | PE | chosen[0],
        root << 12,
        cr4 | sum(chosen[1:5]),
        efer | chosen[5],
        bool(options >> 6 & 1),
        cpl,
        pkru,
        MAXPHYADDR,
    )
    if efer and not options >> 7 & 1:
        # Mostly canonical.
        gva = gva & (1 << 47) - 1
    put_state(HOSTILE, state)
    width = 8 if cr4 & PAE else 4
    words = [pool[number % len(pool)] & (1 << 8 * width) - 1 for number in range(4096 // width)]
    page = b"".join(word.to_bytes(width, "little") for word in words)
    HOSTILE.ram.view[:] = page * (RAM_SIZE >> 12)
    before = bytes(HOSTILE.ram.view)
    readable: list[int] = []

    def read(gpa: int, size: int) -> int | None:
        readable.append(gpa)
        if gpa >= RAM_SIZE or gpa & ~0xFFF == FORBIDDEN_PAGE:
            return None
        return int.from_bytes(before[gpa : gpa + size], "little")

    user = privilege == USER or (privilege == TranslateAccess.NONE and cpl == 3)
    expected = oracle(state, gva, {name for kind, name in KINDS.items() if access & kind}, user, False, read)
    found = HOSTILE.vcpu.translate2(gva, access | privilege, flags)
    assert found.valid == (expected.kind == "ok")
    if found.valid:
        assert (found.gpa, found.page_size) == (expected.gpa, expected.size)
    elif expected.kind == "fault":
        kind = TranslateFault.NOT_PRESENT
        if "present" in expected.error:
            kind = TranslateFault.RESERVED_BITS if "reserved" in expected.error else TranslateFault.PRIVILEGE_VIOLATION
        assert found.fault is kind
    elif expected.kind == "gpa":
        forbidden = expected.gpa < RAM_SIZE
        assert found.fault is (TranslateFault.FORBIDDEN if forbidden else TranslateFault.INVALID_GPA)
        assert found.gpa == expected.gpa
    else:
        assert found.fault is TranslateFault.INVALID_GVA
    check_bits(before, width, expected.updates, found, flags, valid=found.valid)


def check_bits(
    before: bytes,
    width: int,
    updates: list[tuple[int, int, int]],
    found: Translation,
    flags: TranslateFlags,
    *,
    valid: bool,
) -> None:
    """Memory has changed by the bits asked for, where the guest may write, and by nothing else."""
    after = bytearray(before)
    succeeded = True
    if flags & (SET if valid else FORCE):
        for gpa, old, new in updates:
            if gpa & ~0xFFF == READ_ONLY_PAGE:
                succeeded = False
            else:
                # Two levels may use one entry: the second sees what the first has set.
                assert old == int.from_bytes(before[gpa : gpa + width], "little")
                both = int.from_bytes(after[gpa : gpa + width], "little") | new
                after[gpa : gpa + width] = both.to_bytes(width, "little")
    assert HOSTILE.ram.view == after
    assert found.set_bits_succeeded == succeeded


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_the_bits_are_set_only_when_asked_for() -> None:
    machine = machine_in()
    four_levels(machine)
    before = entries(machine)
    assert machine.vcpu.translate2(0x123, WRITE).gpa == PAGE | 0x123
    assert entries(machine) == before
    assert machine.vcpu.translate2(0, WRITE, TranslateFlags.SET_ACCESSED).set_bits_succeeded
    assert entries(machine) == [entry | A for entry in before]
    machine.vcpu.translate2(0, READ, SET)
    assert get(machine, TABLE4) == before[3] | A
    machine.vcpu.translate2(0, WRITE, SET)
    assert get(machine, TABLE4) == before[3] | A | D


def test_forced_bits_of_a_walk_that_fails() -> None:
    machine = machine_in()
    four_levels(machine, leaf=PAGE)
    before = entries(machine)
    assert machine.vcpu.translate2(0, READ, SET).fault is TranslateFault.NOT_PRESENT
    assert entries(machine) == before
    machine.vcpu.translate2(0, READ, FORCE)
    assert entries(machine) == [*(entry | A for entry in before[:3]), before[3]]


def test_asking_for_nothing_is_refused_nothing() -> None:
    machine = machine_in(cr4=PAE | SMEP | SMAP | PKE, cpl=3)
    four_levels(machine, leaf=PAGE | P | 5 << 59)
    machine.vcpu.engine.pkru = 0xFFFFFFFF
    found = machine.vcpu.translate2(0, TranslateAccess.NONE, SET)
    assert found.valid
    assert entries(machine)[3] == PAGE | P | A | 5 << 59
    put(machine, TABLE4, 0)
    assert machine.vcpu.translate2(0, TranslateAccess.NONE).fault is TranslateFault.NOT_PRESENT


@pytest.mark.parametrize(
    ("leaf", "access", "ac", "allowed"),
    [
        (U | W, READ | SUPERVISOR, False, False),
        (U | W, READ | SUPERVISOR, True, True),
        (U | W, READ | SUPERVISOR | TranslateAccess.ENFORCE_SMAP, True, False),
        (U | W, READ | SUPERVISOR | TranslateAccess.OVERRIDE_SMAP, False, True),
        (U | W, READ | SUPERVISOR | TranslateAccess.OVERRIDE_SMAP | TranslateAccess.ENFORCE_SMAP, False, True),
        (U | W, EXECUTE | SUPERVISOR, True, False),
        (U | W, EXECUTE | EXEMPT, False, True),
        (U | W, READ | WRITE | EXEMPT, False, True),
        (U | W, READ | USER | SUPERVISOR, False, False),
        (U | W, READ | USER | SUPERVISOR, True, True),
        (W, READ | USER | SUPERVISOR, True, False),
        (W, READ | USER, True, False),
        (W, READ | USER | EXEMPT, False, True),
        (U, WRITE | EXEMPT, False, False),
        (U, WRITE | USER, False, False),
        (U | W, READ | USER | TranslateAccess.ENFORCE_SMAP, False, True),
    ],
)
def test_privilege(leaf: int, access: TranslateAccess, ac: bool, allowed: bool) -> None:
    machine = machine_in(cr4=PAE | SMEP | SMAP)
    four_levels(machine, leaf=PAGE | P | leaf)
    machine.vcpu.engine.rflags = RFLAGS_FIXED | (RFLAGS_AC if ac else 0)
    found = machine.vcpu.translate2(0, access)
    assert found.valid == allowed
    assert allowed or found.fault is TranslateFault.PRIVILEGE_VIOLATION


def test_a_forbidden_table_is_not_followed() -> None:
    """What the page hides is a way to a page that the guest may read; it does not learn that."""
    machine = machine_in()
    four_levels(machine)
    machine.vm.set_memory_attributes(TABLE3, 0x1000, Access.NONE)
    found = machine.vcpu.translate2(0, READ, SET | FORCE)
    assert (found.valid, found.fault, found.gpa) == (False, TranslateFault.FORBIDDEN, TABLE3)
    assert get(machine, TABLE4) & A == 0
    put(machine, TABLE2, 0x123000 | P)
    found = machine.vcpu.translate2(0, READ)
    assert (found.fault, found.gpa) == (TranslateFault.INVALID_GPA, 0x123000)


def test_a_table_where_a_device_hides_memory() -> None:
    machine = machine_in()
    four_levels(machine)
    block = RamBlock(0x1000)
    machine.vm.set_user_memory_region(MemoryRegion(1, 0xFEE00000, 0x1000, block))
    put(machine, TABLE2, 0xFEE00000 | P | W | U)
    found = machine.vcpu.translate2(0, READ)
    assert (found.fault, found.gpa) == (TranslateFault.INVALID_GPA, 0xFEE00000)


def test_bits_that_the_guest_may_not_set() -> None:
    machine = machine_in()
    four_levels(machine)
    rom = RamBlock(0x1000)
    rom.view[:8] = struct.pack("<Q", TABLE4 | P | W | U)
    machine.vm.set_user_memory_region(MemoryRegion(1, 0x40000, 0x1000, rom, flags=KVM_MEM_READONLY))
    put(machine, TABLE2, 0x40000 | P | W | U)
    found = machine.vcpu.translate2(0, WRITE, SET)
    assert (found.valid, found.gpa) == (True, PAGE)
    assert (found.set_bits_succeeded, found.gpa_unwritable) == (False, 0x40000)
    assert rom.view[0] & A == 0
    assert machine.vcpu.translate2(0, WRITE).set_bits_succeeded


def test_an_entry_that_changes_before_it_is_marked_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_in()
    four_levels(machine)
    exchange = machine.vm.memory.compare_exchange
    steps = iter([True, False])

    def overtaken(gpa: int, size: int, old: int, new: int) -> bool:
        if gpa == TABLE4 and next(steps, False):
            put(machine, TABLE4, 0xA000 | P | W | U)
        return exchange(gpa, size, old, new)

    monkeypatch.setattr(machine.vm.memory, "compare_exchange", overtaken)
    assert machine.vcpu.translate2(0, WRITE, SET).gpa == 0xA000
    assert get(machine, TABLE4) == 0xA000 | P | W | U | A | D


def test_mistakes_of_the_caller() -> None:
    vcpu = machine_in().vcpu
    for gva, access, flags in (
        (0, TranslateAccess(1 << 8), TranslateFlags.NONE),
        (0, READ, TranslateFlags(1 << 3)),
        (1 << 64, READ, TranslateFlags.NONE),
        (-1, READ, TranslateFlags.NONE),
    ):
        with pytest.raises(KvmError, match="EINVAL"):
            vcpu.translate2(gva, access, flags)


def test_an_entry_that_serves_two_levels_is_marked_once() -> None:
    """With PAE the first table is its own page directory: an accessed bit, once set, is reserved in its other use."""
    machine = machine_in(cr0=PE | PG, cr4=PAE, efer=0)
    put(machine, ROOT, ROOT | P)
    found = machine.vcpu.translate2(0, READ, SET)
    assert (found.valid, found.set_bits_succeeded) == (True, True)
    assert get(machine, ROOT) == ROOT | P | A
    assert machine.vcpu.translate2(0, READ).fault is TranslateFault.RESERVED_BITS


def test_rights_that_go_as_an_entry_is_marked_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_in()
    four_levels(machine)
    before = get(machine, TABLE4)
    memory = machine.vm.memory
    exchange = memory.compare_exchange

    def overtaken(gpa: int, size: int, old: int, new: int) -> bool:
        if gpa == TABLE4:
            machine.vm.set_memory_attributes(TABLE4, 0x1000, Access.READ)
        return exchange(gpa, size, old, new)

    monkeypatch.setattr(memory, "compare_exchange", overtaken)
    found = machine.vcpu.translate2(0, WRITE, SET)
    assert (found.valid, found.set_bits_succeeded, found.gpa_unwritable) == (True, False, TABLE4)
    assert get(machine, TABLE4) == before


def test_rights_that_go_as_a_table_is_read_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read under the old rights is not looked at."""
    machine = machine_in()
    four_levels(machine)
    memory = machine.vm.memory
    read = GuestMemory.read

    def overtaken(self: GuestMemory, gpa: int, size: int) -> bytes:
        data = read(self, gpa, size)
        if gpa == TABLE4 and self.check(TABLE4, 8, Access.READ):
            machine.vm.set_memory_attributes(TABLE4, 0x1000, Access.NONE)
        return data

    assert machine.vcpu.translate2(0, READ).valid
    monkeypatch.setattr(GuestMemory, "read", overtaken)
    assert not machine.vcpu.translate2(0, READ).valid
    assert not memory.check(TABLE4, 8, Access.READ)
