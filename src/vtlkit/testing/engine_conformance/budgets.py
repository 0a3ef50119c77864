"""Budgets, counting, kicks and forced exits: when an engine comes back though the guest does not ask for it."""

from __future__ import annotations

from vtlkit.engine import api
from vtlkit.engine.api import Event, EventType
from vtlkit.engine.scripted import ops
from vtlkit.testing.engine_conformance.suite import DATA, IO, PLENTY, Bench, Need, case


@case(Need.COUNTS)
def budget_is_exact(bench: Bench) -> None:
    """N instructions, then M more, and RIP at the next one each time."""
    running = bench.start(ops.Compute(200))
    executed = 0
    for budget in (1, 1, 2, 3, 5, 8, 13, 21, 34, 55):
        running.run_at(api.Interrupted, running.at(0) + executed + budget, budget)
        executed += budget
        assert running.engine.instructions() == executed


@case(Need.COUNTS)
def budget_of_nothing_executes_nothing(bench: Bench) -> None:
    """At the very beginning and later; the injected event is delivered all the same."""
    running = bench.start(ops.Compute(5), handlers={0x30: [ops.Compute(3)]})
    running.run_at(api.Interrupted, running.at(0), 0)
    running.run_at(api.Interrupted, running.at(0) + 2, 2)
    running.run_at(api.Interrupted, running.at(0) + 2, 0)
    running.engine.inject(Event(EventType.INTERRUPT, 0x30))
    running.run_at(api.Interrupted, running.handler_at(0x30), 0)
    assert running.engine.instructions() == 2
    running.run_at(api.Interrupted, running.handler_at(0x30) + 1, 1)


@case(Need.COUNTS)
def budget_counts_across_exits(bench: Bench) -> None:
    """An exit does not restart the budget: None goes on with what is left, a number starts anew."""
    running = bench.start(ops.Compute(3), ops.Cpuid(), ops.Compute(3), ops.Out(0x80, 1), ops.Compute(10))
    engine = running.engine
    running.run_at(api.Cpuid, running.at(1), 10)
    assert engine.instructions() == 4
    engine.skip(running.length(1))
    running.run_at(api.PortOut, running.at(3), None)
    assert engine.instructions() == 8
    running.run_at(api.Interrupted, running.at(4) + 2, None)
    assert engine.instructions() == 10
    running.run_at(api.Interrupted, running.at(4) + 2, None)
    running.run_at(api.Interrupted, running.at(4) + 5, 3)
    assert engine.instructions() == 13


@case(Need.COUNTS)
def count_is_seen_from_a_device(bench: Bench) -> None:
    """The instruction that makes the access is counted."""
    running = bench.start(ops.Compute(4), ops.Write(IO, 4, 1), ops.Compute(2), ops.Read(IO, 4))
    counts: list[int | None] = []

    def read(_offset: int, _size: int) -> int:
        counts.append(running.engine.instructions())
        return 0

    def write(_offset: int, _size: int, _value: int) -> None:
        counts.append(running.engine.instructions())

    running.engine.map_device(IO, 4096, read, write)
    running.run(api.Hlt)
    assert counts == [5, 8]


@case()
def kick_before_run(bench: Bench) -> None:
    """Nothing is executed; the kick is used up."""
    running = bench.start(ops.Compute(5))
    running.engine.kick()
    running.engine.kick()
    running.run_at(api.Interrupted, running.at(0))
    running.run_at(api.Hlt, running.at(1))


@case()
def kick_loses_no_injected_event(bench: Bench) -> None:
    """It is delivered first, or stays injected and nothing has been executed."""
    running = bench.start(ops.Compute(5), handlers={0x30: [ops.Compute(1)]})
    event = Event(EventType.INTERRUPT, 0x30)
    running.engine.kick()
    running.engine.inject(event)
    running.run(api.Interrupted)
    if running.engine.injected() is not None:
        assert running.engine.injected() == event
        assert running.engine.regs.rip == running.at(0)
        running.run(api.Interrupted, force_immediate_exit=True)
    assert running.engine.injected() is None
    assert running.engine.regs.rip == running.handler_at(0x30)
    running.run_at(api.Hlt, running.at(1))


@case()
def kick_while_stopped_at_an_exit(bench: Bench) -> None:
    running = bench.start(ops.Cpuid(), ops.Compute(5))
    running.run(api.Cpuid)
    running.engine.kick()
    running.engine.skip(running.length(0))
    running.run_at(api.Interrupted, running.at(1))
    running.run_at(api.Hlt, running.at(2))


@case()
def kick_from_a_device(bench: Bench) -> None:
    """A kick in the middle of an instruction lets it finish, once: loads, stores and both in one instruction."""
    running = bench.start(
        ops.Set(7), ops.Write(IO, 4), ops.Compute(1), ops.Read(IO, 4), ops.Compute(1), ops.Add(IO, 4), ops.Compute(20)
    )
    engine = running.engine
    log: list[tuple[str, int]] = []

    def read(_offset: int, _size: int) -> int:
        log.append(("read", 0))
        engine.kick()
        return 40

    def write(_offset: int, _size: int, value: int) -> None:
        log.append(("write", value))
        engine.kick()

    engine.map_device(IO, 4096, read, write)
    seen = []
    while not isinstance(reason := engine.run(PLENTY), api.Hlt):
        assert isinstance(reason, api.Interrupted)
        seen.append(engine.regs.rip)
        assert len(seen) < 10
    assert log == [("write", 7), ("read", 0), ("read", 0), ("write", 80)]
    if bench.counts:
        assert seen == [running.at(2), running.at(4), running.at(6)]
    else:
        assert seen in ([], [running.at(7)]) or len(seen) <= 3


@case()
def kick_while_an_access_waits(bench: Bench) -> None:
    """A kick between exit and answer lets the instruction finish, once."""
    running = bench.start(ops.Set(7), ops.Add(IO, 4), ops.Compute(5))
    engine = running.engine
    engine.map_exit(IO, 4096)
    running.run(api.MmioRead)
    engine.kick()
    engine.complete(40)
    reason = running.run(api.MmioWrite)
    assert reason.value == 47
    engine.kick()
    if bench.counts:
        running.run_at(api.Interrupted, running.at(2))
    else:
        running.run(api.Interrupted) if type(first := engine.run(PLENTY)) is not api.Interrupted else first
        return
    running.run_at(api.Hlt, running.at(3))


@case()
def forced_exit_executes_nothing(bench: Bench) -> None:
    """Not even with a fresh budget; the injected event is delivered."""
    running = bench.start(ops.Cpuid(), ops.Compute(5), handlers={0x30: [ops.Compute(2)]})
    engine = running.engine
    running.run_at(api.Interrupted, running.at(0), force_immediate_exit=True)
    running.run(api.Cpuid)
    engine.skip(running.length(0))
    count = engine.instructions()
    running.run_at(api.Interrupted, running.at(1), force_immediate_exit=True)
    engine.inject(Event(EventType.INTERRUPT, 0x30))
    running.run_at(api.Interrupted, running.handler_at(0x30), force_immediate_exit=True)
    assert engine.instructions() == count
    running.run_at(api.Hlt, running.at(2))


@case(Need.COUNTS)
def forced_exit_finishes_the_access(bench: Bench) -> None:
    """An unfinished instruction is finished and not one more is executed."""
    running = bench.start(
        ops.Set(1), ops.Write(IO, 4), ops.In(0x60, 1), ops.Out(0x80, 1), ops.Read(IO, 4), ops.Write(DATA, 4)
    )
    engine = running.engine
    engine.map_exit(IO, 4096)
    running.run_at(api.MmioWrite, running.at(1))
    running.run_at(api.Interrupted, running.at(2), force_immediate_exit=True)
    assert engine.at_boundary
    running.run_at(api.PortIn, running.at(2))
    engine.complete(0x5A)
    running.run_at(api.Interrupted, running.at(3), force_immediate_exit=True)
    assert engine.regs.rax & 0xFF == 0x5A
    running.run_at(api.PortOut, running.at(3))
    running.run_at(api.Interrupted, running.at(4), force_immediate_exit=True)
    running.run_at(api.MmioRead, running.at(4))
    engine.complete(0x1122)
    count = engine.instructions()
    running.run_at(api.Interrupted, running.at(5), force_immediate_exit=True)
    assert engine.instructions() == count
    assert engine.regs.rax == 0x1122
    running.run_at(api.Hlt, running.at(6))
    assert running.read(DATA, 4) == 0x1122


@case(Need.THREADS)
def kick_from_another_thread(bench: Bench) -> None:
    """An endless guest comes back every time, and a counter in memory is incremented once by one instruction."""
    guest = bench.guest()
    guest.long_mode()
    a = guest.assembler()
    a.mov("ebx", DATA)
    a.label("again")
    a.raw(b"\x48\xff\x03")  # inc qword [rbx]
    a.inc("rcx")
    a.jmp("again")
    guest.load(a)
    engine = guest.engine
    rounds, served = 40, [0]

    def kicker() -> None:
        for number in range(rounds):
            engine.kick()
            while served[0] <= number:
                pass

    assert bench.under_test.start_thread is not None
    wait = bench.under_test.start_thread(kicker)
    for number in range(rounds):
        assert isinstance(engine.run(10**12), api.Interrupted)
        served[0] = number + 1
        increments = guest.read(DATA, 8)
        assert increments - engine.regs.rcx == (1 if engine.regs.rip == a.at("again") + 3 else 0)
    wait()
    assert guest.read(DATA, 8) > 0
