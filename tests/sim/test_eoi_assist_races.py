"""EOI assist against senders on other processors, under adversarial schedules (docs/design/stimer.md).

Forbidden: the guest runs on with the offer made, and what the EOI would have to look at is there, its sender done. Then
nothing would end the run, and the interrupt or message would come when something else does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.sim.test_run_loop import linger
from tests.unit.kvm.core_rig import DONE, Machine, Script
from tests.unit.kvm.hyperv.timer_rig import MESSAGES, offer_hyperv
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.hvdef import msrs
from vtlkit.hvdef.messages import HvMessageType, make_message
from vtlkit.kvm.hyperv.eoi_assist import EoiAssist
from vtlkit.kvm.hyperv.synic import SynIc
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.registers import RFLAGS_IF

SEEDS = range(200)
RARE = range(3000)
"""Until the first that fails: one in five hundred."""
ASSIST = 0x7000
SINT, SINT_VECTOR = 4, 0x55
SENT = {0x41: False, 0x44: False, 0x61: True, 0x71: False}
"""Vectors of interrupts and whether they are level-triggered."""
MESSAGES_SENT = 3


class Race:
    """A guest that never leaves by itself, senders of interrupts, and a poster of three messages."""

    def __init__(self, seed: int, vectors: tuple[int, ...] = tuple(SENT)) -> None:
        self.vectors = vectors
        self.seen: list[int] = []
        self.level_eois: list[int] = []
        self.wrong: list[str] = []
        self.sent: list[int] = []
        self.skipped = 0
        handlers = dict.fromkeys((*SENT, SINT_VECTOR), self._handler)
        host = Simulator(seed=seed, instrument=True)
        self.machine = Machine(self._program, handlers=handlers, host=host)
        self.vcpu = self.machine.vcpu
        self.hv = self.vcpu.hv
        offer_hyperv(self.vcpu)
        for index, value in (
            (msrs.HV_X64_MSR_VP_ASSIST_PAGE, ASSIST | 1),
            (msrs.HV_X64_MSR_SCONTROL, 1),
            (msrs.HV_X64_MSR_SIMP, MESSAGES | 1),
            (msrs.HV_X64_MSR_SINT0 + SINT, SINT_VECTOR),
        ):
            assert self.vcpu.set_guest_msr(index, value)
        self.machine.cpu.rflags |= RFLAGS_IF
        setattr(self.vcpu, "eoi_ioapic", self.level_eois.append)  # noqa: B010 - the method of this one vCPU

    def run(self) -> Race:
        self.machine.run(self.vcpu.run, *map(self._sender, self.vectors), self._poster)
        return self

    # --- others -------------------------------------------------------------------------------------------------------

    def _sender(self, vector: int) -> Callable[[], None]:
        def send() -> None:
            linger(self.machine, 120)
            self.vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, SENT[vector])
            self.sent.append(vector)

        return send

    def _poster(self) -> None:
        message = make_message(HvMessageType.HvMessageTypeGpaIntercept, b"x").pack()
        for _ in range(MESSAGES_SENT):
            linger(self.machine, 60)
            self.hv.post_synic_message(SINT, message)
        self.sent.append(SINT_VECTOR)

    def all_sent(self) -> bool:
        return len(self.sent) == len(self.vectors) + 1

    # --- the guest ----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Between two instructions of the guest."""
        if not self.all_sent() or not self.hv.eoi_assist.offered or self.machine.cpu._kicked:
            return
        vector = self.vcpu.apic._isr.bit_length() - 1
        if self.vcpu.apic.private_eoi() < 0:
            self.wrong.append("an interrupt waits for an EOI that is offered to be skipped")
        elif self.hv.awaits_eoi(vector):
            self.wrong.append("a message waits for an EOI that is offered to be skipped")

    def _program(self, _engine: object) -> Script:
        left = 20
        while left:
            yield ops.Compute(200)
            yield ops.Host(self._look)
            left -= self.all_sent()
        yield ops.Out(DONE, 1, 0)

    def _handler(self, _engine: object, event: Event) -> Script:
        self.seen.append(event.vector)
        return self._handle(event.vector)

    def _handle(self, vector: int) -> Script:
        view = self.hv.assist.page.view
        for _ in range(6):
            yield ops.Host(self._look)
        if vector == SINT_VECTOR:
            # Without EOM: the EOI brings the next message.
            yield ops.Host(lambda: self.machine.vm.memory.write(MESSAGES + SINT * 256, bytes(4)))
        if vector % 2:
            # BTR, one instruction.
            yield ops.Host(lambda: self._clear(view))
            if self.machine.cpu.regs.rax:
                return
        yield ops.Write(0xFEE000B0, 4, 0)

    def _clear(self, view: memoryview) -> int:
        before = view[0] & 1
        view[0] &= 0xFE
        self.skipped += before
        return before


def check(race: Race) -> None:
    assert not race.wrong
    assert sorted(race.seen) == sorted([*race.vectors, *[SINT_VECTOR] * MESSAGES_SENT])
    assert race.level_eois == [vector for vector in race.vectors if SENT[vector]]
    assert race.vcpu.apic.statistics().eois == len(race.seen)
    assert race.hv.assist.page.view[0] == 0
    assert race.vcpu.apic._isr == 0


@pytest.mark.tlfs("msrs.eoi-assist")
@pytest.mark.parametrize("first", range(0, len(SEEDS), 50))
def test_no_sender_is_kept_waiting_by_an_offer(first: int) -> None:
    skipped = 0
    for seed in SEEDS[first : first + 50]:
        for vectors in (tuple(SENT), ()):
            race = Race(seed, vectors).run()
            check(race)
            skipped += race.skipped
    assert skipped > 50, "the offer was made use of"


# --- known-bad variants -----------------------------------------------------------------------------------------------


def fails(seed: int, before_run: Callable[[Race], None] = lambda _race: None, *, interrupts: bool = False) -> bool:
    race = Race(seed, tuple(SENT) if interrupts else ())
    before_run(race)
    try:
        check(race.run())
    except AssertionError:
        return True
    return False


def test_an_offer_before_the_vcpu_is_in_the_guest_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A poster that makes no request finds nobody to kick, and the look at what it queued has been made."""
    offer: Any = EoiAssist.offer
    monkeypatch.setattr(EoiAssist, "offer", lambda _assist: None)

    def offer_early(race: Race) -> None:
        host = race.machine.host
        budget = host.guest_budget_ns

        def offer_and_budget() -> int | None:
            offer(race.hv.eoi_assist)
            linger(race.machine, 30)
            return budget()

        host.guest_budget_ns = offer_and_budget  # type: ignore[method-assign]

    assert any(fails(seed, offer_early) for seed in SEEDS)


def test_an_offer_with_interrupts_pending_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def offer(assist: EoiAssist) -> None:
        if assist._hv.vcpu.apic._isr:
            assist._hv.assist.set_no_eoi_required(True)
            assist.offered = True

    monkeypatch.setattr(EoiAssist, "offer", offer)
    assert any(fails(seed, interrupts=True) for seed in SEEDS)


def test_a_poster_that_does_not_kick_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    post = SynIc.post

    def quiet_post(synic: Any, sint: int, message: bytes) -> object:
        vcpu, kick = synic._vcpu, synic._vcpu.kick
        vcpu.kick = lambda: kick() if not synic.waiting.load() else None
        try:
            return post(synic, sint, message)
        finally:
            vcpu.kick = kick

    monkeypatch.setattr(SynIc, "post", quiet_post)
    assert any(fails(seed) for seed in RARE)
