"""What a vCPU counts. Counterpart: `struct kvm_vcpu_stat` of arch/x86/include/asm/kvm_host.h.

Written by the vCPU's task; other tasks may read numbers that are about to change.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from vtlkit.engine.api import PortOut

MANY_KICKED_ENTRIES: Final = 1000
"""`kicked_entries` from which on somebody has not waited for the resume, but called `run` in a loop."""


@dataclass(slots=True)
class VcpuStatistics:
    """Counters since creation."""

    exits: Counter[str] = field(default_factory=Counter)
    """Exits of the engine by name."""
    user_exits: Counter[str] = field(default_factory=Counter)
    """Exits to user space by reason."""
    cpuid_exits: int = 0
    answered_ports: int = 0
    """Accesses to ports that were answered inside the engine's run, and so are no exits to the run loop."""
    injected_interrupts: int = 0
    blocks: int = 0
    suspends: int = 0
    """Hypercalls that waited for a TLB whose flushes are inhibited, once each time they were executed."""
    suspended_turns: int = 0
    """Turns of the run loop of a vCPU that was suspended, and awake for an event that it could not take."""
    halt_wakeups: int = 0
    kicked_exits: int = 0
    """Calls of `run` that kick-all ended, those that it refused at once included."""
    kicked_entries: int = 0
    """Calls of `run` that came while the vCPU was kicked: many, if the caller does not wait for the resume."""
    halt_attempted_poll: int = 0
    """Halts that polled before they slept."""
    halt_successful_poll: int = 0
    """Those that did not have to sleep."""
    halt_poll_invalid: int = 0
    """Of the successful ones: a signal or UNBLOCK had come, and no wake event."""
    halt_poll_success_ns: int = 0
    """Time spent polling by halts that did not sleep, in ns of the host's clock."""
    halt_poll_fail_ns: int = 0
    """Time spent polling in vain."""
    halt_wait_ns: int = 0
    """Time that halts slept."""

    def all_exits(self) -> Counter[str]:
        """Engine exits by name, those of the fast path included."""
        total = Counter(self.exits)
        if self.cpuid_exits:
            total["cpuid"] += self.cpuid_exits
        if self.answered_ports:
            total[PortOut.name] += self.answered_ports
        return total
