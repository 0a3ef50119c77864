"""Halt-polling: before a halted vCPU sleeps, it looks for a while whether its wake event is about to come.

Mirrors `kvm_vcpu_halt`, `grow_halt_poll_ns`, `shrink_halt_poll_ns` and `update_halt_poll_stats` of virt/kvm/kvm_main.c,
with the defaults of their module parameters. Only a halt polls: who blocks for another reason has waited already.

`window_ns` and the statistics belong to the vCPU's own task; `Vm.halt_poll_max_ns` may change at any time. The default
maximum is 0, no polling: a task that polls here needs the interpreter lock that the sender of its event waits for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

GROW: Final = 2
"""By what the window is multiplied (halt_poll_ns_grow)."""
GROW_START_NS: Final = 10_000
"""The first window (halt_poll_ns_grow_start)."""


class HaltPoll:
    """How long one vCPU polls before it sleeps."""

    __slots__ = ("window_ns",)

    def __init__(self) -> None:
        self.window_ns = 0

    def begin(self, vcpu: Vcpu) -> int:
        """How long to poll now, in ns; 0 is not at all."""
        maximum = vcpu.vm.halt_poll_max_ns
        if self.window_ns > maximum:
            self.window_ns = maximum
        return self.window_ns

    def polled(self, vcpu: Vcpu, taken_ns: int, *, found: bool, valid: bool) -> None:
        """Count a halt that polled for `taken_ns`. `found`: it did not sleep; `valid`: a wake event ended it."""
        statistics = vcpu.statistics
        statistics.halt_attempted_poll += 1
        if found:
            statistics.halt_successful_poll += 1
            statistics.halt_poll_success_ns += taken_ns
        else:
            statistics.halt_poll_fail_ns += taken_ns
        if found and not valid:
            statistics.halt_poll_invalid += 1

    def adjust(self, vcpu: Vcpu, halted_ns: int, *, valid: bool) -> None:
        """A halt of `halted_ns` is over: choose the next one's window.

        A halt that the window covered leaves it as it is; a short one that it did not cover lets it grow; one longer
        than any window could be, or one that no wake event ended, makes polling pointless.
        """
        maximum = vcpu.vm.halt_poll_max_ns
        if not valid or not maximum:
            self.window_ns = 0
        elif halted_ns <= self.window_ns:
            return
        elif self.window_ns and halted_ns > maximum:
            self.window_ns = 0
        elif self.window_ns < maximum and halted_ns < maximum:
            self.window_ns = min(max(self.window_ns * GROW, GROW_START_NS), maximum)
