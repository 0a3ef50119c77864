"""Processors that wait for TLB locks: what they finish first, what still reaches them, and that they sleep."""

from __future__ import annotations

import pytest

from tests.unit.vmm.vsm.test_tlb_locks import CONFIG0, LOCKED, WAIT, flush, two_processors, wait_for
from tests.unit.vmm.vsm.test_vina import ON, enable
from tests.unit.vmm.vsm.translate_rig import INHIBIT, READ, ask
from tests.unit.vmm.vsm.vsm_rig import FREE, Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Io, KvmRun, MpState, Vcpu
from vtlkit.vmm.vsm.vp import Vp

TIMER = 0x58
PORT = 0x80
ALL = 15
SOON = 500
"""How many turns of other tasks are time enough for a processor to hear of something."""


def let_others(guest: Guest, turns: int = SOON) -> Script:
    for _ in range(turns):
        yield ops.Pause()


def test_one_that_has_vina_sleeps_while_it_waits() -> None:
    """Nothing else runs until a timer of the holder's expires: time passes only if the waiting processor sleeps."""

    def holder(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.set(CONFIG0, LOCKED)
        guest.note("locked")
        yield from wait_for(guest, "flushing")
        yield from let_others(guest)
        yield from guest.wrmsr(0x832, TIMER)
        yield from guest.wrmsr(0x838, 100_000)
        yield ops.Sti()
        yield ops.Hlt()
        guest.note("releasing")

    def flusher(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_apic()
        yield from enable(guest, ON)
        yield from wait_for(guest, "locked")
        guest.note("flushing")
        turns = [0]
        vp = guest.rig.partition.vps[1]
        plain = vp._run

        def counted() -> None:
            turns[0] += 1
            assert turns[0] < 100, "it does not sleep"
            plain()

        vp._run = counted  # type: ignore[method-assign]
        assert (yield from flush(guest, 0b01, named=1)) == HvStatus.SUCCESS
        assert "releasing" in guest.rig.log
        yield from guest.end()

    two_processors(holder, flusher, flusher_vtl=1)


@pytest.mark.tlfs("tlb.wait")
def test_a_running_vtl_of_another_processor_waits() -> None:
    """VTL 1 of VP 0 holds a lock and has VTL 0 of VP 1, which runs, wait for it."""
    beats = [0]

    def holder(guest: Guest) -> Script:
        yield from guest.set(CONFIG0, LOCKED)
        yield from wait_for(guest, "running")
        assert (yield from guest.set(WAIT, 1, vtl=input_vtl(0), vp=1)) == HvStatus.SUCCESS
        before = beats[0]
        yield from let_others(guest)
        assert beats[0] == before
        guest.note("releasing")
        yield from guest.set(CONFIG0, 0)
        while True:
            yield ops.Pause()

    def running(guest: Guest) -> Script:
        guest.note("running")
        while "releasing" not in guest.rig.log:
            beats[0] += 1
            yield ops.Compute(1)
        yield from guest.end()

    two_processors(holder, running)


class SlowDeviceRig(VsmRig):
    """A device that answers only when VTL 1 of VP 0 has asked for the wait."""

    def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
        assert isinstance(exit_, Io), exit_
        self.log.append("in the exit")
        for _ in range(SOON):
            self.host.relax()
        exit_.data = 0x41


@pytest.mark.parametrize("then", ["protect", "write"])
def test_one_in_the_middle_of_an_instruction_finishes_it_before_it_waits(then: str) -> None:
    """Protecting memory, and writing a register, wait for the end of an I/O instruction."""

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
        yield from wait_for(guest, "locked")
        yield ops.In(PORT, 1)
        while True:
            yield ops.Pause()

    def vtl1(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | ALL << 1)
        yield from guest.enable_vp_vtl(1, vp=1)
        yield from guest.set(CONFIG0, LOCKED)
        guest.note("locked")
        yield from wait_for(guest, "in the exit")
        assert (yield from guest.set(WAIT, 1, vtl=input_vtl(0), vp=1)) == HvStatus.SUCCESS
        if then == "protect":
            assert (yield from guest.protect([FREE], 1)) & 0xFFFF == HvStatus.SUCCESS
        else:
            assert (yield from guest.set(Name.HvX64RegisterRbx, 7, vtl=input_vtl(0), vp=1)) == HvStatus.SUCCESS
        yield from guest.end()

    def never(_guest: Guest) -> Script:
        yield ops.Fault(6)

    SlowDeviceRig({(0, 0): vtl0, (1, 0): vtl0, (0, 1): vtl1, (1, 1): never}, cpus=2).run()


@pytest.mark.tlfs("hypercalls.start-vp")
def test_a_processor_that_waits_can_be_started_in_a_higher_vtl() -> None:
    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    def vtl1(guest: Guest) -> Script:
        if guest.vp == 1:
            yield from guest.end()
        yield from guest.enable_vp_vtl(1, vp=1)
        yield from guest.set(CONFIG0, LOCKED)
        assert (yield from guest.set(WAIT, 1, vtl=input_vtl(0), vp=1)) == HvStatus.SUCCESS
        yield from let_others(guest)
        assert guest.rig.partition.vps[1].vcpus[0].get_mp_state() is MpState.UNINITIALIZED
        assert (yield from guest.start_vp(1, 1)) == HvStatus.SUCCESS
        yield from let_others(guest, 20 * SOON)
        raise AssertionError("it was not started")

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (1, 1): vtl1}, cpus=2, host=Simulator())


@pytest.mark.tlfs("tlb.translate")
def test_no_lock_where_the_caller_has_no_vtl_to_release_it() -> None:
    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    def vtl1(guest: Guest) -> Script:
        answer = yield from ask(guest, READ | INHIBIT, vp=1)
        assert answer.status == HvStatus.INVALID_VTL_STATE
        assert not guest.rig.partition.vps[1].vcpus[0].hv.tlb_flush_inhibit.load()
        # A flush that names VTL 0 would wait for ever.
        assert (yield from flush(guest, 0b10, named=1)) == HvStatus.SUCCESS
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1}, cpus=2)
