"""Every vCPU out of `run` and in again (docs/design/kick.md)."""

from __future__ import annotations

from typing import Final

from vtlkit.checker.scenarios import Scenario
from vtlkit.checker.scenarios.rig import DONE, EOI, Rig, Script
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.host.api import RunnableHost
from vtlkit.kvm.kick_all import KickDesign
from vtlkit.kvm.kvm_run import Intr, Io
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86.apic import DeliveryMode

_VECTOR: Final = 0x41
_DESIGNS: Final = tuple(KickDesign)


class Watch:
    """What guest code may do when: each guest instruction that asks is checked against the kicks so far."""

    def __init__(self, host: RunnableHost, vcpus: int) -> None:
        self.out = host.cell(0, "kicks-that-hold")
        self.seen = [host.cell(0, "run-seen") for _ in range(vcpus)]
        """The last call of `run` in which each vCPU has executed something."""
        self.floor = [host.cell(0, "run-ended") for _ in range(vcpus)]
        """The last one that must have ended."""
        self.calls = [0] * vcpus
        """Belongs to the vCPU's task."""

    def check(self, number: int) -> None:
        """A guest instruction is being executed."""
        assert not self.out.load(), f"vCPU {number} executes while it is kicked"
        call = self.calls[number]
        assert call > self.floor[number].load(), f"vCPU {number} has not left its {call}. run"
        self.seen[number].store(call)

    def instruction(self, number: int) -> Op:
        return ops.Host(lambda: self.check(number))

    def user(self, vcpu: Vcpu, *, patient: bool) -> None:
        """Run a vCPU until its guest is done. `patient`: wait for the resume, and do not try in a loop."""
        while True:
            self.calls[vcpu.vcpu_id] += 1
            exit_ = vcpu.run()
            if isinstance(exit_, Io):
                return
            assert isinstance(exit_, Intr), exit_
            if patient:
                vcpu.wait_until_resumed()

    def kicker(self, rig: Rig, *, sticky: bool) -> None:
        """Kick and resume once, and say what that rules out."""
        rig.linger(60)
        ran = [seen.load() for seen in self.seen]
        rig.vm.kick_all_running_vcpus()
        for floor, call in zip(self.floor, ran, strict=True):
            if floor.load() < call:
                floor.store(call)
        if sticky:
            self.out.fetch_add(1)
            rig.linger(40)
            self.out.fetch_add(-1)
        rig.vm.resume_all_kicked_vcpus()


def _all(host: RunnableHost) -> None:
    """One vCPU computes, one halts until an interrupt that comes at any time; one kick of any design."""
    watch = Watch(host, 2)

    def busy(_engine: object) -> Script:
        for _ in range(4):
            yield watch.instruction(0)
            yield ops.Cpuid()
        yield ops.Out(DONE, 1, 0)

    def sleepy(_engine: object) -> Script:
        while True:
            yield ops.Hlt()
            yield watch.instruction(1)

    def handler(_engine: object, _event: Event) -> Script:
        yield EOI
        yield ops.Out(DONE, 1, 0)

    rig = Rig(host, [busy, sleepy], handlers={_VECTOR: handler})
    design = _DESIGNS[host.choose(len(_DESIGNS), "design")]
    rig.vm.set_kick_design(design)

    def kicker() -> None:
        watch.kicker(rig, sticky=design is KickDesign.STICKY)
        rig.vcpus[1].apic.accept_irq(DeliveryMode.FIXED, _VECTOR, 1, False)

    rig.run(
        lambda: watch.user(rig.vcpus[0], patient=False),
        lambda: watch.user(rig.vcpus[1], patient=True),
        kicker,
    )


def _two_kickers(host: RunnableHost) -> None:
    """A vCPU that computes until both kickers are through, and one that is created meanwhile."""
    watch = Watch(host, 2)
    through = host.cell(0, "kickers-through")

    def program(number: int) -> Script:
        engine = rig.vcpus[number].engine
        while through.load() < 2:
            yield watch.instruction(number)
            yield ops.Cpuid()
        assert engine.at_boundary
        yield ops.Out(DONE, 1, 0)

    rig = Rig(host, [lambda _engine: program(0), lambda _engine: program(1)], create=1)
    design = _DESIGNS[host.choose(len(_DESIGNS), "design")]
    rig.vm.set_kick_design(design)

    def kicker() -> None:
        watch.kicker(rig, sticky=design is KickDesign.STICKY)
        through.fetch_add(1)

    def late() -> None:
        rig.linger(60)
        watch.user(rig.create_vcpu(), patient=True)

    rig.run(lambda: watch.user(rig.vcpus[0], patient=True), late, kicker, kicker)


SCENARIOS = (
    Scenario("kick.all", "a kicked vCPU is out of the guest, stays out, and misses nothing", _all),
    Scenario(
        "kick.two-kickers", "two kicks at once, and a vCPU created meanwhile: nobody waits for ever", _two_kickers
    ),
)
