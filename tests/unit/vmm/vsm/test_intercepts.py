"""Intercepts: who is told of an access that a higher VTL forbids, and what becomes of the access."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import FREE, PAGE, Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.assist import HV_VP_ASSIST_PAGE_INTERCEPT_MESSAGE
from vtlkit.hvdef.messages import HV_MESSAGE_HEADER, HV_X64_MEMORY_INTERCEPT_MESSAGE, HvMessageType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HvVtlEntryReason as Reason
from vtlkit.kvm.uapi import InternalErrorExit
from vtlkit.x86.exceptions import Vector

R, W, KX, UX = 1, 2, 4, 8
ALL = R | W | KX | UX
SINT0_VECTOR = 0x30
WRITTEN = 0xFEEDFACE
GPA_OFFSET = HV_X64_MEMORY_INTERCEPT_MESSAGE.OFFSETS["GuestPhysicalAddress"]


def enable_protection(guest: Guest) -> Script:
    assert (yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | ALL << 1)) == HvStatus.SUCCESS


def guarding(seen: list[Any], react: Any, *, close: int = 0, interrupts: bool = True) -> Any:
    """A VTL that closes FREE to all below it, returns, and meets each intercept with `react`."""

    def body(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_synic(SINT0_VECTOR)
        yield from enable_protection(guest)
        yield from guest.protect([FREE], close)
        if interrupts:
            yield ops.Sti()
        yield from guest.vtl_return()
        while True:
            saved = {name: getattr(guest.regs, name) for name in ("rdx", "r8")}
            assist = guest.regs.rax.to_bytes(8, "little") + guest.regs.rcx.to_bytes(8, "little")
            message = guest.take_message()
            seen.append((guest.vtl, guest.entry_reason, int.from_bytes(message[:4], "little")))
            yield from guest.wrmsr(0x40000084, 0)
            yield from react(guest)
            # VTL0 was stopped between two instructions: it must not miss a register.
            guest.rig.partition.vtls[guest.vtl].vm.memory.write(guest.assist + 16, assist)
            for name, value in saved.items():
                yield ops.Set(value, name)
            yield from guest.vtl_return(0)

    return body


def restore(guest: Guest) -> Script:
    yield from guest.protect([FREE], ALL)


@pytest.mark.tlfs("intercepts.handling", "intercepts.gpa-restart", "intercepts.queued")
def test_access_restored_runs_the_instruction_again_exactly_once() -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        before = guest.engine.executed
        yield ops.Set(3)
        # A read-modify-write: twice would show.
        yield ops.Add(FREE, 8)
        yield ops.Add(FREE, 8)
        seen.append(guest.rig.read(FREE, 8))
        seen.append(guest.engine.executed - before)
        yield from guest.end()

    rig = run_guests({(0, 0): vtl0, (0, 1): guarding(seen, restore)})
    entry = (1, Reason.HvVtlEntryIntercept, HvMessageType.HvMessageTypeGpaIntercept)
    # Three instructions, the first ADD tried twice.
    assert seen == [entry, 6, 4]
    assert [taken.vector for taken in rig.taken] == [SINT0_VECTOR]
    assert rig.partition.vps[0].switches == 4
    assert rig.partition.vps[0].vcpus[0].statistics.user_exits["MEMORY_FAULT"] == 1


@pytest.mark.parametrize(
    ("close", "op", "intercepted"),
    [
        (0, ops.Read(FREE, 4), True),
        (0, ops.Write(FREE, 4, 1), True),
        (R, ops.Read(FREE, 4), False),
        (R, ops.Write(FREE, 4, 1), True),
        (R | W, ops.Write(FREE, 4, 1), False),
        (R | KX | UX, ops.Add(FREE, 4), True),
        (0, ops.Read(FREE - 2, 4), True),
        (R, ops.Write(FREE + PAGE - 2, 4, 1), True),
        (0, ops.Read(FREE - PAGE, 8), False),
    ],
)
@pytest.mark.tlfs("protection.enforced")
def test_which_accesses_are_intercepted(close: int, op: Any, intercepted: bool) -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield op
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): guarding(seen, restore, close=close)})
    assert len(seen) == intercepted


@pytest.mark.tlfs("intercepts.handling")
def test_a_refused_access_takes_the_injected_exception() -> None:
    """VTL1 injects #GP; when the handler returns the instruction runs again, and is intercepted again."""
    seen: list[Any] = []

    def refuse_once(guest: Guest) -> Script:
        if len(seen) == 1:
            yield from guest.set(Name.HvRegisterPendingEvent0, 1 | 1 << 8 | 13 << 16, vtl=input_vtl(0))
        else:
            yield from restore(guest)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Write(FREE, 8, WRITTEN)
        seen.append(guest.rig.read(FREE, 8))
        yield from guest.end()

    def handler(guest: Guest, event: Event) -> Script:
        seen.append(("handler", event.error_code, guest.rig.read(FREE, 8)))
        yield ops.Compute()

    rig = VsmRig({(0, 0): vtl0, (0, 1): guarding(seen, refuse_once)})
    rig.handlers[0, Vector.GP] = handler
    rig.run()
    entry = (1, Reason.HvVtlEntryIntercept, HvMessageType.HvMessageTypeGpaIntercept)
    assert seen == [entry, ("handler", 0, 0), entry, WRITTEN]


@pytest.mark.tlfs("protection.order", "intercepts.nested-order")
def test_the_intercept_goes_to_the_lowest_vtl_that_denies_and_then_up() -> None:
    """VTL1 and VTL2 both deny: VTL1 is told; when it no longer denies, VTL2 is; then the access happens."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()
        yield from guarding(seen, restore)(guest)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Write(FREE, 8, WRITTEN)
        seen.append(guest.rig.read(FREE, 8))
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (0, 2): guarding(seen, restore)}, vtls=3)
    denials = [entry for entry in seen if isinstance(entry, tuple) and entry[2]]
    message = HvMessageType.HvMessageTypeGpaIntercept
    assert denials == [(1, Reason.HvVtlEntryIntercept, message), (2, Reason.HvVtlEntryIntercept, message)]
    assert seen[-1] == WRITTEN


def test_a_protection_lifted_meanwhile_is_no_intercept() -> None:
    """Between the fault and its handling VTL1 on another processor gives the page back."""
    rig = VsmRig({(0, 0): lambda guest: guest.end()})
    from vtlkit.engine.api import Access
    from vtlkit.kvm.uapi import MemoryFault
    from vtlkit.vmm.vsm import intercepts

    vp = rig.partition.vps[0]
    intercepts.memory_fault(vp, 0, vp.vcpus[0], MemoryFault(FREE, 4, Access.WRITE, None, b"", 0))
    assert vp.switches == 0
    assert rig.exits == []
    rig.factory.close()


def test_a_vtl_missing_on_this_processor_cannot_be_told() -> None:
    """VTL1 protects memory before it has enabled itself on the processor that touches it: the run ends and says so."""

    def vtl1(guest: Guest) -> Script:
        yield from enable_protection(guest)
        yield from guest.protect([FREE], 0)
        guest.note("closed")
        while True:
            yield ops.Compute(100)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    def other(guest: Guest) -> Script:
        while not guest.rig.log:
            yield ops.Compute(100)
        yield ops.Read(FREE, 4)

    rig = run_guests({(0, 0): vtl0, (0, 1): vtl1, (1, 0): other}, cpus=2)
    (end,) = rig.exits
    assert isinstance(end, InternalErrorExit)
    assert "VTL 1" in end.message
    assert "not enabled on this processor" in end.message


def test_of_several_vtls_that_forbid_it_one_that_is_on_this_processor_is_told() -> None:
    """VTL1 and VTL2 both forbid; the processor has VTL2 alone."""
    seen: list[Any] = []

    def upper(guest: Guest) -> Script:
        if guest.vp == 1:
            yield from guest.enable_assist_page()
            yield from guest.vtl_return()
            seen.append((guest.vtl, guest.entry_reason))
            yield from guest.end()
        yield from enable_protection(guest)
        yield from guest.protect([FREE], 0, vtl=input_vtl(0))
        if guest.vtl == 1:
            yield from guest.enable(2)
            yield from guest.vtl_call()
        yield from guest.enable_vp_vtl(2, vp=1)
        guest.note("closed")
        while True:
            yield ops.Compute(100)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    def other(guest: Guest) -> Script:
        while not guest.rig.log:
            yield ops.Compute(100)
        yield from guest.vtl_call()
        yield ops.Read(FREE, 4)

    guests = {(0, 0): vtl0, (0, 1): upper, (0, 2): upper, (1, 0): other, (1, 2): upper}
    run_guests(guests, cpus=2, vtls=3)
    assert seen == [(2, Reason.HvVtlEntryIntercept)]


@pytest.mark.tlfs("intercepts.queued")
def test_without_message_page_the_message_is_in_the_assist_page() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from enable_protection(guest)
        yield from guest.protect([FREE], 0)
        yield from guest.vtl_return()
        seen.append(guest.entry_reason)
        at = guest.assist + HV_VP_ASSIST_PAGE_INTERCEPT_MESSAGE
        seen.append(guest.rig.read_vtl(1, at, 4))
        seen.append(guest.rig.read_vtl(1, at + HV_MESSAGE_HEADER.SIZE + GPA_OFFSET, 8))
        yield from restore(guest)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Read(FREE + 0x10, 4)
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [Reason.HvVtlEntryIntercept, HvMessageType.HvMessageTypeGpaIntercept, FREE + 0x10]


@pytest.mark.tlfs("protection.synchronous")
def test_every_processor_obeys() -> None:
    """A page closed by VTL1 of one processor while another one is using it."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable_vp_vtl(1, vp=1)
        yield from guest.enable_assist_page()
        yield from guest.enable_synic(SINT0_VECTOR)
        if guest.vp == 0:
            yield from enable_protection(guest)
            yield from guest.vtl_return()
            yield from guest.protect([FREE], R)
            seen.append("closed")
            yield from guest.vtl_return()
        yield from guest.vtl_return()
        seen.append((guest.vp, guest.entry_reason, len(guest.take_message())))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        guest.note("enabled")
        while "ready" not in guest.rig.log:
            yield ops.Compute(10)
        yield from guest.vtl_call()
        while True:
            yield ops.Compute(10)

    def other(guest: Guest) -> Script:
        while "enabled" not in guest.rig.log:
            yield ops.Compute(10)
        yield from guest.vtl_call()
        guest.note("ready")
        for number in range(1_000_000):
            yield ops.Write(FREE, 8, number)

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (1, 0): other, (1, 1): vtl1}, cpus=2)
    assert seen == ["closed", (1, Reason.HvVtlEntryIntercept, 256)]
