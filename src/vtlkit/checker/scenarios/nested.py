"""A guest that runs a guest of its own, and the interrupts that end it or go into it (docs/design/nested.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from vtlkit.checker.scenarios import Scenario
from vtlkit.checker.scenarios.nested_rig import VMCB, Nesting
from vtlkit.checker.scenarios.rig import DONE, EOI, NMI, RESET, Rig, Script
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import Handler, ops
from vtlkit.host.api import RunnableHost
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.nested.vmcb import EVENTINJ_VALID, V_INTR_MASKING, V_INTR_PRIO_SHIFT, V_IRQ
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.registers import RFLAGS_IF
from vtlkit.x86.svm import SvmExit

_VECTORS: Final = (0x31, 0x41)
_TIMER: Final = 0x51
_INJECTED: Final = 0x71
_VIRTUAL: Final = 0x81
_LINGER: Final = 120


class L1(Nesting, Rig):
    """One vCPU: `program` at reset, which runs `guest`."""

    def __init__(
        self,
        host: RunnableHost,
        program: Callable[[object], Script],
        guest: Callable[[object], Script],
        handlers: Mapping[int, Handler],
        *,
        interrupts: bool = True,
    ) -> None:
        super().__init__(host, [program], handlers=handlers, interrupts=interrupts, nested=True)
        self.vcpu = self.vcpus[0]
        self.vcpu.set_cpuid2(self.vm.get_supported_cpuid())
        engine = self.vcpu.engine
        assert engine.get_sregs().cs.base + engine.regs.rip == RESET
        self.nest(guest, msr_map=VMCB, io_map=VMCB)
        self.intercept(SvmExit.SHUTDOWN)
        self.save.rflags |= RFLAGS_IF

    def accept(self, vector: int) -> None:
        self.vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)


def _guest(_engine: object) -> Script:
    while True:
        yield ops.Compute(2)
        yield ops.Sti()
        yield ops.Hlt()


def _intercepted(host: RunnableHost) -> None:
    """L1 intercepts INTR and NMI, and injects an event at some VMRUNs; L2 halts whenever it can."""
    seen: list[int] = []
    injected = [0, 0]

    def handler(_engine: object, event: Event) -> Script:
        in_l2 = rig.vcpu.guest_mode
        assert in_l2 == (event.vector == _INJECTED), f"vector {event.vector:#x}, L2 {in_l2}"
        if in_l2:
            injected[1] += 1
        else:
            seen.append(event.vector)
        return body(event.vector)

    def body(vector: int) -> Script:
        yield EOI if vector in wanted and vector != NMI else ops.Compute(1)

    def program(_engine: object) -> Script:
        yield ops.Intercepted("clgi")
        while set(seen) != set(wanted):
            if host.choose(2, "inject"):
                rig.control.event_inj = EVENTINJ_VALID | _INJECTED
                injected[0] += 1
            rig.store()
            yield ops.Set(VMCB)
            yield ops.Intercepted("vmrun")
            rig.load()
            assert rig.control.exit_code in (SvmExit.INTR, SvmExit.NMI), hex(rig.control.exit_code)
            assert not rig.control.exit_int_info, "the injected event was taken away"
            yield ops.Intercepted("stgi")
            yield ops.Compute(1)
            yield ops.Intercepted("clgi")
        yield ops.Out(DONE, 1, 0)

    wanted = (*_VECTORS, _TIMER, NMI)
    rig = L1(host, program, _guest, dict.fromkeys((*wanted, _INJECTED), handler))
    rig.intercept(SvmExit.INTR, SvmExit.NMI)
    timer = host.timer(partial(rig.accept, _TIMER), "timer")
    sends = [partial(rig.accept, vector) for vector in _VECTORS]
    _run(rig, *rig.senders(_LINGER, *sends, rig.vcpu.nmi, lambda: timer.start(100)))
    assert sorted(seen) == sorted(wanted), f"L1 has seen {seen}"
    assert injected[0] == injected[1], f"{injected[0]} events injected, {injected[1]} delivered"


def _direct(host: RunnableHost) -> None:
    """L1 intercepts no interrupt: L2, which halts whenever it can, takes each of its own and the virtual one once."""
    seen: list[int] = []

    def handler(_engine: object, event: Event) -> Script:
        assert rig.vcpu.guest_mode, f"L1 took vector {event.vector:#x}"
        seen.append(event.vector)
        return body(event.vector)

    def body(vector: int) -> Script:
        yield ops.Compute(1) if vector == _VIRTUAL else EOI
        if set(seen) == {*sent, _VIRTUAL}:
            yield ops.Vmmcall()

    def program(_engine: object) -> Script:
        rig.store()
        yield ops.Set(VMCB)
        yield ops.Intercepted("vmrun")
        rig.load()
        yield ops.Out(DONE, 1, 0)

    sent = _VECTORS[: host.choose(len(_VECTORS) + 1, "sent")]
    rig = L1(host, program, _guest, dict.fromkeys((*_VECTORS, _VIRTUAL), handler), interrupts=False)
    rig.control.int_ctl = V_IRQ | 0xF << V_INTR_PRIO_SHIFT
    rig.control.int_vector = _VIRTUAL
    rig.save.rflags &= ~RFLAGS_IF
    _run(rig, *rig.senders(_LINGER, *(partial(rig.accept, vector) for vector in sent)))
    assert rig.control.exit_code == SvmExit.VMMCALL
    assert not rig.control.int_ctl & V_IRQ, "the virtual interrupt is pending still"
    assert sorted(seen) == sorted((*sent, _VIRTUAL)), f"L2 has seen {seen}"


def _masked(host: RunnableHost) -> None:
    """L1 runs L2 with V_INTR_MASKING and its own interrupts off: nothing ends L2 early, and L1 finds all afterwards."""
    seen: list[int] = []

    def handler(_engine: object, event: Event) -> Script:
        assert not rig.vcpu.guest_mode, f"L2 took vector {event.vector:#x}"
        seen.append(event.vector)
        return body()

    def body() -> Script:
        yield EOI
        if set(seen) == set(_VECTORS):
            yield ops.Out(DONE, 1, 0)

    def guest(_engine: object) -> Script:
        yield ops.Compute(3)
        yield ops.Vmmcall()

    def program(_engine: object) -> Script:
        rig.store()
        yield ops.Set(VMCB)
        yield ops.Intercepted("vmrun")
        rig.load()
        assert rig.control.exit_code == SvmExit.VMMCALL, hex(rig.control.exit_code)
        yield ops.Intercepted("stgi")
        yield ops.Sti()
        while True:
            yield ops.Hlt()

    rig = L1(host, program, guest, dict.fromkeys(_VECTORS, handler), interrupts=False)
    rig.intercept(SvmExit.INTR)
    rig.control.int_ctl = V_INTR_MASKING
    _run(rig, *rig.senders(_LINGER, *(partial(rig.accept, vector) for vector in _VECTORS)))
    assert sorted(seen) == sorted(_VECTORS), f"L1 has seen {seen}"


def _run(rig: L1, *tasks: Callable[[], None]) -> None:
    exits: list[object] = []
    rig.run(lambda: exits.append(rig.vcpu.run()), *tasks)
    assert [type(exit_) for exit_ in exits] == [Io], exits


SCENARIOS = (
    Scenario("nested.intercepted", "what L1 intercepts ends L2, and no event is lost or taken twice", _intercepted),
    Scenario("nested.direct", "an L2 that takes its interrupts itself sleeps through none", _direct),
    Scenario("nested.masked", "an interrupt that L1 masks neither ends nor enters L2", _masked),
)
