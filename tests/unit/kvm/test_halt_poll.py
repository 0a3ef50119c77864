"""Halt-polling: who polls and for how long, and what is counted."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, recorder, script
from tests.unit.kvm.test_wait import VECTOR, interrupt
from tests.unit.kvm.wait_designs import DESIGNS
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Deadlock
from vtlkit.kvm.caps import Cap
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.halt_poll import GROW_START_NS
from vtlkit.kvm.kvm_run import Intr
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.statistics import VcpuStatistics
from vtlkit.x86.registers import RFLAGS_IF

MAXIMUM = 50_000


def polling(maximum: int = MAXIMUM) -> Machine:
    """A guest that halts for ever, with an interrupt handler."""
    machine = Machine(
        script(*[ops.Hlt()] * 20, ops.Out(DONE, 1, 0)), handlers={VECTOR: recorder([], ops.Write(0xFEE000B0, 4, 0))}
    )
    machine.cpu.rflags |= RFLAGS_IF
    machine.vm.enable_cap(Cap.HALT_POLL, maximum)
    return machine


def halts(machine: Machine, *delays: int) -> list[int]:
    """Let the guest halt, with an interrupt so long after it has; the window after each halt, in ns. The statistics are
    put back to what they were before the signal that ends it all."""
    windows: list[int] = []
    kept: list[VcpuStatistics] = []
    vcpu = machine.vcpu

    def vcpu_task() -> None:
        vcpu.run()

    def sender() -> None:
        timer = machine.host.timer(lambda: interrupt(machine), "sender")
        for count, delay in enumerate(delays, 1):
            while vcpu.statistics.exits["hlt"] < count:
                machine.host.relax()
            timer.start(machine.host.now_ns() + delay)
            while vcpu.statistics.halt_wakeups < count:
                machine.host.relax()
            windows.append(vcpu.waiting.poll.window_ns)
        kept.append(replace(vcpu.statistics))
        vcpu.signal()

    machine.run(vcpu_task, sender)
    vcpu.statistics = kept[0]
    return windows


def test_nobody_polls_by_default() -> None:
    machine = polling()
    machine.vm.halt_poll_max_ns = Machine().vm.halt_poll_max_ns
    assert halts(machine, 5_000, 5_000) == [0, 0]
    assert machine.vcpu.statistics.halt_attempted_poll == 0
    assert machine.vcpu.statistics.halt_wait_ns >= 8_000


def test_the_window_grows_with_short_halts_up_to_the_maximum() -> None:
    machine = polling()
    assert halts(machine, 20_000, 30_000, 40_000, 45_000) == [
        GROW_START_NS,
        2 * GROW_START_NS,
        4 * GROW_START_NS,
        MAXIMUM,
    ]
    statistics = machine.vcpu.statistics
    assert (statistics.halt_attempted_poll, statistics.halt_successful_poll) == (3, 0)
    assert 70_000 <= statistics.halt_poll_fail_ns <= 71_000


def test_a_halt_within_the_window_is_a_success_and_leaves_it() -> None:
    machine = polling()
    assert halts(machine, 20_000, 5_000, 6_000) == [GROW_START_NS] * 3
    statistics = machine.vcpu.statistics
    assert (statistics.halt_attempted_poll, statistics.halt_successful_poll) == (2, 2)
    assert statistics.halt_poll_invalid == 0
    assert 9_000 <= statistics.halt_poll_success_ns <= 13_000
    assert statistics.blocks == 1, "of the first halt"


def test_a_long_halt_shrinks_it_to_nothing() -> None:
    machine = polling()
    assert halts(machine, 20_000, 30_000, MAXIMUM * 3, 20_000) == [GROW_START_NS, 2 * GROW_START_NS, 0, GROW_START_NS]


def test_a_wake_without_an_event_is_invalid_and_shrinks_it() -> None:
    machine = polling()
    machine.vcpu.mp_state = MpState.HALTED
    machine.vcpu.waiting.poll.window_ns = 2 * GROW_START_NS
    exits: list[object] = []
    machine.run(lambda: exits.append(machine.vcpu.run()), machine.vcpu.signal)
    assert exits == [Intr()]
    statistics = machine.vcpu.statistics
    assert (statistics.halt_attempted_poll, statistics.halt_successful_poll, statistics.halt_poll_invalid) == (1, 1, 1)
    assert machine.vcpu.waiting.poll.window_ns == 0


def test_a_smaller_maximum_holds_at_once_and_none_stops_it() -> None:
    machine = polling()
    machine.vcpu.waiting.poll.window_ns = 4 * GROW_START_NS
    machine.vm.enable_cap(Cap.HALT_POLL, 15_000)
    machine.vcpu.waiting.poll.begin(machine.vcpu)
    assert machine.vcpu.waiting.poll.window_ns == 15_000
    machine.vm.enable_cap(Cap.HALT_POLL, 0)
    assert machine.vcpu.waiting.poll.begin(machine.vcpu) == 0


@pytest.mark.parametrize("name", ["mp-state", "wait", "completion"])
def test_an_inactive_vtl_never_polls(name: str) -> None:
    machine = polling()
    machine.vcpu.waiting.poll.window_ns = MAXIMUM
    with pytest.raises(Deadlock):
        machine.run(lambda: DESIGNS[name].once(machine.vcpu))
    assert machine.host.now_ns() == 0
    assert machine.vcpu.statistics.halt_attempted_poll == 0


def test_a_processor_that_waits_to_be_started_never_polls() -> None:
    machine = polling()
    machine.vcpu.waiting.poll.window_ns = MAXIMUM
    machine.vcpu.mp_state = MpState.INIT_RECEIVED
    with pytest.raises(Deadlock):
        machine.run(machine.vcpu.run)
    assert machine.vcpu.statistics.halt_attempted_poll == 0


@pytest.mark.parametrize("arguments", [(-1,), (1 << 32,), (), (1, 2)])
def test_bad_arguments_are_refused(arguments: tuple[int, ...]) -> None:
    machine = polling()
    with pytest.raises(KvmError) as caught:
        machine.vm.enable_cap(Cap.HALT_POLL, *arguments)
    assert caught.value.errno == errno.EINVAL
    assert machine.vm.halt_poll_max_ns == MAXIMUM


def test_an_unknown_capability_is_refused() -> None:
    with pytest.raises(KvmError) as caught:
        polling().vm.enable_cap(99_999)
    assert caught.value.errno == errno.EINVAL


def test_statistics_begin_at_nothing() -> None:
    fresh = VcpuStatistics()
    assert (fresh.halt_attempted_poll, fresh.halt_poll_success_ns, fresh.halt_poll_fail_ns, fresh.halt_wait_ns) == (
        0,
    ) * 4
