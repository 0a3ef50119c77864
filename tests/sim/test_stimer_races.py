"""HV_STIMER against a vCPU that sleeps, under adversarial schedules (docs/design/stimer.md).

The vCPU's own task does what the request asks for, between two rounds of its wait: nothing that was asked for may be
left undone while it sleeps, and an interrupt that cannot be taken wakes nobody. Loops that look at the request in the
wrong place, and a callback in the wrong order, are caught.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.sim.test_run_loop import linger
from tests.unit.kvm.core_rig import Machine
from tests.unit.kvm.hyperv.timer_rig import ENABLED, PERIODIC, direct, offer_hyperv, sint
from tests.unit.vmm.vsm.vsm_rig import Guest, VsmRig
from tests.unit.vmm.vsm.vsm_rig import Script as VtlScript
from vtlkit.checker.scenarios.rig import halting
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.host.api import Timer
from vtlkit.host.sim import Deadlock, Simulator
from vtlkit.hvdef import msrs
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm import wait
from vtlkit.kvm.hyperv.stimer import SyntheticTimer
from vtlkit.kvm.kvm_run import Io, KvmRun, SystemEvent, SystemEventExit
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86.registers import RFLAGS_IF

SEEDS = range(200)
TIMER, FLAGS, MESSAGE = 0x51, 0x61, 0x71
MESSAGES, EVENT_FLAGS = 0x5000, 0x6000
ALL_FLAGS = 0b1110


class OtherCpuTimer(Timer):
    """A timer whose callback runs on another processor: a task, whose steps mix with everybody's."""

    def __init__(self, host: Simulator, callback: Callable[[], None], name: str) -> None:
        self._host = host
        self._callback = callback
        self._name = name
        self._starts = 0
        self._deadline: int | None = None
        self._firing = False

    def start(self, deadline_ns: int) -> None:
        self._starts += 1
        self._deadline = deadline_ns
        start = self._starts
        self._host.spawn(lambda: self._wait(start, deadline_ns), self._name, daemon=True)

    def _wait(self, start: int, deadline_ns: int) -> None:
        host = self._host
        host.wait_event(host.wait_queue(self._name), lambda: False, deadline_ns=deadline_ns)
        if self._starts == start:
            self._deadline = None
            self._firing = True
            self._callback()
            self._firing = False

    def cancel(self) -> bool:
        self._starts += 1
        armed = self.armed()
        self._deadline = None
        while self._firing:
            self._host.relax()
        return armed

    def armed(self) -> bool:
        return self._deadline is not None

    def deadline_ns(self) -> int | None:
        return self._deadline


class OtherCpus(Simulator):
    """A simulator with such timers."""

    def timer(self, callback: Callable[[], None], name: str) -> Timer:
        return OtherCpuTimer(self, callback, name)


def set_up(vcpu: Vcpu) -> None:
    """SINT 1 for event flags, SINT 2 for a timer's messages."""
    offer_hyperv(vcpu)
    vcpu.set_guest_msr(msrs.HV_X64_MSR_SCONTROL, 1)
    vcpu.set_guest_msr(msrs.HV_X64_MSR_SIMP, MESSAGES | 1)
    vcpu.set_guest_msr(msrs.HV_X64_MSR_SIEFP, EVENT_FLAGS | 1)
    vcpu.set_guest_msr(msrs.HV_X64_MSR_SINT0 + 1, FLAGS)
    vcpu.set_guest_msr(msrs.HV_X64_MSR_SINT0 + 2, MESSAGE)


def start(vcpu: Vcpu, timer: int, config: int, count: int) -> None:
    vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_COUNT + 2 * timer, count)
    vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_CONFIG + 2 * timer, config | ENABLED)


def flags(machine: Machine) -> int:
    """The first byte of SINT 1's event flags."""
    return machine.vm.memory.read(EVENT_FLAGS + 256, 1)[0]


def signaller(machine: Machine, flag: int) -> Callable[[], None]:
    def signal() -> None:
        linger(machine, 200)
        assert machine.vcpu.hv.synic.signal_event(1, flag) == HvStatus.SUCCESS

    return signal


def halting_guest(seed: int) -> tuple[Machine, list[int]]:
    """Halts whenever it can, until it has seen a direct timer, a timer's message and ALL_FLAGS event flags."""
    seen: list[int] = []

    program, handlers = halting(seen, (TIMER, FLAGS, MESSAGE), lambda: flags(machine) == ALL_FLAGS)
    machine = Machine(program, handlers=handlers, host=OtherCpus(seed=seed, instrument=True))
    machine.cpu.rflags |= RFLAGS_IF
    set_up(machine.vcpu)
    return machine, seen


def sleep_and_expire(seed: int) -> None:
    machine, seen = halting_guest(seed)
    vcpu = machine.vcpu
    exits: list[KvmRun] = []
    start(vcpu, 0, direct(TIMER), 10 + seed % 37)
    start(vcpu, 1, sint(2), 10 + seed % 53)
    machine.run(lambda: exits.append(vcpu.run()), *(signaller(machine, flag) for flag in (1, 2, 3)))
    assert [type(exit_) for exit_ in exits] == [Io]
    assert set(seen) == {TIMER, FLAGS, MESSAGE}
    assert seen.count(TIMER) == seen.count(MESSAGE) == 1
    assert flags(machine) == ALL_FLAGS


def sleep_and_expire_every(seeds: range) -> None:
    for seed in seeds:
        sleep_and_expire(seed)


@pytest.mark.parametrize("first", range(0, len(SEEDS), 50))
def test_no_expiry_and_no_event_flag_is_lost_to_a_sleeper(first: int) -> None:
    sleep_and_expire_every(SEEDS[first : first + 50])


@pytest.mark.parametrize("first", range(0, len(SEEDS), 50))
def test_what_cannot_be_taken_is_done_and_wakes_nobody(first: int) -> None:
    """Held back by the TPR, of a halted vCPU and of an inactive VTL: the flag is set, the ticks are served."""
    for seed in SEEDS[first : first + 50]:
        machine, seen = halting_guest(seed)
        vcpu = machine.vcpu
        vcpu.mp_state = MpState.HV_INACTIVE_VTL if seed % 2 else MpState.HALTED
        vcpu.apic.set_tpr(0xF)
        start(vcpu, 1, sint(2) | PERIODIC, 40)
        with pytest.raises(Deadlock, match="vm-vcpu0-wait"):
            # The timer's second message finds its slot busy: from then on nothing happens any more.
            machine.run(vcpu.run, signaller(machine, 5))
        assert not seen
        assert vcpu.mp_state is (MpState.HV_INACTIVE_VTL if seed % 2 else MpState.HALTED)
        assert flags(machine) == 1 << 5
        assert vcpu.hv.stimers[1].message_waiting
        assert not vcpu.requests.test(Req.HV_STIMER)


def test_an_inactive_vtl_wakes_once_the_priority_lets_the_interrupt_through() -> None:
    for seed in SEEDS:
        machine, _seen = halting_guest(seed)
        vcpu = machine.vcpu
        vcpu.mp_state = MpState.HV_INACTIVE_VTL
        vcpu.apic.set_tpr(TIMER >> 4)
        start(vcpu, 0, direct(TIMER), 30)
        exits: list[KvmRun] = []

        def user(vcpu: Vcpu = vcpu, exits: list[KvmRun] = exits) -> None:
            exits.append(vcpu.run())

        machine.run(user, signaller(machine, 5))
        assert exits == [SystemEventExit(SystemEvent.WAKEUP)]
        assert vcpu.apic.has_interrupt() == FLAGS


# --- an inactive VTL of a processor -----------------------------------------------------------------------------------


ROUNDS = 4


def timer_of_an_inactive_vtl(seed: int) -> None:
    """VTL 1 sets its timer and gives way; VTL 0 halts for good. Nothing but the timer ends the halt."""

    def vtl1(guest: Guest) -> VtlScript:
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from guest.wrmsr(msrs.HV_X64_MSR_STIMER0_COUNT, 100 + seed % 40)
        yield from guest.wrmsr(msrs.HV_X64_MSR_STIMER0_CONFIG, direct(TIMER) | PERIODIC | ENABLED)
        while True:
            yield from guest.vtl_return()

    def vtl0(guest: Guest) -> VtlScript:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Cli()
        while True:
            yield ops.Hlt() if seed % 2 else ops.Compute(20)

    def handler(guest: Guest, _event: Event) -> VtlScript:
        if len(rig.taken) >= ROUNDS:
            yield from guest.end()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1}, host=OtherCpus(seed=seed, instrument=True, slice_ns=300))
    rig.handlers[1, TIMER] = handler
    rig.run()
    assert {(taken.vtl, taken.vector) for taken in rig.taken} == {(1, TIMER)}


@pytest.mark.parametrize("first", range(0, len(SEEDS), 50))
def test_no_expiry_for_an_inactive_vtl_is_lost(first: int) -> None:
    for seed in SEEDS[first : first + 50]:
        timer_of_an_inactive_vtl(seed)


def test_a_look_at_an_inactive_vtl_that_does_not_serve_its_timers_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vcpu, "wake_event_pending", wait.has_events)
    with pytest.raises(Deadlock):
        timer_of_an_inactive_vtl(1)


# --- known-bad variants -----------------------------------------------------------------------------------------------


def process_then_sleep(vcpu: Vcpu, _ready: object = None) -> bool:
    """Looks at the request before it is in the queue, and not again."""
    while True:
        wait.process_stimers(vcpu)
        vcpu.wait_queue.prepare()
        ended = wait.check_block(vcpu)
        if ended is not wait.Ended.NOT_YET:
            vcpu.wait_queue.finish()
            return ended is wait.Ended.RUNNABLE
        vcpu.host.schedule()


def fired_backwards(timer: Any) -> None:
    """Kicks first: the sleeper that it wakes looks too early."""
    timer._hv.vcpu.kick()
    timer._hv.vcpu.host.relax()
    timer._expired.store(True)
    timer._hv.vcpu.requests.set(Req.HV_STIMER)


def assert_caught(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, bad: Callable[..., object]) -> None:
    monkeypatch.setattr(owner, name, bad)
    with pytest.raises(Deadlock, match="vm-vcpu0-wait"):
        sleep_and_expire_every(range(3000))


def test_processing_before_queueing_only_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(monkeypatch, wait, "_block", process_then_sleep)


def test_a_callback_that_kicks_first_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(monkeypatch, SyntheticTimer, "_fired", fired_backwards)
