"""A halted vCPU and its wake events (docs/design/wait.md)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from vtlkit.checker.scenarios import Scenario
from vtlkit.checker.scenarios.rig import NMI, Rig, halting
from vtlkit.host.api import RunnableHost
from vtlkit.kvm.kvm_run import Io
from vtlkit.x86.apic import DeliveryMode

_VECTORS: Final = (0x31, 0x41, 0x51)
_EVENTS: Final = (NMI, *_VECTORS)


def _halt(host: RunnableHost) -> None:
    """A guest halts whenever it can, and goes to user space once it has seen every event; each is sent once."""
    seen: list[int] = []

    program, handlers = halting(seen, _EVENTS)
    rig = Rig(host, [program], handlers=handlers)
    vcpu = rig.vcpus[0]

    def accept(vector: int) -> None:
        vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)

    timer = host.timer(partial(accept, _VECTORS[2]), "timer")
    wakers: list[Callable[[], object]] = [
        partial(accept, _VECTORS[0]),
        partial(accept, _VECTORS[1]),
        vcpu.nmi,
        lambda: timer.start(100),
    ]

    exits: list[object] = []
    rig.run(lambda: exits.append(vcpu.run()), *rig.senders(200, *wakers))
    assert [type(exit_) for exit_ in exits] == [Io], exits
    assert sorted(seen) == sorted(_EVENTS), f"the guest has seen {seen}"


SCENARIOS = (Scenario("wait.halt", "a halted vCPU sleeps through no wake event", _halt),)
