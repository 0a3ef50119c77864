"""What is peculiar to the wait call and to the completion that blocks; save and restore of a vCPU that waits."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.unit.kvm.core_rig import DONE, RESET, Machine, recorder, script
from tests.unit.kvm.test_inactive_wait import with_timer
from tests.unit.kvm.test_wait import VECTOR, interrupt, nmi
from tests.unit.kvm.wait_designs import WAKEUP
from vtlkit.checker.scenarios.wait import set_block
from vtlkit.engine.api import Event, EventType
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Deadlock
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.hyperv.features import HvFeatures
from vtlkit.kvm.kvm_run import Hyperv, Intr, Io, KvmRun
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.uapi import hv_cpuid_entries
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vcpu_events import EventsValid, VcpuEvents
from vtlkit.kvm.wait_state import WaitFlags, WaitResult, WaitType
from vtlkit.x86.registers import RFLAGS_IF, Segment


def quiet() -> Machine:
    return Machine(script(ops.Out(DONE, 1, 0)), handlers={v: recorder([]) for v in (2, VECTOR)})


# --- the wait call ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "flags"), [(2, 0), (-1, 0), (WaitType.INACTIVE_VTL, 1), (WaitType.HALT, 2), (WaitType.HALT, 3)]
)
def test_unknown_types_and_flags_are_refused(kind: int, flags: int) -> None:
    machine = quiet()
    with pytest.raises(KvmError) as caught:
        machine.vcpu.wait(kind, flags)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("flags", [WaitFlags.NONE, WaitFlags.IGNORE_RFLAGS_IF])
@pytest.mark.parametrize("enabled", [False, True])
def test_a_wait_for_what_ends_a_halt(flags: WaitFlags, enabled: bool) -> None:
    machine = quiet()
    machine.cpu.rflags |= RFLAGS_IF if enabled else 0
    results: list[WaitResult] = []

    def user() -> None:
        results.append(machine.vcpu.wait(WaitType.HALT, flags))

    if enabled or flags:
        machine.run(user, lambda: interrupt(machine))
        assert results == [WaitResult.WAKEUP]
    else:
        with pytest.raises(Deadlock):
            machine.run(user, lambda: interrupt(machine))


def test_the_flag_ends_with_its_call() -> None:
    machine = quiet()
    interrupt(machine)
    assert machine.vcpu.is_irq_blocked_by_rflags_if()
    assert machine.vcpu.wait(WaitType.HALT, WaitFlags.IGNORE_RFLAGS_IF) is WaitResult.WAKEUP
    assert machine.vcpu.is_irq_blocked_by_rflags_if()


def test_an_event_goes_before_a_signal_which_stays() -> None:
    machine = quiet()
    machine.vcpu.signal()
    interrupt(machine)
    assert machine.vcpu.wait(WaitType.INACTIVE_VTL) is WaitResult.WAKEUP
    assert machine.vcpu.signal_pending()


def test_one_task_at_a_time_waits() -> None:
    """Whoever comes second waits for the mutex, as for KVM_RUN."""
    machine = quiet()
    vcpu = machine.vcpu
    order: list[str] = []

    def waiter(name: str) -> Callable[[], None]:
        def body() -> None:
            while vcpu.wait(WaitType.INACTIVE_VTL) is not WaitResult.INTR:
                raise AssertionError("nothing came")
            order.append(name)

        return body

    def others() -> None:
        for _ in range(2):
            machine.host.relax()
            assert not vcpu.mutex.try_acquire()
            vcpu.signal()
            while vcpu.signal_pending():
                machine.host.relax()

    machine.run(waiter("first"), waiter("second"), others)
    assert order == ["first", "second"]
    assert vcpu.statistics.user_exits.total() == 0


# --- the completion that blocks ---------------------------------------------------------------------------------------


def calling(code: int = HvCallCode.HvCallVtlReturn) -> Machine:
    """A guest that makes a VTL return, and writes to a port when it is back."""
    program = script(ops.Set(1, "rax"), ops.Set(code, "rcx"), ops.Vmmcall(), ops.Out(DONE, 1, 0))
    machine = Machine(program, handlers={v: recorder([]) for v in (2, VECTOR)})
    vcpu = machine.vcpu
    sregs = vcpu.get_sregs()
    sregs.cr0, sregs.cr4, sregs.efer = 0x80000011, 0x20, 0x500
    sregs.cs = Segment(8, 0, 0xFFFFFFFF, 0xA9B)
    vcpu.set_sregs(sregs)
    machine.cpu.regs.rip = RESET
    vcpu.set_cpuid2(hv_cpuid_entries(HvFeatures()))
    machine.vm.hv.set_guest_os_id(1)
    return machine


def answer(vcpu: Vcpu, *, block: bool = True) -> Hyperv:
    """Run to the hypercall, and answer it."""
    exit_ = vcpu.run()
    assert isinstance(exit_, Hyperv), exit_
    exit_.complete = False
    exit_.block = block
    return exit_


def test_the_completion_blocks_until_a_wake_event_and_the_next_run_goes_on() -> None:
    machine = calling()
    vcpu = machine.vcpu
    exits: list[KvmRun] = []

    def user() -> None:
        exit_ = answer(vcpu)
        exits.append(vcpu.run())
        assert not exit_.block, "the hypervisor has cleared it"
        assert not vcpu.get_vcpu_events().hv_vtl_block
        exits.append(vcpu.run())

    def others() -> None:
        while vcpu.statistics.blocks == 0:
            machine.host.relax()
        interrupt(machine)

    machine.run(user, others)
    assert exits == [WAKEUP, Io(DONE, 1, True, 0)]


def test_it_blocks_in_the_next_run_wherever_the_answer_was_completed() -> None:
    machine = calling()
    vcpu = machine.vcpu

    def user() -> None:
        before = machine.cpu.regs.rip
        answer(vcpu)
        assert vcpu.complete_exit() is None
        assert machine.cpu.regs.rip != before, "RIP is behind the instruction"
        vcpu.run()

    with pytest.raises(Deadlock, match="vm-vcpu0-wait"):
        machine.run(user)
    assert vcpu.statistics.user_exits["IO"] == 0


def test_a_signal_interrupts_it_and_the_next_run_blocks_on() -> None:
    machine = calling()
    vcpu = machine.vcpu
    exits: list[KvmRun] = []

    def user() -> None:
        answer(vcpu)
        for _ in range(4):
            exits.append(vcpu.run())

    def others() -> None:
        for count in (1, 2):
            vcpu.signal()
            while len(exits) < count:
                machine.host.relax()
        interrupt(machine)

    machine.run(user, others)
    assert exits == [Intr(), Intr(), WAKEUP, Io(DONE, 1, True, 0)]


def test_user_space_calls_it_off() -> None:
    for door in ("exit", "events"):
        machine = calling()
        vcpu = machine.vcpu
        exits: list[KvmRun] = []

        def user(vcpu: Vcpu = vcpu, exits: list[KvmRun] = exits, door: str = door) -> None:
            exit_ = answer(vcpu)
            exits.append(vcpu.run())
            if door == "exit":
                exit_.block = False
            else:
                set_block(vcpu, False)
            exits.append(vcpu.run())

        machine.run(user, vcpu.signal)
        assert exits == [Intr(), Io(DONE, 1, True, 0)], door


def test_other_completions_do_not_block() -> None:
    """EINVAL, and nothing has changed: a better answer is taken."""
    for code, retry in ((HvCallCode.HvCallEnablePartitionVtl, False), (HvCallCode.HvCallVtlReturn, True)):
        machine = calling(code)
        vcpu = machine.vcpu

        def user(vcpu: Vcpu = vcpu, retry: bool = retry) -> None:
            exit_ = answer(vcpu)
            exit_.retry = retry
            for call in (vcpu.run, vcpu.complete_exit):
                with pytest.raises(KvmError) as caught:
                    call()
                assert caught.value.errno == errno.EINVAL
            exit_.block = exit_.retry = False
            assert isinstance(vcpu.run(), Io)

        machine.run(user)


def test_a_refused_answer_leaves_the_timer_to_the_host() -> None:
    """Outside `run` nobody exits: who polls would sleep through the tick."""
    machine = calling(HvCallCode.HvCallEnablePartitionVtl)
    timer = with_timer(machine)
    vcpu = machine.vcpu

    def user() -> None:
        answer(vcpu)
        with pytest.raises(KvmError):
            vcpu.run()

    machine.run(user)
    assert timer.armed[-1] is None, "the vendor's timer counts on"
    heard: list[int] = []
    vcpu.listen(lambda: heard.append(machine.host.now_ns()))
    machine.host.run(until=50_000)
    assert heard == [40_000]


def test_a_reset_ends_it() -> None:
    machine = quiet()
    set_block(machine.vcpu, True)
    machine.vcpu.reset(init_event=False)
    assert machine.vcpu.waiting.completion is None
    machine.run(lambda: machine.vcpu.run())
    assert machine.vcpu.statistics.user_exits["IO"] == 1


# --- save and restore -------------------------------------------------------------------------------------------------


def restored(machine: Machine) -> Machine:
    """Another machine with the state that user space can read of the first one."""
    other = quiet()
    source, target = machine.vcpu, other.vcpu
    target.set_sregs(source.get_sregs())
    target.set_regs(source.get_regs())
    target.apic.set_state(source.apic.get_state())
    target.set_mp_state(source.get_mp_state())
    target.set_vcpu_events(source.get_vcpu_events())
    return other


@pytest.mark.parametrize("way", ["mp-state", "completion"])
@pytest.mark.parametrize("pending", [False, True])
def test_a_vcpu_saved_while_it_blocks_blocks_on_where_it_is_restored(way: str, pending: bool) -> None:
    machine = quiet()
    vcpu = machine.vcpu
    exits: list[KvmRun] = []
    if way == "mp-state":
        vcpu.set_mp_state(MpState.HV_INACTIVE_VTL)
    else:
        set_block(vcpu, True)
    machine.run(lambda: exits.append(vcpu.run()), vcpu.signal)
    assert exits == [Intr()]
    if pending:
        interrupt(machine)
    other = restored(machine)
    if pending:
        other.run(lambda: exits.append(other.vcpu.run()))
    else:
        with pytest.raises(Deadlock, match="vm-vcpu0-wait"):
            other.run(other.vcpu.run)
        interrupt(other)
        other.run(lambda: exits.append(other.vcpu.run()))
    assert exits == [Intr(), WAKEUP]
    assert other.cpu.entries == []


def test_events_survive_a_round_trip() -> None:
    machine = Machine(nested=True)
    events = VcpuEvents(
        injected=Event(EventType.INTERRUPT, 0x44),
        interrupted=Event(EventType.SOFTWARE, 0x80, None, 2),
        exception=Event(EventType.EXCEPTION, 13, 0),
        external=0x51,
        shadow=True,
        nmi_pending=2,
        nmi_masked=True,
        gif=False,
        init=True,
        sipi_vector=0x9F,
        triple_fault=True,
        hv_vtl_block=True,
    )
    machine.vcpu.set_vcpu_events(events)
    assert machine.vcpu.get_vcpu_events() == events
    machine.vcpu.set_vcpu_events(VcpuEvents())
    assert machine.vcpu.get_vcpu_events() == VcpuEvents()


def test_what_others_may_have_sent_meanwhile_is_left_alone() -> None:
    """User space arms the blocking completion: an NMI that came after it had read the events is not lost."""
    machine = quiet()
    vcpu = machine.vcpu
    events = vcpu.get_vcpu_events()
    nmi(machine)
    vcpu.deliver_sipi(0x12)
    vcpu.set_vcpu_events(events, EventsValid.HV_VTL_BLOCK)
    found = vcpu.get_vcpu_events()
    assert (found.nmi_pending, found.sipi_vector) == (1, 0x12)


@pytest.mark.parametrize(
    "events",
    [
        VcpuEvents(nmi_pending=3),
        VcpuEvents(nmi_pending=-1),
        VcpuEvents(external=256),
        VcpuEvents(sipi_vector=-1),
        VcpuEvents(gif=False),
    ],
)
def test_events_that_no_vcpu_has_are_refused(events: VcpuEvents) -> None:
    machine = quiet()
    with pytest.raises(KvmError) as caught:
        machine.vcpu.set_vcpu_events(events)
    assert caught.value.errno == errno.EINVAL
    assert machine.vcpu.get_vcpu_events() == VcpuEvents()
