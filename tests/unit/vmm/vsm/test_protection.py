"""HvCallModifyVtlProtectionMask and the intercepts that follow: who restricts whom, who is told, what comes after."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import FREE, PAGE, RAM_SIZE, Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF
from vtlkit.hvdef.messages import HvMessageType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HvVtlEntryReason as Reason
from vtlkit.kvm.uapi import InternalErrorExit
from vtlkit.x86.exceptions import Vector

R, W, KX, UX = 1, 2, 4, 8
ALL = R | W | KX | UX
ACCESS = {0: 0, R: 1, R | W: 3, R | KX | UX: 5, ALL: 7, R | KX: 5, R | W | KX: 7, R | UX: 1, R | W | UX: 3}
"""What the masks permit without MBEC, in bits of `Access`; all others are invalid."""
SINT0_VECTOR = 0x30
WRITTEN = 0xFEEDFACE


def enable_protection(guest: Guest, mask: int = ALL) -> Script:
    assert (yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | mask << 1)) == HvStatus.SUCCESS


def attributes(guest: Guest, vtl: int = 0, gpa: int = FREE) -> int:
    return int(guest.rig.partition.vtls[vtl].vm.memory.attributes.at(gpa))


def ladder(top: Any, *, vtls: int) -> dict[tuple[int, int], Any]:
    """Guests of one processor: each VTL below the top enables the next one and calls it; `top` runs there."""

    def rung(guest: Guest) -> Script:
        yield from guest.enable(guest.vtl + 1)
        yield from guest.vtl_call()

    return {(0, vtl): top if vtl == vtls - 1 else rung for vtl in range(vtls)}


# --- the hypercall ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [*range(16), 0x10, 0x80000000])
def test_every_combination_of_flags(flags: int) -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from enable_protection(guest)
        seen.append((yield from guest.protect([FREE], flags, vtl=input_vtl(0))))
        seen.append([attributes(guest, gpa=FREE + offset) for offset in (-PAGE, 0, PAGE)])
        yield from guest.end()

    run_guests(ladder(vtl1, vtls=2))
    if flags in ACCESS:
        assert seen == [1 << 32, [7, ACCESS[flags], 7]]
    else:
        assert seen == [HvStatus.INVALID_PARAMETER, [7, 7, 7]]


def test_whom_a_vtl_may_restrict() -> None:
    """Those below it: one by name, all of them by its own number or by none."""
    seen: list[Any] = []

    def vtl2(guest: Guest) -> Script:
        yield from enable_protection(guest)
        targets = (input_vtl(0), input_vtl(1), input_vtl(2), 0, 7, input_vtl(3), input_vtl(15), 0x30)
        for number, target in enumerate(targets):
            gpa = FREE + number * PAGE
            status = yield from guest.protect([gpa], R, vtl=target)
            seen.append((status, *(attributes(guest, vtl, gpa) for vtl in range(3))))
        yield from guest.end()

    run_guests(ladder(vtl2, vtls=3), vtls=4)
    done = 1 << 32
    assert seen == [
        (done, 1, 7, 7),
        (done, 7, 1, 7),
        (done, 1, 1, 7),
        (done, 1, 1, 7),
        (done, 1, 1, 7),
        (HvStatus.ACCESS_DENIED, 7, 7, 7),
        (HvStatus.ACCESS_DENIED, 7, 7, 7),
        (HvStatus.INVALID_PARAMETER, 7, 7, 7),
    ]


def test_refusals() -> None:
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        # Not before protection is enabled.
        seen.append((yield from guest.protect([FREE], R, vtl=input_vtl(0))))
        yield from enable_protection(guest)
        for request in (
            io.HV_INPUT_MODIFY_VTL_PROTECTION_MASK(1, R, input_vtl(0)),
            io.HV_INPUT_MODIFY_VTL_PROTECTION_MASK(HV_PARTITION_ID_SELF, R, input_vtl(0), b"\0\0\1"),
        ):
            page = (FREE // PAGE).to_bytes(8, "little")
            seen.append((yield from guest.call(Call.HvCallModifyVtlProtectionMask, request.pack() + page, elements=1)))
        # Beyond RAM, far beyond it, and no page of any address space.
        for gpa in (RAM_SIZE, 0xFEE00000, 1 << 60):
            seen.append((yield from guest.protect([FREE, gpa, FREE + PAGE], R, vtl=input_vtl(0))))
        seen.append(attributes(guest, gpa=FREE + PAGE))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from guest.protect([FREE], R)))
        yield from guest.enable(1)
        yield from guest.vtl_call()
        seen.append((yield from guest.protect([FREE], R)))
        seen.append((yield from guest.protect([FREE], R, vtl=input_vtl(1))))
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    denied, one_done = HvStatus.ACCESS_DENIED, 1 << 32
    assert seen == [
        denied,
        denied,
        HvStatus.INVALID_PARTITION_ID,
        HvStatus.INVALID_PARAMETER,
        *[HvStatus.INVALID_PARAMETER | one_done] * 3,
        7,
        denied,
        denied,
    ]


def test_a_list_of_pages_and_its_continuation() -> None:
    seen: list[Any] = []
    pages = [FREE + number * 2 * PAGE for number in range(20)]

    def vtl1(guest: Guest) -> Script:
        yield from enable_protection(guest)
        seen.append((yield from guest.protect(pages, 0, vtl=input_vtl(0))))
        seen.append([attributes(guest, gpa=gpa) for gpa in range(FREE, FREE + 8 * PAGE, PAGE)])
        # The guest says that the first 18 are done: they stay as they are.
        request = io.HV_INPUT_MODIFY_VTL_PROTECTION_MASK(HV_PARTITION_ID_SELF, ALL, input_vtl(0))
        data = request.pack() + b"".join((gpa // PAGE).to_bytes(8, "little") for gpa in pages)
        seen.append((yield from guest.call(Call.HvCallModifyVtlProtectionMask, data, elements=20, start=18)))
        seen.append([attributes(guest, gpa=gpa) for gpa in pages[-3:]])
        yield from guest.end()

    run_guests(ladder(vtl1, vtls=2))
    assert seen == [20 << 32, [0, 7] * 4, 20 << 32, [0, 7, 7]]


def test_the_restrictions_of_two_vtls_are_and_ed() -> None:
    seen: list[Any] = []

    def vtl2(guest: Guest) -> Script:
        yield from enable_protection(guest)
        for mine in (ALL, R | W, R, 0):
            yield from guest.protect([FREE], mine, vtl=input_vtl(0))
            seen.append((mine, attributes(guest, 0), attributes(guest, 1)))
        # Overlapping ranges of one page each, side by side.
        yield from guest.protect([FREE + PAGE], R, vtl=0)
        seen.append([attributes(guest, vtl, FREE + PAGE) for vtl in (0, 1)])
        seen.append([attributes(guest, vtl, FREE + 2 * PAGE) for vtl in (0, 1)])
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        yield from enable_protection(guest)
        yield from guest.protect([FREE, FREE + 2 * PAGE], R | KX | UX, vtl=input_vtl(0))
        yield from guest.enable(2)
        yield from guest.vtl_call()

    guests = ladder(vtl2, vtls=3)
    guests[0, 1] = vtl1
    run_guests(guests, vtls=3)
    assert seen == [(ALL, 5, 7), (R | W, 1, 7), (R, 1, 7), (0, 0, 7), [1, 1], [5, 7]]


def test_a_vtl_enabled_later_finds_the_restrictions_set_for_it() -> None:
    seen: list[int] = []

    def vtl2(guest: Guest) -> Script:
        yield from enable_protection(guest, R | W)
        yield from guest.protect([FREE], 0, vtl=input_vtl(2))
        assert (yield from guest.enable_partition_vtl(1)) == HvStatus.SUCCESS
        seen.extend(attributes(guest, vtl, gpa) for vtl in (0, 1) for gpa in (FREE, FREE + PAGE))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 2): vtl2}, vtls=3)
    assert seen == [0, 3, 0, 3]


# --- intercepts -------------------------------------------------------------------------------------------------------


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
def test_which_accesses_are_intercepted(close: int, op: Any, intercepted: bool) -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield op
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): guarding(seen, restore, close=close)})
    assert len(seen) == intercepted


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


def test_without_message_page_the_entry_reason_still_says_intercept() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from enable_protection(guest)
        yield from guest.protect([FREE], 0)
        yield from guest.vtl_return()
        seen.append(guest.entry_reason)
        yield from restore(guest)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Read(FREE, 4)
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [Reason.HvVtlEntryIntercept]


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
