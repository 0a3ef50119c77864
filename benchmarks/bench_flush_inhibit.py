"""How long a suspended flusher stays suspended after the inhibit has been cleared, in both designs of the inhibit.

"Stalled": one more vCPU of the VM, which has nothing to do with flushes, is in the hypervisor and stays there for
`STALL_NS`, as one does whose memory comes back from swap. Measured from the start of the call that clears the inhibit
to the flusher's next guest instruction; in virtual time (exact, exits cost `Vm.ns_per_exit`) and on threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from tests.unit.kvm.core_rig import Script
from tests.unit.kvm.hyperv.flush_rig import FlushMachine
from vtlkit.cli.measure import Case, Figure, seconds_per_operation
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign

STALL_NS: Final = 50_000_000
SLOW_PORT: Final = 0x500
STALLED_LIMIT: Final = 0.05
"""Of the posted design's time."""
RELEASES: Final = 20
FLUSHES: Final = 500
_FLUSHER, _TARGET, _BYSTANDER = range(3)


class Release:
    """One flusher that is suspended, and what ends that."""

    def __init__(self, host: RunnableHost, design: FlushInhibitDesign, *, stalled: bool) -> None:
        self.machine = FlushMachine([self._flusher, _nothing, _read_slow_port], host=host, design=design)
        self.host = host
        self.stalled = stalled
        self.busy = host.cell(not stalled, "busy")
        self.resumed_ns = host.cell(0, "resumed")
        self.began_ns = 0
        self._swap = host.wait_queue("swap")
        self.machine.vm.port_bus.register(range(SLOW_PORT, SLOW_PORT + 1), self._from_swap, lambda *_: None)

    def _flusher(self, machine: FlushMachine, number: int) -> Script:
        yield from machine.flush(number, 1 << _TARGET)
        yield ops.Host(lambda: self.resumed_ns.store(self.host.now_ns()))

    def _from_swap(self, _port: int, _size: int) -> int:
        deadline = self.host.now_ns() + STALL_NS
        self.busy.store(True)
        self.host.wait_event(self._swap, lambda: False, interruptible=False, deadline_ns=deadline)
        return 0

    def _inhibitor(self) -> None:
        flusher, target = self.machine.vcpus[_FLUSHER], self.machine.vcpus[_TARGET]
        while not (self.busy.load() and flusher.hv.flush_inhibit.waits_for() and flusher.wait_queue.waiters()):
            self.host.relax()
        self.began_ns = self.host.now_ns()
        target.hyperv_set_tlb_flush_inhibit(False)

    def take_ns(self) -> int:
        """From the start of the call to the flusher's next instruction."""
        machine = self.machine
        machine.vcpus[_TARGET].hyperv_set_tlb_flush_inhibit(True)
        runs: list[Callable[[], object]] = [partial(machine.until_done, machine.vcpus[_FLUSHER]), self._inhibitor]
        if self.stalled:
            runs.append(partial(machine.until_done, machine.vcpus[_BYSTANDER]))
        machine.run(*runs)
        return self.resumed_ns.load() - self.began_ns


def _nothing(_machine: FlushMachine, _number: int) -> Script:
    yield ops.Compute()


def _read_slow_port(_machine: FlushMachine, _number: int) -> Script:
    yield ops.In(SLOW_PORT, 1)


def virtual(design: FlushInhibitDesign, stalled: bool) -> float:
    return Release(Simulator(), design, stalled=stalled).take_ns() / 1e9


def real(design: FlushInhibitDesign, stalled: bool) -> float:
    """The median of several, or one where it takes long."""
    times = []
    for _ in range(1 if stalled else RELEASES):
        with ThreadHost() as host:
            times.append(Release(host, design, stalled=stalled).take_ns())
    return sorted(times)[len(times) // 2] / 1e9


def hypercall(design: FlushInhibitDesign) -> float:
    """Seconds of a flush hypercall that nobody inhibits, its entry and exit included, on threads."""

    def flusher(machine: FlushMachine, number: int) -> Script:
        for _ in range(FLUSHES):
            yield from machine.flush(number, 1 << _TARGET)

    with ThreadHost() as host:
        machine = FlushMachine([flusher, _nothing], host=host, design=design)
        vcpu = machine.vcpus[_FLUSHER]
        return seconds_per_operation(lambda: machine.run(partial(machine.until_done, vcpu)), FLUSHES)


def cases() -> list[Case | Figure]:
    ours, posted = FlushInhibitDesign.WAITING_ON, FlushInhibitDesign.POSTED
    rows: list[Case | Figure] = []
    for name, measured in (("virtual", virtual), ("real", real)):
        for stalled in (False, True):
            rows.append(
                Case(
                    f"flush-release-{name}{'-stalled' if stalled else ''}",
                    partial(measured, ours, stalled),
                    "posted design",
                    partial(measured, posted, stalled),
                    STALLED_LIMIT if stalled else None,
                )
            )
    rows.append(Case("flush-hypercall", partial(hypercall, ours), "posted design", partial(hypercall, posted)))
    return rows
