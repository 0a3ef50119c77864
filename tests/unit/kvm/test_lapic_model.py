"""IRR, ISR, TPR and EOI against a model that knows sets and the manual's priority rule."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.unit.kvm.irqchip_rig import Machine, read, write
from vtlkit.kvm.requests import Req
from vtlkit.x86 import apic as regs
from vtlkit.x86.apic import DeliveryMode

VECTORS = st.integers(16, 255)


class InterruptPriority(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        machine = Machine()
        self.apic, self.owner = machine.apics[0], machine.owners[0]
        self.requested: set[int] = set()
        self.in_service: set[int] = set()
        self.level: set[int] = set()
        self.tpr = 0

    def expected(self) -> int:
        threshold = max(self.tpr >> 4, max(self.in_service, default=0) >> 4)
        best = max(self.requested, default=0)
        return best if best >> 4 > threshold else -1

    @rule(vector=VECTORS, level=st.booleans())
    def send(self, vector: int, level: bool) -> None:
        assert self.apic.accept_irq(DeliveryMode.FIXED, vector, 1, level) == 1
        self.requested.add(vector)
        (self.level.add if level else self.level.discard)(vector)
        assert Req.EVENT in self.owner.requests

    @rule(tpr=st.integers(0, 255))
    def set_tpr(self, tpr: int) -> None:
        before = self.expected()
        self.owner.requests.clear()
        write(self.apic, regs.APIC_TASKPRI, tpr)
        self.tpr = tpr
        if before < 0 <= self.expected():
            assert Req.EVENT in self.owner.requests

    @rule()
    def take(self) -> None:
        vector = self.expected()
        assert self.apic.get_interrupt() == vector
        if vector >= 0:
            self.requested.remove(vector)
            self.in_service.add(vector)

    @rule()
    def end(self) -> None:
        self.owner.eois.clear()
        self.owner.requests.clear()
        before = set(self.in_service)
        self.apic.set_eoi()
        if self.in_service:
            vector = max(self.in_service)
            self.in_service.remove(vector)
            assert self.owner.eois == ([vector] if vector in self.level else [])
        else:
            assert self.owner.eois == []
        uncovered = bool(before) and self.expected() >= 0
        assert self.owner.requests == ({Req.EVENT} if uncovered else set())

    @rule()
    def migrate(self) -> None:
        machine = Machine()
        machine.apics[0].set_state(self.apic.get_state())
        self.apic, self.owner = machine.apics[0], machine.owners[0]

    @invariant()
    def registers_agree(self) -> None:
        assert self.apic.has_interrupt() == self.expected()
        for base, bits in [(regs.APIC_IRR, self.requested), (regs.APIC_ISR, self.in_service)]:
            got = {32 * n + bit for n in range(8) for bit in range(32) if read(self.apic, base + 16 * n) >> bit & 1}
            assert got == bits
        service_class = max(self.in_service, default=0) & 0xF0
        ppr = self.tpr if self.tpr & 0xF0 >= service_class else service_class
        assert read(self.apic, regs.APIC_PROCPRI) == ppr


TestInterruptPriority = InterruptPriority.TestCase
TestInterruptPriority.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
