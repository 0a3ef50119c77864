"""The local APIC's timer against a vCPU that blocks, and against its own next start (docs/design/interrupts.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vtlkit.checker.hosted.timers import CheckTimer, disarmed
from vtlkit.checker.ops import Order
from vtlkit.checker.protocols.rig import CheckedRig
from vtlkit.checker.protocols.worlds.common import broken, halt_for_ever, seen_by, settle, telling
from vtlkit.host.api import Host
from vtlkit.kvm.lapic_timer import LapicTimer
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86.apic import APIC_LVT_TIMER_TSCDEADLINE, APIC_LVTT, APIC_TMICT

VECTOR: Final = 0x51
_SOON: Final = 1000
"""Counts of the timer, or cycles of the guest's TSC."""


Spoil = Callable[[Vcpu], object]


def nothing(_vcpu: Vcpu) -> None:
    """The code that ships."""


def block(host: Host, *, deadline: bool, vendor: str, spoil: Spoil = nothing) -> None:
    """The timer is armed, and the vCPU halts: the interrupt is taken, once, whenever the timer expires."""
    vcpu = _armed(host, deadline=deadline, vendor=vendor)
    vcpu.set_mp_state(MpState.HALTED)
    settle(vcpu)
    spoil(vcpu)

    def run() -> None:
        assert seen_by(vcpu.run()) == VECTOR
        assert not vcpu.apic.irr.test(VECTOR), "the interrupt comes twice"
        assert not vcpu.apic.timer.pending.load(), "the timer has expired twice"

    host.spawn(run, "vcpu")


def again(host: Host, *, deadline: bool, cancel: bool, spoil: Spoil = nothing) -> None:
    """The timer is armed and, while it may be expiring, armed anew, or stopped. What expired before is forgotten; what
    was armed last comes, and nothing that was stopped."""
    vcpu = _armed(host, deadline=deadline, vendor="svm")
    settle(vcpu)
    spoil(vcpu)
    timer = vcpu.apic.timer

    def change() -> None:
        start = timer.set_tscdeadline if deadline else timer.set_initial_count
        start(0 if cancel else 2 * _SOON)
        if cancel:
            assert not vcpu.apic.pending_timer(), "a timer that was stopped has expired"
        else:
            host.wait_event(vcpu.wait_queue, vcpu.apic.pending_timer, interruptible=False)
            # The clock is a word here: it must not be read as it was before the expiry, which no clock would be.
            host.smp_rmb()
            due = vcpu.tsc_to_ns(2 * _SOON) if deadline else 2 * _SOON
            assert host.now_ns() >= due, "the timer has expired before its time"

    host.spawn(change, "vcpu")


def _armed(host: Host, *, deadline: bool, vendor: str) -> Vcpu:
    """A vCPU whose timer is armed."""
    rig = CheckedRig(host, [halt_for_ever], handlers=telling(VECTOR), vendor=vendor)
    vcpu = rig.vcpus[0]
    apic = vcpu.apic
    apic.timer.mode_mask |= APIC_LVT_TIMER_TSCDEADLINE
    apic.mmio_write(APIC_LVTT, 4, VECTOR | (APIC_LVT_TIMER_TSCDEADLINE if deadline else 0))
    if deadline:
        apic.set_tscdeadline(vcpu.guest_tsc() + _SOON)
    else:
        apic.mmio_write(APIC_TMICT, 4, _SOON)
    return vcpu


# --- known-bad ------------------------------------------------------------------------------------------------------


class _Forgets(LapicTimer):
    """A timer that was the processor's exit is none of the host's when the vCPU blocks."""

    __slots__ = ()

    def switch_to_sw_timer(self) -> None:
        self._in_software = True
        self._cancel_hv()


class _MarksLast(LapicTimer):
    """The expiry is marked when the vCPU has been kicked for it already."""

    __slots__ = ()

    def _apic_timer_fn(self) -> None:
        self._owner.make_request(Req.UNBLOCK)
        self._owner.kick()
        self.pending.store(1)


class _ForgetsFirst(LapicTimer):
    """An expiry that was not taken is forgotten before the timer is stopped, which may expire in between."""

    __slots__ = ()

    def set_tscdeadline(self, guest_tsc: int) -> None:
        self.pending.store(0)
        self._timer.cancel()
        self._tscdeadline = guest_tsc
        self._restart()


class _Hasty(CheckTimer):
    """A timer of the host whose `cancel` does not wait for the callback."""

    __slots__ = ()

    def cancel(self) -> bool:
        return self._armed.update(disarmed, Order.ACQ_REL, label="cancel") != (None, False)


def _timer(vcpu: Vcpu, kind: type) -> None:
    old = vcpu.apic.timer
    callback = old._timer._callback  # type: ignore[attr-defined]
    assert callback.__self__ is old
    broken(old, kind)
    old._timer._callback = old._apic_timer_fn


def forgets(vcpu: Vcpu) -> None:
    _timer(vcpu, _Forgets)


def marks_last(vcpu: Vcpu) -> None:
    _timer(vcpu, _MarksLast)


def forgets_first(vcpu: Vcpu) -> None:
    _timer(vcpu, _ForgetsFirst)


def hasty(vcpu: Vcpu) -> None:
    broken(vcpu.apic.timer._timer, _Hasty)


SPOILS: Final[Mapping[str, Spoil]] = {
    "": nothing,
    "forgotten": forgets,
    "mark-last": marks_last,
    "forget-first": forgets_first,
    "hasty-cancel": hasty,
}
