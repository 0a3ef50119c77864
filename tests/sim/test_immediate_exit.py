"""Immediate exits that go wrong: what a late one costs, and the orders without which something is lost.

SVM forces an exit by an interrupt that the processor sends to itself. The later it is sent, the likelier it is that the
guest is entered before it arrives. `LateCpu` is such a processor: a forced exit may let some instructions pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from tests.sim.known_bad import fails, scenario
from tests.sim.test_run_loop import linger
from tests.unit.kvm import core_rig
from tests.unit.kvm.core_rig import DONE, Cpu, Machine, Script, recorder
from vtlkit.engine.api import Exit, RamBlock
from vtlkit.engine.scripted import Guest, Handler, ops
from vtlkit.host.api import Host
from vtlkit.host.sim import Deadlock, Simulator
from vtlkit.kvm import run as run_loop
from vtlkit.kvm.kvm_run import Intr, Io, KvmRun
from vtlkit.kvm.lapic_timer import LapicTimer
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_IF

SEEDS = range(200)
LATENESS = 6
NMI = 2
PAGE = 0x100000


class LateCpu(Cpu):
    """Forced exits come up to LATENESS instructions late."""

    def __init__(self, name: str, programs: Mapping[int, Guest], handlers: Mapping[int, Handler]) -> None:
        super().__init__(name, programs, handlers)
        self.host: Host | None = None
        self.late: list[int] = []
        """Instructions that forced entries let pass."""

    def run(self, budget: int | None, *, force_immediate_exit: bool = False) -> Exit:
        if not force_immediate_exit or self.host is None or self.unfinished:
            return super().run(budget, force_immediate_exit=force_immediate_exit)
        before = self.executed
        reason = super().run(self.host.choose(LATENESS + 1, "late"))
        self.late.append(self.executed - before)
        return reason


@pytest.fixture(autouse=True)
def late_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_rig, "Cpu", LateCpu)


def machine_of(program: Guest, handlers: Mapping[int, Handler], seed: int, vendor: str = "svm") -> Machine:
    machine = Machine(program, handlers=handlers, host=Simulator(seed=seed, instrument=True), vendor=vendor)
    assert isinstance(machine.cpu, LateCpu)
    machine.cpu.host = machine.host
    return machine


def late_by(machine: Machine) -> list[int]:
    assert isinstance(machine.cpu, LateCpu)
    return machine.cpu.late


def events_at_once(seed: int, vendor: str = "svm") -> list[int]:
    """An exception, an NMI and a signal at once; by how much the forced exits were late."""
    seen: list[int] = []

    def program(_engine: object) -> Script:
        while set(seen) != {Vector.UD, NMI}:
            yield ops.Compute(3)
            yield ops.Rdtsc()
        yield ops.Out(DONE, 1, 0)

    handlers = {Vector.UD: recorder(seen, ops.Compute(9)), NMI: recorder(seen, ops.Compute(9))}
    machine = machine_of(program, handlers, seed, vendor)
    machine.cpu.rflags |= RFLAGS_IF
    vcpu = machine.vcpu
    vcpu.queue_exception(Vector.UD)
    vcpu.nmi()
    exits: list[KvmRun] = []

    def user() -> None:
        while not exits or isinstance(exits[-1], Intr):
            exits.append(vcpu.run())

    machine.run(user, vcpu.signal)
    assert isinstance(exits[-1], Io)
    assert seen == [Vector.UD, NMI], seen
    assert sum(isinstance(exit_, Intr) for exit_ in exits) + vcpu.take_signal() == 1
    return late_by(machine)


def test_a_late_exit_loses_nothing() -> None:
    """The run loop does not infer from an exit that it was the one it forced: it looks at what is pending."""
    late = [instructions for seed in SEEDS for instructions in events_at_once(seed)]
    assert max(late) == LATENESS, "and they were late indeed"


def test_a_preemption_timer_is_never_late() -> None:
    """It is no interrupt on its way: the same processor, never asked to send one."""
    assert not [late for seed in SEEDS for late in events_at_once(seed, "vmx")]


def reads_around_a_change(seed: int) -> list[tuple[bool, int]]:
    """A guest that forced exits meet reads a page that is replaced: (whether that was done before, what it read)."""
    reads: list[tuple[bool, int]] = []
    changed: list[bool] = []
    finished: list[object] = []

    def program(_engine: object) -> Script:
        for _ in range(30):
            before = bool(changed)
            reads.append((before, (yield ops.Read(PAGE, 1))))
        yield ops.Out(DONE, 1, 0)

    machine = machine_of(program, {Vector.UD: recorder([]), NMI: recorder([])}, seed)
    old, new = RamBlock(4096), RamBlock(4096)
    old.view[0], new.view[0] = 1, 2
    machine.vm.set_user_memory_region(MemoryRegion(1, PAGE, 4096, old))
    machine.vcpu.queue_exception(Vector.UD)
    machine.vcpu.nmi()

    def writer() -> None:
        linger(machine, 60)
        machine.vm.set_user_memory_region_list([MemoryRegion(1, PAGE, 0), MemoryRegion(2, PAGE, 4096, new)])
        machine.vm.wait_for_memory(lambda: bool(finished))
        changed.append(True)

    machine.run(lambda: finished.append(machine.vcpu.run()), writer)
    return reads


def test_who_changes_memory_may_rely_on_the_vcpus_mode_whenever_the_exit_comes() -> None:
    for seed in range(400):
        reads = reads_around_a_change(seed)
        assert all(value == 2 for after, value in reads if after), (seed, reads)


# --- known-bad variants -----------------------------------------------------------------------------------------------


def test_a_timer_that_stays_an_exit_while_the_vcpu_waits_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LapicTimer, "switch_to_sw_timer", lambda _self: None)
    assert fails(scenario("exit.timer"), errors=(Deadlock,))


def test_answering_a_signal_in_the_middle_of_an_instruction_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were no forced exit to finish it first."""
    enter = run_loop._enter_guest

    def careless(vcpu: Vcpu) -> KvmRun | None:
        return Intr() if vcpu.take_signal() else enter(vcpu)

    monkeypatch.setattr(run_loop, "_enter_guest", careless)
    assert fails(scenario("exit.forced"), errors=(AssertionError,))


def test_entering_with_a_request_because_an_exit_is_forced_anyway_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound if no forced exit were ever late: whoever made the request has seen a vCPU that is not in the guest."""
    monkeypatch.setattr(run_loop, "_REQUESTS_HANDLED", 0)
    monkeypatch.setattr(run_loop, "_handle_requests", _with_all(run_loop._handle_requests))
    assert any(value == 1 for seed in range(3000) for after, value in reads_around_a_change(seed) if after)


def _with_all(handle: Callable[[Vcpu], KvmRun | None]) -> Callable[[Vcpu], KvmRun | None]:
    """Handles requests as ever, while the constant is changed for the entry's check."""

    def body(vcpu: Vcpu) -> KvmRun | None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_loop, "_REQUESTS_HANDLED", ~(1 << Req.EVENT))
            return handle(vcpu)

    return body
