"""Tracepoints in the hypervisor: what a story leaves in the trace; that the trace changes nothing; that off is off."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.unit.kvm.core_rig import DONE, RESET, Machine, Script, engine_of, recorder, script
from tests.unit.kvm.nested_rig import L2_RIP, VMCB, Nest
from vtlkit.checker.scenarios.rig import EOI
from vtlkit.engine.api import Access
from vtlkit.engine.scripted import Guest, ops
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.kvm_run import Intr, Io
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.wait import suspend
from vtlkit.kvm.wait_state import WaitType
from vtlkit.trace import events
from vtlkit.trace.events import Event
from vtlkit.trace.sinks import RingSink
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.registers import RFLAGS_IF

VECTOR = 0x31


class Story:
    """A machine with a trace. The second vCPU belongs to no task unless the test runs it."""

    def __init__(
        self, *instructions: ops.Op, program: Guest | None = None, host: RunnableHost | None = None, vcpus: int = 1
    ) -> None:
        self.ring = RingSink(1 << 20)
        self.seen: list[int] = []
        handlers = {VECTOR: recorder(self.seen, EOI, ops.Out(DONE, 1, 0))}
        begin = script(*instructions) if program is None else program
        self.machine = Machine(begin, handlers=handlers, vcpus=vcpus, host=host, sink=self.ring)
        for vcpu in self.machine.vcpus:
            vcpu.engine.rflags |= RFLAGS_IF

    def run(self, *others: Callable[[], object]) -> list[object]:
        exits: list[object] = []
        self.machine.run(lambda: exits.append(self.machine.vcpu.run()), *others)
        return exits

    def events(self, *kinds: type[Event]) -> list[Event]:
        assert self.machine.tracer is not None
        self.machine.tracer.flush()
        return [event for event in self.ring.events if not kinds or isinstance(event, kinds)]

    def accept(self) -> None:
        self.machine.vcpu.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False)


def spin(_engine: object) -> Script:
    """A guest that never exits."""
    while True:
        yield ops.Compute(10)


def hosts() -> list[Callable[[], RunnableHost]]:
    return [Simulator, ThreadHost]


@pytest.mark.parametrize("host", hosts())
def test_an_interrupt_wakes_a_halted_vcpu(host: Callable[[], RunnableHost]) -> None:
    story = Story(ops.Hlt(), host=host())

    def waker() -> None:
        while not story.events(events.KvmVcpuBlock):
            story.machine.host.relax()
        story.accept()

    (exit_,) = story.run(waker)
    assert isinstance(exit_, Io)
    assert story.seen == [VECTOR]
    (kick,) = story.events(events.KvmVcpuKick)
    (wakeup,) = story.events(events.KvmVcpuWakeup)
    assert isinstance(kick, events.KvmVcpuKick)
    assert isinstance(wakeup, events.KvmVcpuWakeup)
    assert (kick.source, kick.vcpu) == ("task1", 0)
    assert wakeup.woken_by == kick.id
    names = [event.name for event in story.events() if event.vcpu == 0]
    for name in ("kvm_vcpu_block", "kvm_apic_accept_irq", "kvm_make_request", "kvm_inj_virq", "kvm_eoi", "kvm_pio"):
        assert name in names
    assert names[-1] == "kvm_userspace_exit"
    exits = [event.reason for event in story.events(events.KvmExit) if isinstance(event, events.KvmExit)]
    # The first store to the APIC's page maps it.
    assert [reason for reason in exits if reason != "interrupted"] == ["hlt", "memory_fault", "io"]


def test_a_timer_is_the_source_of_its_kick() -> None:
    story = Story(ops.Hlt())
    timer = story.machine.host.timer(story.accept, "alarm")
    timer.start(5_000)
    story.run()
    (kick,) = story.events(events.KvmVcpuKick)
    assert isinstance(kick, events.KvmVcpuKick)
    assert (kick.source, kick.task) == ("timer 'alarm'", "timer 'alarm'")


@pytest.mark.parametrize("host", hosts())
def test_a_signal_ends_a_run_and_the_kick_stops_the_engine(host: Callable[[], RunnableHost]) -> None:
    story = Story(host=host(), program=spin)
    vcpu = story.machine.vcpu

    def signaller() -> None:
        while not story.events(events.KvmEntry):
            story.machine.host.relax()
        vcpu.signal()

    assert [type(exit_) for exit_ in story.run(signaller)] == [Intr]
    (signal,) = story.events(events.KvmVcpuSignal)
    assert isinstance(signal, events.KvmVcpuSignal)
    assert signal.source == "task1"
    last = story.events(events.KvmUserspaceExit)[-1]
    assert isinstance(last, events.KvmUserspaceExit)
    assert (last.reason, last.number) == ("restart", 4)


def test_an_exit_carries_the_kick_that_stopped_the_engine() -> None:
    story = Story(ops.Compute(10), ops.Out(DONE, 1, 0), vcpus=2)
    other = story.machine.vcpus[1]
    assert story.machine.tracer is not None
    # As if the second vCPU's task were the one that kicks, while the first is in the guest.
    real = story.machine.tracer.context
    story.machine.tracer.running["elsewhere"] = other.name
    kicks = 0

    def kick() -> None:
        nonlocal kicks
        if not kicks:
            assert story.machine.tracer is not None
            story.machine.tracer.context = lambda: "elsewhere"
            story.machine.vcpu.kick()
            story.machine.tracer.context = real
            kicks += 1

    engine_of(story.machine.vcpu).on_run = kick
    story.run()
    exits = [event for event in story.events(events.KvmExit) if isinstance(event, events.KvmExit)]
    (made,) = story.events(events.KvmVcpuKick)
    assert isinstance(made, events.KvmVcpuKick)
    assert made.source == "vm-vcpu1"
    assert (exits[0].reason, exits[0].kicked_by) == ("interrupted", made.id)
    assert all(not exit_.kicked_by for exit_ in exits[1:])


def test_an_entry_says_where_and_whether_it_is_to_be_left_at_once() -> None:
    story = Story(ops.In(DONE, 1), ops.Compute(1))

    def body() -> None:
        story.machine.vcpu.run()
        story.machine.vcpu.complete_exit()

    story.machine.run(body)
    entries = [event for event in story.events(events.KvmEntry) if isinstance(event, events.KvmEntry)]
    assert [entry.immediate_exit for entry in entries] == [False, True]
    assert entries[0].rip == RESET & 0xFFFF
    assert entries[1].payload().endswith(" [immediate exit]")


def test_times_of_a_deterministic_run_are_those_of_the_guest() -> None:
    """The host's clock is told of guest time and exits in one go, after up to 16 exits; the trace is not so coarse."""
    story = Story(*(instruction for _ in range(3) for instruction in (ops.Compute(100), ops.Cpuid())))
    vm = story.machine.vm
    timer = story.machine.host.timer(story.machine.vcpu.signal, "end")
    timer.start(1_000_000)
    story.run()
    cpuids = [event for event in story.events(events.KvmExit) if isinstance(event, events.KvmExit)][:3]
    assert [event.reason for event in cpuids] == ["cpuid"] * 3
    lengths = {second.time_ns - first.time_ns for first, second in pairwise(cpuids)}
    assert len(lengths) == 1
    (length,) = lengths
    assert length >= 100 * vm.ns_per_instruction + vm.ns_per_exit


def test_a_nested_guest() -> None:
    ring = RingSink(1000)
    nest = Nest(script(ops.Vmmcall()), sink=ring)
    nest.enter()
    assert nest.tracer is not None
    nest.tracer.flush()
    enter, leave = (
        event for event in ring.events if isinstance(event, events.KvmNestedVmenter | events.KvmNestedVmexitInject)
    )
    assert isinstance(enter, events.KvmNestedVmenter)
    assert (enter.vmcb, enter.nested_rip) == (VMCB, L2_RIP)
    assert isinstance(leave, events.KvmNestedVmexitInject)
    assert leave.reason == "vmmcall"


def test_a_poll_that_was_worth_it_is_a_wake_without_a_sleep() -> None:
    story = Story(ops.Hlt())
    story.machine.vm.halt_poll_max_ns = 100_000
    story.machine.vcpu.waiting.poll.window_ns = 100_000
    timer = story.machine.host.timer(story.accept, "alarm")
    timer.start(5_000)
    story.run()
    (wakeup,) = story.events(events.KvmVcpuWakeup)
    assert isinstance(wakeup, events.KvmVcpuWakeup)
    assert (wakeup.waited, wakeup.valid, wakeup.woken_by) == (False, True, 1)
    assert not story.events(events.KvmVcpuBlock)


@pytest.mark.parametrize(
    ("prepare", "state"),
    [
        (lambda vcpu: vcpu.wait(WaitType.HALT, 0), "WAIT_HALT"),
        (lambda vcpu: vcpu.wait(WaitType.INACTIVE_VTL, 0), "WAIT_INACTIVE_VTL"),
        (suspend, "SUSPENDED"),
    ],
    ids=["halt", "inactive", "suspended"],
)
def test_why_a_vcpu_sleeps(prepare: Callable[[Vcpu], object], state: str) -> None:
    story = Story()
    vcpu = story.machine.vcpu
    timer = story.machine.host.timer(vcpu.signal, "end")
    timer.start(5_000)
    story.machine.run(lambda: prepare(vcpu))
    block, wakeup = story.events(events.KvmVcpuBlock, events.KvmVcpuWakeup)
    assert isinstance(block, events.KvmVcpuBlock)
    assert block.state == state
    assert isinstance(wakeup, events.KvmVcpuWakeup)
    assert wakeup.woken_by == 1


def test_the_wait_for_a_resume_is_in_the_trace_only_if_there_is_one_to_wait_for() -> None:
    story = Story(ops.Out(DONE, 1, 0))
    vm, vcpu = story.machine.vm, story.machine.vcpu

    def user() -> None:
        vcpu.wait_until_resumed()
        assert story.events(events.KvmVcpuBlock, events.KvmVcpuWakeup) == []
        vm.kick_all_running_vcpus()
        vcpu.wait_until_resumed()

    def resumer() -> None:
        while not vcpu.wait_queue.waiters():
            story.machine.host.relax()
        vm.resume_all_kicked_vcpus()

    story.machine.run(user, resumer)
    (sleep, wake) = story.events(events.KvmVcpuBlock, events.KvmVcpuWakeup)
    assert (isinstance(sleep, events.KvmVcpuBlock) and sleep.state, type(wake)) == ("KICKED", events.KvmVcpuWakeup)


def test_changes_of_memory() -> None:
    story = Story()
    vm, ram = story.machine.vm, story.machine.ram
    vm.set_memory_attributes(0x1000, 0x2000, Access.READ)
    vm.set_user_memory_region(MemoryRegion(1, 0x100000, 0x1000, ram))
    last = story.events(events.KvmMemoryChange)[-2:]
    assert [event.payload() for event in last] == [
        "gpa 0x1000 size 0x2000 attributes",
        "gpa 0x100000 size 0x1000 backing",
    ]
    assert all(event.vcpu == events.NO_VCPU for event in last)


def test_without_a_sink_there_is_no_trace() -> None:
    machine = Machine(script())
    assert (machine.vm.trace, machine.vcpu.trace, machine.vcpu.apic.trace, machine.vm.memory.trace) == (None,) * 4


@pytest.mark.parametrize("seed", range(30))
def test_a_trace_changes_no_choice(seed: int) -> None:
    """The same seed, every shared access a scheduling point: the same run, traced or not."""

    def run(traced: bool) -> tuple[str, int, list[int]]:
        host = Simulator(seed=seed, instrument=True, record=True)
        seen: list[int] = []
        handlers = {VECTOR: recorder(seen, EOI, ops.Out(DONE, 1, 0))}
        machine = Machine(
            script(ops.Hlt()), handlers=handlers, host=host, sink=RingSink(100) if traced else None, vcpus=2
        )
        machine.vcpu.engine.rflags |= RFLAGS_IF
        machine.run(
            machine.vcpu.run,
            lambda: machine.vcpu.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False),
        )
        return host.token(), host.now_ns(), seen

    assert run(True) == run(False)
