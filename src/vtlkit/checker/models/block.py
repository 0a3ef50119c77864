"""kvm_vcpu_block (virt/kvm/kvm_main.c) against rcuwait_wake_up (kernel/exit.c).

Left out: halt-polling, the timer, preemption, the scheduler's run queues; events are bits of one word. A waker's event
is stored with no order, as set_bit is: what orders it is rcuwait's own barrier.
"""

from __future__ import annotations

from functools import partial

from vtlkit.checker.kernel import Kernel, Sleeper, Variable
from vtlkit.host.api import Host

NO_RECHECK = "no-recheck"
"""The vCPU does not look again once it has said that it sleeps."""
NO_SLEEP_BARRIER = "no-sleep-barrier"
"""__set_current_state in place of set_current_state."""
NO_WAKE_BARRIER = "no-wake-barrier"
"""rcuwait_wake_up without smp_mb (B)."""
WAKE_FIRST = "wake-first"
"""A waker wakes, then stores its event."""


def block(host: Host, wakers: int, changed: str = "") -> None:
    """One vCPU handles an event of each waker, and sleeps where there is none."""
    kernel = Kernel(host)
    events, sleeper = kernel.word("events"), kernel.sleeper("vcpu")
    host.spawn(partial(_vcpu, events, sleeper, wakers, changed), "vcpu")
    for number in range(wakers):
        host.spawn(partial(_waker, events, sleeper, number, changed), f"waker {number}")


def _vcpu(events: Variable, sleeper: Sleeper, wakers: int, changed: str) -> None:
    handled = 0
    while handled != (1 << wakers) - 1:
        taken = events.read_once()
        if taken:
            taken = events.xchg(0)
            assert isinstance(taken, int)
            handled |= taken
        else:
            _block(events, sleeper, changed)


def _block(events: Variable, sleeper: Sleeper, changed: str) -> None:
    sleeper.prepare()
    while True:
        sleeper.set_current_state(barrier=changed != NO_SLEEP_BARRIER)
        if changed != NO_RECHECK:
            pending = events.read_once()
            if pending:
                break
        sleeper.schedule()
        if changed == NO_RECHECK:
            break
    sleeper.finish()


def _waker(events: Variable, sleeper: Sleeper, number: int, changed: str) -> None:
    if changed == WAKE_FIRST:
        sleeper.wake_up()
        events.set_bit(number)
        return
    events.set_bit(number)
    sleeper.wake_up(barrier=changed != NO_WAKE_BARRIER)
