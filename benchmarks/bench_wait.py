"""The four ways to wait for an inactive VTL: what a visit of VTL1 takes, and from an event to VTL1's first instruction.

Cases compare each design with polling, on the simulator (host calls and task switches are real work there too) and on
threads. `python -m benchmarks.bench_wait` prints the counts beside each other: calls into the hypervisor, task switches
and time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final, TypeAlias

from tests.unit.vmm.vsm.vsm_rig import Body, Guest, Script, VsmRig
from vtlkit.cli.measure import Case
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ScriptedEngine, ops
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.vmm.vsm.vtl_wait import VtlWait

MakeHost: TypeAlias = Callable[[], AbstractContextManager[RunnableHost]]
VISITS: Final = 300
WAKES: Final = 200
_SETTLE: Final = 10
_UNBOUNDED: Final = 1 << 62
VECTOR: Final = 0x60


def _uncounted(world: VsmRig) -> None:
    """Engines run until something exits: this host gives them no budgets."""
    create = world.factory.create

    def unbounded(name: str) -> ScriptedEngine:
        engine = create(name)
        engine.left = _UNBOUNDED
        return engine

    world.factory.create = unbounded  # type: ignore[method-assign, assignment]
    for vcpu in world.partition.all_vcpus():
        engine = vcpu.engine
        assert isinstance(engine, ScriptedEngine)
        engine.left = _UNBOUNDED


def _pause(guest: Guest) -> Script:
    """Whoever waits for VTL1 has time to sit down."""

    def body() -> None:
        for _ in range(_SETTLE):
            guest.rig.partition.host.relax()

    yield ops.Host(body)


def visiting(_host: RunnableHost) -> dict[tuple[int, int], Body]:
    """VTL0 calls VTL1, which returns: two switches a visit."""

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        for _ in range(VISITS):
            yield from _pause(guest)
            begin = time.perf_counter()
            yield from guest.vtl_call()
            guest.note(time.perf_counter() - begin)
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        while True:
            yield from guest.vtl_return()

    return {(0, 0): vtl0, (0, 1): vtl1}


def waking(host: RunnableHost) -> dict[tuple[int, int], Body]:
    """VTL0 halts; VP 1 sends VTL1 of VP 0 interrupts, each when the one before has been taken."""

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        guest.note("ready")
        while True:
            yield ops.Hlt()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield ops.Sti()
        while True:
            yield from guest.vtl_return()

    def sender(guest: Guest) -> Script:
        taken = guest.rig.taken
        while "ready" not in guest.rig.log:
            yield ops.Host(host.relax)
        apic = guest.rig.partition.vps[0].vcpus[1].apic
        entered: list[float] = []

        def handler(_guest: Guest, _event: Event) -> Script:
            entered.append(time.perf_counter())
            yield ops.Compute()

        assert isinstance(guest.rig, VsmRig)
        guest.rig.handlers[1, VECTOR] = handler

        def wake() -> None:
            for _ in range(_SETTLE):
                host.relax()
            before = len(taken)
            begin = time.perf_counter()
            apic.accept_irq(0, VECTOR, 1, False)
            while len(taken) == before:
                host.relax()
            guest.note(entered[-1] - begin)

        for _ in range(WAKES):
            yield ops.Host(wake)
        yield from guest.end()

    return {(0, 0): vtl0, (0, 1): vtl1, (1, 0): sender}


def _simulator() -> AbstractContextManager[RunnableHost]:
    return nullcontext(Simulator())


def run(design: VtlWait, make: MakeHost, guests: Callable[[RunnableHost], dict[tuple[int, int], Body]]) -> VsmRig:
    """The world after its run."""
    with make() as host:
        world = VsmRig(guests(host), cpus=2 if guests is waking else 1, host=host, vtl_wait=design)
        if not host.deterministic:
            _uncounted(world)
        return world.run()


def _switch_seconds(design: VtlWait, make: MakeHost) -> float:
    return _times(run(design, make, visiting)) / (2 * VISITS)


def _wake_seconds(design: VtlWait, make: MakeHost) -> float:
    return _times(run(design, make, waking)) / WAKES


def _times(world: VsmRig) -> float:
    """The sum of what the guests have measured, in seconds."""
    return sum(each for each in world.log if isinstance(each, float))


_HOSTS: Final[dict[str, MakeHost]] = {"simulator": _simulator, "threads": ThreadHost}


def cases() -> list[Case]:
    """Each design against polling."""
    rows = []
    for host, make in _HOSTS.items():
        for what, measure in (("switch", _switch_seconds), ("wake", _wake_seconds)):
            if measure is _wake_seconds and make is _simulator:
                # One thread runs the sender too: its polling would be measured.
                continue
            for design in VtlWait:
                if design is not VtlWait.POLL:
                    rows.append(
                        Case(
                            f"vtl-{what}-{design}-{host}",
                            partial(measure, design, make),
                            "polling",
                            partial(measure, VtlWait.POLL, make),
                        )
                    )
    return rows


def main() -> None:
    """The counts of one visit, and of one wake."""
    print(f"{'':12}{'calls/visit':>12}{'tasks/visit':>12}{'us/switch':>11}{'us/switch':>11}{'us/wake':>10}")
    print(f"{'':12}{'':12}{'simulator':>12}{'simulator':>11}{'threads':>11}{'threads':>10}")
    for design in VtlWait:
        world = run(design, _simulator, visiting)
        vp = world.partition.vps[0]
        host = world.host
        assert isinstance(host, Simulator)
        simulated = min(_switch_seconds(design, _simulator) for _ in range(3))
        threaded = min(_switch_seconds(design, ThreadHost) for _ in range(3))
        woken = min(_wake_seconds(design, ThreadHost) for _ in range(3))
        print(
            f"{design:12}{vp.waits.calls / VISITS:12.2f}{host.switches / VISITS:12.2f}"
            f"{simulated * 1e6:11.1f}{threaded * 1e6:11.1f}{woken * 1e6:10.1f}"
        )


if __name__ == "__main__":
    main()
