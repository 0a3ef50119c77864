"""What of the Hyper-V interface ends a wait, and what does not: synthetic timers, event flags, the idle register."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.kvm.core_rig import DONE, Machine
from tests.unit.kvm.hyperv.timer_rig import offer_hyperv
from tests.unit.kvm.test_wait import VECTOR, halting, interrupt, lapic_timer, line, msi, nmi, raise_tpr
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Deadlock
from vtlkit.hvdef import msrs
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv.vcpu import HvVcpu
from vtlkit.kvm.kvm_run import Intr, Io, KvmRun, SystemEvent, SystemEventExit
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.x86.registers import RFLAGS_IF

SINT, EVENT_FLAGS = 2, 0x6000


def with_stimer(machine: Machine, *, masked: bool = False) -> None:
    """SINT 2 on VECTOR, and a periodic timer of 10 us on it."""
    vcpu = machine.vcpu
    offer_hyperv(vcpu)
    vcpu.set_guest_msr(msrs.HV_X64_MSR_SCONTROL, 1)
    vcpu.set_guest_msr(msrs.HV_X64_MSR_SIMP, 0x5000 | 1)
    vcpu.set_guest_msr(msrs.HV_X64_MSR_SIEFP, EVENT_FLAGS | 1)
    vcpu.set_guest_msr(msrs.HV_X64_MSR_SINT0 + SINT, VECTOR | (1 << 16 if masked else 0))
    vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_COUNT, 100)
    vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_CONFIG, SINT << 16 | 3)


@pytest.mark.parametrize("state", [MpState.HALTED, MpState.HV_INACTIVE_VTL])
def test_a_timer_whose_interrupt_can_be_taken_ends_the_wait(state: MpState) -> None:
    machine, log = halting(ops.Compute(5))
    machine.vcpu.mp_state = state
    machine.cpu.rflags |= RFLAGS_IF
    with_stimer(machine)
    exits: list[KvmRun] = []
    machine.run(lambda: exits.append(machine.vcpu.run()))
    if state is MpState.HALTED:
        assert isinstance(exits[0], Io)
        assert log == [VECTOR]
    else:
        assert exits == [SystemEventExit(SystemEvent.WAKEUP)]
        assert log == []


@pytest.mark.parametrize("state", [MpState.HALTED, MpState.HV_INACTIVE_VTL])
@pytest.mark.parametrize("obstacle", ["masked", "tpr"])
def test_a_timer_whose_interrupt_cannot_be_taken_ends_no_wait(state: MpState, obstacle: str) -> None:
    """Its own task serves the timer, tick after tick, and goes on waiting."""
    machine, log = halting()
    machine.vcpu.mp_state = state
    machine.cpu.rflags |= RFLAGS_IF
    with_stimer(machine, masked=obstacle == "masked")
    if obstacle == "tpr":
        raise_tpr(machine)
    exits: list[KvmRun] = []
    machine.host.spawn(lambda: exits.append(machine.vcpu.run()), "vcpu")
    machine.host.run(until=45_000)
    assert machine.vcpu.mp_state is state
    assert not exits
    assert not log
    assert machine.vm.memory.read(0x5000 + 256 * SINT, 4) == b"\x10\x00\x00\x80", "the message is there"
    assert machine.vcpu.statistics.halt_wakeups == 0
    machine.vcpu.signal()
    machine.host.run()
    assert [type(exit_) for exit_ in exits] == [Intr]


@pytest.mark.parametrize("masked", [True, False])
def test_event_flags_reach_a_halted_vcpu(masked: bool) -> None:
    machine, log = halting()
    machine.vcpu.mp_state = MpState.HALTED
    machine.cpu.rflags |= RFLAGS_IF
    with_stimer(machine)
    machine.vcpu.set_guest_msr(msrs.HV_X64_MSR_STIMER0_CONFIG, 0)
    if masked:
        raise_tpr(machine)
    exits: list[KvmRun] = []
    machine.host.spawn(lambda: exits.append(machine.vcpu.run()), "vcpu")
    machine.host.run(until=1000)
    assert machine.vcpu.hv.synic.signal_event(SINT, 9) == HvStatus.SUCCESS
    if masked:
        with pytest.raises(Deadlock):
            machine.host.run()
        assert not log
    else:
        with pytest.raises(Deadlock):
            machine.run(lambda: machine.vcpu.hv.synic.signal_event(SINT, 10))
        assert set(log) == {VECTOR}
    assert machine.vm.memory.read(EVENT_FLAGS + 256 * SINT + 1, 1)[0] & 2


def test_a_timer_faster_than_it_can_be_served_does_not_keep_a_signal_out(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, _log = halting()
    machine.vcpu.mp_state = MpState.HALTED
    with_stimer(machine, masked=True)
    vcpu = machine.vcpu
    served = 0

    def again(_hv: HvVcpu) -> None:
        nonlocal served
        served += 1
        if served == 50:
            vcpu.signal()
        vcpu.make_request(Req.HV_STIMER)

    monkeypatch.setattr(HvVcpu, "process_stimers", again)
    exits: list[KvmRun] = []
    vcpu.make_request(Req.HV_STIMER)
    machine.run(lambda: exits.append(vcpu.run()))
    assert [type(exit_) for exit_ in exits] == [Intr]
    assert served == 50


# --- the idle register ------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("msrs.guest-idle")
@pytest.mark.parametrize(
    ("wake", "early"),
    [(wake, early) for wake in (interrupt, line, msi, lapic_timer) for early in (True, False)] + [(nmi, False)],
)
def test_an_idle_vcpu_goes_on_whatever_if_says(wake: Callable[[Machine], None], early: bool) -> None:
    read_idle = (ops.Set(msrs.HV_X64_MSR_GUEST_IDLE, "rcx"), ops.Rdmsr())
    machine, log = halting(*read_idle, ops.Out(DONE, 1, 1), ops.Compute(5))
    offer_hyperv(machine.vcpu)
    exits: list[KvmRun] = []

    def user() -> None:
        exits.append(machine.vcpu.run())
        assert log == ([2] if wake is nmi else []), "RFLAGS.IF holds the interrupt back now"
        machine.cpu.rflags |= RFLAGS_IF
        exits.append(machine.vcpu.run())

    if early:
        wake(machine)
    machine.host.spawn(user, "vcpu")
    machine.host.run(until=30_000)
    if not early:
        assert machine.vcpu.mp_state is MpState.HALTED
        assert not exits
        wake(machine)
    machine.host.run()
    assert [exit_.data for exit_ in exits if isinstance(exit_, Io)] == [1, 0]
    assert log == [2 if wake is nmi else VECTOR]


@pytest.mark.tlfs("msrs.guest-idle")
def test_an_idle_vcpu_heeds_the_priority_and_a_halt_after_it_heeds_if() -> None:
    read_idle = (ops.Set(msrs.HV_X64_MSR_GUEST_IDLE, "rcx"), ops.Rdmsr())
    machine, log = halting(*read_idle, ops.Hlt(), ops.Out(DONE, 1, 1))
    offer_hyperv(machine.vcpu)
    raise_tpr(machine)
    exits: list[KvmRun] = []
    machine.host.spawn(lambda: exits.append(machine.vcpu.run()), "vcpu")
    machine.host.run(until=30_000)
    interrupt(machine)
    machine.host.run(until=60_000)
    assert machine.vcpu.statistics.exits["hlt"] == 0
    machine.vcpu.apic.set_tpr(0)
    machine.vcpu.kick()
    with pytest.raises(Deadlock):
        machine.host.run()
    assert machine.vcpu.statistics.exits["hlt"] == 1
    assert machine.vcpu.mp_state is MpState.HALTED
    assert not exits
    assert not log
