"""Registers of a processor in the middle of an I/O instruction. Other races: tests/sim/test_register_races.py."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
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
