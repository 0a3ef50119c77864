"""A signal that comes late: its kick has been answered, and it ends a KVM_RUN that nobody wants ended."""

from __future__ import annotations

import signal
import threading

from vtlkit.engine.api import Event, EventType, Hlt, Interrupted, PortOut
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.devkvm.vcpu import KICK_SIGNAL
from vtlkit.testing.guest_builder import Guest
from vtlkit.x86.registers import RFLAGS_IF

VECTOR = 0x41
PORT = 0x80


def _after_a_signal(factory: DevKvmFactory, *, forced: bool) -> tuple[object, Guest]:
    """What a `run` with an event and a late signal has returned. The guest exits by ports alone: it is never found
    between two instructions."""
    guest = Guest(factory.create("vcpu"))
    guest.long_mode()
    a = guest.assembler()
    a.label("again")
    a.out(PORT, "al")
    a.jmp("again")
    guest.load(a)
    engine = guest.engine
    engine.rflags |= RFLAGS_IF
    exits: list[object] = []

    def vcpu() -> None:
        exits.append(engine.run(None))
        exits.append(engine.run(None, force_immediate_exit=True))
        engine.inject(Event(EventType.INTERRUPT, VECTOR))
        signal.pthread_kill(threading.get_ident(), KICK_SIGNAL)
        exits.append(engine.run(None, force_immediate_exit=forced))

    thread = threading.Thread(target=vcpu)
    thread.start()
    thread.join()
    first, _, last = exits
    assert isinstance(first, PortOut)
    return last, guest


def test_an_event_is_delivered_all_the_same(factory: DevKvmFactory) -> None:
    """The kernel leaves before it has delivered the event, and has to be given it again at once."""
    last, guest = _after_a_signal(factory, forced=False)
    assert isinstance(last, Hlt)
    assert guest.engine.regs.rip == guest.handler(VECTOR)


def test_a_forced_exit_waits_for_the_delivery_all_the_same(factory: DevKvmFactory) -> None:
    """Else the guest would go on, past what stops it at the event's handler."""
    last, guest = _after_a_signal(factory, forced=True)
    assert isinstance(last, Interrupted)
    assert guest.engine.injected() is None
    assert guest.engine.regs.rip == guest.handler(VECTOR)
