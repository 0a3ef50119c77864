"""Random paths through three and four VTLs, against a small model of who is active and what it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vmm.vsm.vsm_rig import FREE, Guest, Script, VsmRig
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.vsm import HvVtlEntryReason as Reason

VECTOR = 0x60

CALL, RETURN, FLAG, SEND = "call", "return", "flag", "send"


@dataclass
class Model:
    """The TLFS in a few lines. `levels` are enabled, each VTL has one interrupt at most and its interrupt flag."""

    levels: list[int]
    active: int
    pending: set[int] = field(default_factory=set)
    flags: set[int] = field(default_factory=set)
    reasons: dict[int, Reason] = field(default_factory=dict)
    passed: set[int] = field(default_factory=set)
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def enter(self, level: int, reason: Reason) -> None:
        self.passed |= {other for other in self.levels if self.active < other < level}
        self.active = level
        self.reasons[level] = reason
        self.events.append(("entered", level))

    def settle(self) -> None:
        """Interrupts, until nothing changes."""
        while True:
            higher = [level for level in self.pending if level > self.active]
            if higher:
                self.enter(max(higher), Reason.HvVtlEntryInterrupt)
            elif self.active in self.pending and self.active in self.flags:
                self.pending.discard(self.active)
                self.events.append(("taken", self.active))
            else:
                return

    def do(self, step: tuple[str, int]) -> None:
        """What the active VTL does."""
        what, number = step
        index = self.levels.index(self.active)
        if what == CALL and index + 1 < len(self.levels):
            self.enter(self.levels[index + 1], Reason.HvVtlEntryVtlCall)
        elif what == RETURN and index:
            self.active = self.levels[index - 1]
            self.events.append(("returned", self.active))
            if self.active in self.passed:
                self.passed.discard(self.active)
                self.reasons[self.active] = Reason.HvVtlEntryInterrupt
        elif what == FLAG:
            self.flags ^= {self.active}
        elif what == SEND:
            self.pending.add(self.levels[number % len(self.levels)])
        self.settle()


def steps(length: int) -> st.SearchStrategy[list[tuple[str, int]]]:
    step = st.tuples(st.sampled_from([CALL, RETURN, RETURN, FLAG, SEND, SEND]), st.integers(0, 3))
    return st.lists(step, max_size=length)


class Walk:
    """The same on a processor. Every VTL executes the next step whenever it is active."""

    def __init__(self, levels: list[int], path: list[tuple[str, int]]) -> None:
        self.levels = levels
        self.path = list(path)
        self.model = Model(levels, levels[-1])
        self.model.passed = set()
        self.rig = VsmRig({(0, level): self.body for level in levels}, vtls=levels[-1] + 1)
        for level in levels:
            self.rig.handlers[level, VECTOR] = self.taken

    def taken(self, guest: Guest, _event: Any) -> Script:
        yield ops.Compute()

    def body(self, guest: Guest) -> Script:
        yield from guest.enable_apic()
        if guest.vtl:
            yield from guest.enable_assist_page()
            yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | 0xF << 1)
        index = self.levels.index(guest.vtl)
        if index + 1 < len(self.levels):
            yield from guest.enable(self.levels[index + 1])
            yield from guest.vtl_call()
        else:
            # All have been entered by a call: from here on the model knows.
            self.model.reasons = dict.fromkeys(self.levels[1:], Reason.HvVtlEntryVtlCall)
        while True:
            yield from self.step(guest)

    def check(self, guest: Guest) -> None:
        """Where the guest is is where the model is, and what it has taken and been told is what the model says."""
        model = self.model
        vp = self.rig.partition.vps[0]
        assert guest.vtl == vp.active.load() == model.active, (guest.vtl, model)
        assert [taken.vtl for taken in self.rig.taken] == [each[1] for each in model.events if each[0] == "taken"]
        if guest.vtl:
            assert guest.entry_reason == model.reasons[guest.vtl], (guest.vtl, model)

    def step(self, guest: Guest) -> Script:
        self.check(guest)
        if not self.path:
            yield from guest.end()
        what, number = step = self.path.pop(0)
        self.model.do(step)
        if what == CALL and guest.vtl != self.levels[-1]:
            yield from guest.vtl_call()
        elif what == RETURN and guest.vtl:
            yield from guest.vtl_return()
        elif what == FLAG:
            yield ops.Sti() if guest.vtl in self.model.flags else ops.Cli()
            yield ops.Compute(2)
        elif what == SEND:
            apic = self.rig.partition.vps[0].vcpus[self.levels[number % len(self.levels)]].apic
            yield ops.Host(lambda: apic.accept_irq(0, VECTOR, 1, False))
            yield ops.Compute(2)


@pytest.mark.tlfs("vsm.three", "vsm.entry-reason", "interrupts.higher", "interrupts.lower", "interrupts.highest-wins")
@pytest.mark.parametrize("levels", [[0, 1, 2], [0, 1, 2, 3], [0, 2, 5], [0, 1, 4, 9]])
@settings(max_examples=60, deadline=None)
@given(path=steps(25))
def test_random_paths(levels: list[int], path: list[tuple[str, int]]) -> None:
    walk = Walk(levels, path)
    walk.rig.run()
    assert walk.path == []
    assert walk.rig.partition.vps[0].active.load() == walk.model.active


# --- paths that show one thing ----------------------------------------------------------------------------------------


def ladder_with(bodies: dict[int, Any]) -> dict[tuple[int, int], Any]:
    """VTLs that enable each other upwards, once; then each runs its body."""
    levels = sorted(bodies)

    def rung(guest: Guest) -> Script:
        yield from guest.enable_apic()
        if guest.vtl:
            yield from guest.enable_assist_page()
        above = levels[levels.index(guest.vtl) + 1 :]
        if above:
            yield from guest.enable(above[0])
            yield from guest.vtl_call()
        yield from bodies[guest.vtl](guest)

    return {(0, level): rung for level in levels}


def return_always(guest: Guest) -> Script:
    while True:
        yield from guest.vtl_return()


def noting(guest: Guest) -> Script:
    yield from guest.vtl_return()
    while True:
        guest.note((guest.vtl, guest.entry_reason))
        yield from guest.vtl_return()


@pytest.mark.tlfs("vsm.entry-reason", "vsm.return")
def test_a_vtl_that_an_interrupt_passed_over_is_told_so() -> None:
    """VTL 2 is entered from VTL 0, its return leads into VTL 1 that nobody called: it finds an interrupt entry, and
    not the call of the time before. Registers that both leave alone are VTL 0's in the end."""

    def vtl0(guest: Guest) -> Script:
        yield ops.Set(0x1234, "rbx")
        vcpu = guest.rig.partition.vps[0].vcpus[2]
        yield ops.Host(lambda: vcpu.apic.accept_irq(0, VECTOR, 1, False))
        yield ops.Compute(2)
        guest.note((0, guest.regs.rbx))
        yield from guest.vtl_call()
        yield from guest.end()

    def vtl2(guest: Guest) -> Script:
        yield ops.Sti()
        yield from noting(guest)

    rig = VsmRig(ladder_with({0: vtl0, 1: noting, 2: vtl2}), vtls=3).run()
    interrupt, call = Reason.HvVtlEntryInterrupt, Reason.HvVtlEntryVtlCall
    assert rig.log == [(2, interrupt), (1, interrupt), (0, 0x1234), (1, call)]


@pytest.mark.tlfs("vsm.entry-reason", "protection.order")
def test_a_vtl_that_an_intercept_passed_over_is_told_so() -> None:
    """VTL 3 forbids VTL 0 a page: it gets the intercept; VTLs 1 and 2 are passed over, and only by that."""

    def vtl3(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | 0xF << 1)
        yield from guest.protect([FREE], 1, vtl=0x10)
        yield from guest.vtl_return()
        guest.note((3, guest.entry_reason))
        yield from guest.protect([FREE], 0xF, vtl=0x10)
        yield from return_always(guest)

    def vtl0(guest: Guest) -> Script:
        yield ops.Write(FREE, 8, 7)
        guest.note((0, guest.rig.read(FREE, 8)))
        yield from guest.vtl_call()
        yield from guest.end()

    rig = VsmRig(ladder_with({0: vtl0, 1: noting, 2: noting, 3: vtl3}), vtls=4).run()
    interrupt = Reason.HvVtlEntryInterrupt
    assert rig.log == [
        (3, Reason.HvVtlEntryIntercept),
        (2, interrupt),
        (1, interrupt),
        (0, 7),
        (1, Reason.HvVtlEntryVtlCall),
    ]


@pytest.mark.tlfs("vsm.entry-reason")
def test_a_vtl_that_called_finds_its_reason_as_it_was() -> None:
    """VTL 1 is entered by an interrupt, calls VTL 2 and goes on: nobody has entered it again."""

    def vtl1(guest: Guest) -> Script:
        yield ops.Sti()
        yield from guest.vtl_return()
        guest.note(guest.entry_reason)
        yield from guest.vtl_call()
        guest.note(guest.entry_reason)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        vcpu = guest.rig.partition.vps[0].vcpus[1]
        yield ops.Host(lambda: vcpu.apic.accept_irq(0, VECTOR, 1, False))
        yield ops.Compute(2)

    rig = VsmRig(ladder_with({0: vtl0, 1: vtl1, 2: return_always}), vtls=3).run()
    assert rig.log == [Reason.HvVtlEntryInterrupt] * 2


@pytest.mark.tlfs("interrupts.nmi")
def test_nmis_of_all_vtls() -> None:
    """A higher VTL's switches whatever the flags say, a lower one's waits, each reaches the VTL it was sent to."""

    def nmi(guest: Guest, vtl: int) -> Script:
        vcpu = guest.rig.partition.vps[0].vcpus[vtl]
        yield ops.Host(lambda: vcpu.nmi())
        yield ops.Compute(2)

    def taken(guest: Guest) -> list[int]:
        assert all(each.vector == 2 for each in guest.rig.taken)
        return [each.vtl for each in guest.rig.taken]

    def vtl2(guest: Guest) -> Script:
        yield from guest.vtl_return()
        guest.note((2, guest.entry_reason, taken(guest)))
        yield from nmi(guest, 0)
        yield from nmi(guest, 2)
        guest.note((2, taken(guest)))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield ops.Cli()
        yield from nmi(guest, 2)
        guest.note((0, taken(guest)))
        yield from guest.end()

    rig = VsmRig(ladder_with({0: vtl0, 2: vtl2}), vtls=3).run()
    assert rig.log == [(2, Reason.HvVtlEntryInterrupt, [2]), (2, [2, 2]), (0, [2, 2, 0])]


@pytest.mark.tlfs("interrupts.lower")
def test_a_lower_vtls_interrupt_does_not_disturb_the_ones_above() -> None:
    seen: list[Any] = []

    def handler(guest: Guest, event: Event) -> Script:
        seen.append((guest.vtl, event.vector))
        yield ops.Compute()

    def vtl2(guest: Guest) -> Script:
        vps = guest.rig.partition.vps[0]
        yield ops.Sti()
        for vtl in (0, 1):
            vps.vcpus[vtl].apic.accept_irq(0, 0x80 + vtl, 1, False)
        yield ops.Compute(10_000)
        seen.append("VTL2 done")
        yield from guest.vtl_return()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from guest.enable(2)
        yield from guest.vtl_call()
        seen.append("VTL1 done")
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield ops.Sti()
        yield from guest.enable(1)
        yield from guest.vtl_call()
        seen.append("VTL0 done")
        yield from guest.end()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1, (0, 2): vtl2}, vtls=3)
    rig.handlers.update({(vtl, 0x80 + vtl): handler for vtl in range(2)})
    rig.run()
    assert seen == ["VTL2 done", (1, 0x81), "VTL1 done", (0, 0x80), "VTL0 done"]
