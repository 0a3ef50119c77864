"""The worlds of the protocols `request.*`: a vCPU that enters, runs or blocks, and tasks that make requests of it."""

from __future__ import annotations

from functools import partial
from typing import Final

from vtlkit.checker.protocols.altered import Alter
from vtlkit.checker.protocols.rig import CheckedProcessor, CheckedRig, run_until_somebody_kicks
from vtlkit.checker.scenarios.rig import DONE, EOI, Script, script
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.host.api import Host
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.wait import block, has_events
from vtlkit.x86.apic import DeliveryMode

FIRST_VECTOR: Final = 0x41
VECTORS_APART: Final = 0x10
MOST_SENDERS: Final = 8


def events(host: Host, senders: int, alter: Alter) -> None:
    """Each sender interrupts a guest that computes until somebody kicks it; it ends when all interrupts have come."""
    vectors = [FIRST_VECTOR + VECTORS_APART * number for number in range(senders)]

    def program(engine: CheckedProcessor) -> Script:
        while True:
            yield run_until_somebody_kicks(engine)

    def handler(engine: CheckedProcessor, event: Event) -> Script:
        engine.taken.append(event.vector)
        yield EOI
        if set(engine.taken) == set(vectors):
            yield ops.Out(DONE, 1, 0)

    def user(vcpu: Vcpu) -> None:
        exit_ = vcpu.run()
        assert isinstance(exit_, Io), exit_

    rig = CheckedRig(host, [program], handlers=dict.fromkeys(vectors, handler))
    vcpu = rig.vcpus[0]
    alter(vcpu)
    rig.spawn(lambda: user(vcpu), "vcpu")
    for number, vector in enumerate(vectors):
        send = partial(vcpu.apic.accept_irq, DeliveryMode.FIXED, vector, 1, False)
        rig.spawn(send, f"sender {number}" if senders > 1 else "sender")


def unblock(host: Host, senders: int, alter: Alter) -> None:
    """A vCPU that blocks for something that is no wake event, until it is asked to look again; each sender has done
    something that it is to see."""
    done = host.cell(0, "done")
    rig = CheckedRig(host, [script()])
    vcpu = rig.vcpus[0]
    alter(vcpu)

    def user() -> None:
        with vcpu.mutex:
            while done.load() < senders:
                assert not block(vcpu, has_events), "a wake event has come"

    def sender() -> None:
        done.fetch_add(1)
        vcpu.make_request(Req.UNBLOCK)
        vcpu.kick()

    rig.spawn(user, "vcpu")
    for number in range(senders):
        rig.spawn(sender, f"sender {number}" if senders > 1 else "sender")
