"""Writes of another processor's registers under many schedules (docs/design/vp-registers.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.sim.test_vtl_switch import simulator
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, input_vtl, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HvVtlEntryReason
from vtlkit.vmm.vsm.vp import Vp

SEEDS = 40


@pytest.mark.parametrize("seed", range(SEEDS))
def test_an_interrupt_that_a_write_lets_through_is_taken(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """VP 1 runs VTL 0, its VTL 1 has an interrupt that its TPR holds back: VP 0 lowers that TPR.

    The writer is slow: VP 1's task has looked at what the writer's signals were about before anything is written.
    """
    stopped = Vp.stopped

    @contextmanager
    def slowly(vp: Vp) -> Iterator[None]:
        with stopped(vp):
            for _ in range(20):
                vp.host.relax()
            yield

    monkeypatch.setattr(Vp, "stopped", slowly)

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
        else:
            while "enabled" not in guest.rig.log:
                yield ops.Compute(10)
            yield from guest.vtl_call()
            guest.note("VTL 0")
            for _ in range(1000):
                # Exits at which the task looks at what has been kicked.
                yield from guest.get(Name.HvRegisterVsmVpStatus)
            guest.note("lost")
            yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_apic()
        if guest.vp == 0:
            assert (yield from guest.enable_vp_vtl(1, vp=1)) == HvStatus.SUCCESS
            guest.note("enabled")
            while "VTL 0" not in guest.rig.log:
                yield ops.Compute(10)
            yield from guest.send_ipi(1, 0x41)
            yield ops.Compute(1000)
            guest.note("held back")
            assert (yield from guest.set(Name.HvX64RegisterCr8, 0, vp=1)) == HvStatus.SUCCESS
            yield ops.Hlt()
        else:
            yield from guest.enable_assist_page()
            yield from guest.wrmsr(0x808, 0xF0)
            yield from guest.vtl_return()
            guest.note(guest.entry_reason)
            yield from guest.end()

    guests = {(vp, vtl): (vtl0, vtl1)[vtl] for vp in range(2) for vtl in range(2)}
    rig = run_guests(guests, cpus=2, host=simulator(seed))
    assert rig.log == ["enabled", "VTL 0", "held back", HvVtlEntryReason.HvVtlEntryInterrupt]


@pytest.mark.tlfs("vsm.shared-registers")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_shared_registers_of_a_processor_that_switches(seed: int) -> None:
    """VP 0 writes XMM3 and DR2 of VP 1 while that goes from VTL to VTL: what was written is found there, always."""
    rounds = 10
    finds: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
        else:
            while "enabled" not in guest.rig.log:
                yield ops.Compute(10)
            while True:
                yield from guest.vtl_call()

    def vtl1(guest: Guest) -> Script:
        if guest.vp == 1:
            while True:
                yield from guest.vtl_return()
        assert (yield from guest.enable_vp_vtl(1, vp=1)) == HvStatus.SUCCESS
        guest.note("enabled")
        for number in range(1, rounds):
            for name in (Name.HvX64RegisterXmm3, Name.HvX64RegisterDr2):
                assert (yield from guest.set(name, number << 12, vp=1, vtl=input_vtl(number & 1))) == HvStatus.SUCCESS
                yield ops.Compute(7 * number)
                finds.append((yield from guest.get(name, vp=1, vtl=input_vtl(~number & 1))) == (0, number << 12))
        yield from guest.end()

    guests = {(vp, vtl): (vtl0, vtl1)[vtl] for vp in range(2) for vtl in range(2)}
    run_guests(guests, cpus=2, host=simulator(seed))
    assert finds == [True] * (2 * (rounds - 1))
