"""HvCallTranslateVirtualAddress(Ex) of a VTL about itself: answered in the hypervisor, and as user space answers it."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

import pytest

from tests.unit.vmm.vsm import vsm_rig
from tests.unit.vmm.vsm.translate_rig import (
    ENFORCE_SMAP,
    EXECUTE,
    EXEMPT,
    GVA,
    INHIBIT,
    OVERRIDE_SMAP,
    PAGE,
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
    USER,
    WRITE,
    A,
    Answer,
    P,
    U,
    W,
    ask,
    context,
    from_vtl1,
    put,
    tables,
)
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, input_vtl
from vtlkit.engine.api import Access
from vtlkit.hvdef.hypercall_io import HvTranslateGvaResultCode as Code
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_VP_INDEX_SELF
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Hyperv, Vcpu
from vtlkit.vmm.vsm import hypercalls
from vtlkit.vmm.vsm.partition import Partition

TRANSLATES = (Call.HvCallTranslateVirtualAddress, Call.HvCallTranslateVirtualAddressEx)
FLAGS = (READ, WRITE, EXECUTE, EXEMPT, SET_BITS, SUPERVISOR, USER, ENFORCE_SMAP, OVERRIDE_SMAP)
PG, CD = 1 << 31, 1 << 30
FORBIDDEN = PAGE + 0x3000


class Exits:
    """The translations that reach user space, by wrapping what dispatches hypercalls there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = hypercalls.dispatch

        def counting(vp: Any, level: int, vcpu: Vcpu, exit_: Hyperv) -> None:
            self.count += exit_.code in TRANSLATES
            real(vp, level, vcpu, exit_)

        monkeypatch.setattr(hypercalls, "dispatch", counting)


def told(answer: Answer) -> tuple[Any, ...]:
    return answer.status, answer.code, answer.cache, answer.overlay, answer.gpa, tuple(answer.event)


def garbage(guest: Guest, own: Vcpu, rng: Random) -> None:
    """Tables that lead on, or to what is forbidden, to nothing, to nonsense; registers that make all of that count."""
    for table in (ROOT, TABLE2, TABLE3, TABLE4):
        target = rng.choice((ROOT, TABLE2, TABLE3, TABLE4, PAGE, FORBIDDEN, 0x7000000))
        following = {ROOT: TABLE2, TABLE2: TABLE3, TABLE3: TABLE4, TABLE4: PAGE}[table]
        target = following if rng.random() < 0.8 else target
        low = rng.choice((P | W | U, P | W, P | U, P | W | U | PWT, P | W | U | PCD, rng.getrandbits(12)))
        for index in (0, GVA >> 12):
            put(guest.rig, table + index * 8, target | low | (rng.random() < 0.05) << 51)
    context(own, cr4=rng.choice((0, SMEP, SMAP)), cr0=CD if rng.random() < 0.1 else 0)
    sregs = own.get_sregs()
    if rng.random() < 0.1:
        sregs.cr0 &= ~PG
        own.engine.set_sregs(sregs)


def ask_about_itself() -> list[tuple[Any, ...]]:
    seen: list[tuple[Any, ...]] = []

    def body(guest: Guest, _lower: Vcpu) -> Script:
        rng = Random(7)
        own = guest.rig.partition.vps[0].vcpus[1]
        own.vm.set_memory_attributes(FORBIDDEN, 0x1000, Access.NONE)
        start = own.get_sregs()
        for _ in range(300):
            own.engine.set_sregs(start)
            garbage(guest, own, rng)
            flags = sum(flag for flag in FLAGS if rng.random() < 0.3)
            gva = rng.choice((GVA, GVA, GVA, 0, 1 << 47, rng.getrandbits(63) & ~0xFFF))
            vtl = rng.choice((0, input_vtl(1)))
            vp = rng.choice((HV_VP_INDEX_SELF, 0))
            answer = yield from ask(guest, flags, gva=gva, vtl=vtl, vp=vp, ex=bool(rng.getrandbits(1)))
            entries = [guest.rig.read(table + GVA // 512, 8) for table in (ROOT, TABLE2, TABLE3, TABLE4)]
            seen.append((told(answer), entries))
        own.engine.set_sregs(start)

    from_vtl1(body)
    return seen


@pytest.mark.tlfs("hypercalls.translate", "hypercalls.translate-ex")
def test_hypervisor_and_user_space_give_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    exits = Exits(monkeypatch)
    here = ask_about_itself()
    few = exits.count
    monkeypatch.setattr(vsm_rig, "Partition", partial(Partition, translate_in_hypervisor=False))
    there = ask_about_itself()
    assert here == there
    assert exits.count - few == len(there)
    assert 0 < few < len(here) // 2, "those about forbidden tables, and without paging"
    codes = {answer[1] for answer, _ in here}
    assert codes >= {
        Code.HvTranslateGvaSuccess,
        Code.HvTranslateGvaPageNotPresent,
        Code.HvTranslateGvaPrivilegeViolation,
        Code.HvTranslateGvaInvalidPageTableFlags,
        Code.HvTranslateGvaGpaUnmapped,
        Code.HvTranslateGvaGpaNoReadAccess,
    }


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"flags": READ | INHIBIT}, HvStatus.ACCESS_DENIED),
        ({"flags": READ | SHADOW_STACK}, HvStatus.INVALID_PARAMETER),
        ({"flags": READ, "reserved": 1}, HvStatus.INVALID_PARAMETER),
        ({"flags": READ, "gva": 1 << 64}, HvStatus.INVALID_PARAMETER),
        ({"flags": READ, "vtl": 0x20}, HvStatus.INVALID_PARAMETER),
        ({"flags": READ, "vtl": input_vtl(2)}, HvStatus.ACCESS_DENIED),
        ({"flags": READ, "vp": 9}, HvStatus.INVALID_VP_INDEX),
        ({"flags": READ, "partition": 5}, HvStatus.INVALID_PARTITION_ID),
        ({"flags": READ, "vtl": input_vtl(0)}, HvStatus.SUCCESS),
    ],
)
def test_what_is_not_plainly_about_itself_exits(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], status: HvStatus
) -> None:
    exits = Exits(monkeypatch)
    seen: list[HvStatus] = []

    def body(guest: Guest, _vcpu: Vcpu) -> Script:
        seen.append((yield from ask(guest, **{"vtl": 0, **options})).status)

    from_vtl1(body)
    assert seen == [status]
    assert exits.count == 1


def test_accessed_bits_are_set_by_the_hypervisor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    exits = Exits(monkeypatch)

    def body(guest: Guest, _vcpu: Vcpu) -> Script:
        own = guest.rig.partition.vps[0].vcpus[1]
        tables(guest.rig)
        context(own)
        answer = yield from ask(guest, WRITE | SET_BITS, vtl=0)
        assert (answer.code, answer.gpa) == (Code.HvTranslateGvaSuccess, PAGE)
        assert guest.rig.read(ROOT, 8) & A

    from_vtl1(body)
    assert exits.count == 0
