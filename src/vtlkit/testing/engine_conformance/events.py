"""Injection, interrupt and NMI windows, shadows: what every engine delivers, and when."""

from __future__ import annotations

from vtlkit.engine import api
from vtlkit.engine.api import Event, EventType, Intercept
from vtlkit.engine.scripted import ops
from vtlkit.testing.engine_conformance.suite import Bench, Need, case
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_IF

IRQ = Event(EventType.INTERRUPT, 0x41)
NMI = Event(EventType.NMI, Vector.NMI)


@case()
def injected_events_come_first(bench: Bench) -> None:
    """Before the next instruction, with interrupts off in the handler; IRET goes back with the old flags."""
    running = bench.start(ops.Sti(), ops.Cpuid(), ops.Cpuid(), handlers={0x41: [ops.Vmmcall()]})
    engine = running.engine
    running.run_at(api.Cpuid, running.at(1))
    engine.skip(running.length(1))
    assert engine.injected() is None
    engine.inject(IRQ)
    assert engine.injected() == IRQ
    running.run_at(api.Hypercall, running.handler_at(0x41))
    assert engine.injected() is None
    assert not engine.rflags & RFLAGS_IF
    engine.skip(running.handler_at(0x41, 1) - running.handler_at(0x41))
    running.run_at(api.Cpuid, running.at(2))
    assert engine.rflags & RFLAGS_IF


@case()
def injection_can_be_taken_back(bench: Bench) -> None:
    running = bench.start(ops.Compute(1), handlers={0x41: [ops.Vmmcall()]})
    engine = running.engine
    engine.inject(IRQ)
    try:
        engine.inject(NMI)
    except AssertionError:
        pass
    else:
        raise AssertionError("two events were injected")
    assert engine.cancel_injection() == IRQ
    assert engine.injected() is engine.cancel_injection() is None
    running.run_at(api.Hlt, running.at(1))


@case()
def software_interrupts(bench: Bench) -> None:
    """INT n enters the handler and comes back behind the instruction; what exits afterwards has the right RIP."""
    running = bench.start(
        ops.Compute(1), ops.Int(0x80), ops.Cpuid(), ops.Int(0x80), handlers={0x80: [ops.Cpuid(), ops.Vmmcall()]}
    )
    engine = running.engine
    for behind in (2, 4):
        running.run_at(api.Cpuid, running.handler_at(0x80))
        engine.skip(running.handler_at(0x80, 1) - running.handler_at(0x80))
        running.run_at(api.Hypercall, running.handler_at(0x80, 1))
        engine.skip(running.handler_at(0x80, 2) - running.handler_at(0x80, 1))
        if behind == 2:
            running.run_at(api.Cpuid, running.at(2))
            engine.skip(running.length(2))
    running.run_at(api.Hlt, running.at(4))


@case()
def exceptions_are_restarted(bench: Bench) -> None:
    """A fault's handler returns to the instruction, which faults again."""
    running = bench.start(ops.Fault(Vector.UD), handlers={Vector.UD: [ops.Cpuid()]})
    for _ in range(3):
        running.run_at(api.Cpuid, running.handler_at(Vector.UD))
        running.engine.skip(running.handler_at(Vector.UD, 1) - running.handler_at(Vector.UD))
    assert running.engine.get_sregs().cs.selector == running.engine.get_sregs().cs.selector


@case()
def interrupt_window(bench: Bench) -> None:
    """It opens one instruction behind STI, once; open already, nothing is executed."""
    running = bench.start(ops.Compute(3), ops.Sti(), ops.Compute(1), ops.Compute(2), ops.Cpuid())
    engine = running.engine
    engine.request_interrupt_window(True)
    running.run_at(api.InterruptWindow, running.at(3))
    assert not engine.interrupt_shadow
    engine.request_interrupt_window(True)
    running.run_at(api.InterruptWindow, running.at(3))
    running.run_at(api.Cpuid, running.at(4))


@case()
def interrupt_window_can_be_called_off(bench: Bench) -> None:
    running = bench.start(ops.Sti(), ops.Compute(3), ops.Cpuid())
    running.engine.request_interrupt_window(True)
    running.engine.request_interrupt_window(False)
    running.run_at(api.Cpuid, running.at(2))


@case()
def shadow_of_mov_ss(bench: Bench) -> None:
    """MOV SS holds interrupts off for one instruction, though IF is set all along."""
    running = bench.start(ops.Sti(), ops.Cpuid(), ops.MovSs(), ops.Compute(1), ops.Compute(1))
    engine = running.engine
    running.run(api.Cpuid)
    engine.skip(running.length(1))
    if bench.counts:
        running.run_at(api.Interrupted, running.at(3), 1)
        assert engine.interrupt_shadow
        engine.request_interrupt_window(True)
        running.run_at(api.InterruptWindow, running.at(4))
    else:
        engine.request_interrupt_window(True)
        running.run_at(api.InterruptWindow, running.at(2))
    assert not engine.interrupt_shadow


@case()
def shadow_of_sti_and_hlt(bench: Bench) -> None:
    """`sti; hlt` halts before an interrupt can come between; the shadow ends with the HLT that is skipped."""
    running = bench.start(ops.Sti(), ops.Hlt(), ops.Compute(1))
    engine = running.engine
    engine.request_interrupt_window(True)
    running.run_at(api.Hlt, running.at(1))
    shadow = [engine.interrupt_shadow]
    engine.skip(running.length(1))
    shadow.append(engine.interrupt_shadow)
    assert shadow == [True, False]
    running.run_at(api.InterruptWindow, running.at(2))


@case()
def shadow_can_be_set(bench: Bench) -> None:
    """As the hypervisor restores it: it covers one instruction."""
    running = bench.start(ops.Sti(), ops.Cpuid(), ops.Compute(1), ops.Compute(1))
    engine = running.engine
    running.run(api.Cpuid)
    engine.skip(running.length(1))
    engine.interrupt_shadow = True
    assert engine.interrupt_shadow
    engine.request_interrupt_window(True)
    running.run_at(api.InterruptWindow, running.at(3))
    engine.interrupt_shadow = True
    engine.interrupt_shadow = False
    engine.request_interrupt_window(True)
    running.run_at(api.InterruptWindow, running.at(3))


@case()
def nmi_blocks_nmi(bench: Bench) -> None:
    """From delivery to IRET; the window opens right behind the IRET."""
    running = bench.start(ops.Compute(1), ops.Compute(3), handlers={Vector.NMI: [ops.Compute(2), ops.Vmmcall()]})
    engine = running.engine
    blocked = [engine.nmi_blocked]
    engine.inject(NMI)
    running.run_at(api.Hypercall, running.handler_at(Vector.NMI, 1))
    blocked.append(engine.nmi_blocked)
    engine.request_nmi_window(True)
    engine.skip(running.handler_at(Vector.NMI, 2) - running.handler_at(Vector.NMI, 1))
    running.run_at(api.NmiWindow, running.at(0))
    blocked.append(engine.nmi_blocked)
    assert blocked == [False, True, False]
    running.run_at(api.Hlt, running.at(2))


@case()
def nmi_window(bench: Bench) -> None:
    """Open at once where NMIs are not blocked, whatever IF says; it can be called off."""
    running = bench.start(ops.Compute(3))
    engine = running.engine
    engine.request_nmi_window(True)
    running.run_at(api.NmiWindow, running.at(0))
    engine.nmi_blocked = True
    engine.request_nmi_window(True)
    if bench.counts:
        running.run_at(api.Interrupted, running.at(0) + 1, 1)
    engine.request_nmi_window(False)
    engine.nmi_blocked = False
    running.run_at(api.Hlt, running.at(1))


@case()
def nmi_window_behind_a_shadow(bench: Bench) -> None:
    """Closed in the shadow of STI, open right behind the instruction that it covers, however often one asks."""
    running = bench.start(ops.Cpuid(), ops.Sti(), ops.Compute(1), ops.Cpuid(), ops.Compute(1))
    engine = running.engine
    running.run_at(api.Cpuid, running.at(0))
    engine.skip(running.length(0))
    if bench.counts:
        running.run_at(api.Interrupted, running.at(2), 1)
        assert engine.interrupt_shadow
        engine.request_nmi_window(True)
        running.run_at(api.NmiWindow, running.at(3))
    else:
        engine.interrupt_shadow = True
        engine.rflags |= RFLAGS_IF
        engine.request_nmi_window(True)
        running.run_at(api.NmiWindow, running.at(2))
    assert not engine.interrupt_shadow
    running.run_at(api.Cpuid, running.at(3))
    engine.skip(running.length(3))
    engine.interrupt_shadow = True
    engine.request_interrupt_window(True)
    engine.request_nmi_window(True)
    running.run_at(api.NmiWindow, running.at(5))
    running.run_at(api.InterruptWindow, running.at(5))
    running.run_at(api.Hlt, running.at(5))


@case()
def nmi_window_called_off_in_a_shadow(bench: Bench) -> None:
    running = bench.start(ops.Cpuid(), ops.Cpuid(), ops.Compute(1))
    engine = running.engine
    running.run_at(api.Cpuid, running.at(0))
    engine.skip(running.length(0))
    engine.rflags |= RFLAGS_IF
    engine.interrupt_shadow = True
    engine.request_nmi_window(True)
    running.run_at(api.Cpuid, running.at(1))
    engine.request_nmi_window(False)
    engine.skip(running.length(1))
    running.run_at(api.Hlt, running.at(3))


@case()
def nmi_window_waits_for_the_shadow(bench: Bench) -> None:
    """Behind STI an NMI is held off for one instruction, too; the interrupt window then is not lost."""
    running = bench.start(ops.Cpuid(), ops.Sti(), ops.Compute(1), ops.Compute(3))
    engine = running.engine
    running.run_at(api.Cpuid, running.at(0))
    engine.skip(running.length(0))
    engine.nmi_blocked = True
    engine.request_nmi_window(True)
    engine.request_interrupt_window(True)
    running.run_at(api.InterruptWindow, running.at(3))
    engine.nmi_blocked = False
    engine.interrupt_shadow = True
    engine.request_interrupt_window(True)
    running.run_at(api.NmiWindow, running.at(3) + 1)
    running.run(api.InterruptWindow)
    running.run_at(api.Hlt, running.at(4))


@case(Need.COUNTS)
def nmi_before_interrupt(bench: Bench) -> None:
    """Both windows wanted, both open: the NMI's is first, and the other is not forgotten."""
    running = bench.start(ops.Sti(), ops.Compute(1), ops.Compute(3))
    engine = running.engine
    running.run_at(api.Interrupted, running.at(2), 2)
    engine.request_interrupt_window(True)
    engine.request_nmi_window(True)
    running.run_at(api.NmiWindow, running.at(2))
    running.run_at(api.InterruptWindow, running.at(2))
    running.run_at(api.Hlt, running.at(3))


@case(Need.INTERCEPTS)
def iret_can_exit(bench: Bench) -> None:
    """Intercepted, it leaves NMIs blocked and has done nothing."""
    running = bench.start(ops.Compute(1), handlers={Vector.NMI: [ops.Compute(1)]})
    engine = running.engine
    engine.set_intercepts(Intercept.IRET)
    engine.inject(NMI)
    reason = running.run_at(api.Other, running.handler_at(Vector.NMI, 1))
    assert reason.mnemonic.startswith("iret")
    assert engine.nmi_blocked
    engine.set_intercepts(Intercept.NONE)
    running.run_at(api.Hlt, running.at(1))
    assert not engine.nmi_blocked


@case()
def skipping_on_a_window(bench: Bench) -> None:
    """An interrupt injected when the window opens is taken there and then."""
    running = bench.start(
        ops.Sti(), ops.Compute(1), ops.Compute(4), handlers={0x41: [ops.Compute(2), ops.Vmmcall(), ops.Compute(1)]}
    )
    engine = running.engine
    engine.request_interrupt_window(True)
    running.run_at(api.InterruptWindow, running.at(2))
    engine.inject(IRQ)
    engine.request_interrupt_window(True)
    running.run_at(api.Hypercall, running.handler_at(0x41, 1))
    engine.skip(running.handler_at(0x41, 2) - running.handler_at(0x41, 1))
    running.run_at(api.InterruptWindow, running.at(2))
    running.run_at(api.Hlt, running.at(3))
