"""Forced exits against kicks (docs/design/immediate-exit.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vtlkit.checker.protocols.rig import CheckedProcessor, CheckedRig
from vtlkit.checker.protocols.worlds.common import broken, compute_for_ever, seen_by, settle, tells
from vtlkit.checker.scenarios.rig import NMI, recorder
from vtlkit.engine.api import Exit
from vtlkit.host.api import Host
from vtlkit.kvm.kvm_run import Intr
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vendor.svm import SvmVendor
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.exceptions import Vector

_VECTOR: Final = 0x31


Spoil = Callable[[Vcpu], object]


def nothing(_vcpu: Vcpu) -> None:
    """The code that ships."""


def kick(host: Host, *, vendor: str, spoil: Spoil = nothing) -> None:
    """An exception and an NMI wait for the first entry, which is left at once behind the exception; an interrupt comes
    at any time. All three are taken, each once."""
    seen: list[int] = []
    rig = _two_events(host, seen, vendor)
    vcpu = rig.vcpus[0]
    spoil(vcpu)

    def run() -> None:
        assert seen_by(vcpu.run()) == _VECTOR
        assert sorted(seen) == sorted((Vector.UD, NMI)), f"the guest has taken {seen} beside the interrupt"

    rig.spawn(run, "vcpu")
    rig.spawn(lambda: vcpu.apic.accept_irq(DeliveryMode.FIXED, _VECTOR, 1, False), "sender")


def signal(host: Host, *, vendor: str, spoil: Spoil = nothing) -> None:
    """The same with a signal: `run` says so once, between two instructions, and loses no event."""
    seen: list[int] = []
    rig = _two_events(host, seen, vendor)
    vcpu = rig.vcpus[0]
    spoil(vcpu)

    def run() -> None:
        assert isinstance(vcpu.run(), Intr)
        assert not vcpu.signal_pending(), "the signal is told twice"
        event = vcpu.engine.injected()
        left = [*([] if event is None else [event.vector]), *[NMI] * vcpu.events.nmi_pending]
        queued = vcpu.events.exception
        left += [] if queued is None else [queued.vector]
        left += [NMI] * vcpu.events.nmi_queued.load()
        assert sorted(seen + left) == sorted((Vector.UD, NMI)), f"the guest has taken {seen}, left are {left}"

    rig.spawn(run, "vcpu")
    rig.spawn(vcpu.signal, "sender")


def _two_events(host: Host, seen: list[int], vendor: str) -> CheckedRig:
    handlers = {Vector.UD: recorder(seen), NMI: recorder(seen), _VECTOR: tells}
    rig = CheckedRig(host, [compute_for_ever], handlers=handlers, vendor=vendor)
    vcpu = rig.vcpus[0]
    settle(vcpu)
    vcpu.queue_exception(Vector.UD)
    vcpu.events.queue_nmi()
    vcpu.make_request(Req.EVENT)
    return rig


# --- known-bad ------------------------------------------------------------------------------------------------------


class _IgnoresKicks(CheckedProcessor):
    """A forced entry takes a kick for the interrupt that it was to send itself, and goes on."""

    def run(self, budget: int | None, *, force_immediate_exit: bool = False) -> Exit:
        if force_immediate_exit:
            self._kicked = False
        return super().run(budget)


class _InjectsTwice(SvmVendor):
    """The first event of an entry that was left at once is taken for one that was not delivered."""

    def __init__(self) -> None:
        self._again = True

    def vcpu_run(self, vcpu: Vcpu, budget: int | None, force_immediate_exit: bool) -> Exit:
        event = vcpu.engine.injected()
        reason = super().vcpu_run(vcpu, budget, force_immediate_exit)
        if force_immediate_exit and self._again:
            self._again, vcpu.events.interrupted = False, event
        return reason


def ignores_kicks(vcpu: Vcpu) -> None:
    broken(vcpu.engine, _IgnoresKicks)


def injects_twice(vcpu: Vcpu) -> None:
    vcpu.vendor = _InjectsTwice()


SPOILS: Final[Mapping[str, Spoil]] = {
    "": nothing,
    "ignored-kick": ignores_kicks,
    "injected-twice": injects_twice,
}
