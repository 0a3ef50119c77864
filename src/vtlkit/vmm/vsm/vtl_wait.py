"""How a processor hears of events for its inactive VTLs: four designs behind one protocol (docs/design/wait.md).

Asked for are the VTLs above the active one: an event for a lower one changes nothing. Poll hears of every kick, in the
sender's context, and looks itself. The three others have a task for each VTL above 0, which sits in the hypervisor
while its VTL is inactive and above the active one, and comes back with a wake event (`vtl_waiters`).

Where nothing is said of who calls, it is the processor's task.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vtlkit.kvm.uapi import Hyperv, Vcpu

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp


class VtlWait(enum.StrEnum):
    """The designs."""

    MP_STATE = "mp-state"
    """KVM_SET_MP_STATE to HV_INACTIVE_VTL, KVM_RUN, and KVM_SET_MP_STATE back."""
    WAIT = "wait"
    """The wait call."""
    COMPLETION = "completion"
    """A flag in the answer to VTL return: the next KVM_RUN blocks."""
    POLL = "poll"
    """Hear of it, as a poll of the vCPU's descriptor does, and look."""


class Waits:
    """The waits of one processor."""

    def __init__(self, vp: Vp) -> None:
        self.vp = vp

    @property
    def calls(self) -> int:
        """Calls into the hypervisor that the waits have cost: set_mp_state, run, wait, get and set_vcpu_events, looks.
        The `run` that enters a VTL is not among them. Any task."""
        raise NotImplementedError

    def added(self, level: int, vcpu: Vcpu) -> None:
        """A VTL has been enabled. Any task, which holds the partition's lock; `settle` follows."""
        raise NotImplementedError

    def answer(self, vcpu: Vcpu, exit_: Hyperv) -> None:
        """The VTL return that `vcpu` has made is about to be completed, and a lower VTL entered."""

    def entering(self, level: int) -> None:
        """VTL `level` is about to become active: nobody sits in its vCPU, or one below, when this returns. Blocks."""

    def changed(self, source: int, giver: Vcpu, newcomer: Vcpu) -> None:
        """The active VTL was `source` and is another one, behind a full barrier."""
        raise NotImplementedError

    def settle(self) -> None:
        """Wait for the VTLs above the active one, and for no others."""

    def pending(self, vcpu: Vcpu) -> bool:
        """Whether a VTL above the active one has a wake event."""
        raise NotImplementedError

    def hears(self, level: int, active: int) -> bool:
        """Whether the processor's task is to look after a kick of this inactive VTL's vCPU. Any task."""
        raise NotImplementedError

    @contextmanager
    def alone(self, vcpu: Vcpu) -> Iterator[None]:
        """Hold the vCPU's mutex, which nobody who waits for its VTL holds meanwhile; the vCPU is as if nobody did. Any
        task. Blocks."""
        with vcpu.mutex:
            yield

    def suspend(self) -> None:
        """Nobody sits in any vCPU, until `resume`. Blocks."""

    def resume(self) -> None:
        """Undo `suspend`, and end those that `reset` has retired. Blocks."""

    def reset(self) -> None:
        """All VTLs above 0 are gone. Any task; the processor's is parked, between `suspend` and `resume`."""

    def end(self) -> None:
        """The processor runs no more. Blocks."""


class Poll(Waits):
    """Hear of kicks (`Vcpu.listen`), and look (`Vcpu.wake_event_pending`)."""

    def __init__(self, vp: Vp) -> None:
        super().__init__(vp)
        self._looks = 0

    @property
    def calls(self) -> int:
        return self._looks

    def added(self, level: int, vcpu: Vcpu) -> None:
        vcpu.vtl_inactive = level != self.vp.active.load()

    def changed(self, source: int, giver: Vcpu, newcomer: Vcpu) -> None:
        giver.vtl_inactive, newcomer.vtl_inactive = True, False
        if source > self.vp.active.load() and self.pending(giver):
            self.vp.look(source)

    def pending(self, vcpu: Vcpu) -> bool:
        self._looks += 1
        return vcpu.wake_event_pending()

    def hears(self, level: int, active: int) -> bool:
        return True
