"""HvCallTranslateVirtualAddress and its Ex form: who may ask for what, every flag, every result code."""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from typing import Any

import pytest

from tests.unit.vmm.vsm.translate_rig import (
    ENFORCE_SMAP,
    EXECUTE,
    EXEMPT,
    GVA,
    INHIBIT,
    OVERRIDE_SMAP,
    PAGE,
    PAT_BIT,
    PCD,
    PWT,
    READ,
    ROOT,
    SET_BITS,
    SHADOW_STACK,
    SMAP,
    SMEP,
    SUPERVISOR,
    TABLE2,
    TABLE3,
    TABLE4,
    UC,
    USER,
    WB,
    WRITE,
    WT,
    A,
    Answer,
    D,
    P,
    U,
    W,
    ask,
    context,
    from_vtl1,
    put,
    tables,
)
from tests.unit.vmm.vsm.vsm_rig import RAM_SIZE, Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.api import Access, RamBlock
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef.hypercall_io import HvTranslateGvaResultCode as Code
from vtlkit.hvdef.messages import HvCacheType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import KVM_MEM_READONLY, MemoryRegion, Vcpu
from vtlkit.x86 import msr
from vtlkit.x86.registers import RFLAGS_AC

# --- success ----------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("hypercalls.translate", "hypercalls.translate-ex")
@pytest.mark.parametrize("ex", [False, True])
def test_a_translation_has_address_cache_type_and_overlay_bit(ex: bool) -> None:
    seen: list[Any] = []

    def body(guest: Guest, vcpu: Vcpu) -> Script:
        for leaf in (0, PWT, PCD, PWT | PCD, PAT_BIT):
            tables(guest.rig, leaf=PAGE | P | W | U | leaf)
            answer = yield from ask(guest, READ | WRITE, ex=ex)
            assert (answer.status, answer.code, answer.gpa) == (HvStatus.SUCCESS, Code.HvTranslateGvaSuccess, PAGE)
            assert not answer.overlay
            assert answer.reserved == 0
            assert not any(answer.event)
            seen.append(answer.cache)
        vcpu.vm.memory.map_overlay(PAGE, RamBlock(0x1000))
        assert (yield from ask(guest, READ, ex=ex)).overlay
        put(guest.rig, TABLE4 + (GVA >> 12) * 8, 0xFE000000 | P)
        # What lies there does not matter: an emulator wants the addresses of devices.
        assert (yield from ask(guest, READ, ex=ex)).gpa == 0xFE000000

    from_vtl1(body)
    assert seen == [WB, WT, UC, UC, WB]


@pytest.mark.tlfs("hypercalls.translate")
@pytest.mark.parametrize("ex", [False, True])
def test_every_cache_type(ex: bool) -> None:
    """Entry 1 of the PAT of the VTL that is asked about, in memory that the MTRRs call write-back."""
    seen: list[int] = []

    def body(guest: Guest, vcpu: Vcpu) -> Script:
        tables(guest.rig, leaf=PAGE | P | W | U | PWT)
        for kind in (0, 1, 4, 5, 6):
            assert (yield from guest.set(Name.HvX64RegisterPat, kind << 8 | 6, vtl=input_vtl(0))) == HvStatus.SUCCESS
            seen.append((yield from ask(guest, READ, ex=ex)).cache)

    from_vtl1(body)
    assert seen == [UC, HvCacheType.HvCacheTypeWriteCombining, WT, HvCacheType.HvCacheTypeWriteProtected, WB]


@pytest.mark.tlfs("hypercalls.translate")
def test_cache_types_without_paging_and_without_caches() -> None:
    seen: list[int] = []

    def body(guest: Guest, vcpu: Vcpu) -> Script:
        context(vcpu, off=1 << 31)
        seen.append((yield from ask(guest, READ)).cache)
        active = guest.rig.partition.vps[0].vcpus[1]
        active.set_msr(msr.MSR_MTRRdefType, 1 << 11 | WT)
        answer = yield from ask(guest, READ)
        assert answer.gpa == GVA
        seen.append(answer.cache)
        context(vcpu, cr0=1 << 31 | 1 << 30)
        seen.append((yield from ask(guest, READ)).cache)

    from_vtl1(body)
    assert seen == [WB, WT, UC]


@pytest.mark.tlfs("hypercalls.translate-flags")
def test_page_table_bits_are_set_when_asked_for() -> None:
    def body(guest: Guest, _vcpu: Vcpu) -> Script:
        leaf = TABLE4 + (GVA >> 12) * 8
        plain = PAGE | P | W | U
        yield from ask(guest, WRITE)
        assert guest.rig.read(leaf, 8) == plain
        for flags, bits in ((SET_BITS, A), (SET_BITS | READ, A), (SET_BITS | WRITE, A | D)):
            tables(guest.rig)
            assert (yield from ask(guest, flags)).code == Code.HvTranslateGvaSuccess
            assert guest.rig.read(leaf, 8) == plain | bits
            assert guest.rig.read(ROOT, 8) & A

    from_vtl1(body)


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("hypercalls.translate-flags")
@pytest.mark.parametrize(
    ("leaf", "flags", "ac", "allowed"),
    [
        (U | W, READ, False, False),
        (U | W, READ, True, True),
        (U | W, READ | ENFORCE_SMAP, True, False),
        (U | W, READ | OVERRIDE_SMAP, False, True),
        (U | W, READ | EXEMPT, False, True),
        (U | W, EXECUTE, True, False),
        (U | W, EXECUTE | EXEMPT, False, True),
        (U | W, EXECUTE | USER, False, True),
        (W, READ | USER, True, False),
        (W, READ | SUPERVISOR, True, True),
        (W, READ | USER | SUPERVISOR, True, False),
        (W, READ | USER | EXEMPT, True, True),
        (U, WRITE | USER, True, False),
        (U, WRITE | EXEMPT, True, False),
        (U, USER, False, True),
        (1 << 63, EXECUTE, True, False),
        (1 << 63, READ, True, True),
    ],
)
def test_access_flags(leaf: int, flags: int, ac: bool, allowed: bool) -> None:
    codes: list[Code] = []

    def body(guest: Guest, vcpu: Vcpu) -> Script:
        tables(guest.rig, leaf=PAGE | P | leaf)
        context(vcpu, cr4=SMEP | SMAP)
        if ac:
            vcpu.engine.rflags |= RFLAGS_AC
        codes.append((yield from ask(guest, flags)).code)

    from_vtl1(body)
    assert codes == [Code.HvTranslateGvaSuccess if allowed else Code.HvTranslateGvaPrivilegeViolation]


@pytest.mark.tlfs("hypercalls.translate-statuses")
@pytest.mark.parametrize("ex", [False, True])
@pytest.mark.tlfs("tlb.translate")
def test_who_may_ask_and_what_is_malformed(ex: bool) -> None:
    def body(guest: Guest, _vcpu: Vcpu) -> Script:
        def status(*arguments: Any, **named: Any) -> Generator[Op, int, HvStatus]:
            return (yield from ask(guest, *arguments, ex=ex, **named)).status

        assert (yield from status(READ, partition=5)) == HvStatus.INVALID_PARTITION_ID
        assert (yield from status(READ, vp=9)) == HvStatus.INVALID_VP_INDEX
        assert (yield from status(READ, vtl=input_vtl(2))) == HvStatus.ACCESS_DENIED
        assert (yield from status(READ, vtl=0x20)) == HvStatus.INVALID_PARAMETER
        assert (yield from status(READ, vp=1, vtl=input_vtl(1))) == HvStatus.INVALID_VTL_STATE
        assert (yield from status(READ, reserved=1)) == HvStatus.INVALID_PARAMETER
        assert (yield from status(READ | SHADOW_STACK)) == HvStatus.INVALID_PARAMETER
        for bit in (11, 31, 32, 55):
            assert (yield from status(READ | 1 << bit)) == HvStatus.INVALID_PARAMETER
        assert (yield from status(READ, gva=1 << 64)) == HvStatus.INVALID_PARAMETER
        assert (yield from status(READ | INHIBIT, vtl=0)) == HvStatus.ACCESS_DENIED
        assert (yield from status(READ, vtl=0)) == HvStatus.SUCCESS
        assert (yield from status(READ, vp=1)) == HvStatus.SUCCESS

    from_vtl1(body, cpus=2)


@pytest.mark.tlfs("hypercalls.translate-statuses")
def test_vtl0_translates_for_itself_and_not_for_vtl1() -> None:
    seen: list[HvStatus] = []

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        for vtl in (0, input_vtl(0), input_vtl(1)):
            seen.append((yield from ask(guest, READ, vtl=vtl)).status)
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    assert seen == [HvStatus.SUCCESS, HvStatus.SUCCESS, HvStatus.ACCESS_DENIED]


def test_another_processor_stands_still_while_its_tables_are_walked() -> None:
    """VP 1 runs all the time; a walk of its tables sees what VP 0 has just put there."""

    def vtl1(guest: Guest) -> Script:
        while "ready" not in guest.rig.log:
            yield ops.Compute(5)
        for number in range(20):
            tables(guest.rig, leaf=PAGE + number * 0x1000 | P | W | U)
            answer = yield from ask(guest, READ, vp=1)
            assert answer.gpa == PAGE + number * 0x1000
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        if guest.vp:
            context(guest.rig.partition.vps[1].vcpus[0])
            guest.note("ready")
            while True:
                yield ops.Compute(3)
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (1, 0): vtl0}, cpus=2)


# --- failures ---------------------------------------------------------------------------------------------------------

PENDING_EXCEPTION, PENDING_INTERCEPT = 1, 1 | 1 << 1


def fault(vector: int, error_code: int, address: int) -> list[int]:
    return [PENDING_EXCEPTION | 1 << 8 | vector << 16 | error_code << 32, address, 0, 0]


def intercept(write: bool, gpa: int) -> list[int]:
    return [PENDING_INTERCEPT | 1 << 8 | write << 16 | 1 << 24, GVA, gpa, 0]


def drop(table: int) -> Callable[[VsmRig, Vcpu], None]:
    return lambda rig, _vcpu: put(rig, table, 0)


def entry(table: int, value: int) -> Callable[[Any, Vcpu], None]:
    return lambda rig, _vcpu: put(rig, table, value)


def deny(page: int, access: Access) -> Callable[[Any, Vcpu], None]:
    """By nobody that the partition knows."""
    return lambda _rig, vcpu: vcpu.vm.set_memory_attributes(page, 0x1000, access)


def overlay(_rig: Any, vcpu: Vcpu) -> None:
    block = RamBlock(0x1000)
    block.view[:8] = struct.pack("<Q", TABLE4 | P | W | U)
    vcpu.vm.memory.map_overlay(TABLE3, block, 0, Access.READ | Access.EXECUTE)


def rom(rig: Any, vcpu: Vcpu) -> None:
    block = RamBlock(0x1000)
    block.view[:8] = struct.pack("<Q", TABLE4 | P | W | U)
    # In the middle of a guest instruction user space's call, which may wait for a transaction, is not to be made.
    vcpu.vm.memory.set_regions([MemoryRegion(7, RAM_SIZE, 0x1000, block, 0, KVM_MEM_READONLY)])
    put(rig, TABLE2, RAM_SIZE | P | W | U)


LEAF = TABLE4 + (GVA >> 12) * 8


@pytest.mark.tlfs("hypercalls.translate", "hypercalls.translate-ex")
@pytest.mark.parametrize(
    ("act", "flags", "gva", "code", "event"),
    [
        (drop(LEAF), READ, GVA, Code.HvTranslateGvaPageNotPresent, fault(14, 0, GVA)),
        (drop(TABLE2), WRITE | USER, GVA, Code.HvTranslateGvaPageNotPresent, fault(14, 6, GVA)),
        (entry(LEAF, PAGE | P), READ | USER, GVA, Code.HvTranslateGvaPrivilegeViolation, fault(14, 5, GVA)),
        (
            entry(LEAF, PAGE | P | W | U | 1 << 63),
            EXECUTE,
            GVA,
            Code.HvTranslateGvaPrivilegeViolation,
            fault(14, 0x11, GVA),
        ),
        (
            entry(TABLE3, TABLE4 | P | W | 1 << 51),
            READ,
            GVA,
            Code.HvTranslateGvaInvalidPageTableFlags,
            fault(14, 9, GVA),
        ),
        (entry(LEAF, 0), READ, 1 << 47, Code.HvTranslateGvaInvalidPageTableFlags, fault(13, 0, 0)),
        (entry(TABLE2, 0x30000000 | P), READ, GVA, Code.HvTranslateGvaGpaUnmapped, [0] * 4),
        (deny(TABLE3, Access.NONE), READ, GVA, Code.HvTranslateGvaGpaNoReadAccess, [0] * 4),
        (rom, WRITE | SET_BITS, GVA, Code.HvTranslateGvaGpaNoWriteAccess, [0] * 4),
        (overlay, READ | SET_BITS, GVA, Code.HvTranslateGvaGpaIllegalOverlayAccess, [0] * 4),
        (overlay, READ, GVA, Code.HvTranslateGvaSuccess, [0] * 4),
        (rom, WRITE, GVA, Code.HvTranslateGvaSuccess, [0] * 4),
    ],
)
def test_result_codes_and_events(
    act: Callable[[Any, Vcpu], None], flags: int, gva: int, code: Code, event: list[int]
) -> None:
    seen: list[Answer] = []

    def body(guest: Guest, vcpu: Vcpu) -> Script:
        act(guest.rig, vcpu)
        for ex in (False, True):
            seen.append((yield from ask(guest, flags, gva=gva, ex=ex)))

    from_vtl1(body)
    for answer in seen:
        assert (answer.status, answer.code) == (HvStatus.SUCCESS, code)
        assert answer.gpa == (PAGE if code == Code.HvTranslateGvaSuccess else 0)
    assert seen[1].event == event


@pytest.mark.tlfs("hypercalls.translate", "hypercalls.translate-ex")
@pytest.mark.parametrize(("map_flags", "flags", "write"), [(0, READ, False), (1, READ | SET_BITS, True)])
def test_a_table_that_a_higher_vtl_has_taken_away_is_an_intercept(map_flags: int, flags: int, write: bool) -> None:
    """What is in it is not looked at: it leads to a page that is there, and the answer does not say so."""
    seen: list[Answer] = []

    def body(guest: Guest, _vcpu: Vcpu) -> Script:
        assert (yield from guest.set(Name.HvRegisterVsmPartitionConfig, 0x1F | 1 << 5)) == HvStatus.SUCCESS
        yield from guest.protect([TABLE3], map_flags)
        for ex in (False, True):
            seen.append((yield from ask(guest, flags, ex=ex)))
        seen.append((yield from ask(guest, READ, vtl=0)))

    from_vtl1(body)
    assert [answer.code for answer in seen[:2]] == [Code.HvTranslateGvaIntercept] * 2
    assert [answer.gpa for answer in seen[:2]] == [0, 0]
    assert seen[1].event == intercept(write, TABLE3)
    assert seen[2].status == HvStatus.SUCCESS
