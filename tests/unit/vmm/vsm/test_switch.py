"""VTL call and VTL return: when they are #UD, what they restore, what the VTLs of a processor share."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, run_guests
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HvVtlEntryReason as Reason
from vtlkit.x86.exceptions import Vector

NO_SUCH_CALL = 0xFFFF
U64 = 0xFFFFFFFFFFFFFFFF


def returning(guest: Guest) -> Script:
    """A VTL that returns at once, each time."""
    while True:
        yield from guest.vtl_return()


def make_harmless(guest: Guest, event: Event) -> Script:
    """After #UD the instruction at fault runs again: have it be a hypercall that does not exist, made from CPL 0."""
    sregs = guest.regs.sregs
    sregs.cs.attributes, sregs.ss.attributes = sregs.cs.attributes & ~0x60, sregs.ss.attributes & ~0x60
    sregs.cr0 |= 1
    yield ops.Set(NO_SUCH_CALL, "rcx")


def undefined_at(vtl: int, *steps: Any, vtls: int = 2) -> list[int]:
    """Vectors that VTL `vtl` takes when it does each of the steps; after each the harmless hypercall must be made."""
    results: list[int] = []

    def subject(guest: Guest) -> Script:
        for step in steps:
            yield from step(guest)
            results.append(guest.regs.rax)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    rig = VsmRig({(0, 0): subject if vtl == 0 else vtl0, (0, 1): subject if vtl else returning}, vtls=vtls)
    rig.handlers[vtl, Vector.UD] = make_harmless
    rig.run()
    assert results == [HvStatus.INVALID_HYPERCALL_CODE] * len(steps)
    assert rig.partition.vps[0].switches == vtl
    return [taken.vector for taken in rig.taken]


@pytest.mark.tlfs("vsm.call")
def test_vtl_call_without_a_higher_vtl_is_undefined() -> None:
    def enabled_for_the_partition_only(guest: Guest) -> Script:
        yield from guest.enable_partition_vtl(1)
        yield from guest.vtl_call()

    steps = (lambda guest: guest.vtl_call(), enabled_for_the_partition_only)
    assert undefined_at(0, *steps) == [Vector.UD] * 2


@pytest.mark.tlfs("vsm.call")
@pytest.mark.parametrize("control", [1, 2, 1 << 31, 1 << 32, 1 << 63])
def test_vtl_call_input_must_be_zero(control: int) -> None:
    def step(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call(control)

    assert undefined_at(0, step) == [Vector.UD]


@pytest.mark.tlfs("vsm.return")
@pytest.mark.parametrize("control", [2, 3, 1 << 32, 1 << 63])
def test_vtl_return_input_has_one_bit(control: int) -> None:
    assert undefined_at(1, lambda guest: guest.vtl_return(control)) == [Vector.UD]


@pytest.mark.tlfs("vsm.return")
@pytest.mark.parametrize("control", [0, 1])
def test_vtl_return_from_the_lowest_is_undefined(control: int) -> None:
    assert undefined_at(0, lambda guest: guest.vtl_return(control)) == [Vector.UD]


@pytest.mark.tlfs("vsm.call", "vsm.return")
@pytest.mark.parametrize("vtl", [0, 1])
def test_only_cpl_0_of_protected_mode_switches(vtl: int) -> None:
    def switch(guest: Guest) -> Script:
        yield from guest.vtl_return() if vtl else guest.vtl_call()

    def at_cpl_3(guest: Guest) -> Script:
        if not vtl:
            yield from guest.enable(1)
        guest.regs.sregs.cs.attributes |= 0x60
        guest.regs.sregs.ss.attributes |= 0x60
        yield from switch(guest)

    def in_real_mode(guest: Guest) -> Script:
        guest.regs.sregs.cr0 &= ~1
        yield from switch(guest)

    assert undefined_at(vtl, at_cpl_3, in_real_mode) == [Vector.UD] * 2


@pytest.mark.tlfs("vsm.call")
@pytest.mark.parametrize("extra", [1 << 16, 1 << 17, 1 << 31, 1 << 32, 1 << 48, 1 << 63])
def test_the_input_value_is_the_call_code_alone(extra: int) -> None:
    def step(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield ops.Set(0, "rax")
        yield ops.Set(Call.HvCallVtlCall | extra, "rcx")
        yield ops.Vmmcall()

    assert undefined_at(0, step) == [Vector.UD]


@pytest.mark.tlfs("vsm.call", "vsm.return")
def test_without_vsm_switches_are_undefined() -> None:
    steps = (lambda guest: guest.vtl_call(), lambda guest: guest.vtl_return())
    assert undefined_at(0, *steps, vtls=1) == [Vector.UD] * 2


# --- 32-bit callers ---------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("vsm.modes", "vsm.return")
def test_a_32_bit_processor_switches_both_ways() -> None:
    """EDX:EAX is the input value, ECX the control input; a normal return restores EAX, ECX and EDX."""
    seen: list[Any] = []

    def short(guest: Guest) -> Script:
        guest.regs.sregs.cs.attributes = 0xC9B
        yield ops.Compute()

    def switch(code: int, control: int) -> Script:
        yield ops.Set(code, "rax")
        yield ops.Set(0, "rdx")
        yield ops.Set(control, "rcx")
        yield ops.Vmmcall()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        guest.rig.partition.vtls[1].vm.memory.write(
            guest.assist + 16, b"".join(value.to_bytes(4, "little") for value in (0x1111, 0x2222, 0x3333))
        )
        yield from short(guest)
        yield from switch(Call.HvCallVtlReturn, 0)
        seen.append(("called again", guest.regs.rax & 0xFFFFFFFF, guest.regs.rcx, guest.regs.rdx))
        yield from switch(Call.HvCallVtlReturn, 1)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from short(guest)
        yield from switch(Call.HvCallVtlCall, 0)
        seen.append(("normal", guest.regs.rax, guest.regs.rcx, guest.regs.rdx))
        yield from switch(Call.HvCallVtlCall, 0)
        seen.append(("fast", guest.regs.rax, guest.regs.rcx, guest.regs.rdx))
        yield from switch(Call.HvCallVtlCall, 2)
        seen.append("harmless")
        yield ops.Set(7, "rdx")
        yield ops.Set(0, "rcx")
        yield ops.Set(Call.HvCallVtlCall, "rax")
        yield ops.Vmmcall()
        yield from guest.end()

    def harmless32(guest: Guest, event: Event) -> Script:
        yield ops.Set(NO_SUCH_CALL, "rax")
        yield ops.Set(0, "rdx")

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1})
    rig.handlers[0, Vector.UD] = harmless32
    rig.run()
    assert seen == [
        ("normal", 0x1111, 0x2222, 0x3333),
        ("called again", Call.HvCallVtlCall, 0, 0),
        ("fast", Call.HvCallVtlReturn, 1, 0),
        "harmless",
    ]
    assert [taken.vector for taken in rig.taken] == [Vector.UD] * 2


# --- return -----------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("vsm.return")
def test_fast_and_normal_return() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        memory = guest.rig.partition.vtls[1].vm.memory
        memory.write(guest.assist + 16, (0x1122334455667788).to_bytes(8, "little") + (U64 - 5).to_bytes(8, "little"))
        yield ops.Set(0xD, "rdx")
        yield from guest.vtl_return(0)
        yield from guest.vtl_return(1)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        seen.append((guest.regs.rax, guest.regs.rcx, guest.regs.rdx))
        yield from guest.vtl_call()
        seen.append((guest.regs.rax, guest.regs.rcx, guest.regs.rdx))
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [(0x1122334455667788, U64 - 5, 0xD), (1, Call.HvCallVtlReturn, 0xD)]


@pytest.mark.tlfs("vsm.return")
def test_a_normal_return_without_assist_page_uses_the_contents_that_it_would_have() -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        seen.append((guest.regs.rax, guest.regs.rcx))
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): lambda guest: guest.vtl_return(0)})
    assert seen == [(0, 0)]


@pytest.mark.tlfs("vsm.entry-reason")
def test_entry_reason_of_a_call() -> None:
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.vtl_return()
        seen.append(guest.entry_reason)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from guest.vtl_call()
        yield from guest.end()

    rig = run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [Reason.HvVtlEntryVtlCall]
    # The page is an overlay: the RAM below it is as it was.
    assert rig.read(Guest(rig, rig.factory.create("vtl1-vcpu0")).assist + 8, 4) == 0


@pytest.mark.tlfs("vsm.call", "vsm.return")
def test_a_call_goes_to_the_next_higher_vtl_and_a_return_to_the_next_lower() -> None:
    path: list[int] = []

    def step(guest: Guest) -> Script:
        while True:
            path.append(guest.vtl)
            if guest.vtl == 5:
                yield from guest.vtl_return()
            elif path.count(guest.vtl) % 2:
                yield from guest.vtl_call()
            else:
                yield from guest.vtl_return()

    def vtl5(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from step(guest)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(5)
        for _ in range(2):
            path.append(0)
            yield from guest.vtl_call()
        path.append(0)
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 2): step, (0, 5): vtl5}, vtls=8)
    # VTL2 did not exist when VTL0 called first; it is entered by VTL5's return.
    assert path == [0, 5, 2, 5, 2, 0, 2, 5, 2, 0]


# --- code page --------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("vsm.status-registers", "vsm.code-page")
def test_code_page_offsets_follow_the_code_size() -> None:
    seen: dict[int, int] = {}

    def vtl0(guest: Guest) -> Script:
        seen[64] = (yield from guest.get(Name.HvRegisterVsmCodePageOffsets))[1]
        seen[0] = yield from guest.set(Name.HvRegisterVsmCodePageOffsets, 0)
        yield from guest.wrmsr(0x40000001, 0x160000 | 1)
        seen[1] = guest.rig.read_vtl(0, 0x160000 + (seen[64] & 0xFFF), 16) & 0xFFFFFF
        yield from guest.end()

    rig = run_guests({(0, 0): vtl0})
    assert not seen[64] >> 24
    assert 0 < seen[64] & 0xFFF < seen[64] >> 12
    assert seen[0] == HvStatus.ACCESS_DENIED
    # MOV RAX, RCX begins the 64-bit sequence.
    assert seen[1] == 0xC88948
    wide, narrow = (rig.partition.vtl0.vm.hv.code_page_offsets(is_64bit=bits == 64) for bits in (64, 32))
    assert wide == seen[64]
    assert narrow != wide
