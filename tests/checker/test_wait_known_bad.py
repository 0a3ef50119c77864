"""What the scenarios of waiting are there to find: each broken way to wait is found by some seed."""

from __future__ import annotations

import pytest

from tests.sim.known_bad import fails
from vtlkit.checker.scenarios import simulator
from vtlkit.checker.scenarios.wait import Bell, Wait, _inactive
from vtlkit.kvm.kvm_run import Intr
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.wait_state import WaitType


def poll_that_empties_after_the_look(vcpu: Vcpu) -> None:
    """What comes between the two is forgotten."""
    vcpu.vtl_inactive = True
    bell = Bell(vcpu)
    while not vcpu.wake_event_pending():
        vcpu.host.relax()
        bell.rung.store(False)
        bell.wait()
    vcpu.listen(None)
    vcpu.vtl_inactive = False


def completion_that_takes_all_events_back(vcpu: Vcpu) -> None:
    """An NMI that comes between get and set is overwritten."""
    events = vcpu.get_vcpu_events()
    events.hv_vtl_block = True
    vcpu.set_vcpu_events(events)
    while isinstance(vcpu.run(), Intr):
        pass


def mp_state_that_goes_on_after_a_signal(vcpu: Vcpu) -> None:
    """EINTR is no wake event."""
    vcpu.set_mp_state(MpState.HV_INACTIVE_VTL)
    vcpu.run()
    vcpu.set_mp_state(MpState.RUNNABLE)


def call_that_minds_the_interrupt_flag(vcpu: Vcpu) -> None:
    while vcpu.wait(WaitType.HALT) is None:
        pass


@pytest.mark.parametrize(
    "wait",
    [
        poll_that_empties_after_the_look,
        completion_that_takes_all_events_back,
        mp_state_that_goes_on_after_a_signal,
        call_that_minds_the_interrupt_flag,
    ],
)
def test_it_is_found(wait: Wait) -> None:
    assert fails(lambda seed: _inactive(wait, simulator(seed)))
