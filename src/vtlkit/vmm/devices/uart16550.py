"""The PC's serial port: a 16550A UART (National PC16550D data sheet; behaves as QEMU's hw/char/serial.c).

Promise: every register is there with its side effects (FIFOs of 16, loopback, modem lines, the four interrupt sources
in their priority). The line has no speed: a byte is on its way when THR is written, so THR is always empty, and a
character time-out is due as soon as the receive FIFO holds anything below its trigger level. Input that does not fit
waits outside the FIFO (the sender obeys flow control), so only loopback can overrun. MCR.OUT2 does not gate the
interrupt, as in QEMU.

Called under the bus's lock; no timer.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import Final

from vtlkit.vmm.devices.bus import BytePortDevice
from vtlkit.vmm.devices.line import Irq

COM1_PORT: Final = 0x3F8
COM1_IRQ: Final = 4
UART_PORTS: Final = 8
FIFO_DEPTH: Final = 16
_TRIGGER_LEVELS: Final = (1, 4, 8, 14)
_TRIGGER_SHIFT: Final = 6
_DIVISOR_RESET: Final = 12
"""9600 baud from the 1.8432 MHz crystal, what firmware leaves."""


class Reg(enum.IntEnum):
    """Register offsets. DLL and DLM replace 0 and 1 while LCR.DLAB is set; IIR is read and FCR written at 2."""

    DATA = 0
    IER = 1
    IIR_FCR = 2
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7


IER_RDI: Final = 0x01
IER_THRI: Final = 0x02
IER_RLSI: Final = 0x04
IER_MSI: Final = 0x08
_IER_BITS: Final = 0x0F

IIR_MSI: Final = 0x00
IIR_NO_INT: Final = 0x01
IIR_THRI: Final = 0x02
IIR_RDI: Final = 0x04
IIR_RLSI: Final = 0x06
IIR_RX_TIMEOUT: Final = 0x0C
IIR_FIFO_ENABLED: Final = 0xC0

FCR_ENABLE_FIFO: Final = 0x01
FCR_CLEAR_RCVR: Final = 0x02

LCR_SBC: Final = 0x40
LCR_DLAB: Final = 0x80

MCR_DTR: Final = 0x01
MCR_RTS: Final = 0x02
MCR_OUT1: Final = 0x04
MCR_OUT2: Final = 0x08
MCR_LOOP: Final = 0x10
_MCR_BITS: Final = 0x1F

LSR_DR: Final = 0x01
LSR_OE: Final = 0x02
LSR_BI: Final = 0x10
LSR_THRE: Final = 0x20
LSR_TEMT: Final = 0x40
_LSR_ERRORS: Final = 0x1E

MSR_DCTS: Final = 0x01
MSR_DDSR: Final = 0x02
MSR_TERI: Final = 0x04
MSR_DDCD: Final = 0x08
MSR_CTS: Final = 0x10
MSR_DSR: Final = 0x20
MSR_RI: Final = 0x40
MSR_DCD: Final = 0x80
_MSR_LINES: Final = 0xF0
_MSR_DELTAS: Final = 0x0F
_MSR_CONNECTED: Final = MSR_CTS | MSR_DSR | MSR_DCD


def _loopback_lines(mcr: int) -> int:
    """The modem inputs while MCR.LOOP wires them to the outputs."""
    return (
        (MSR_CTS if mcr & MCR_RTS else 0)
        | (MSR_DSR if mcr & MCR_DTR else 0)
        | (MSR_RI if mcr & MCR_OUT1 else 0)
        | (MSR_DCD if mcr & MCR_OUT2 else 0)
    )


class Uart16550(BytePortDevice):
    """Register at COM1_PORT for UART_PORTS ports (any base that is a multiple of 8).

    `transmit` gets the bytes that the guest sends, one at a time and in order.
    """

    __slots__ = (
        "_backlog",
        "_divisor",
        "_fcr",
        "_ier",
        "_irq",
        "_lcr",
        "_level",
        "_lsr",
        "_mcr",
        "_msr",
        "_rx",
        "_scr",
        "_thre_pending",
        "_transmit",
    )

    def __init__(self, irq: Irq, transmit: Callable[[bytes], None]) -> None:
        self._irq = irq
        self._transmit = transmit
        self._backlog: deque[int] = deque()
        self._rx: deque[int] = deque()
        self._level = 0
        self._power_up()

    def _power_up(self) -> None:
        self._divisor = _DIVISOR_RESET
        self._ier = self._fcr = self._lcr = self._scr = 0
        self._mcr = 0
        self._lsr = 0
        self._msr = _MSR_CONNECTED
        self._thre_pending = False

    def reset(self) -> None:
        """Master reset. Input that the guest has not read stays for the next boot."""
        self._backlog.extendleft(reversed(self._rx))
        self._rx.clear()
        self._power_up()
        self._fill()

    def push_input(self, data: bytes) -> None:
        """Bytes from the far end of the line. The caller holds the bus's lock."""
        self._backlog.extend(data)
        self._fill()

    def pending_input(self) -> int:
        """How many input bytes the guest has still to read."""
        return len(self._backlog) + len(self._rx)

    def _fill(self) -> None:
        if not self._mcr & MCR_LOOP:
            depth = FIFO_DEPTH if self._fcr & FCR_ENABLE_FIFO else 1
            while self._backlog and len(self._rx) < depth:
                self._rx.append(self._backlog.popleft())
        self._update()

    def _interrupt_id(self) -> int:
        """The highest-priority pending source as IIR bits 3:0."""
        ier = self._ier
        if ier & IER_RLSI and self._lsr & _LSR_ERRORS:
            return IIR_RLSI
        if ier & IER_RDI and self._rx:
            if not self._fcr & FCR_ENABLE_FIFO or len(self._rx) >= _TRIGGER_LEVELS[self._fcr >> _TRIGGER_SHIFT]:
                return IIR_RDI
            return IIR_RX_TIMEOUT
        if ier & IER_THRI and self._thre_pending:
            return IIR_THRI
        if ier & IER_MSI and self._msr & _MSR_DELTAS:
            return IIR_MSI
        return IIR_NO_INT

    def _update(self) -> None:
        level = 0 if self._interrupt_id() == IIR_NO_INT else 1
        if level != self._level:
            self._level = level
            self._irq(level)

    def read_byte(self, port: int) -> int:
        reg = port & 7
        if reg == Reg.LSR:
            value = self._lsr | LSR_THRE | LSR_TEMT | (LSR_DR if self._rx else 0)
            if self._lsr:
                self._lsr = 0
                self._update()
            return value
        if reg == Reg.DATA:
            return self._divisor & 0xFF if self._lcr & LCR_DLAB else self._receive()
        if reg == Reg.IER:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
        if reg == Reg.IIR_FCR:
            value = self._interrupt_id()
            if value == IIR_THRI:
                self._thre_pending = False
                self._update()
            return value | (IIR_FIFO_ENABLED if self._fcr & FCR_ENABLE_FIFO else 0)
        if reg == Reg.LCR:
            return self._lcr
        if reg == Reg.MCR:
            return self._mcr
        if reg == Reg.MSR:
            value = self._msr
            self._msr &= _MSR_LINES
            self._update()
            return value
        return self._scr

    def _receive(self) -> int:
        if not self._rx:
            return 0
        value = self._rx.popleft()
        self._fill()
        return value

    def write_byte(self, port: int, value: int) -> None:
        reg = port & 7
        if reg == Reg.DATA:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            else:
                self._send(value)
        elif reg == Reg.IER:
            self._write_ier(value)
        elif reg == Reg.IIR_FCR:
            self._write_fcr(value)
        elif reg == Reg.LCR:
            started_break = value & LCR_SBC and not self._lcr & LCR_SBC
            self._lcr = value
            if started_break and self._mcr & MCR_LOOP:
                self._loop_back(0)
                self._lsr |= LSR_BI
                self._update()
        elif reg == Reg.MCR:
            self._write_mcr(value & _MCR_BITS)
        elif reg == Reg.SCR:
            self._scr = value
        # LSR and MSR are read-only; the data sheet keeps writes to them for factory tests.

    def _send(self, value: int) -> None:
        if self._mcr & MCR_LOOP:
            self._loop_back(value)
        else:
            self._transmit(bytes((value,)))
        self._thre_pending = True
        self._update()

    def _loop_back(self, value: int) -> None:
        depth = FIFO_DEPTH if self._fcr & FCR_ENABLE_FIFO else 1
        if len(self._rx) >= depth:
            self._lsr |= LSR_OE
            if depth == 1:
                # Without FIFOs the newcomer replaces the byte in RBR; with them it is lost in the shift register.
                self._rx[0] = value
        else:
            self._rx.append(value)

    def _write_ier(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF | value << 8
            return
        value &= _IER_BITS
        if value & IER_THRI and not self._ier & IER_THRI:
            # Enabling the source while THR is empty raises it: drivers start transmission this way.
            self._thre_pending = True
        self._ier = value
        self._update()

    def _write_fcr(self, value: int) -> None:
        if (value ^ self._fcr) & FCR_ENABLE_FIFO or (value & FCR_ENABLE_FIFO and value & FCR_CLEAR_RCVR):
            self._rx.clear()
        self._fcr = value & ~0x3E if value & FCR_ENABLE_FIFO else 0
        self._fill()

    def _write_mcr(self, value: int) -> None:
        left_loop = self._mcr & MCR_LOOP and not value & MCR_LOOP
        self._mcr = value
        lines = _loopback_lines(value) if value & MCR_LOOP else _MSR_CONNECTED
        old = self._msr & _MSR_LINES
        deltas = ((old ^ lines) >> 4) & (MSR_DCTS | MSR_DDSR | MSR_DDCD)
        if old & MSR_RI and not lines & MSR_RI:
            deltas |= MSR_TERI
        self._msr = self._msr & _MSR_DELTAS | deltas | lines
        if left_loop:
            self._fill()
        else:
            self._update()
