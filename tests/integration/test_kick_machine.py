"""A machine whose guest has VTLs goes on as if nothing had been, however often all of its vCPUs are kicked."""

from __future__ import annotations

import pytest

from tests.conformance import devkvm_here
from vtlkit import guests
from vtlkit.engine.api import EngineFactory
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.uapi import KickDesign
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.machine import Machine, Outcome

MEMORY = 64 << 20


def run(host: RunnableHost, engines: EngineFactory, design: KickDesign | None) -> tuple[Machine, str]:
    """The demonstration guest on two processors; with a design, a task kicks whatever VTL there is all the time."""
    console = bytearray()
    machine = Machine(MachineConfig(cpus=2, memory=MEMORY), host, engines, console.extend)
    machine.load(guests.path("demo"))

    def kicker() -> None:
        assert design is not None
        while True:
            for vtl in machine.partition.vtls.values():
                if vtl.vm.kicks.design is not design:
                    vtl.vm.set_kick_design(design)
                vtl.vm.kick_all_running_vcpus()
                for _ in range(3):
                    host.relax()
                vtl.vm.resume_all_kicked_vcpus()
                queue.prepare()
                host.schedule(host.now_ns() + 20_000)
                queue.finish()

    queue = host.wait_queue("kicker")
    if design is not None:
        host.spawn(kicker, "kicker", daemon=True)
    result = machine.run()
    engines.close()
    assert result.outcome is Outcome.POWER_OFF
    return machine, console.decode()


@pytest.mark.parametrize("design", KickDesign)
def test_the_guest_notices_nothing(design: KickDesign) -> None:
    _, quiet = run(Simulator(), UnicornFactory(), None)
    machine, kicked = run(Simulator(), UnicornFactory(), design)
    assert sorted(map(shape, kicked.splitlines())) == sorted(map(shape, quiet.splitlines()))
    statistics = list(machine.partition.statistics())
    exits = sum(each.kicked_exits for each in statistics)
    assert exits > 20
    if design is KickDesign.STICKY:
        # The VPs sleep until the resume, and do not try again and again.
        assert sum(each.kicked_entries for each in statistics) <= exits // 2


def shape(line: str) -> str:
    """A line without its numbers, which are times."""
    return "".join(" " if character in "0123456789abcdefx" else character for character in line)


@pytest.mark.parametrize("design", KickDesign)
def test_on_kvm(design: KickDesign) -> None:
    if (reason := devkvm_here.why_not()) is not None:
        pytest.skip(reason)
    with ThreadHost() as host:
        machine, _ = run(host, DevKvmFactory(), design)
    assert sum(each.kicked_exits for each in machine.partition.statistics()) > 0


def test_on_threads() -> None:
    machine, _ = run(ThreadHost(), UnicornFactory(counting=False, threaded=True), KickDesign.STICKY)
    assert sum(each.kicked_exits for each in machine.partition.statistics()) > 0
