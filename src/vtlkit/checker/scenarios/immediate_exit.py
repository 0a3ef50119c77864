"""Forced exits against kicks, and the timer that is an exit against a vCPU that blocks or is in user space
(docs/design/immediate-exit.md)."""

from __future__ import annotations

from typing import Final

from vtlkit.checker.scenarios import Scenario
from vtlkit.checker.scenarios.rig import APIC_BASE, DONE, EOI, NMI, Rig, Script, recorder
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.kvm.kvm_run import Intr, Io, KvmRun
from vtlkit.x86.apic import APIC_LVTT, APIC_TDCR, APIC_TMICT, DeliveryMode
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.msr import MSR_STAR

_VENDORS: Final = ("svm", "vmx")
_VECTORS: Final = (0x31, 0x41)
_TIMER: Final = 0x51
_DIVIDE_BY_1: Final = 0xB
_NO_SUCH_MSR: Final = 0x12345
_AWAY: Final = DONE + 1
"""A port without a device: user space is away for a while."""


def _forced(host: RunnableHost) -> None:
    """Two interrupts, an NMI and a signal meet a guest that faults and asks devices: each is taken once, whatever is on
    its way, and a signal leaves no instruction unfinished."""
    seen: list[int] = []
    faults: list[int] = []

    def program(_engine: object) -> Script:
        while not {NMI, *_VECTORS} <= set(seen):
            # #GP from the hypervisor, which an NMI meets; its handler names a register that there is.
            yield ops.Set(_NO_SUCH_MSR, "rcx")
            yield ops.Wrmsr()
            # A signal meets what user space has still to answer.
            yield ops.In(_AWAY, 1)
        yield ops.Out(DONE, 1, 0)

    handlers = {vector: recorder(seen, EOI) for vector in _VECTORS} | {NMI: recorder(seen)}
    handlers[Vector.GP] = recorder(faults, ops.Set(MSR_STAR, "rcx"))
    rig = Rig(host, [program], handlers=handlers, vendor=_VENDORS[host.choose(len(_VENDORS), "vendor")])
    vcpu = rig.vcpus[0]
    exits: list[KvmRun] = []

    def user() -> None:
        while not (exits and isinstance(exits[-1], Io) and exits[-1].write):
            exits.append(vcpu.run())
            assert vcpu.engine.at_boundary or isinstance(exits[-1], Io), "a signal left an instruction unfinished"

    def sender() -> None:
        rig.linger(60)
        for vector in _VECTORS:
            vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)

    def others() -> None:
        rig.linger(60)
        vcpu.nmi()
        rig.linger(20)
        vcpu.signal()

    rig.run(user, sender, others)
    assert sorted(seen) == sorted((NMI, *_VECTORS)), f"the guest has seen {seen}"
    assert sum(isinstance(exit_, Intr) for exit_ in exits) + vcpu.take_signal() == 1, (
        "the signal was lost, or told twice"
    )


def _timer(host: RunnableHost) -> None:
    """The guest starts its timer, goes to user space and halts, an NMI in between: the timer wakes it all the same."""
    seen: list[int] = []
    count = 1 + host.choose(4_000, "count")
    work = 1 + host.choose(200, "work")

    def program(_engine: object) -> Script:
        yield ops.Write(APIC_BASE + APIC_TDCR, 4, _DIVIDE_BY_1)
        yield ops.Write(APIC_BASE + APIC_LVTT, 4, _TIMER)
        yield ops.Write(APIC_BASE + APIC_TMICT, 4, count)
        yield ops.Compute(work)
        yield ops.Out(_AWAY, 1, 0)
        while _TIMER not in seen:
            yield ops.Cli()
            if _TIMER not in seen:
                yield ops.Sti()
                yield ops.Hlt()
        yield ops.Out(DONE, 1, 0)

    handlers = {_TIMER: recorder(seen, EOI), NMI: recorder(seen)}
    rig = Rig(host, [program], handlers=handlers, vendor="vmx")
    vcpu = rig.vcpus[0]

    def user() -> None:
        while True:
            exit_ = vcpu.run()
            assert isinstance(exit_, Io), exit_
            if exit_.port == DONE:
                return
            rig.linger(20)

    def sender() -> None:
        rig.linger(60)
        vcpu.nmi()

    rig.run(user, sender)
    assert seen.count(_TIMER) == 1, f"the guest has seen {seen}"


SCENARIOS = (
    Scenario("exit.forced", "no event and no signal is lost to a forced exit", _forced),
    Scenario("exit.timer", "a timer that is an exit wakes a vCPU that halts or is in user space", _timer),
)
