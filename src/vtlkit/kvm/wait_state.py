"""What user space has said of how a vCPU waits, beyond its MP state; the types of `Vcpu.wait` (docs/design/wait.md).

No counterpart in KVM: the wait call and the blocking completion are proposals of the list. The state belongs to whoever
holds the vCPU's mutex, or has got the vCPU out of the hypervisor.
"""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING, Final

from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.halt_poll import HaltPoll

if TYPE_CHECKING:
    from vtlkit.kvm.kvm_run import Hyperv


class WaitType(enum.IntEnum):
    """What the caller waits for."""

    HALT = 0
    """What ends a HLT, whatever the MP state: RFLAGS.IF counts, unless the flags say otherwise."""
    INACTIVE_VTL = 1
    """What wakes an inactive VTL: RFLAGS.IF does not count, and exceptions wait for the VTL to be entered. No flags."""


class WaitFlags(enum.IntFlag):
    """KVM_WAIT's flags."""

    NONE = 0
    IGNORE_RFLAGS_IF = 1
    """An interrupt that RFLAGS.IF alone blocks is a wake event."""


class WaitResult(enum.Enum):
    """What `wait` returns."""

    WAKEUP = "wake event"
    """A wake event is pending. It has not been taken: `run` will deliver it, another `wait` return at once."""
    INTR = "interrupted"
    """EINTR: a signal, which has been taken, and no wake event; or a kick of all vCPUs, whatever is pending."""


_FLAGS_OF_TYPE: Final = {WaitType.HALT: WaitFlags.IGNORE_RFLAGS_IF, WaitType.INACTIVE_VTL: WaitFlags.NONE}


class WaitState:
    """How one vCPU waits, beyond its MP state."""

    __slots__ = ("completion", "flags", "poll", "type")

    def __init__(self) -> None:
        self.type: WaitType | None = None
        """The `wait` that is under way."""
        self.flags = WaitFlags.NONE
        self.completion: Hyperv | None = None
        """The VTL call or return whose completion blocks until a wake event, or until its `block` is cleared."""
        self.poll = HaltPoll()

    def reset(self) -> None:
        """RESET or INIT of the vCPU, which does not wait."""
        self.completion = None


def check_arguments(kind: int, flags: int) -> tuple[WaitType, WaitFlags]:
    """The arguments of `wait`, if they are good ones. Raises KvmError (EINVAL)."""
    if kind not in list(WaitType):
        raise KvmError(errno.EINVAL, f"{kind} is no type of wait")
    known = WaitType(kind)
    if flags & ~int(_FLAGS_OF_TYPE[known]):
        raise KvmError(errno.EINVAL, f"a wait of type {known.name} does not take flags {flags:#x}")
    return known, WaitFlags(flags)
