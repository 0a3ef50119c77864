"""A vCPU that is suspended on a flush hypercall, and all that may happen to it meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.bench_flush_inhibit import STALL_NS, Release
from tests.unit.kvm.core_rig import DONE, Script, engine_of, recorder
from tests.unit.kvm.hyperv.flush_rig import FlushMachine
from vtlkit.engine.api import Access
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign
from vtlkit.kvm.kvm_run import Intr, Io, KvmRun
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.x86.apic import DeliveryMode

VECTOR = 0x41
OURS, POSTED = FlushInhibitDesign
each_design = pytest.mark.parametrize("design", FlushInhibitDesign)


def flush_vcpu1(machine: FlushMachine, number: int) -> Script:
    """Flush vCPU 1, then end."""
    yield from machine.flush(number, 0b10)


def nothing(_machine: FlushMachine, _number: int) -> Script:
    yield ops.Compute()


def suspended(machine: FlushMachine, number: int = 0) -> bool:
    """Whether the vCPU sleeps on its hypercall."""
    return (
        machine.vcpus[number].hv.flush_inhibit.waits_for() is not None
        and machine.vcpus[number].wait_queue.waiters() > 0
    )


def when_suspended(machine: FlushMachine, act: Callable[[], object]) -> Callable[[], None]:
    def body() -> None:
        while not suspended(machine):
            machine.host.relax()
        act()

    return body


def signal_when_suspended(machine: FlushMachine, exits: list[KvmRun]) -> None:
    """Three times, each after the exit that the one before has brought."""
    for number in range(3):
        while len(exits) != number or not suspended(machine):
            machine.host.relax()
        machine.vcpu.signal()


@pytest.mark.tlfs("tlb.flusher")
@each_design
def test_the_caller_waits_without_an_exit_and_executes_the_call_again(design: FlushInhibitDesign) -> None:
    machine = FlushMachine([flush_vcpu1, nothing], design=design)
    target = machine.vcpus[1]
    target.hyperv_set_tlb_flush_inhibit(True)
    exits: list[KvmRun] = []

    def release() -> None:
        assert not target.requests.test(Req.TLB_FLUSH)
        assert exits == []
        target.hyperv_set_tlb_flush_inhibit(False)

    machine.run(lambda: exits.append(machine.vcpu.run()), when_suspended(machine, release))
    assert [type(exit_) for exit_ in exits] == [Io]
    assert target.requests.test(Req.TLB_FLUSH)
    assert machine.vcpu.statistics.suspends == 1


def test_a_signal_ends_the_run_at_the_instruction_and_the_next_run_suspends_again() -> None:
    machine = FlushMachine([flush_vcpu1, nothing])
    vcpu, target = machine.vcpus
    target.hyperv_set_tlb_flush_inhibit(True)
    exits: list[KvmRun] = []
    at: list[tuple[int, int]] = []

    def user() -> None:
        for _ in range(3):
            exits.append(vcpu.run())
            at.append((vcpu.engine.regs.rip, vcpu.engine.regs.rcx))
            assert vcpu.hv.flush_inhibit.waits_for() is None
            assert vcpu.complete_exit() is None
        target.hyperv_set_tlb_flush_inhibit(False)
        exits.append(vcpu.run())

    machine.run(user, lambda: signal_when_suspended(machine, exits))
    assert [type(exit_) for exit_ in exits] == [Intr, Intr, Intr, Io]
    assert len(set(at)) == 1
    assert vcpu.statistics.suspends == 3


@pytest.mark.parametrize("nmi", [False, True])
def test_an_event_is_taken_before_the_instruction_which_then_waits_on(nmi: bool) -> None:
    taken: list[int] = []
    vector = 2 if nmi else VECTOR
    machine = FlushMachine([flush_vcpu1, nothing], handlers={vector: recorder(taken)}, interrupts=not nmi)
    vcpu, target = machine.vcpus
    target.hyperv_set_tlb_flush_inhibit(True)

    def sender() -> None:
        if nmi:
            vcpu.nmi()
        else:
            vcpu.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False)
        while not taken or not suspended(machine):
            machine.host.relax()
        target.hyperv_set_tlb_flush_inhibit(False)

    machine.run(lambda: machine.until_done(vcpu), when_suspended(machine, sender))
    assert taken == [vector]
    assert vcpu.statistics.suspends == 2


@each_design
def test_an_interrupt_that_the_guest_does_not_take_does_not_wake_it(design: FlushInhibitDesign) -> None:
    machine = FlushMachine([flush_vcpu1, nothing], design=design)
    vcpu, target = machine.vcpus
    target.hyperv_set_tlb_flush_inhibit(True)

    def sender() -> None:
        vcpu.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False)
        for _ in range(50):
            machine.host.relax()
        assert vcpu.statistics.suspends == 1
        target.hyperv_set_tlb_flush_inhibit(False)

    machine.run(lambda: machine.until_done(vcpu), when_suspended(machine, sender))
    assert vcpu.statistics.suspends == 1


@each_design
def test_a_suspended_vcpu_holds_up_neither_a_change_of_memory_nor_a_flush(design: FlushInhibitDesign) -> None:
    machine = FlushMachine([flush_vcpu1, nothing], design=design)
    vcpu, target = machine.vcpus
    target.hyperv_set_tlb_flush_inhibit(True)

    def change() -> None:
        machine.vm.set_memory_attributes(0xE000, 0x1000, Access.READ)
        machine.vm.wait_for_memory()
        machine.vm.request_tlb_flush(0b01)
        machine.vm.wait_for_tlb_flush(0b01)
        assert suspended(machine)
        target.hyperv_set_tlb_flush_inhibit(False)

    machine.run(lambda: machine.until_done(vcpu), when_suspended(machine, change))
    assert engine_of(vcpu).flushes == 1
    assert not vcpu.map.behind()


@each_design
def test_init_resets_a_suspended_vcpu(design: FlushInhibitDesign) -> None:
    machine = FlushMachine([nothing, nothing, lambda machine, number: machine.flush(number, 0b10)], design=design)
    vcpu, target = machine.vcpus[2], machine.vcpus[1]
    target.hyperv_set_tlb_flush_inhibit(True)
    exits: list[KvmRun] = []

    def init() -> None:
        while not suspended(machine, 2):
            machine.host.relax()
        vcpu.init()
        while vcpu.mp_state is not MpState.INIT_RECEIVED:
            machine.host.relax()
        vcpu.signal()

    machine.run(lambda: exits.append(vcpu.run()), init)
    assert [type(exit_) for exit_ in exits] == [Intr]
    assert vcpu.hv.flush_inhibit.waits_for() is None
    assert target.hv.tlb_flush_inhibit.load(), "the inhibit is not the guest's to end"


@pytest.mark.parametrize("by_reset", [False, True])
@each_design
def test_an_inhibitor_that_goes_away_lets_its_flushers_go(by_reset: bool, design: FlushInhibitDesign) -> None:
    machine = FlushMachine([flush_vcpu1, nothing], design=design)
    vcpu, target = machine.vcpus
    target.hyperv_set_tlb_flush_inhibit(True)
    end = target.reset_to_power_on if by_reset else target.close
    machine.run(lambda: machine.until_done(vcpu), when_suspended(machine, end))


@each_design
def test_a_flush_of_several_waits_for_each_inhibited_one(design: FlushInhibitDesign) -> None:
    machine = FlushMachine(
        [lambda machine, number: machine.flush(number, 0b1111), nothing, nothing, nothing], design=design
    )
    vcpu, *targets = machine.vcpus
    for target in targets:
        target.hyperv_set_tlb_flush_inhibit(True)
    waited_on: list[object] = []

    def release() -> None:
        for _ in targets:
            while not suspended(machine):
                machine.host.relax()
            held = vcpu.hv.flush_inhibit.waits_for()
            assert held is not None
            waited_on.append(held)
            held.set_tlb_flush_inhibit(False)
            while vcpu.hv.flush_inhibit.waits_for() is held:
                machine.host.relax()

    machine.run(lambda: machine.until_done(vcpu), release)
    assert waited_on == [target.hv for target in targets]


@each_design
def test_a_vcpu_may_wait_for_itself_and_two_for_each_other(design: FlushInhibitDesign) -> None:
    machine = FlushMachine([lambda machine, number: machine.flush(number, 0b11)] * 2, design=design)
    for vcpu in machine.vcpus:
        vcpu.hyperv_set_tlb_flush_inhibit(True)

    def release() -> None:
        while not (suspended(machine, 0) and suspended(machine, 1)):
            machine.host.relax()
        for vcpu in machine.vcpus:
            vcpu.hyperv_set_tlb_flush_inhibit(False)

    machine.run(*(lambda vcpu=vcpu: machine.until_done(vcpu) for vcpu in machine.vcpus), release)


# --- what the posted design does otherwise ----------------------------------------------------------------------------


def test_posted_a_signal_leaves_the_vcpu_suspended_between_two_runs() -> None:
    machine = FlushMachine([flush_vcpu1, nothing], design=POSTED)
    vcpu, target = machine.vcpus
    target.hyperv_set_tlb_flush_inhibit(True)
    exits: list[KvmRun] = []

    def user() -> None:
        for _ in range(3):
            exits.append(vcpu.run())
            assert vcpu.hv.flush_inhibit.waits_for() is target.hv
            assert vcpu.complete_exit() is None
        target.hyperv_set_tlb_flush_inhibit(False)
        assert vcpu.hv.flush_inhibit.waits_for() is None
        exits.append(vcpu.run())

    machine.run(user, lambda: signal_when_suspended(machine, exits))
    assert [type(exit_) for exit_ in exits] == [Intr, Intr, Intr, Io]
    assert vcpu.statistics.suspends == 1, "the call was executed once, and once more in the end"


@pytest.mark.parametrize("nmi", [False, True])
def test_posted_an_event_waits_for_the_inhibit_and_keeps_the_task_turning(nmi: bool) -> None:
    taken: list[int] = []
    vector = 2 if nmi else VECTOR
    machine = FlushMachine(
        [flush_vcpu1, nothing], handlers={vector: recorder(taken)}, interrupts=not nmi, design=POSTED
    )
    vcpu, target = machine.vcpus
    target.hyperv_set_tlb_flush_inhibit(True)

    def sender() -> None:
        if nmi:
            vcpu.nmi()
        else:
            vcpu.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False)
        while vcpu.statistics.suspended_turns < 20:
            machine.host.relax()
        assert taken == []
        target.hyperv_set_tlb_flush_inhibit(False)

    machine.run(lambda: machine.until_done(vcpu), when_suspended(machine, sender))
    assert taken == [vector]
    assert vcpu.statistics.suspends == 1


def test_posted_a_started_processor_does_not_wait_for_the_call_it_made_before_init() -> None:
    begun: list[int] = []

    def begin(_engine: object) -> Script:
        begun.append(1)
        yield ops.Out(DONE, 1, 0)

    machine = FlushMachine([nothing, nothing, flush_vcpu1], design=POSTED, extra={0x6000: begin})
    vcpu, target = machine.vcpus[2], machine.vcpus[1]
    target.hyperv_set_tlb_flush_inhibit(True)

    def restart() -> None:
        while not suspended(machine, 2):
            machine.host.relax()
        vcpu.init()
        while vcpu.mp_state is not MpState.INIT_RECEIVED:
            machine.host.relax()
        vcpu.deliver_sipi(6)
        vcpu.kick()

    machine.run(lambda: machine.until_done(vcpu), restart)
    assert begun == [1]
    assert target.hv.tlb_flush_inhibit.load()


def test_posted_a_release_waits_for_whoever_is_in_the_hypervisor_and_ours_does_not() -> None:
    """One more vCPU is in `run`, at a device that takes its time: it has nothing to do with flushes."""
    for stalled in (False, True):
        took = {design: Release(Simulator(), design, stalled=stalled).take_ns() for design in FlushInhibitDesign}
        assert took[OURS] < 10_000
        assert took[POSTED] >= STALL_NS if stalled else took[POSTED] < 10_000


def test_the_design_is_chosen_before_the_first_vcpu() -> None:
    machine = FlushMachine([nothing])
    with pytest.raises(KvmError, match="EINVAL"):
        machine.vm.hv.set_flush_inhibit_design(POSTED)
    assert machine.vm.hv.flush_inhibits.design is OURS
