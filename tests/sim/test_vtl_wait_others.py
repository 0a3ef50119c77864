"""Others who need the vCPU of an inactive VTL that is waited for: they have it alone, and nothing of theirs is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.known_bad import fails
from tests.sim.test_vtl_switch import simulator
from tests.sim.test_vtl_wait import BAD_SEEDS, every_design, rig
from tests.unit.vmm.vsm.vsm_rig import Body, Guest, Script, VsmRig, input_vtl
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import EventsValid, MpState
from vtlkit.vmm.vsm.vtl_wait import VtlWait
from vtlkit.vmm.vsm.vtl_waiters import CompletionWaiter

NMI_MASKED = 2
"""Of HvRegisterInterruptState."""


def resting_guests() -> dict[tuple[int, int], Body]:
    """VTL1 has been there, and VTL0 goes on for as long as somebody else wants."""

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        guest.note("back")
        while True:
            yield ops.Compute(10)

    def vtl1(guest: Guest) -> Script:
        yield from guest.vtl_return()
        guest.note(guest.rig.partition.host.current().name)
        while True:
            yield ops.Compute(10)

    return {(0, 0): vtl0, (0, 1): vtl1}


def beside(world: VsmRig, body: Callable[[Callable[[int], None]], None]) -> None:
    """Run a world with a task that begins when VTL1 rests, and ends the run; `body` is given a way to sleep."""
    host = world.host
    queue = host.wait_queue("beside")

    def sleep(duration_ns: int) -> None:
        queue.prepare()
        host.schedule(host.now_ns() + duration_ns)
        queue.finish()

    def task() -> None:
        while "back" not in world.log:
            sleep(1_000)
        sleep(20_000)
        body(sleep)
        world.end()

    host.spawn(task, "beside")
    world.run()


@every_design
def test_who_has_the_vcpu_alone_finds_it_as_if_nobody_waited(design: VtlWait) -> None:
    """A start makes it runnable: that is not for its waiter to run."""
    world = rig(design, resting_guests(), simulator(0))
    vp = world.partition.vps[0]

    def body(sleep: Callable[[int], None]) -> None:
        vcpu = vp.vcpus[1]
        with vp.waits.alone(vcpu):
            assert vcpu.get_mp_state() is MpState.RUNNABLE
            assert not vcpu.get_vcpu_events().hv_vtl_block
            vcpu.start_runnable()
        sleep(500_000)
        # It is waited for again.
        vcpu.nmi()
        sleep(500_000)

    beside(world, body)
    assert world.log == ["back", "vp0"]
    assert [(each.vtl, each.vector) for each in world.taken] == [(1, 2)]


@every_design
def test_a_waiter_sleeps_while_all_of_its_vm_are_kicked(design: VtlWait) -> None:
    world = rig(design, resting_guests(), simulator(0))

    def body(sleep: Callable[[int], None]) -> None:
        vm = world.partition.vtls[1].vm
        statistics = vm.vcpus[0].statistics
        vm.kick_all_running_vcpus()
        sleep(500_000)
        assert statistics.kicked_entries == 0, "it tries again and again"
        # Who needs the vCPU gets the waiter out of that sleep, too.
        with world.partition.vps[0].waits.alone(vm.vcpus[0]):
            pass
        assert statistics.kicked_entries <= 1
        vm.resume_all_kicked_vcpus()
        vm.vcpus[0].nmi()
        sleep(500_000)

    beside(world, body)
    assert [(each.vtl, each.vector) for each in world.taken] == [(1, 2)]


def masking_guests(host: Simulator) -> dict[tuple[int, int], Body]:
    """VTL1 of VP 0 says that VP 1's handles an NMI, as VP 1 calls it for the first time; notes what is left of it."""

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
        while "enabled" not in guest.rig.log:
            yield ops.Compute(5)
        yield ops.Compute(host.choose(40, "until the call") + 1)
        yield from guest.vtl_call()

    def vtl1(guest: Guest) -> Script:
        while guest.vp:
            yield ops.Compute(5)
        yield from guest.enable_vp_vtl(1, vp=1)
        guest.note("enabled")
        name, vtl = Name.HvRegisterInterruptState, input_vtl(1)
        assert (yield from guest.set(name, NMI_MASKED, vp=1, vtl=vtl)) == HvStatus.SUCCESS
        while guest.rig.partition.vps[1].active.load() != 1:
            yield ops.Compute(10)
        guest.note((yield from guest.get(name, vp=1, vtl=vtl)))
        yield from guest.end()

    return {(vp, vtl): vtl1 if vtl else vtl0 for vp in range(2) for vtl in range(2)}


@every_design
@pytest.mark.parametrize("seed", range(60))
def test_a_private_register_set_from_another_processor_is_not_lost(design: VtlWait, seed: int) -> None:
    keeps_the_mask(design, simulator(seed))


def keeps_the_mask(design: VtlWait, host: Simulator) -> None:
    world = rig(design, masking_guests(host), host, cpus=2).run()
    assert world.log == ["enabled", (HvStatus.SUCCESS, NMI_MASKED)]


def disarms_beside_others(self: CompletionWaiter, block: bool) -> None:
    """All events read and written back, without the mutex."""
    held = self.vcpu.mutex.held()
    if held:
        self.vcpu.mutex.release()
    events = self.vcpu.get_vcpu_events()
    events.hv_vtl_block = block
    self.vcpu.set_vcpu_events(events, EventsValid.HV_VTL_BLOCK)
    self._armed = block
    if held:
        self.vcpu.mutex.acquire()


def test_events_written_back_without_the_mutex_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompletionWaiter, "_set_block", disarms_beside_others)
    assert fails(lambda seed: keeps_the_mask(VtlWait.COMPLETION, simulator(seed)), BAD_SEEDS, (AssertionError,))
