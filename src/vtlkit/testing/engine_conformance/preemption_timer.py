"""The preemption timer: when it makes an engine come back, and what it has left afterwards."""

from __future__ import annotations

from vtlkit.engine import api
from vtlkit.engine.api import Event, EventType
from vtlkit.engine.scripted import ops
from vtlkit.testing.engine_conformance.suite import DATA, IO, Bench, Need, Running, case
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_IF


@case()
def zero_executes_nothing(bench: Bench) -> None:
    """Not even with a fresh budget, and again at every entry: run down, the timer stays so."""
    running = bench.start(ops.Cpuid(), ops.Compute(5))
    engine = running.engine
    engine.set_preemption_timer(0)
    for budget in (1000, None, 1000):
        running.run_at(api.PreemptionTimer, running.at(0), budget)
    engine.set_preemption_timer(None)
    running.run(api.Cpuid)
    engine.skip(running.length(0))
    count = engine.instructions()
    engine.set_preemption_timer(0)
    running.run_at(api.PreemptionTimer, running.at(1))
    assert engine.instructions() == count
    engine.set_preemption_timer(None)
    running.run_at(api.Hlt, running.at(2))


@case()
def zero_is_behind_the_injected_event(bench: Bench) -> None:
    running = bench.start(ops.Compute(5), handlers={0x30: [ops.Compute(2)]})
    engine = running.engine
    engine.set_preemption_timer(0)
    engine.inject(Event(EventType.INTERRUPT, 0x30))
    running.run_at(api.PreemptionTimer, running.handler_at(0x30))
    assert engine.injected() is None
    engine.set_preemption_timer(None)
    running.run_at(api.Hlt, running.at(1))


@case()
def zero_is_ahead_of_windows(bench: Bench) -> None:
    """Both windows are open from the start, and are told of after it."""
    running = bench.start(ops.Compute(5))
    engine = running.engine
    engine.rflags |= RFLAGS_IF
    engine.request_interrupt_window(True)
    engine.request_nmi_window(True)
    engine.set_preemption_timer(0)
    running.run_at(api.PreemptionTimer, running.at(0))
    engine.set_preemption_timer(None)
    kinds = {type(engine.run(1000)), type(engine.run(1000))}
    assert kinds == {api.InterruptWindow, api.NmiWindow}
    assert engine.regs.rip == running.at(0)


@case(Need.COUNTS)
def zero_finishes_the_access(bench: Bench) -> None:
    """An unfinished instruction is finished, other exits of it come first, and not one more is executed."""
    running = bench.start(ops.Set(7), ops.Add(IO, 4), ops.In(0x60, 1), ops.Write(DATA, 4))
    engine = running.engine
    engine.map_exit(IO, 4096)
    running.run_at(api.MmioRead, running.at(1))
    engine.set_preemption_timer(0)
    engine.complete(40)
    reason = running.run(api.MmioWrite)
    assert reason.value == 47
    count = engine.instructions()
    running.run_at(api.PreemptionTimer, running.at(2))
    assert engine.at_boundary
    engine.set_preemption_timer(None)
    running.run_at(api.PortIn, running.at(2))
    engine.complete(0x5A)
    engine.set_preemption_timer(0)
    running.run_at(api.PreemptionTimer, running.at(3))
    assert engine.regs.rax & 0xFF == 0x5A
    assert count is not None
    assert engine.instructions() == count + 1
    assert running.read(DATA, 4) == 0


@case(Need.COUNTS)
def it_counts_instructions_by_their_cycles(bench: Bench) -> None:
    """Rounded up: an instruction is not left in its middle."""
    for cycles, ticks, expected in (
        ((1, 1), 7, 7),
        ((10, 1), 1, 1),
        ((10, 1), 70, 7),
        ((10, 1), 71, 8),
        ((3, 2), 9, 6),
    ):
        running = bench.start(ops.Compute(200))
        running.engine.instruction_cycles = cycles
        running.engine.set_preemption_timer(ticks)
        running.run_at(api.PreemptionTimer, running.at(0) + expected)
        assert running.engine.instructions() == expected


@case(Need.COUNTS)
def it_goes_on_behind_other_exits(bench: Bench) -> None:
    """Exits, ended budgets and accesses neither stop nor restart it: nothing counts but instructions."""
    running = bench.start(ops.Compute(3), ops.Cpuid(), ops.Compute(3), ops.Out(0x80, 1), ops.Compute(20))
    engine = running.engine
    engine.set_preemption_timer(15)
    running.run_at(api.Interrupted, running.at(0) + 2, 2)
    running.run_at(api.Cpuid, running.at(1), 1000)
    engine.skip(running.length(1))
    running.run_at(api.PortOut, running.at(3), None)
    running.run_at(api.Interrupted, running.at(4) + 1, 1)
    assert engine.instructions() == 9
    running.run_at(api.PreemptionTimer, running.at(4) + 7, 1000)
    assert engine.instructions() == 15


@case(Need.COUNTS)
def it_leaves_the_budget_alone(bench: Bench) -> None:
    """What is left of the budget when the timer exits, is moved or is stopped, is there for the next `run`."""
    running = bench.start(ops.Compute(200))
    engine = running.engine

    def executed_at(kind: type[api.Exit], budget: int | None, count: int) -> None:
        running.run_at(kind, running.at(0) + count, budget)
        assert engine.instructions() == count

    engine.set_preemption_timer(10)
    executed_at(api.PreemptionTimer, 50, 10)
    engine.set_preemption_timer(20)
    executed_at(api.PreemptionTimer, None, 30)
    engine.set_preemption_timer(None)
    executed_at(api.Interrupted, None, 50)
    executed_at(api.Interrupted, 5, 55)
    executed_at(api.Interrupted, 10, 65)
    engine.set_preemption_timer(4)
    executed_at(api.Interrupted, None, 65)
    executed_at(api.PreemptionTimer, 4, 69)


@case(Need.COUNTS)
def a_budget_set_before_goes_on_under_it(bench: Bench) -> None:
    running = bench.start(ops.Compute(3), ops.Cpuid(), ops.Compute(50))
    engine = running.engine
    running.run(api.Cpuid, 30)
    engine.skip(running.length(1))
    engine.set_preemption_timer(100)
    running.run_at(api.Interrupted, running.at(2) + 26, None)
    assert engine.instructions() == 30


@case()
def a_kick_is_answered_as_one(bench: Bench) -> None:
    """Whichever exit comes first, the other is not lost."""
    running = bench.start(ops.Compute(5))
    engine = running.engine
    engine.set_preemption_timer(0)
    engine.kick()
    running.run_at(api.Interrupted, running.at(0))
    running.run_at(api.PreemptionTimer, running.at(0))
    engine.set_preemption_timer(None)
    running.run_at(api.Hlt, running.at(1))


@case(Need.COUNTS)
def the_exiting_instruction_counts(bench: Bench) -> None:
    """It comes first if it is the last that fits; the timer exits behind it, before the next."""
    running = bench.start(ops.Compute(4), ops.Cpuid(), ops.Compute(5))
    engine = running.engine
    engine.set_preemption_timer(5)
    running.run_at(api.Cpuid, running.at(1))
    engine.skip(running.length(1))
    running.run_at(api.PreemptionTimer, running.at(2))


@case(Need.COUNTS)
def a_delivered_event_takes_no_time(bench: Bench) -> None:
    running = bench.start(ops.Compute(5), handlers={0x30: [ops.Compute(9)]})
    engine = running.engine
    engine.set_preemption_timer(3)
    engine.inject(Event(EventType.INTERRUPT, 0x30))
    running.run_at(api.PreemptionTimer, running.handler_at(0x30) + 3)
    assert engine.instructions() == 3


@case()
def more_than_zero_needs_counting(bench: Bench) -> None:
    """Where it cannot be exact it is refused."""
    running: Running = bench.start(ops.Compute(5))
    engine = running.engine
    assert engine.counts_preemption_timer == bench.counts
    if not bench.counts:
        try:
            engine.set_preemption_timer(1)
        except ValueError:
            pass
        else:
            raise AssertionError("a timer that cannot be exact was accepted")
    running.run_at(api.Hlt, running.at(1))


@case()
def delivery_ends_the_shadow(bench: Bench) -> None:
    """Behind a delivered event nothing is held off by the STI or MOV SS before it (SDM volume 3, "Loading Guest
    Non-Register State" of VM entries: no blocking by either if an event is injected)."""
    running = bench.start(ops.Compute(1), ops.Compute(3), handlers={Vector.UD: [ops.Vmmcall()]})
    engine = running.engine
    engine.interrupt_shadow = True
    engine.inject(Event(EventType.EXCEPTION, Vector.UD))
    running.run_at(api.Hypercall, running.handler_at(Vector.UD))
    assert not engine.interrupt_shadow
