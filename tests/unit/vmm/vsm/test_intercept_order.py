"""Who is told first: random wishes of two VTLs against an oracle."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vmm.vsm.intercept_guests import (
    R,
    W,
    X,
    install,
    must,
    nothing,
    telling,
)
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.intercepts import HvInterceptType as Type
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HvCrInterceptControl as Control

# --- an oracle ------------------------------------------------------------------------------------------------------

WISHES = st.fixed_dictionaries(
    {
        "ports": st.lists(st.tuples(st.integers(0x40, 0x47), st.integers(0, 3)), max_size=3),
        "msrs": st.lists(st.tuples(st.sampled_from([0x10, 0x174, 0xC0000082, 0x12345]), st.integers(0, 3)), max_size=3),
        "leaves": st.lists(st.sampled_from([0, 1, 7, 0x80000000]), max_size=2),
        "everything": st.booleans(),
        "control": st.integers(0, (1 << 25) - 1),
        "cr0": st.sampled_from([0, 1 << 16, 1 << 18, 1 << 16 | 1 << 18]),
    }
)
USES = st.lists(
    st.one_of(
        st.tuples(st.just("in"), st.integers(0x3E, 0x48), st.sampled_from([1, 2, 4])),
        st.tuples(st.just("out"), st.integers(0x3E, 0x48), st.sampled_from([1, 2, 4])),
        st.tuples(st.just("rdmsr"), st.sampled_from([0x10, 0xC0000082, 0x174, 0x1A0]), st.just(0)),
        st.tuples(st.just("wrmsr"), st.sampled_from([0xC0000082, 0x174, 0xC0000084]), st.just(0)),
        st.tuples(st.just("cpuid"), st.sampled_from([0, 1, 7, 0x80000000, 0x80000008]), st.just(0)),
        st.tuples(st.just("cr0"), st.sampled_from([0, 1 << 16, 1 << 18]), st.just(0)),
    ),
    min_size=1,
    max_size=6,
)


def wants(wish: dict[str, Any], use: tuple[str, int, int]) -> bool:
    """The specification's sentence for each kind, one by one; of several settings for one thing the last counts."""
    kind, number, size = use
    if kind in ("in", "out"):
        access = dict(wish["ports"])
        return any(access.get(port, 0) & (R if kind == "in" else W) for port in range(number, number + size))
    control = Control(wish["control"])
    if kind == "rdmsr":
        bits = {0xC0000082: Control.MsrLstarRead, 0x1A0: Control.IA32MiscEnableRead}
        return bool(dict(wish["msrs"]).get(number, 0) & R) or bool(control & bits.get(number, Control(0)))
    if kind == "wrmsr":
        bits = {
            0xC0000082: Control.MsrLstarWrite,
            0x174: Control.MsrSysenterCsWrite,
            0xC0000084: Control.MsrSfmaskWrite,
        }
        return bool(dict(wish["msrs"]).get(number, 0) & W) or bool(control & bits.get(number, Control(0)))
    if kind == "cpuid":
        return wish["everything"] or number in wish["leaves"]
    return bool(control & Control.Cr0Write and number & wish["cr0"])


def perform(guest: Guest, use: tuple[str, int, int]) -> Script:
    kind, number, size = use
    if kind == "in":
        yield ops.In(number, size)
    elif kind == "out":
        yield ops.Out(number, size)
    elif kind == "rdmsr":
        yield ops.Set(number, "rcx")
        yield ops.Rdmsr()
    elif kind == "wrmsr":
        yield from guest.wrmsr(number, 0)
    elif kind == "cpuid":
        yield ops.Set(number)
        yield ops.Cpuid()
    else:
        yield ops.Set(guest.engine.cr0 ^ number)
        yield ops.MovToCr(0)


def express(guest: Guest, wish: dict[str, Any]) -> Script:
    for port, access in wish["ports"]:
        yield from must(install(guest, Type.HvInterceptTypeX64IoPort, port, access))
    for index, access in wish["msrs"]:
        yield from must(install(guest, Type.HvInterceptTypeX64Msr, index, access))
    for leaf in wish["leaves"]:
        yield from must(install(guest, Type.HvInterceptTypeX64Cpuid, leaf, X))
    yield from must(install(guest, Type.HvInterceptTypeX64GlobalCpuid, 0, X if wish["everything"] else 0))
    assert (yield from guest.set(Name.HvX64RegisterCrInterceptCr0Mask, wish["cr0"])) == HvStatus.SUCCESS
    assert (yield from guest.set(Name.HvX64RegisterCrInterceptControl, wish["control"])) == HvStatus.SUCCESS


NONE = {"ports": [], "msrs": [], "leaves": [], "everything": False, "control": 0, "cr0": 0}


@given(WISHES, WISHES, USES)
@settings(deadline=None, max_examples=30)
@pytest.mark.tlfs("intercepts.nested-order", "intercepts.registers", "intercepts.msr", "intercepts.cpuid")
def test_who_is_told_first_of_what(
    lower: dict[str, Any], upper: dict[str, Any], uses: list[tuple[str, int, int]]
) -> None:
    """Random wishes of VTL1 and VTL2 against an oracle: each use is told to those that want it, the lower one first.

    Who has been told takes all wishes back for this use; a VTL call before the next has both express them again.
    """
    told: list[tuple[int, int]] = []
    wishes = {1: lower, 2: upper}
    current, called = [-1], [0]

    def retract(guest: Guest) -> Script:
        for port, _ in wishes[guest.vtl]["ports"]:
            yield from must(install(guest, Type.HvInterceptTypeX64IoPort, port, 0))
        for index, _ in wishes[guest.vtl]["msrs"]:
            yield from must(install(guest, Type.HvInterceptTypeX64Msr, index, 0))
        for leaf in wishes[guest.vtl]["leaves"]:
            yield from must(install(guest, Type.HvInterceptTypeX64Cpuid, leaf, 0))
        yield from express(guest, NONE)

    def react(guest: Guest, message: bytes) -> Script:
        if message:
            told.append((current[0], guest.vtl))
            yield from retract(guest)
            return
        if called[0] == guest.vtl:
            # Entered by a call, and not by VTL2's return from what VTL0 did.
            yield from express(guest, wishes[guest.vtl])
            called[0] += 1
            if guest.vtl == 1:
                yield from guest.vtl_call()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()
        yield from telling(nothing, react)(guest)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        for number, use in enumerate(uses):
            current[0], called[0] = number, 1
            yield from guest.vtl_call()
            yield from perform(guest, use)
        yield from guest.end()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1, (0, 2): telling(nothing, react)}, vtls=3)
    rig.run_with_ports()
    assert told == [(number, level) for number, use in enumerate(uses) for level in (1, 2) if wants(wishes[level], use)]
