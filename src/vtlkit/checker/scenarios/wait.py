"""The four ways to block an inactive VTL's vCPU, each against its wake events and against a kick (docs/design/wait.md).

User space waits until it has been told of a wake event, then lets the vCPU run and take what has come; and begins anew,
until all has been taken. Somebody else interrupts the wait for no reason meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from vtlkit.checker.scenarios import Scenario
from vtlkit.checker.scenarios.rig import DONE, EOI, NMI, Rig, Script
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.kvm.kvm_run import Intr, Io, SystemEvent, SystemEventExit
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vcpu_events import EventsValid
from vtlkit.kvm.wait_state import WaitResult, WaitType
from vtlkit.x86.apic import DeliveryMode

_VECTOR: Final = 0x41
_ALL: Final = {NMI, _VECTOR}
_WAKEUP: Final = SystemEventExit(SystemEvent.WAKEUP)

Wait = Callable[[Vcpu], None]
"""Blocks until a wake event is pending; the vCPU may run after it."""


def _mp_state(vcpu: Vcpu) -> None:
    vcpu.set_mp_state(MpState.HV_INACTIVE_VTL)
    while isinstance(exit_ := vcpu.run(), Intr):
        assert vcpu.get_mp_state() is MpState.HV_INACTIVE_VTL
    assert exit_ == _WAKEUP, exit_
    vcpu.set_mp_state(MpState.RUNNABLE)


def _call(vcpu: Vcpu) -> None:
    while vcpu.wait(WaitType.INACTIVE_VTL) is WaitResult.INTR:
        pass


def set_block(vcpu: Vcpu, block: bool) -> None:
    """Have the completion of the vCPU's last exit block, or not."""
    events = vcpu.get_vcpu_events()
    events.hv_vtl_block = block
    vcpu.set_vcpu_events(events, EventsValid.HV_VTL_BLOCK)


def _completion(vcpu: Vcpu) -> None:
    set_block(vcpu, True)
    while isinstance(exit_ := vcpu.run(), Intr):
        assert vcpu.get_vcpu_events().hv_vtl_block
    assert exit_ == _WAKEUP, exit_


class Bell:
    """Stands for the descriptor, which is told in the same place: wakes who polls."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._host = vcpu.host
        self._queue = vcpu.host.wait_queue("poll")
        self.rung = vcpu.host.cell(False, "rung")
        vcpu.listen(self._ring)

    def _ring(self) -> None:
        self.rung.store(True)
        self._queue.wake()

    def wait(self) -> None:
        """Until it has rung."""
        self._host.wait_event(self._queue, self.rung.load, interruptible=False)


def _poll(vcpu: Vcpu) -> None:
    vcpu.vtl_inactive = True
    bell = Bell(vcpu)
    vcpu.host.smp_mb()
    while not vcpu.wake_event_pending():
        bell.wait()
        # Before the look: what comes after it rings anew.
        bell.rung.xchg(False)
    vcpu.listen(None)
    vcpu.vtl_inactive = False


def _inactive(wait: Wait, host: RunnableHost) -> None:
    """RFLAGS.IF is clear while the vCPU waits, and set while it runs."""
    seen: list[int] = []

    def program(_engine: object) -> Script:
        while True:
            yield ops.Sti()
            yield ops.Compute(1)
            yield ops.Cli()
            yield ops.Out(DONE, 1, 0)

    def handler(_engine: object, event: Event) -> Script:
        seen.append(event.vector)
        return body(event.vector)

    def body(vector: int) -> Script:
        if vector != NMI:
            yield EOI
        else:
            yield ops.Compute(1)

    rig = Rig(host, [program], handlers=dict.fromkeys(_ALL, handler), interrupts=False)
    vcpu = rig.vcpus[0]
    rounds = 0

    def user() -> None:
        nonlocal rounds
        while set(seen) != _ALL:
            wait(vcpu)
            while not isinstance(exit_ := vcpu.run(), Io):
                assert isinstance(exit_, Intr), exit_
            assert vcpu.complete_exit() is None
            rounds += 1

    interrupt = partial(vcpu.apic.accept_irq, DeliveryMode.FIXED, _VECTOR, 1, False)
    rig.run(user, *rig.senders(120, interrupt, vcpu.nmi, vcpu.signal))
    assert sorted(seen) == sorted(_ALL), f"the guest has seen {seen}"
    assert rounds <= len(_ALL), f"told of {rounds} wake events"


SCENARIOS = tuple(
    Scenario(
        f"wait.{name}", f"an inactive VTL that waits by {words} sleeps through no wake event", partial(_inactive, way)
    )
    for name, words, way in (
        ("mp-state", "MP state", _mp_state),
        ("call", "the wait call", _call),
        ("completion", "a completion that blocks", _completion),
        ("poll", "polling", _poll),
    )
)
