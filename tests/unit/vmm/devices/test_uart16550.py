"""Registers, FIFOs, loopback and interrupts of the serial port."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vmm.devices.device_rig import Line
from vtlkit.vmm.devices import uart16550 as u
from vtlkit.vmm.devices.uart16550 import COM1_PORT, Reg, Uart16550


class Rig:
    def __init__(self) -> None:
        self.sent = bytearray()
        self.line = Line()
        self.uart = Uart16550(self.line, self.sent.extend)

    def read(self, reg: int) -> int:
        return self.uart.read(COM1_PORT + reg, 1)

    def write(self, reg: int, value: int) -> None:
        self.uart.write(COM1_PORT + reg, 1, value)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_kvm_unit_tests_console_sequence(rig: Rig) -> None:
    rig.write(Reg.LCR, rig.read(Reg.LCR) | u.LCR_DLAB)
    rig.write(Reg.DATA, 1)
    rig.write(Reg.IER, 0)
    rig.write(Reg.LCR, rig.read(Reg.LCR) & ~u.LCR_DLAB)
    for reg, value in ((Reg.IER, 0), (Reg.LCR, 3), (Reg.IIR_FCR, 0), (Reg.MCR, 3)):
        rig.write(reg, value)
    for byte in b"PASS: it\n":
        assert rig.read(Reg.LSR) & u.LSR_THRE
        rig.write(Reg.DATA, byte)
    assert rig.sent == b"PASS: it\n"
    assert rig.line.edges == 0


def test_divisor_hides_data_and_ier(rig: Rig) -> None:
    rig.write(Reg.IER, u.IER_RDI)
    rig.write(Reg.LCR, u.LCR_DLAB)
    rig.uart.write(COM1_PORT, 2, 0x1234)
    assert rig.uart.read(COM1_PORT, 2) == 0x1234
    rig.write(Reg.LCR, 0)
    assert rig.read(Reg.IER) == u.IER_RDI
    assert rig.sent == b""


def test_drivers_see_a_16550a(rig: Rig) -> None:
    rig.write(Reg.IIR_FCR, u.FCR_ENABLE_FIFO)
    assert rig.read(Reg.IIR_FCR) == u.IIR_FIFO_ENABLED | u.IIR_NO_INT
    rig.write(Reg.IIR_FCR, 0)
    assert rig.read(Reg.IIR_FCR) == u.IIR_NO_INT
    rig.write(Reg.IER, 0xFF)
    assert rig.read(Reg.IER) == 0x0F
    rig.write(Reg.SCR, 0xA5)
    assert rig.read(Reg.SCR) == 0xA5
    rig.write(Reg.MCR, u.MCR_LOOP | u.MCR_OUT2 | u.MCR_RTS)
    assert rig.read(Reg.MSR) & 0xF0 == u.MSR_DCD | u.MSR_CTS


def test_thre_interrupt_rises_on_enable_clears_on_iir_and_rises_on_write(rig: Rig) -> None:
    rig.write(Reg.IER, u.IER_THRI)
    assert rig.line.level == 1
    assert rig.read(Reg.IIR_FCR) == u.IIR_THRI
    assert rig.line.level == 0
    assert rig.read(Reg.IIR_FCR) == u.IIR_NO_INT
    rig.write(Reg.DATA, 0x41)
    assert rig.line.level == 1


def test_receive_interrupt_without_fifo_is_one_per_byte(rig: Rig) -> None:
    rig.write(Reg.IER, u.IER_RDI)
    rig.uart.push_input(b"ab")
    assert rig.read(Reg.IIR_FCR) == u.IIR_RDI
    assert rig.read(Reg.DATA) == ord("a")
    assert rig.line.level == 1
    assert rig.read(Reg.DATA) == ord("b")
    assert rig.line.level == 0
    assert not rig.read(Reg.LSR) & u.LSR_DR


def test_fifo_trigger_level_and_character_timeout(rig: Rig) -> None:
    rig.write(Reg.IIR_FCR, u.FCR_ENABLE_FIFO | 2 << 6)
    rig.write(Reg.IER, u.IER_RDI)
    rig.uart.push_input(b"1234567")
    assert rig.read(Reg.IIR_FCR) & 0xF == u.IIR_RX_TIMEOUT
    rig.uart.push_input(b"8")
    assert rig.read(Reg.IIR_FCR) & 0xF == u.IIR_RDI


def test_line_status_comes_before_data_and_modem_status_last(rig: Rig) -> None:
    rig.write(Reg.MCR, u.MCR_LOOP)
    rig.write(Reg.IER, 0x0F)
    rig.write(Reg.DATA, 1)
    rig.write(Reg.DATA, 2)
    assert rig.read(Reg.IIR_FCR) == u.IIR_RLSI
    assert rig.read(Reg.LSR) & u.LSR_OE
    assert not rig.read(Reg.LSR) & u.LSR_OE
    assert rig.read(Reg.IIR_FCR) == u.IIR_RDI
    assert rig.read(Reg.DATA) == 2, "without FIFOs the newer byte replaces the older one"
    assert rig.read(Reg.IIR_FCR) == u.IIR_THRI
    assert rig.read(Reg.IIR_FCR) == u.IIR_MSI
    assert rig.read(Reg.MSR) & 0x0F
    assert rig.line.level == 0
    assert rig.sent == b""


def test_loopback_break_and_ring(rig: Rig) -> None:
    rig.write(Reg.MCR, u.MCR_LOOP | u.MCR_OUT1)
    rig.read(Reg.MSR)
    rig.write(Reg.LCR, u.LCR_SBC)
    assert rig.read(Reg.LSR) & u.LSR_BI
    rig.write(Reg.MCR, u.MCR_LOOP)
    assert rig.read(Reg.MSR) & u.MSR_TERI


@given(st.lists(st.one_of(st.binary(max_size=40), st.integers(1, 30), st.just(None)), max_size=20), st.booleans())
def test_input_is_never_lost_or_reordered(steps: list[bytes | int | None], fifo: bool) -> None:
    """Pushes, bursts of reads and machine resets in any order: what was pushed comes out once, in order."""
    rig = Rig()
    if fifo:
        rig.write(Reg.IIR_FCR, u.FCR_ENABLE_FIFO)
    pushed, got = bytearray(), bytearray()
    for step in steps:
        if step is None:
            rig.uart.reset()
        elif isinstance(step, bytes):
            rig.uart.push_input(step)
            pushed += step
        else:
            while step and rig.read(Reg.LSR) & u.LSR_DR:
                got.append(rig.read(Reg.DATA))
                step -= 1
    assert rig.uart.pending_input() == len(pushed) - len(got)
    while rig.read(Reg.LSR) & u.LSR_DR:
        got.append(rig.read(Reg.DATA))
    assert got == pushed


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 255)), max_size=60), st.binary(max_size=30))
def test_line_level_is_what_iir_says_whatever_the_guest_does(ops: list[tuple[bool, int, int]], data: bytes) -> None:
    rig = Rig()
    rig.uart.push_input(data)
    for is_write, reg, value in ops:
        if is_write:
            rig.write(reg, value)
        else:
            assert 0 <= rig.read(reg) <= 0xFF
        # Look at IIR last: reading it acknowledges THRE.
        level = rig.line.level
        assert level == (0 if rig.read(Reg.IIR_FCR) & u.IIR_NO_INT else 1)
