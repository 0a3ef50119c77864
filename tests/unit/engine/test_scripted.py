"""What the scripted engine does beyond the common suite: scripts, programs by address, host actions, determinism."""

from __future__ import annotations

import pytest

from vtlkit.engine import api
from vtlkit.engine.api import Access, Event, EventType, RamBlock
from vtlkit.engine.scripted import ScriptedEngine, ScriptedFactory, ops
from vtlkit.engine.scripted.core import Script
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_TF

AT = 0x1000


def _engine(program: object, **handlers: object) -> ScriptedEngine:
    engine = ScriptedFactory({}).create("vcpu0")
    engine.programs[AT] = program  # type: ignore[assignment]
    for name, handler in handlers.items():
        engine.handlers[Vector[name]] = handler  # type: ignore[assignment]
    _jump(engine, AT)
    return engine


def _jump(engine: ScriptedEngine, address: int) -> None:
    sregs = engine.get_sregs()
    sregs.cs.base = 0
    engine.set_sregs(sregs)
    engine.regs.rip = address


def test_a_script_sees_rax_after_each_instruction() -> None:
    seen: list[int] = []

    def program(_engine: ScriptedEngine) -> Script:
        seen.append((yield ops.Set(5)))
        seen.append((yield ops.In(0x60, 1)))
        seen.append((yield ops.Cpuid()))
        seen.append((yield ops.Host(lambda: 99)))
        seen.append((yield ops.Host(lambda: None)))

    engine = _engine(program)
    assert isinstance(engine.run(100), api.PortIn)
    engine.complete(7)
    assert isinstance(engine.run(100), api.Cpuid)
    engine.regs.rax = 1234
    engine.skip(1)
    assert isinstance(engine.run(100), api.Hlt)
    assert seen == [5, 7, 1234, 99, 99]


def test_a_program_that_ends_halts_for_good() -> None:
    def program(_engine: ScriptedEngine) -> Script:
        yield ops.Compute(1)

    engine = _engine(program)
    for _ in range(3):
        assert isinstance(engine.run(100), api.Hlt)
        engine.skip(1)


def test_start_up_at_a_vector() -> None:
    """As SIPI does it: CS.base is the vector's page, RIP zero; and again from the middle of an access."""
    started: list[str] = []

    def program(engine: ScriptedEngine) -> Script:
        started.append(engine.name)
        yield ops.In(0x60, 1)

    engine = ScriptedFactory({0x7000: program}).create("ap")
    for _ in range(2):
        sregs = engine.get_sregs()
        sregs.cs.base, sregs.cs.selector = 0x7000, 0x700
        engine.set_sregs(sregs)
        engine.regs.rip = 0
        assert isinstance(engine.run(100), api.PortIn)
        engine.abandon()
    assert started == ["ap", "ap"]


def test_nothing_at_an_address_is_said() -> None:
    engine = ScriptedFactory({}).create("vcpu0")
    reason = engine.run(100)
    assert isinstance(reason, api.InternalError)
    assert "0xfffffff0" in reason.reason


def test_missing_handlers_end_in_shutdown() -> None:
    """#UD has none, nor has #GP, nor #DF."""

    def program(_engine: ScriptedEngine) -> Script:
        yield ops.Fault(Vector.UD)

    assert isinstance(_engine(program).run(100), api.Shutdown)


def test_a_missing_handler_is_a_general_protection_fault() -> None:
    events: list[Event] = []

    def program(_engine: ScriptedEngine) -> Script:
        yield ops.Int(0x80)

    def handler(_engine: ScriptedEngine, event: Event) -> Script:
        events.append(event)
        yield ops.Vmmcall()

    engine = _engine(program, GP=handler)
    assert isinstance(engine.run(100), api.Hypercall)
    assert events == [Event(EventType.EXCEPTION, Vector.GP, 0x80 << 3 | 2)]
    engine.cancel_injection()
    engine.inject(Event(EventType.INTERRUPT, 0x90))
    assert isinstance(engine.run(100), api.Hypercall)
    assert events[-1].error_code == 0x90 << 3 | 3


def test_double_fault_of_contributory_exceptions() -> None:
    def program(_engine: ScriptedEngine) -> Script:
        yield ops.Fault(Vector.GP, 0)

    def handler(_engine: ScriptedEngine, event: Event) -> Script:
        assert event == Event(EventType.EXCEPTION, Vector.DF, 0)
        yield ops.Vmmcall()

    assert isinstance(_engine(program, DF=handler).run(100), api.Hypercall)


def test_traps_are_not_restarted() -> None:
    def program(_engine: ScriptedEngine) -> Script:
        yield ops.Fault(Vector.BP, trap=True)
        yield ops.Cpuid()

    def handler(_engine: ScriptedEngine, _event: Event) -> Script:
        yield ops.Compute(1)

    engine = _engine(program, BP=handler)
    assert isinstance(engine.run(100), api.Cpuid)
    assert engine.regs.rip == AT + 1


def test_handlers_nest() -> None:
    trail: list[str] = []

    def program(_engine: ScriptedEngine) -> Script:
        trail.append("program")
        yield ops.Vmmcall()
        trail.append("program again")

    def interrupted(_engine: ScriptedEngine, _event: Event) -> Script:
        trail.append("interrupt")
        yield ops.Vmmcall()
        trail.append("interrupt again")

    def nmi(_engine: ScriptedEngine, _event: Event) -> Script:
        trail.append("nmi")
        yield ops.Compute(1)

    engine = _engine(program, NMI=nmi)
    engine.handlers[0x40] = interrupted
    engine.run(100)
    engine.inject(Event(EventType.INTERRUPT, 0x40))
    assert isinstance(engine.run(100), api.Hypercall)
    engine.inject(Event(EventType.NMI, Vector.NMI))
    assert isinstance(engine.run(100), api.Hypercall)
    engine.skip(1)
    assert isinstance(engine.run(100), api.Hypercall)
    engine.skip(1)
    assert isinstance(engine.run(100), api.Hlt)
    assert trail == ["program", "interrupt", "nmi", "interrupt again", "program again"]


def test_single_step() -> None:
    """TF traps behind every instruction; the handler runs without it."""
    trapped: list[int] = []

    def program(_engine: ScriptedEngine) -> Script:
        yield ops.Compute(2)
        yield ops.Set(1)
        yield ops.Cpuid()

    def handler(engine: ScriptedEngine, _event: Event) -> Script:
        trapped.append(engine.get_debugregs()[4] >> 14 & 1)
        yield ops.Compute(3)

    engine = _engine(program, DB=handler)
    engine.rflags |= RFLAGS_TF
    assert isinstance(engine.run(100), api.Cpuid)
    engine.skip(1)
    assert engine.injected() == Event(EventType.EXCEPTION, Vector.DB)
    assert isinstance(engine.run(100), api.Hlt)
    assert trapped == [1] * 4


def test_a_host_action_runs_once() -> None:
    """An action is one instruction: neither the budget nor a kick in the middle of it repeats it."""
    calls: list[int] = []

    def program(engine: ScriptedEngine) -> Script:
        def action() -> int:
            calls.append(len(calls))
            engine.kick()
            return len(calls)

        for _ in range(5):
            yield ops.Host(action)

    engine = _engine(program)
    while not isinstance(engine.run(1), api.Hlt):
        pass
    assert calls == [0, 1, 2, 3, 4]


def test_values_of_stores_and_ports() -> None:
    def program(_engine: ScriptedEngine) -> Script:
        yield ops.Write(0x10, 2, 0x12345)
        yield ops.Out(0x80, 1, 0x1FF)
        yield ops.Read(0x10, 2)
        yield ops.Out(0x80, 2)

    engine = _engine(program)
    block = RamBlock(4096)
    engine.map_ram(0, 4096, block, 0, Access.ALL)
    first, second = engine.run(100), engine.run(100)
    assert isinstance(first, api.PortOut)
    assert isinstance(second, api.PortOut)
    assert (first.value, second.value) == (0xFF, 0x2345)


def test_runs_are_the_same() -> None:
    """No time, no chance: two engines with the same script and treatment take the same exits at the same RIP."""

    def program(_engine: ScriptedEngine) -> Script:
        total = 0
        for number in range(40):
            total += yield ops.Set(number * number % 7)
            yield ops.Compute(total % 5 + 1)
            yield ops.Out(total & 0xFF, 1)

    def trail() -> list[tuple[str, int, int]]:
        engine = _engine(program)
        found: list[tuple[str, int, int]] = []
        while len(found) < 150:
            reason = engine.run(3)
            found.append((reason.name, engine.regs.rip, engine.instructions()))
        return found

    assert trail() == trail()


def test_completing_nothing_is_a_mistake() -> None:
    def program(_engine: ScriptedEngine) -> Script:
        yield ops.Cpuid()

    engine = _engine(program)
    engine.run(10)
    with pytest.raises(AssertionError):
        engine.complete(1)


def test_closed_engines_do_not_run() -> None:
    closed: list[bool] = []

    def program(_engine: ScriptedEngine) -> Script:
        try:
            yield ops.Cpuid()
        finally:
            closed.append(True)

    engine = _engine(program)
    engine.run(10)
    engine.close()
    assert closed == [True]
    with pytest.raises(AssertionError):
        engine.run(10)
