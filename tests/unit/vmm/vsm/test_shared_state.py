"""What the VTLs of a processor share and what each has of its own (TLFS, "Virtual Processor State Isolation")."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.kvm.uapi import SystemEvent, SystemEventExit
from vtlkit.x86 import msr

U64 = 0xFFFFFFFFFFFFFFFF


GENERAL = ("rdx", "rbx", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
PRIVATE_MSRS = {
    msr.MSR_STAR: 0x0018_0008_0000_0000,
    msr.MSR_LSTAR: 0x1000,
    msr.MSR_CSTAR: 0x2000,
    msr.MSR_SYSCALL_MASK: 0x300,
    msr.MSR_IA32_SYSENTER_CS: 0x18,
    msr.MSR_IA32_SYSENTER_ESP: 0x4000,
    msr.MSR_IA32_SYSENTER_EIP: 0x5000,
    msr.MSR_KERNEL_GS_BASE: 0x6000,
    msr.MSR_FS_BASE: 0x7000,
    msr.MSR_GS_BASE: 0x8000,
    msr.MSR_TSC_AUX: 9,
    msr.MSR_IA32_CR_PAT: 0x0007010600070106,
}
PRIVATE_SYNTHETIC = {
    0x40000000: 0x8100,
    0x40000001: 0x170000,
    0x40000021: 0x171000,
    0x40000040: 0,
    0x40000073: 0x172000,
    0x40000080: 1,
    0x40000082: 0x173000,
    0x40000083: 0x174000,
    **{0x400000B1 + 2 * timer: 1 << 60 for timer in range(4)},
    **{0x400000B0 + 2 * timer: 0x50000 for timer in range(4)},
    **{0x40000090 + sint: 0x40 + sint for sint in range(16)},
}
PAGES = (0x40000001, 0x40000021, 0x40000073, 0x40000082, 0x40000083)
"""Registers that hold the address of a page, which is not enabled."""
SHARED_MSRS = {
    msr.MSR_MTRRdefType: 0xC06,
    msr.MSR_MTRRphysBase0: 0x80000006,
    msr.MSR_MTRRphysMask0: 0x80000800,
    msr.MTRR_FIXED[0]: 0x0606060606060606,
    msr.MSR_IA32_MCG_STATUS: 4,
}


def differ(values: dict[int, int], change: int) -> dict[int, int]:
    """Other values that the same registers accept."""
    return {index: value + change * (8 if index >= 0x40000000 else 1) for index, value in values.items()}


@pytest.mark.tlfs("vsm.shared-registers")
def test_general_registers_but_rsp_are_shared() -> None:
    seen: dict[str, Any] = {}

    def vtl1(guest: Guest) -> Script:
        seen["in"] = {name: getattr(guest.regs, name) for name in GENERAL}
        for number, name in enumerate(GENERAL):
            yield ops.Set(0x1000 + number, name)
        yield ops.Set(0x7777, "rsp")
        seen["rip"] = guest.regs.rip
        yield from guest.vtl_return()
        seen["rsp again"] = guest.regs.rsp
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        for number, name in enumerate(GENERAL):
            yield ops.Set(0x2000 + number, name)
        yield ops.Set(0x8888, "rsp")
        yield from guest.vtl_call()
        seen["out"] = {name: getattr(guest.regs, name) for name in GENERAL}
        seen["rsp"] = guest.regs.rsp
        yield from guest.vtl_call()
        yield from guest.end()

    # Without the rig's own first instructions in VTL1, which use RDX.
    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1})
    rig.factory.create = _with_bare_program(rig, rig.factory.create, vtl1)  # type: ignore[method-assign]
    rig.run()
    assert seen["in"] == {name: 0x2000 + number for number, name in enumerate(GENERAL)}
    assert seen["out"] == {name: 0x1000 + number for number, name in enumerate(GENERAL)}
    assert (seen["rsp"], seen["rsp again"]) == (0x8888, 0x7777)


def _with_bare_program(rig: VsmRig, create: Any, body: Any) -> Any:
    def make(name: str) -> Any:
        engine = create(name)
        if name.startswith("vtl1"):
            engine.programs = {rig.entry(0, 1): lambda engine: bare(engine)}
        return engine

    def bare(engine: Any) -> Script:
        guest = Guest(rig, engine)
        rig.partition.vtls[1].vm.hv.set_guest_os_id(1)
        yield from body(guest)

    return make


@pytest.mark.tlfs("msrs.private", "vsm.shared-registers")
def test_what_else_is_shared() -> None:
    """CR2, DR0 to DR3, the FPU and vector registers, XCR0; MTRRs and machine check status."""
    seen: list[Any] = []

    def state(guest: Guest) -> tuple[Any, ...]:
        regs = guest.regs
        return regs.sregs.cr2, tuple(regs.dr[:4]), regs.fpu, regs.xcr0

    def change(guest: Guest, salt: int) -> Script:
        regs = guest.regs
        regs.sregs.cr2 = salt << 12
        regs.dr[:4] = [salt + number for number in range(4)]
        regs.fpu = bytes([salt]) * 512
        regs.xcr0 = 3 if salt & 1 else 7
        for index, value in SHARED_MSRS.items():
            yield from guest.wrmsr(index, value ^ (0x1000 if index == msr.MSR_MTRRphysBase0 and salt & 1 else 0))

    def read(guest: Guest) -> Script:
        values = []
        for index in SHARED_MSRS:
            values.append((yield from guest.rdmsr(index)))
        seen.append((state(guest), values))

    def vtl1(guest: Guest) -> Script:
        yield from read(guest)
        yield from change(guest, 0x21)
        yield from read(guest)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from change(guest, 0x10)
        yield from read(guest)
        yield from guest.vtl_call()
        yield from read(guest)
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert seen[0] != seen[2]


SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")


def check_different(mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    *registers, segments, tables = zip(mine, theirs, strict=True)
    assert all(first != second for first, second in registers)
    # CS and SS are the programs' own.
    named = zip(SEGMENTS, *segments, strict=True)
    assert {name for name, first, second in named if first == second} == {"cs", "ss"}
    assert all(first != second for first, second in zip(*tables, strict=True))


@pytest.mark.tlfs("msrs.private", "vsm.private-registers")
def test_what_is_private() -> None:
    """Everything that the list names as private has a value of its own in each VTL."""
    seen: dict[tuple[int, int], Any] = {}

    def private(guest: Guest) -> tuple[Any, ...]:
        regs, sregs = guest.regs, guest.regs.sregs
        segments = tuple(getattr(sregs, name).copy() for name in SEGMENTS)
        tables = (sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit)
        return regs.rsp, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, regs.dr[4], regs.dr[5], segments, tables

    def set_up(guest: Guest, salt: int) -> Script:
        regs, sregs = guest.regs, guest.regs.sregs
        regs.rsp = 0x9000 + salt
        sregs.cr0 ^= (salt & 1) << 1
        sregs.cr3 = 0x8000 + salt * 0x1000
        sregs.cr4 ^= (salt & 1) << 7
        sregs.efer ^= (salt & 1) << 11
        regs.dr[4], regs.dr[5] = 0xFFFF0FF0 | salt, 0x400 | salt
        for number, name in enumerate(("ds", "es", "fs", "gs", "tr", "ldt")):
            getattr(sregs, name).base = salt * 0x100000 + number
        sregs.gdt.base, sregs.idt.base = salt * 0x1000, salt * 0x2000
        for index, value in differ(PRIVATE_MSRS, 0x10 * salt if salt else 0).items():
            regs.set_msr(index, value & U64)
        for index, value in PRIVATE_SYNTHETIC.items():
            other = value + salt * (0x10000 if index in PAGES else 1)
            yield from guest.wrmsr(index, salt & 1 if index == 0x40000080 else other)
        yield from guest.wrmsr(0x40000072, 0x10 * (salt + 1))

    def look(guest: Guest, visit: int) -> Script:
        model_specific = {index: guest.regs.get_msr(index) for index in PRIVATE_MSRS}
        synthetic = []
        for index in (*PRIVATE_SYNTHETIC, 0x40000072):
            synthetic.append((yield from guest.rdmsr(index)))
        seen[guest.vtl, visit] = (private(guest), model_specific, synthetic)

    def vtl1(guest: Guest) -> Script:
        yield from set_up(guest, 1)
        yield from look(guest, 1)
        yield from guest.vtl_return()
        yield from look(guest, 2)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from set_up(guest, 2)
        yield from look(guest, 1)
        yield from guest.vtl_call()
        yield from look(guest, 2)
        yield from guest.vtl_call()
        yield from look(guest, 3)
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen[0, 1] == seen[0, 2] == seen[0, 3]
    assert seen[1, 1] == seen[1, 2]
    mine, theirs = seen[0, 1], seen[1, 1]
    assert all(mine[1][index] != theirs[1][index] for index in PRIVATE_MSRS)
    assert all(first != second for first, second in zip(mine[2], theirs[2], strict=True))
    check_different(mine[0], theirs[0])


@pytest.mark.tlfs("msrs.private")
def test_debug_device_options_are_the_partitions() -> None:
    """One register for all VTLs of all processors; a reset clears it."""
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        seen.append((yield from guest.rdmsr(0x400000FF)))
        yield from guest.wrmsr(0x400000FF, 0x22)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.wrmsr(0x400000FF, 0x11)
        yield from guest.vtl_call()
        seen.append((yield from guest.rdmsr(0x400000FF)))
        guest.note("written")
        yield from guest.rdmsr(0x40000002)

    def other(guest: Guest) -> Script:
        while not guest.rig.log:
            yield from guest.rdmsr(0x40000002)
        seen.append((yield from guest.rdmsr(0x400000FF)))
        yield from guest.end()

    rig = run_guests({(0, 0): vtl0, (0, 1): vtl1, (1, 0): other}, cpus=2)
    assert seen == [0x11, 0x22, 0x22]
    rig.partition.reset()
    assert rig.partition.vtl0.vm.hv.debug_options.load() == 0


@pytest.mark.tlfs("msrs.private")
@pytest.mark.parametrize("paged", [0, 1], ids=["VTL 0's page", "VTL 1's page"])
def test_reference_time_has_one_origin(paged: int) -> None:
    """At any moment all VTLs read one count; one that reads by a reference TSC page may be a tick behind."""
    seen: list[tuple[int, int]] = []

    def counts(guest: Guest) -> None:
        first, second = (guest.rig.partition.vtls[vtl].vm.hv.reference_time.counter() for vtl in range(2))
        seen.append((first, second))

    def vtl1(guest: Guest) -> Script:
        if paged:
            yield from guest.wrmsr(0x40000021, 0x180001)
        yield ops.Compute(123_457)
        counts(guest)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield ops.Compute(100_003)
        yield from guest.enable(1)
        counts(guest)
        if not paged:
            yield from guest.wrmsr(0x40000021, 0x181001)
        yield from guest.vtl_call()
        counts(guest)
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen[0][0] == seen[0][1] > 0
    assert all(abs(first - second) <= 1 for first, second in seen)
    assert seen[1] > seen[0]


@pytest.mark.tlfs("msrs.private")
def test_a_reset_is_the_whole_partitions_from_any_vtl() -> None:
    def vtl1(guest: Guest) -> Script:
        yield from guest.wrmsr(0x40000003, 1)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    rig = run_guests({(0, 0): vtl0, (0, 1): vtl1})
    (exit_,) = rig.exits
    assert isinstance(exit_, SystemEventExit)
    assert exit_.type is SystemEvent.RESET


@pytest.mark.tlfs("msrs.private")
def test_synthetic_registers_that_are_shared() -> None:
    """VP index, reference time: one for the processor, whichever VTL asks."""
    seen: list[Any] = []

    def look(guest: Guest) -> Script:
        index = yield from guest.rdmsr(0x40000002)
        frequency = yield from guest.rdmsr(0x40000022)
        time = yield from guest.rdmsr(0x40000020)
        seen.append((index, frequency, time))

    def vtl1(guest: Guest) -> Script:
        yield from look(guest)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield ops.Compute(100_000)
        yield from guest.enable(1)
        yield from look(guest)
        yield from guest.vtl_call()
        yield from look(guest)
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert len({(index, frequency) for index, frequency, _ in seen}) == 1
    times = [time for _, _, time in seen]
    assert times == sorted(times)
    assert times[0] > 0


@pytest.mark.tlfs("msrs.private", "vsm.private-registers")
def test_the_time_stamp_counter_is_private() -> None:
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.wrmsr(msr.MSR_IA32_TSC, 1 << 60)
        seen.append((yield from guest.rdmsr(msr.MSR_IA32_TSC)))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        seen.append((yield from guest.rdmsr(msr.MSR_IA32_TSC)))
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen[0] >= 1 << 60
    assert seen[1] < 1 << 40
