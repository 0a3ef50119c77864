"""Registers of a processor that is doing something else: in the middle of an I/O instruction, in a switch, asleep."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HvVtlEntryReason
from vtlkit.kvm.uapi import Io, KvmRun, Vcpu
from vtlkit.vmm.vsm.vp import Vp

PORT = 0x70
DEVICE_NS = 50_000


class WithDevice(VsmRig):
    """A port whose device takes its time over an answer: other processors run meanwhile."""

    def wait(self) -> None:
        queue = self.host.wait_queue("device")
        queue.prepare()
        self.host.schedule(self.host.now_ns() + DEVICE_NS)
        queue.finish()

    def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
        if not isinstance(exit_, Io):
            super().handle(vp, vcpu, exit_)
            return
        self.log.append("device")
        self.wait()
        exit_.data = 0x5A
        self.log.append("answered")


@pytest.mark.tlfs("hypercalls.get-set-registers")
@pytest.mark.parametrize("seed", range(8))
def test_a_write_waits_for_the_end_of_an_io_instruction(seed: int) -> None:
    """RCX and RIP of a processor inside IN: the instruction ends with what it began with, then the write counts."""
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        while "device" not in guest.rig.log:
            yield ops.Compute(10)
        seen.append((yield from guest.get(Name.HvX64RegisterRcx, vp=1)))
        seen.append((yield from guest.set(Name.HvX64RegisterRcx, 0x77, vp=1)))
        seen.append((yield from guest.get(Name.HvX64RegisterRax, vp=1)))
        guest.note("set")
        yield ops.Hlt()

    def other(guest: Guest) -> Script:
        yield ops.Set(0x11, "rcx")
        value = yield ops.In(PORT, 1)
        guest.note((value & 0xFF, guest.regs.rcx))
        while "set" not in guest.rig.log:
            yield ops.Compute(10)
        yield from guest.end()

    host = Simulator(seed=seed, instrument=True)
    rig = WithDevice({(0, 0): vtl0, (1, 0): other}, cpus=2, host=host).run()
    (_, rcx), status, (_, rax) = seen
    assert (rcx, status, rax & 0xFF) == (0x11, HvStatus.SUCCESS, 0x5A)
    assert rig.log[:2] == ["device", "answered"]
    assert (0x5A, 0x77) in rig.log


def test_a_run_that_ends_in_the_instruction_ends_the_wait() -> None:
    seen: list[Any] = []

    class Ending(WithDevice):
        def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
            self.log.append("device")
            self.wait()
            self.end()

    def vtl0(guest: Guest) -> Script:
        while "device" not in guest.rig.log:
            yield ops.Compute(10)
        seen.append("asked")
        yield from guest.set(Name.HvX64RegisterRcx, 0x77, vp=1)
        seen.append("not reached")

    def other(_guest: Guest) -> Script:
        yield ops.In(PORT, 1)

    Ending({(0, 0): vtl0, (1, 0): other}, cpus=2).run()
    assert seen == ["asked"]


def test_an_interrupt_that_a_write_lets_through_is_taken() -> None:
    """VP 1 runs VTL 0, its VTL 1 has an interrupt that its TPR holds back: VP 0 lowers that TPR."""

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
        else:
            while "enabled" not in guest.rig.log:
                yield ops.Compute(10)
            yield from guest.vtl_call()
            guest.note("VTL 0")
            while True:
                yield ops.Compute(100)

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
    rig = run_guests(guests, cpus=2)
    assert rig.log == ["enabled", "VTL 0", "held back", HvVtlEntryReason.HvVtlEntryInterrupt]


@pytest.mark.tlfs("vsm.shared-registers")
@pytest.mark.parametrize("seed", range(20))
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
    run_guests(guests, cpus=2, host=Simulator(seed=seed, instrument=True))
    assert finds == [True] * (2 * (rounds - 1))
