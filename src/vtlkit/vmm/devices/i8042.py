"""The keyboard controller, port 0x92, and the reset control register (QEMU's hw/input/pckbd.c, hw/isa/port92.c, PIIX3).

Promise: a guest that probes the controller finds it, with a keyboard that acknowledges its commands and never has a key
pressed, and with no mouse. The reset line (pulse 0xFE, output port bit 0, port 0x92 bit 0, a soft reset by 0xCF9) is
the processors' INIT, as in PIIX3, and reports `events.init()`; a hard reset by 0xCF9, `events.reset()`. The A20 gate is
kept and reported to `set_a20`; whether addresses wrap is the machine's affair.
Called under the bus's lock; no timer: answers are there at once.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import Final

from vtlkit.vmm.devices.bus import BytePortDevice
from vtlkit.vmm.devices.events import MachineEvents
from vtlkit.vmm.devices.line import Irq

I8042_DATA_PORT: Final = 0x60
I8042_COMMAND_PORT: Final = 0x64
I8042_IRQ: Final = 1
PORT92: Final = 0x92
RESET_CONTROL_PORT: Final = 0xCF9

STATUS_OBF: Final = 0x01
STATUS_SYS: Final = 0x04
STATUS_CMD: Final = 0x08
STATUS_UNLOCKED: Final = 0x10
STATUS_TIMEOUT: Final = 0x40

MODE_KBD_INT: Final = 0x01
MODE_SYS: Final = 0x04
MODE_DISABLE_KBD: Final = 0x10
MODE_DISABLE_MOUSE: Final = 0x20
_MODE_RESET: Final = MODE_KBD_INT | MODE_SYS | MODE_DISABLE_MOUSE

OUTPUT_NO_RESET: Final = 0x01
OUTPUT_A20: Final = 0x02
OUTPUT_OBF: Final = 0x10
_OUTPUT_RESET: Final = 0xC0 | OUTPUT_NO_RESET | OUTPUT_A20
_INPUT_PORT: Final = 0x80
"""Keyboard not locked."""
_NO_MOUSE: Final = 0xFE


class Command(enum.IntEnum):
    """Controller commands, written to port 0x64."""

    READ_MODE = 0x20
    WRITE_MODE = 0x60
    MOUSE_DISABLE = 0xA7
    MOUSE_ENABLE = 0xA8
    TEST_MOUSE = 0xA9
    SELF_TEST = 0xAA
    KBD_TEST = 0xAB
    KBD_DISABLE = 0xAD
    KBD_ENABLE = 0xAE
    READ_INPORT = 0xC0
    READ_OUTPORT = 0xD0
    WRITE_OUTPORT = 0xD1
    WRITE_OBUF = 0xD2
    WRITE_MOUSE_OBUF = 0xD3
    WRITE_MOUSE = 0xD4
    DISABLE_A20 = 0xDD
    ENABLE_A20 = 0xDF
    PULSE_FIRST = 0xF0


_WITH_PARAMETER: Final = frozenset(
    (
        Command.WRITE_MODE,
        Command.WRITE_OUTPORT,
        Command.WRITE_OBUF,
        Command.WRITE_MOUSE_OBUF,
        Command.WRITE_MOUSE,
    )
)
_ANSWERS: Final = {Command.SELF_TEST: 0x55, Command.KBD_TEST: 0x00, Command.TEST_MOUSE: 0x01}
"""The mouse test says "clock line stuck low": there is no mouse."""
_MODE_CHANGES: Final = {
    Command.MOUSE_DISABLE: (MODE_DISABLE_MOUSE, MODE_DISABLE_MOUSE),
    Command.MOUSE_ENABLE: (MODE_DISABLE_MOUSE, 0),
    Command.KBD_DISABLE: (MODE_DISABLE_KBD, MODE_DISABLE_KBD),
    Command.KBD_ENABLE: (MODE_DISABLE_KBD, 0),
}

_KBD_ACK: Final = 0xFA
_KBD_RESEND: Final = 0xFE
_KBD_ANSWERS: Final[dict[int, tuple[int, ...]]] = {
    0xEE: (0xEE,),  # echo
    0xF2: (_KBD_ACK, 0xAB, 0x83),  # identify: MF2 keyboard
    0xF4: (_KBD_ACK,),  # enable scanning
    0xF5: (_KBD_ACK,),  # disable scanning
    0xF6: (_KBD_ACK,),  # set defaults
    0xFF: (_KBD_ACK, 0xAA),  # reset: self-test passed
}
_KBD_WITH_PARAMETER: Final = frozenset((0xED, 0xF0, 0xF3))
"""LEDs, scan code set, typematic rate."""


class I8042(BytePortDevice):
    """Register at I8042_DATA_PORT and at I8042_COMMAND_PORT, one port each."""

    __slots__ = (
        "_command",
        "_events",
        "_irq",
        "_kbd_wants_parameter",
        "_level",
        "_mode",
        "_outport",
        "_output",
        "_set_a20",
        "_status",
    )

    def __init__(self, irq: Irq, events: MachineEvents, set_a20: Callable[[bool], None] | None = None) -> None:
        self._irq = irq
        self._events = events
        self._set_a20 = set_a20
        self._output: deque[int] = deque()
        self._level = 0
        self._outport = _OUTPUT_RESET
        self.reset()

    def reset(self) -> None:
        """Machine reset: A20 open, nothing to read."""
        self._output.clear()
        self._command: Command | None = None
        self._kbd_wants_parameter = False
        self._mode = _MODE_RESET
        self._status = STATUS_SYS | STATUS_UNLOCKED
        self.a20 = True
        self._update()

    @property
    def a20(self) -> bool:
        """Whether address line 20 passes."""
        return bool(self._outport & OUTPUT_A20)

    @a20.setter
    def a20(self, enabled: bool) -> None:
        changed = enabled != self.a20
        self._outport = self._outport & ~OUTPUT_A20 | (OUTPUT_A20 if enabled else 0)
        if changed and self._set_a20 is not None:
            self._set_a20(enabled)

    def _update(self) -> None:
        level = 1 if self._output and self._mode & MODE_KBD_INT else 0
        if level != self._level:
            self._level = level
            self._irq(level)

    def read_byte(self, port: int) -> int:
        if port == I8042_COMMAND_PORT:
            return self._status | (STATUS_OBF if self._output else 0)
        if not self._output:
            return 0
        value = self._output.popleft()
        self._status &= ~STATUS_TIMEOUT
        if self._output and self._mode & MODE_KBD_INT:
            # IRQ 1 is edge-triggered: each byte needs its own edge.
            self._level = 0
            self._irq(0)
        self._update()
        return value

    def write_byte(self, port: int, value: int) -> None:
        if port == I8042_COMMAND_PORT:
            self._status |= STATUS_CMD
            self._run_command(value)
        else:
            self._status &= ~STATUS_CMD
            command, self._command = self._command, None
            if command is None:
                self._send_to_keyboard(value)
            else:
                self._finish_command(command, value)
        self._update()

    def _run_command(self, value: int) -> None:
        self._command = None
        if value >= Command.PULSE_FIRST:
            if not value & OUTPUT_NO_RESET:
                self._events.init()
        elif value in _ANSWERS:
            self._output.append(_ANSWERS[Command(value)])
        elif value in _MODE_CHANGES:
            mask, bits = _MODE_CHANGES[Command(value)]
            self._mode = self._mode & ~mask | bits
        elif value in _WITH_PARAMETER:
            self._command = Command(value)
        elif value == Command.READ_MODE:
            self._output.append(self._mode)
        elif value == Command.READ_INPORT:
            self._output.append(_INPUT_PORT)
        elif value == Command.READ_OUTPORT:
            self._output.append(self._outport | (OUTPUT_OBF if self._output else 0))
        elif value in (Command.DISABLE_A20, Command.ENABLE_A20):
            self.a20 = value == Command.ENABLE_A20

    def _finish_command(self, command: Command, value: int) -> None:
        if command == Command.WRITE_MODE:
            self._mode = value
            self._status = self._status & ~STATUS_SYS | (value & MODE_SYS)
        elif command == Command.WRITE_OUTPORT:
            self._outport = value & ~OUTPUT_A20 | self._outport & OUTPUT_A20
            self.a20 = bool(value & OUTPUT_A20)
            if not value & OUTPUT_NO_RESET:
                self._events.init()
        elif command == Command.WRITE_MOUSE:
            self._status |= STATUS_TIMEOUT
            self._output.append(_NO_MOUSE)
        else:
            self._output.append(value)

    def _send_to_keyboard(self, value: int) -> None:
        if self._kbd_wants_parameter:
            self._kbd_wants_parameter = False
            self._output.append(_KBD_ACK)
        elif value in _KBD_WITH_PARAMETER:
            self._kbd_wants_parameter = True
            self._output.append(_KBD_ACK)
        else:
            self._output.extend(_KBD_ANSWERS.get(value, (_KBD_RESEND,)))


class Port92(BytePortDevice):
    """System control port A: bit 1 is A20, a rising bit 0 resets. Register at PORT92, one port."""

    __slots__ = ("_events", "_i8042", "_value")

    FAST_RESET: Final = 0x01
    A20: Final = 0x02

    def __init__(self, i8042: I8042, events: MachineEvents) -> None:
        self._i8042 = i8042
        self._events = events
        self._value = 0

    def reset(self) -> None:
        """Machine reset."""
        self._value = 0

    def read_byte(self, port: int) -> int:
        return self._value & ~self.A20 | (self.A20 if self._i8042.a20 else 0)

    def write_byte(self, port: int, value: int) -> None:
        rising = value & ~self._value & self.FAST_RESET
        self._value = value
        self._i8042.a20 = bool(value & self.A20)
        if rising:
            self._events.init()


class ResetControl(BytePortDevice):
    """PIIX3's RCR: bit 1 selects a hard reset, writing bit 2 resets. Register at RESET_CONTROL_PORT, one port."""

    __slots__ = ("_events", "_value")

    SYSTEM_RESET: Final = 0x02
    RESET_CPU: Final = 0x04

    def __init__(self, events: MachineEvents) -> None:
        self._events = events
        self._value = 0

    def reset(self) -> None:
        """Machine reset."""
        self._value = 0

    def read_byte(self, port: int) -> int:
        return self._value

    def write_byte(self, port: int, value: int) -> None:
        self._value = value & self.SYSTEM_RESET
        if value & self.RESET_CPU:
            if value & self.SYSTEM_RESET:
                self._events.reset()
            else:
                self._events.init()
