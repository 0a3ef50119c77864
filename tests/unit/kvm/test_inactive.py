"""What wakes the vCPU of an inactive VTL, and what it would take at once were it active."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.kvm.core_rig import Machine
from tests.unit.kvm.irqchip_rig import SPIV_ON, write
from vtlkit.engine.api import Event, EventType
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86.apic import APIC_SPIV
from vtlkit.x86.registers import RFLAGS_FIXED, RFLAGS_IF

VECTOR = 0x60


def inactive(flags: int = 0) -> Vcpu:
    machine = Machine()
    vcpu = machine.vcpu
    vcpu.vtl_inactive = True
    vcpu.engine.rflags = RFLAGS_FIXED | flags
    write(vcpu.apic, APIC_SPIV, SPIV_ON)
    vcpu.requests.clear(4)
    return vcpu


def ask(vcpu: Vcpu) -> tuple[bool, bool]:
    """(wakes, deliverable)"""
    found: list[bool] = []

    def body() -> None:
        found.extend((vcpu.wake_event_pending(), vcpu.interrupt_deliverable()))

    vcpu.host.spawn(body, "asker")
    vcpu.host.run()  # type: ignore[attr-defined]
    return found[0], found[1]


def nothing(_vcpu: Vcpu) -> None: ...


def interrupt(vcpu: Vcpu) -> None:
    vcpu.apic.accept_irq(0, VECTOR, 1, False)


def masked(vcpu: Vcpu) -> None:
    interrupt(vcpu)
    vcpu.apic.set_tpr(VECTOR >> 4)


def in_shadow(vcpu: Vcpu) -> None:
    interrupt(vcpu)
    vcpu.engine.interrupt_shadow = True


def exception(vcpu: Vcpu) -> None:
    vcpu.queue_exception(13, 0)


def trap_injected(vcpu: Vcpu) -> None:
    """What is left of a VTL return that was stepped over."""
    vcpu.engine.inject(Event(EventType.EXCEPTION, 1))


def interrupt_injected(vcpu: Vcpu) -> None:
    vcpu.engine.inject(Event(EventType.INTERRUPT, VECTOR))


def interrupt_rewound(vcpu: Vcpu) -> None:
    vcpu.events.interrupted = Event(EventType.INTERRUPT, VECTOR)


def software_rewound(vcpu: Vcpu) -> None:
    vcpu.events.interrupted = Event(EventType.SOFTWARE, VECTOR, None, 2)


def nmi(vcpu: Vcpu) -> None:
    vcpu.nmi()


def nmi_in_nmi(vcpu: Vcpu) -> None:
    vcpu.engine.nmi_blocked = True
    vcpu.nmi()


def unstarted(vcpu: Vcpu) -> None:
    interrupt(vcpu)
    vcpu.mp_state = MpState.INIT_RECEIVED


def halted(vcpu: Vcpu) -> None:
    interrupt(vcpu)
    vcpu.mp_state = MpState.HALTED


@pytest.mark.parametrize(
    ("event", "wakes", "with_flag", "without_flag"),
    [
        (nothing, False, False, False),
        (interrupt, True, True, False),
        (halted, True, True, False),
        (masked, False, False, False),
        (in_shadow, False, False, False),
        (exception, False, False, False),
        (trap_injected, False, False, False),
        (software_rewound, False, False, False),
        (interrupt_injected, True, True, True),
        (interrupt_rewound, True, True, True),
        (nmi, True, True, True),
        (nmi_in_nmi, False, False, False),
        (unstarted, False, False, False),
    ],
)
def test_events_of_an_inactive_vtl(
    event: Callable[[Vcpu], None], wakes: bool, with_flag: bool, without_flag: bool
) -> None:
    for flags, deliverable in ((RFLAGS_IF, with_flag), (0, without_flag)):
        vcpu = inactive(flags)
        event(vcpu)
        assert ask(vcpu) == (wakes, deliverable)


def test_an_active_vcpu_is_woken_by_exceptions_too() -> None:
    for event in (exception, trap_injected, software_rewound):
        vcpu = inactive()
        vcpu.vtl_inactive = False
        event(vcpu)
        assert ask(vcpu)[0]
