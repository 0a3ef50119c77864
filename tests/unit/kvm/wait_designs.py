"""The four ways in which an inactive VTL's vCPU waits, for tests that ask the same of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vtlkit.checker.scenarios.wait import Bell, set_block
from vtlkit.kvm.kvm_run import Intr, SystemEvent, SystemEventExit
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.wait_state import WaitResult, WaitType

WAKEUP = SystemEventExit(SystemEvent.WAKEUP)


@dataclass(frozen=True)
class Design:
    """`prepare` and `undo` stand around a series of waits; `wait` blocks: True for a wake event, False for EINTR."""

    name: str
    prepare: Callable[[Vcpu], None]
    wait: Callable[[Vcpu], bool]
    undo: Callable[[Vcpu], None]

    def __str__(self) -> str:
        return self.name

    def once(self, vcpu: Vcpu) -> bool:
        self.prepare(vcpu)
        try:
            return self.wait(vcpu)
        finally:
            self.undo(vcpu)


def _nothing(_vcpu: Vcpu) -> None: ...


def _run(vcpu: Vcpu) -> bool:
    exit_ = vcpu.run()
    assert exit_ == WAKEUP or isinstance(exit_, Intr), exit_
    return exit_ == WAKEUP


def _run_again(vcpu: Vcpu) -> bool:
    """A wake event uses the flag up."""
    if not vcpu.get_vcpu_events().hv_vtl_block:
        set_block(vcpu, True)
    return _run(vcpu)


def _call(vcpu: Vcpu) -> bool:
    return vcpu.wait(WaitType.INACTIVE_VTL) is WaitResult.WAKEUP


def _poll(vcpu: Vcpu) -> bool:
    """What a poll of the descriptor does, with a queue of the host's in place of the kernel's."""
    bell = Bell(vcpu)
    vcpu.host.smp_mb()
    try:
        while not vcpu.wake_event_pending():
            if vcpu.take_signal():
                return False
            bell.wait()
            bell.rung.xchg(False)
        return True
    finally:
        vcpu.listen(None)


def _declare(vcpu: Vcpu) -> None:
    vcpu.vtl_inactive = True


def _retract(vcpu: Vcpu) -> None:
    vcpu.vtl_inactive = False


DESIGNS = {
    design.name: design
    for design in (
        Design(
            "mp-state",
            lambda vcpu: vcpu.set_mp_state(MpState.HV_INACTIVE_VTL),
            _run,
            lambda vcpu: vcpu.set_mp_state(MpState.RUNNABLE),
        ),
        Design("wait", _nothing, _call, _nothing),
        Design("completion", lambda vcpu: set_block(vcpu, True), _run_again, lambda vcpu: set_block(vcpu, False)),
        Design("poll", _declare, _poll, _retract),
    )
}
