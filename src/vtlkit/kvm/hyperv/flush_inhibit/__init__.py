"""TLB-flush inhibit: what holds a flush hypercall up while its target's TLB may not change, behind one small contract.

Two designs keep it (docs/design/tlb-flush-inhibit.md): `waiting_on`, the default, and `posted`, the form in which it
was proposed for KVM. A VM has one of them, chosen before its first vCPU (`HvVm.set_flush_inhibit_design`).

Promise of both: once `set(True)` has returned, no flush completes whose requests come later; and no flusher sleeps for
ever on a vCPU that is not inhibited.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vtlkit.host.api import Host
    from vtlkit.kvm.hyperv.parameters import Hypercall
    from vtlkit.kvm.hyperv.vcpu import HvVcpu


class FlushInhibitDesign(enum.StrEnum):
    """Which of the two; the values are those of the command line."""

    WAITING_ON = "ours"
    """One word per flusher; requests before the look at the inhibit; UNBLOCK ends the wait."""
    POSTED = "posted"
    """`suspended` and `waiting_on`; the look before the requests; a grace period orders them; EVENT ends the wait."""


class FlushInhibit(ABC):
    """What one vCPU has of it, as a target and as a flusher."""

    @abstractmethod
    def set(self, inhibit: bool) -> None:
        """Whether flush hypercalls that target this vCPU are held up. From any task, outside `run`; `posted` blocks."""

    @abstractmethod
    def flush(self, call: Hypercall, targets: Sequence[HvVcpu]) -> bool:
        """Make the flush requests of a hypercall of this vCPU, in its task.

        False: it is held up, and the instruction is to be executed again (`call.reissue`). May block.
        """

    @abstractmethod
    def waits_for(self) -> HvVcpu | None:
        """The vCPU for whose sake this one's flush waits. From any task."""

    def suspended(self) -> bool:
        """Whether the vCPU may not enter the guest until its flush can be tried again. In its task."""
        return False

    def forget(self) -> None:  # noqa: B027 - a design that keeps nothing has nothing to forget
        """The vCPU is reset, by RESET or INIT: its hypercall is no more. In its task."""


class KernelSection(ABC):
    """The part of a vCPU's `run` in which it is neither in the guest nor blocked; a context manager around `run`."""

    @abstractmethod
    def __enter__(self) -> None: ...

    @abstractmethod
    def __exit__(self, *exc: object) -> None: ...

    @abstractmethod
    def leave(self) -> None:
        """The guest is about to be entered."""

    @abstractmethod
    def enter(self) -> None:
        """The guest has been left."""

    @abstractmethod
    def outside(self) -> AbstractContextManager[None]:
        """Around what blocks, in a section or not."""


_NOTHING: Final = nullcontext()


def inside(section: KernelSection | None) -> AbstractContextManager[None]:
    """Around what a vCPU does in `run`."""
    return _NOTHING if section is None else section


def outside(section: KernelSection | None) -> AbstractContextManager[None]:
    """Around what blocks there."""
    return _NOTHING if section is None else section.outside()


class FlushInhibits(ABC):
    """What a VM has of it: makes what its vCPUs have."""

    design: FlushInhibitDesign

    @abstractmethod
    def of(self, hv: HvVcpu) -> FlushInhibit: ...

    def section(self) -> KernelSection | None:
        """For the run loop of one vCPU: read sections of whatever this design waits for; None if it waits for nobody.
        Without one no vCPU of it is ever `suspended`."""
        return None


def flush_inhibits(design: FlushInhibitDesign, host: Host) -> FlushInhibits:
    """What a VM of this design has."""
    from vtlkit.kvm.hyperv.flush_inhibit import posted, waiting_on

    return posted.PostedDesign(host) if design is FlushInhibitDesign.POSTED else waiting_on.WaitingOnDesign()
