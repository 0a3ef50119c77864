"""The I/O APIC: registers, trigger modes, Remote IRR, masks. The scenarios are those of kvm-unit-tests' ioapic test."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.unit.kvm.irqchip_rig import Machine, write
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.ioapic import RTC_GSI, IoApicState
from vtlkit.x86 import apic as regs
from vtlkit.x86.apic import (
    IOAPIC_DEST_LOGICAL,
    IOAPIC_DEST_SHIFT,
    IOAPIC_MASKED,
    IOAPIC_REMOTE_IRR,
    IOAPIC_TRIGGER_LEVEL,
)

LINE = 0xE
VECTOR = 0x76


def read_reg(machine: Machine, register: int) -> int:
    machine.ioapic.mmio_write(0, 4, register)
    return machine.ioapic.mmio_read(0x10, 4)


def write_reg(machine: Machine, register: int, value: int) -> None:
    machine.ioapic.mmio_write(0, 4, register)
    machine.ioapic.mmio_write(0x10, 4, value)


def read_redir(machine: Machine, line: int) -> int:
    return read_reg(machine, 0x10 + 2 * line) | read_reg(machine, 0x11 + 2 * line) << 32


def write_redir(machine: Machine, line: int, entry: int) -> None:
    write_reg(machine, 0x10 + 2 * line, entry & 0xFFFFFFFF)
    write_reg(machine, 0x11 + 2 * line, entry >> 32)


def take(machine: Machine, cpu: int = 0) -> int:
    """Take and end one interrupt; its vector or -1."""
    vector = machine.apics[cpu].get_interrupt()
    machine.apics[cpu].set_eoi()
    return vector


def test_identification_registers() -> None:
    machine = Machine()

    def body() -> None:
        assert read_reg(machine, 1) == 0x170011
        write_reg(machine, 1, 0xFFFFFFFF)
        assert read_reg(machine, 1) == 0x170011
        write_reg(machine, 0, 0xFFFFFFFF)
        assert read_reg(machine, 0) == read_reg(machine, 2) == 0x0F000000
        write_reg(machine, 2, 0)
        assert read_reg(machine, 2) == 0x0F000000
        assert read_reg(machine, 0x10 + 2 * 24) == 0xFFFFFFFF
        assert read_reg(machine, 5) == 0xFFFFFFFF
        assert machine.ioapic.mmio_read(0x40, 4) == 0
        machine.ioapic.mmio_write(0, 1, 1)
        assert machine.ioapic.mmio_read(0x10, 1) == 0x11
        assert machine.ioapic.mmio_read(0, 8) == 1

    machine.run(body)


def test_edge_fires_once_per_edge() -> None:
    machine = Machine()

    def body() -> None:
        write_redir(machine, LINE, VECTOR)
        assert machine.ioapic.set_irq(LINE, 1) == 1
        assert take(machine) == VECTOR
        assert machine.ioapic.set_irq(LINE, 1) == 0
        assert take(machine) == -1
        machine.ioapic.set_irq(LINE, 0)
        machine.ioapic.set_irq(LINE, 1)
        assert take(machine) == VECTOR
        assert machine.owners[0].eois == []

    machine.run(body)


def test_level_repeats_until_the_line_falls() -> None:
    machine = Machine()

    def body() -> None:
        write_redir(machine, LINE, VECTOR | IOAPIC_TRIGGER_LEVEL)
        assert machine.ioapic.set_irq(LINE, 1) == 1
        assert read_redir(machine, LINE) & IOAPIC_REMOTE_IRR
        assert machine.ioapic.set_irq(LINE, 1) == -1, "waits for the EOI"
        assert take(machine) == VECTOR
        assert take(machine) == VECTOR
        machine.ioapic.set_irq(LINE, 0)
        assert take(machine) == VECTOR
        assert take(machine) == -1
        assert not read_redir(machine, LINE) & IOAPIC_REMOTE_IRR

    machine.run(body)


def test_masked_edge_is_lost_and_masked_level_is_not() -> None:
    machine = Machine()

    def body() -> None:
        write_redir(machine, LINE, VECTOR | IOAPIC_MASKED)
        assert machine.ioapic.set_irq(LINE, 1) == -1
        machine.ioapic.set_irq(LINE, 0)
        write_redir(machine, LINE, VECTOR)
        assert take(machine) == -1
        write_redir(machine, LINE, VECTOR | IOAPIC_TRIGGER_LEVEL | IOAPIC_MASKED)
        machine.ioapic.set_irq(LINE, 1)
        assert take(machine) == -1
        write_redir(machine, LINE, VECTOR | IOAPIC_TRIGGER_LEVEL)
        machine.ioapic.set_irq(LINE, 0)
        assert take(machine) == VECTOR

    machine.run(body)


def test_masking_in_the_handler_stops_a_held_line() -> None:
    machine = Machine()

    def body() -> None:
        entry = VECTOR | IOAPIC_TRIGGER_LEVEL
        write_redir(machine, LINE, entry)
        machine.ioapic.set_irq(LINE, 1)
        assert machine.apics[0].get_interrupt() == VECTOR
        write_redir(machine, LINE, entry | IOAPIC_MASKED)
        machine.apics[0].set_eoi()
        assert take(machine) == -1
        write_redir(machine, LINE, entry)
        assert machine.apics[0].get_interrupt() == VECTOR

    machine.run(body)


def test_switching_to_edge_clears_remote_irr() -> None:
    machine = Machine()

    def body() -> None:
        write_redir(machine, LINE, VECTOR | IOAPIC_TRIGGER_LEVEL)
        machine.ioapic.set_irq(LINE, 1)
        write_reg(machine, 0x10 + 2 * LINE, VECTOR | IOAPIC_TRIGGER_LEVEL)
        assert read_redir(machine, LINE) & IOAPIC_REMOTE_IRR, "read-only"
        write_reg(machine, 0x10 + 2 * LINE, VECTOR | IOAPIC_MASKED)
        assert not read_redir(machine, LINE) & IOAPIC_REMOTE_IRR

    machine.run(body)


def test_eoi_counts_after_the_destination_changed() -> None:
    machine = Machine(2)

    def body() -> None:
        for line, vector in ((0xD, 0x64), (0xE, 0x84)):
            write_redir(machine, line, vector | IOAPIC_TRIGGER_LEVEL)
        machine.ioapic.set_irq(0xD, 1)
        assert machine.apics[0].get_interrupt() == 0x64
        machine.ioapic.set_irq(0xE, 1)
        for line in (0xE, 0xD):
            machine.ioapic.set_irq(line, 0)
            assert read_redir(machine, line) & IOAPIC_REMOTE_IRR
            write_reg(machine, 0x11 + 2 * line, 1 << 24)
        assert machine.apics[0].get_interrupt() == 0x84
        machine.apics[0].set_eoi()
        machine.apics[0].set_eoi()
        assert not read_redir(machine, 0xD) & IOAPIC_REMOTE_IRR
        assert not read_redir(machine, 0xE) & IOAPIC_REMOTE_IRR

    machine.run(body)


def test_destinations() -> None:
    machine = Machine(4)

    def body() -> None:
        for n, apic in enumerate(machine.apics):
            write(apic, regs.APIC_LDR, 1 << n + 24)
        write_redir(machine, LINE, 0x85 | 1 << IOAPIC_DEST_SHIFT)
        machine.ioapic.set_irq(LINE, 1)
        assert [apic.irr.test(0x85) for apic in machine.apics] == [False, True, False, False]
        machine.ioapic.set_irq(LINE, 0)
        write_redir(machine, LINE, 0x86 | IOAPIC_DEST_LOGICAL | 0xD << IOAPIC_DEST_SHIFT)
        assert machine.ioapic.set_irq(LINE, 1) == 3
        assert [apic.irr.test(0x86) for apic in machine.apics] == [True, False, True, True]

    machine.run(body)


def test_sources_are_wired_or() -> None:
    machine = Machine()

    def body() -> None:
        write_redir(machine, LINE, VECTOR | IOAPIC_TRIGGER_LEVEL)
        machine.ioapic.set_irq(LINE, 1, source_id=0)
        machine.ioapic.set_irq(LINE, 1, source_id=2)
        machine.ioapic.set_irq(LINE, 0, source_id=0)
        assert take(machine) == VECTOR
        machine.ioapic.set_irq(LINE, 0, source_id=2)
        assert take(machine) == VECTOR
        assert take(machine) == -1

    machine.run(body)


def test_rtc_tick_is_coalesced_until_every_cpu_ended_it() -> None:
    machine = Machine(2)

    def body() -> None:
        def tick() -> int:
            result = machine.ioapic.set_irq(RTC_GSI, 1, line_status=True)
            machine.ioapic.set_irq(RTC_GSI, 0)
            return result

        write_redir(machine, RTC_GSI, 0x58 | 0xFF << IOAPIC_DEST_SHIFT)
        assert tick() == 2
        assert tick() == 0
        assert take(machine, 0) == 0x58
        assert tick() == 0
        assert take(machine, 1) == 0x58
        assert tick() == 2

    machine.run(body)


def test_state_round_trip_delivers_what_was_asserted() -> None:
    machine, other = Machine(), Machine()
    states: list[IoApicState] = []

    def save() -> None:
        write_reg(machine, 0, 0x05000000)
        write_redir(machine, 3, 0x43 | IOAPIC_TRIGGER_LEVEL | IOAPIC_MASKED)
        write_redir(machine, 4, 0x44)
        machine.ioapic.set_irq(3, 1)
        machine.ioapic.set_irq(4, 1)
        states.append(machine.ioapic.get_state())

    def restore() -> None:
        other.ioapic.set_state(states[0])
        assert states[0].irr == 1 << 3, "the edge was delivered"
        assert read_reg(other, 0) == 0x05000000
        assert take(other) == -1
        write_redir(other, 3, 0x43 | IOAPIC_TRIGGER_LEVEL)
        assert take(other) == 0x43
        with pytest.raises(KvmError):
            other.ioapic.set_state(IoApicState(0, 0, 0, 0, (0,)))

    machine.run(save)
    other.run(restore)


class LevelLine(RuleBasedStateMachine):
    """A level-triggered pin never forgets an asserted line, and never interrupts for one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.asserted = self.in_service = False
        self.masked = True
        self.pending = False
        self.machine.run(lambda: write_redir(self.machine, LINE, VECTOR | IOAPIC_TRIGGER_LEVEL | IOAPIC_MASKED))

    def settle(self) -> None:
        if self.asserted and not self.masked and not self.pending and not self.in_service:
            self.pending = True

    @rule(level=st.booleans())
    def drive(self, level: bool) -> None:
        self.machine.run(lambda: void(self.machine.ioapic.set_irq(LINE, level)))
        self.asserted = level
        self.settle()

    @rule(masked=st.booleans())
    def mask(self, masked: bool) -> None:
        entry = VECTOR | IOAPIC_TRIGGER_LEVEL | (IOAPIC_MASKED if masked else 0)
        self.machine.run(lambda: write_reg(self.machine, 0x10 + 2 * LINE, entry))
        self.masked = masked
        self.settle()

    @rule()
    def take_interrupt(self) -> None:
        vector = self.machine.apics[0].get_interrupt()
        assert (vector == VECTOR) == self.pending
        if self.pending:
            self.pending, self.in_service = False, True

    @rule()
    def end(self) -> None:
        self.machine.run(self.machine.apics[0].set_eoi)
        self.in_service = False
        self.settle()

    @invariant()
    def remote_irr_says_on_its_way(self) -> None:
        remote: list[int] = []
        self.machine.run(lambda: remote.append(read_redir(self.machine, LINE) & IOAPIC_REMOTE_IRR))
        assert bool(remote[0]) == (self.pending or self.in_service)


def void(_value: object) -> None:
    """A task returns nothing."""


TestLevelLine = LevelLine.TestCase
TestLevelLine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
