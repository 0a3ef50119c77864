"""Kicks and forced exits where the delivery of an event goes wrong: the guest decides what comes of that."""

from __future__ import annotations

import threading

import pytest

from tests.unit.engine.devkvm.kvm_rig import FOR_EVER, PATIENCE_S
from vtlkit.engine import api
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.devkvm.engine import DevKvmEngine
from vtlkit.testing.guest_builder import TSS, Guest
from vtlkit.x86.exceptions import Vector


def test_a_kick_waits_for_no_delivery(factory: DevKvmFactory) -> None:
    """What comes of a delivery the guest decides: here a fault whose handler never ends."""
    guest = Guest(factory.create("vcpu"))
    guest.long_mode()
    a = guest.assembler()
    a.label("again")
    a.out(0x80, "al")
    a.jmp("again")
    guest.load(a)
    engine = guest.engine
    assert isinstance(engine, DevKvmEngine)
    engine.run(None)
    engine.run(None, force_immediate_exit=True)
    gate = engine.get_sregs().idt.base + 0x41 * 16
    guest.ram.view[gate + 5] &= 0x7F
    handler = guest.handler(Vector.NP)
    guest.ram.view[handler : handler + len(FOR_EVER)] = FOR_EVER
    event = api.Event(api.EventType.INTERRUPT, 0x41)
    engine.inject(event)
    engine.kick()
    rip = engine.regs.rip
    exits: list[api.Exit] = []
    thread = threading.Thread(target=lambda: exits.append(engine.run(None)))
    thread.start()
    thread.join(PATIENCE_S)
    late = thread.is_alive()
    engine.kick()
    thread.join()
    assert not late
    assert type(exits[0]) is api.Interrupted
    assert engine.injected() == event
    assert engine.regs.rip == rip


@pytest.mark.parametrize("fault", [Vector.NP, Vector.GP, Vector.PF])
def test_a_forced_exit_comes_where_the_delivery_faults(factory: DevKvmFactory, fault: Vector) -> None:
    """At the first instruction of the fault's handler, which here would never end."""
    guest = Guest(factory.create("vcpu"))
    guest.long_mode()
    a = guest.assembler()
    a.hlt()
    guest.load(a)
    engine = guest.engine
    gate = engine.get_sregs().idt.base + 0x41 * 16
    view = guest.ram.view
    if fault is Vector.NP:
        view[gate + 5] &= 0x7F
    elif fault is Vector.GP:
        # No code segment.
        view[gate + 2 : gate + 4] = (0).to_bytes(2, "little")
    else:
        # An interrupt stack where no page is.
        view[gate + 4] = 1
        view[TSS + 36 : TSS + 36 + 8] = (0x7000_0000).to_bytes(8, "little")
        engine.flush_tlb()
    handler = guest.handler(fault)
    view[handler : handler + len(FOR_EVER)] = FOR_EVER
    engine.inject(api.Event(api.EventType.INTERRUPT, 0x41))
    alarm = threading.Timer(PATIENCE_S, engine.kick)
    alarm.start()
    try:
        assert type(engine.run(None, force_immediate_exit=True)) is api.Interrupted
    finally:
        alarm.cancel()
    assert engine.regs.rip == handler
