"""Interrupts, NMIs and INIT-SIPI from other tasks (docs/design/interrupts.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from vtlkit.checker.protocols.rig import CheckedRig
from vtlkit.checker.protocols.worlds.common import (
    broken,
    compute_for_ever,
    halt_for_ever,
    seen_by,
    settle,
    telling,
)
from vtlkit.checker.scenarios.rig import DONE, NMI, Script
from vtlkit.engine.scripted import ops
from vtlkit.host.api import Host
from vtlkit.kvm.ipi import DestMap
from vtlkit.kvm.lapic import LocalApic
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86.apic import DeliveryMode

_VECTORS: Final = (0x31, 0x41, 0x51)
_PAGE: Final = 0x80
"""Of the start-up IPI: where the guest begins."""


Spoil = Callable[[Vcpu], object]


def nothing(_vcpu: Vcpu) -> None:
    """The code that ships."""


def delivery(host: Host, *, interrupts: int, nmis: int, running: bool, spoil: Spoil = nothing) -> None:
    """A vCPU that halts, or computes, takes what so many senders send it, each once."""
    wanted = sorted([*_VECTORS[:interrupts], *[NMI] * nmis])
    program = compute_for_ever if running else halt_for_ever
    rig = CheckedRig(host, [program], handlers=telling(*wanted))
    vcpu = rig.vcpus[0]
    if not running:
        vcpu.set_mp_state(MpState.HALTED)
    settle(vcpu)
    spoil(vcpu)

    def run() -> None:
        seen = [seen_by(vcpu.run()) for _ in wanted]
        assert sorted(seen) == wanted, f"the guest has seen {seen}, sent were {wanted}"
        assert not vcpu.apic.irr.load(), "an interrupt is still requested"

    rig.spawn(run, "vcpu")
    for vector in _VECTORS[:interrupts]:
        send = partial(vcpu.apic.accept_irq, DeliveryMode.FIXED, vector, 1, False)
        rig.spawn(send, f"sender of {vector:#x}")
    for number in range(nmis):
        rig.spawn(vcpu.nmi, "sender of an NMI" if nmis == 1 else f"sender of NMI {number}")


def startup(host: Host, *, inits: int, sipis: int, running: bool, spoil: Spoil = nothing) -> None:
    """So many INITs and SIPIs, one after the other, to a vCPU that waits for them, or computes."""
    rig = CheckedRig(host, [compute_for_ever])
    vcpu = rig.vcpus[0]
    vcpu.engine.programs[_PAGE << 12] = _started  # type: ignore[attr-defined]
    vcpu.is_bsp = False
    if not running:
        vcpu.set_mp_state(MpState.UNINITIALIZED if inits else MpState.INIT_RECEIVED)
    settle(vcpu)
    spoil(vcpu)

    def run() -> None:
        assert seen_by(vcpu.run()) == _PAGE
        # SIPIs that come to a processor that runs are dropped.
        assert vcpu.mp_state is MpState.RUNNABLE

    def send() -> None:
        for _ in range(inits):
            vcpu.apic.accept_irq(DeliveryMode.INIT, 0, 1, False)
        for _ in range(sipis):
            vcpu.apic.accept_irq(DeliveryMode.STARTUP, _PAGE, 1, False)

    rig.spawn(run, "vcpu")
    rig.spawn(send, "sender")


def _started(_engine: object) -> Script:
    yield ops.Out(DONE, 1, _PAGE)


# --- known-bad ------------------------------------------------------------------------------------------------------


class _KicksFirst(LocalApic):
    """The bit is set when the vCPU has been kicked for it already."""

    __slots__ = ()

    def accept_irq(self, mode: int, vector: int, level: int, trig_level: bool, dest_map: DestMap | None = None) -> int:
        self._owner.make_request(Req.EVENT)
        self._owner.kick()
        self.irr.test_and_set(vector)
        return 1


class _MakesNoRequest(LocalApic):
    """The kick alone, which a vCPU that is not in the guest yet does not feel."""

    __slots__ = ()

    def accept_irq(self, mode: int, vector: int, level: int, trig_level: bool, dest_map: DestMap | None = None) -> int:
        self.irr.test_and_set(vector)
        self._owner.kick()
        return 1


class _RequestsFirst(LocalApic):
    """The request is made before the bit is there: who takes it in between finds nothing to inject."""

    __slots__ = ()

    def accept_irq(self, mode: int, vector: int, level: int, trig_level: bool, dest_map: DestMap | None = None) -> int:
        self._owner.make_request(Req.EVENT)
        self.irr.test_and_set(vector)
        self._owner.kick()
        return 1


def kick_first(vcpu: Vcpu) -> None:
    broken(vcpu.apic, _KicksFirst)


def no_request(vcpu: Vcpu) -> None:
    broken(vcpu.apic, _MakesNoRequest)


def request_first(vcpu: Vcpu) -> None:
    broken(vcpu.apic, _RequestsFirst)


class _KickedNotWoken(Vcpu):
    """An NMI is stored and requested, and only a processor in the guest is told."""

    def nmi(self) -> None:
        self.deliver_nmi()
        self.kick_running()


class _SipiBeforeVector(Vcpu):
    """The latch says that there is a SIPI before its vector is there."""

    def deliver_sipi(self, vector: int) -> None:
        self.events.apic_events.set(1)
        self.make_request(Req.EVENT)
        self.events.sipi_vector.store(vector)


def nmi_without_wake(vcpu: Vcpu) -> None:
    broken(vcpu, _KickedNotWoken)


def vector_last(vcpu: Vcpu) -> None:
    broken(vcpu, _SipiBeforeVector)


SPOILS: Final[Mapping[str, Spoil]] = {
    "": nothing,
    "kick-first": kick_first,
    "no-request": no_request,
    "request-first": request_first,
    "no-wake": nmi_without_wake,
    "vector-last": vector_last,
}
