"""A forced exit comes before the first guest instruction: on every engine, on both vendors, whatever comes with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.unit.kvm.core_rig import DONE, RESET, Cpu, Machine, Script, recorder, script
from vtlkit.engine.api import Engine, Event, EventType
from vtlkit.engine.scripted import ops
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.kvm_run import Intr, Io, Mmio
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.uapi import Kvm, Vcpu
from vtlkit.testing.guest_builder import CODE, FREE, RAM_SIZE, Guest
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_IF

if TYPE_CHECKING:
    from collections.abc import Iterator

NMI = Event(EventType.NMI, Vector.NMI)
COUNTER = FREE
NOWHERE = 0x80000
EXPECTED = {"svm": "interrupted", "vmx": "preemption_timer"}
"""The exit that a forced one is."""


# --- the embedded engine ----------------------------------------------------------------------------------------------


class Embedded:
    """A vCPU of the embedded engine in a loop that counts in memory; handlers count too."""

    def __init__(self, host: RunnableHost, factory: UnicornFactory) -> None:
        self.host = host
        vm = Kvm(host, factory).create_vm()
        self.vcpu: Vcpu = vm.create_vcpu(0)
        self.vcpu.set_cpuid2(vm.get_supported_cpuid())
        self.guest = Guest(self.vcpu.engine, map_ram=False)
        vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, self.guest.ram))
        self.guest.long_mode()
        a = self.guest.assembler()
        a.mov("ebx", COUNTER)
        a.in_("al", 0x60)
        a.label("again")
        a.raw(b"\x48\xff\x03")  # inc qword [rbx]
        a.jmp("again")
        self.guest.load(a)
        self.behind_in = a.at("again")
        for vector in (Vector.UD, Vector.NMI):
            self.guest.write(self.guest.handler(vector), b"\x48\xff\x04\x25" + COUNTER.to_bytes(4, "little"))
        self.vcpu.engine.regs.rip = CODE

    @property
    def engine(self) -> Engine:
        return self.vcpu.engine

    def count(self) -> int:
        return self.guest.read(COUNTER, 8)

    def enter(self) -> None:
        """One forced entry, as the run loop makes it."""
        self.vcpu.map.sync()
        reason = self.vcpu.vendor.vcpu_run(self.vcpu, 1000, True)
        assert reason.name == EXPECTED[self.vcpu.vendor.name]


@contextmanager
def embedded(counting: bool) -> Iterator[Embedded]:
    factory = UnicornFactory(counting=counting, threaded=not counting)
    host: RunnableHost = Simulator() if counting else ThreadHost()
    try:
        yield Embedded(host, factory)
    finally:
        host.stop()
        factory.close()


def in_task(host: RunnableHost, body: Callable[[], None]) -> None:
    host.spawn(body, "vcpu")
    host.run()


@pytest.mark.parametrize("counting", [True, False])
def test_the_embedded_engine_executes_nothing(counting: bool) -> None:
    with embedded(counting) as machine:

        def body() -> None:
            engine = machine.engine
            for _ in range(3):
                machine.enter()
                assert (engine.regs.rip, machine.count()) == (CODE, 0)
            engine.inject(Event(EventType.EXCEPTION, Vector.UD))
            machine.enter()
            assert engine.injected() is None
            assert (engine.regs.rip, machine.count()) == (machine.guest.handler(Vector.UD), 0)
            engine.inject(NMI)
            machine.enter()
            assert (engine.regs.rip, machine.count()) == (machine.guest.handler(Vector.NMI), 0)
            assert engine.instructions() in (0, None)

        in_task(machine.host, body)


def test_the_embedded_engine_finishes_the_access() -> None:
    with embedded(True) as machine:

        def body() -> None:
            exit_ = machine.vcpu.run()
            assert isinstance(exit_, Io)
            exit_.data = 0x5A
            assert machine.vcpu.complete_exit() is None
            engine = machine.engine
            assert engine.at_boundary
            assert (engine.regs.rip, engine.regs.rax & 0xFF, machine.count()) == (machine.behind_in, 0x5A, 0)
            machine.enter()
            assert (engine.regs.rip, engine.instructions(), machine.count()) == (machine.behind_in, 2, 0)

        in_task(machine.host, body)


@pytest.mark.parametrize("counting", [True, False])
def test_two_events_at_once_leave_no_instruction_between_them(counting: bool) -> None:
    """The run loop's own use: the second handler returns to the first instruction of the first."""
    with embedded(counting) as machine:
        guest = machine.guest
        guest.write(guest.handler(Vector.NMI), b"\xe6\x80")  # out 0x80, al

        def body() -> None:
            vcpu = machine.vcpu
            vcpu.queue_exception(Vector.UD)
            vcpu.nmi()
            exit_ = vcpu.run()
            assert isinstance(exit_, Io), exit_
            assert exit_.port == 0x80
            frames = [guest.read(vcpu.engine.regs.rsp + at, 8) for at in (0, 48)]
            assert frames == [guest.handler(Vector.UD), CODE]
            assert machine.count() == 0
            assert vcpu.statistics.exits[EXPECTED[vcpu.vendor.name]] == 1

        in_task(machine.host, body)


# --- the scripted engine ----------------------------------------------------------------------------------------------


def test_the_scripted_engine_executes_nothing() -> None:
    log: list[int] = []
    machine = Machine(script(ops.Compute(9)), handlers={Vector.UD: recorder(log), Vector.NMI: recorder(log)})
    vcpu, cpu = machine.vcpu, machine.cpu
    for event in (None, Event(EventType.EXCEPTION, Vector.UD), NMI):
        if event is not None:
            cpu.inject(event)
        assert vcpu.vendor.vcpu_run(vcpu, 1000, True).name == EXPECTED[vcpu.vendor.name]
        assert (cpu.executed, cpu.injected()) == (0, None)
    assert log == [Vector.UD, Vector.NMI]


def test_a_window_does_not_come_before_a_forced_exit() -> None:
    machine = Machine(script(ops.Compute(9)))
    vcpu, cpu = machine.vcpu, machine.cpu
    cpu.rflags |= RFLAGS_IF
    cpu.request_interrupt_window(True)
    cpu.request_nmi_window(True)
    assert vcpu.vendor.vcpu_run(vcpu, 1000, True).name == EXPECTED[vcpu.vendor.name]
    names = {vcpu.vendor.vcpu_run(vcpu, 1000, False).name for _ in range(2)}
    assert names == {"interrupt_window", "nmi_window"}


def test_a_signal_with_an_unfinished_access_executes_nothing_more() -> None:
    machine = Machine(script(ops.Set(5), ops.Add(NOWHERE, 4), ops.Compute(5), ops.Out(DONE, 1, 0)))
    assert isinstance(machine.vcpu.run(), Mmio)
    machine.vcpu.signal()
    assert isinstance(machine.vcpu.run(), Mmio)
    executed = machine.cpu.executed
    assert isinstance(machine.vcpu.run(), Intr)
    assert machine.cpu.executed == executed
    assert machine.cpu.at_boundary
    assert isinstance(machine.vcpu.run(), Io)


def test_completing_an_exit_leaves_nothing_armed() -> None:
    """What forced the exit is gone with it: the guest runs on as far as it likes."""
    machine = Machine(script(ops.In(DONE, 1), ops.Compute(100_000), ops.Out(DONE, 1, 0)))
    machine.vcpu.run()
    assert machine.vcpu.complete_exit() is None
    assert machine.cpu.executed == 1
    assert isinstance(machine.vcpu.run(), Io)
    assert machine.cpu.executed == 100_002
    assert machine.vcpu.statistics.exits["preemption_timer"] == 0, "completing counts no exits"


def test_the_flag_reaches_the_vendor(monkeypatch: pytest.MonkeyPatch, vendor: str) -> None:
    machine = Machine(script(ops.Compute(9), ops.Out(DONE, 1, 0)), handlers={2: recorder([]), 6: recorder([])})
    flags: list[bool] = []
    run = type(machine.vcpu.vendor).vcpu_run

    def noted(self: object, vcpu: Vcpu, budget: int | None, force_immediate_exit: bool) -> object:
        flags.append(force_immediate_exit)
        return run(self, vcpu, budget, force_immediate_exit)  # type: ignore[arg-type]

    monkeypatch.setattr(type(machine.vcpu.vendor), "vcpu_run", noted)
    machine.vcpu.queue_exception(Vector.UD)
    machine.vcpu.nmi()
    machine.vcpu.run()
    assert flags[:2] == [True, False]
    assert True not in flags[2:]
    assert machine.vcpu.vendor.name == vendor


def test_a_forced_exit_costs_one_exit_of_time() -> None:
    def program(engine: Cpu) -> Script:
        assert engine.executed == 4, "two handlers of two instructions"
        yield ops.Out(DONE, 1, 0)

    machine = Machine(programs={RESET: program}, handlers={2: recorder([]), 6: recorder([])})
    machine.vcpu.queue_exception(Vector.UD)
    machine.vcpu.nmi()
    machine.vcpu.run()
    vm, statistics = machine.vm, machine.vcpu.statistics
    assert statistics.all_exits() == {EXPECTED[machine.vcpu.vendor.name]: 1, "io": 1}
    assert (
        machine.host.now_ns()
        == machine.cpu.executed * vm.ns_per_instruction + statistics.all_exits().total() * vm.ns_per_exit
    )
