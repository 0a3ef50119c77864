"""The pair of 8259 interrupt controllers with their edge/level registers.

Mirrors arch/x86/kvm/i8259.c. Promise: after each change of a line or the masks, acknowledgement and end of interrupt,
the output is up exactly if some unmasked request outranks what is in service, and `on_output` hears of each change from
down to up after the lock is released.

Shared: the chips are under the IRQCHIP lock, which the public methods take themselves. `output` is a cell that every
vCPU may look at without the lock. It is a hint: a vCPU that sees it up late gets the spurious vector (IRQ 7) from
`read_irq`, as from the hardware; a vCPU that sees it down late is kicked by `on_output`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from vtlkit.host.api import Cell, Host, Lock
from vtlkit.kvm.ioapic import PinNotifier

PIC_NUM_PINS = 16

_PINS_PER_CHIP = 8
_CASCADE_PIN = 2
_SPURIOUS_PIN = 7
_ELCR_MASKS = (0xF8, 0xDE)
_ELCR_PORT = 0x4D0
_SLAVE_PORT = 0xA0

_ICW1 = 0x10
_ICW1_ICW4 = 0x01
_OCW3 = 0x08
_OCW3_POLL = 0x04
_OCW3_READ_REG = 0x02
_OCW3_READ_ISR = 0x01
_OCW3_SPECIAL_MASK_ENABLE = 0x40
_OCW3_SPECIAL_MASK_SHIFT = 5
_OCW2_COMMAND_SHIFT = 5
_OCW2_LEVEL = 0x07
_ROTATE_AUTO_EOI_CLEAR, _NONSPECIFIC_EOI, _SPECIFIC_EOI = 0, 1, 3
_ROTATE_AUTO_EOI_SET, _ROTATE_NONSPECIFIC_EOI, _SET_PRIORITY, _ROTATE_SPECIFIC_EOI = 4, 5, 6, 7
_ICW2_BASE = 0xF8
_ICW4_SFNM_SHIFT = 4
_ICW4_AUTO_EOI_SHIFT = 1


@dataclass(slots=True)
class PicChip:
    """One 8259 (`struct kvm_pic_state`). `init_state` is the initialisation word expected next, 0 if none."""

    last_irr: int = 0
    irr: int = 0
    imr: int = 0
    isr: int = 0
    priority_add: int = 0
    irq_base: int = 0
    read_reg_select: int = 0
    poll: int = 0
    special_mask: int = 0
    init_state: int = 0
    auto_eoi: int = 0
    rotate_on_auto_eoi: int = 0
    special_fully_nested_mode: int = 0
    init4: int = 0
    elcr: int = 0

    def set_irq1(self, pin: int, level: bool) -> int:
        """Drive an input; an edge is remembered. 0 if it met an earlier request, -1 if the pin is masked, else 1."""
        mask = 1 << pin
        result = 1
        if level:
            if self.elcr & mask or not self.last_irr & mask:
                result = 0 if self.irr & mask else 1
                self.irr |= mask
            self.last_irr |= mask
        else:
            if self.elcr & mask:
                self.irr &= ~mask
            self.last_irr &= ~mask
        return -1 if self.imr & mask else result

    def priority(self, mask: int) -> int:
        """The rank (0 is highest) of the first pin of `mask`; 8 if it is empty."""
        for rank in range(_PINS_PER_CHIP):
            if mask >> ((rank + self.priority_add) & 7) & 1:
                return rank
        return _PINS_PER_CHIP

    def pending(self, master: bool) -> int:
        """The pin that wants service now, or -1 (`pic_get_irq`)."""
        rank = self.priority(self.irr & ~self.imr)
        if rank == _PINS_PER_CHIP:
            return -1
        in_service = self.isr
        if self.special_fully_nested_mode and master:
            in_service &= ~(1 << _CASCADE_PIN)
        return (rank + self.priority_add) & 7 if rank < self.priority(in_service) else -1


@dataclass(frozen=True, slots=True)
class PicState:
    """Copies of both chips, as KVM_GET_IRQCHIP reports them."""

    master: PicChip
    slave: PicChip


class Pic:
    """The master (pins 0 to 7) and the slave (pins 8 to 15) behind its pin 2."""

    __slots__ = ("_chips", "_irq_states", "_lock", "_notifier", "_on_output", "_wakeup_needed", "output")

    def __init__(self, host: Host, lock: Lock, on_output: Callable[[bool], None]) -> None:
        """`lock` is the `Vm`'s IRQCHIP lock. `on_output(True)` is called without it when the output has gone up."""
        self._lock = lock
        self._chips = (PicChip(), PicChip())
        self._irq_states = [0] * PIC_NUM_PINS
        self._notifier: PinNotifier | None = None
        self._on_output = on_output
        self._wakeup_needed = False
        self.output: Cell[bool] = host.cell(False, "pic-output")

    def set_notifier(self, notifier: PinNotifier) -> None:
        """Tell `notifier` of acknowledgements and mask changes of pins 0 to 15."""
        with self._lock:
            self._notifier = notifier

    def _unlock(self) -> None:
        wakeup, self._wakeup_needed = self._wakeup_needed, False
        self._lock.release()
        if wakeup:
            self._on_output(True)

    # Lines and acknowledgement

    def set_irq(self, pin: int, level: int, source_id: int = 0) -> int:
        """Drive a pin; sources are wired-OR. 0 if coalesced, -1 if masked, else 1. Takes the lock."""
        self._lock.acquire()
        if level:
            self._irq_states[pin] |= 1 << source_id
        else:
            self._irq_states[pin] &= ~(1 << source_id)
        result = self._chips[pin >> 3].set_irq1(pin & 7, self._irq_states[pin] != 0)
        self._update_irq()
        self._unlock()
        return result

    def clear_all(self, source_id: int) -> None:
        """Take a source's word off every pin (`kvm_pic_clear_all`). Takes the lock."""
        with self._lock:
            self._irq_states = [state & ~(1 << source_id) for state in self._irq_states]

    def read_irq(self) -> int:
        """The CPU acknowledges: the vector to inject, IRQ 7's if the request is gone. Takes the lock."""
        self._lock.acquire()
        master, slave = self._chips
        self.output.store(False)
        pin = master.pending(True)
        if pin < 0:
            vector = master.irq_base + _SPURIOUS_PIN
        else:
            self._intack(0, pin)
            vector = master.irq_base + pin
            if pin == _CASCADE_PIN:
                slave_pin = slave.pending(False)
                if slave_pin >= 0:
                    self._intack(1, slave_pin)
                vector = slave.irq_base + (slave_pin if slave_pin >= 0 else _SPURIOUS_PIN)
        self._update_irq()
        self._unlock()
        return vector

    def _update_irq(self) -> None:
        master, slave = self._chips
        if slave.pending(False) >= 0:
            master.set_irq1(_CASCADE_PIN, True)
            master.set_irq1(_CASCADE_PIN, False)
        level = master.pending(True) >= 0
        if level != self.output.load():
            self.output.store(level)
            self._wakeup_needed = level

    def _intack(self, chip_index: int, pin: int) -> None:
        chip = self._chips[chip_index]
        chip.isr |= 1 << pin
        if not chip.elcr >> pin & 1:
            chip.irr &= ~(1 << pin)
        if chip.auto_eoi:
            if chip.rotate_on_auto_eoi:
                chip.priority_add = (pin + 1) & 7
            self._clear_isr(chip_index, pin)

    def _clear_isr(self, chip_index: int, pin: int) -> None:
        self._chips[chip_index].isr &= ~(1 << pin)
        if self._notifier is not None:
            self._notifier.acked(chip_index * _PINS_PER_CHIP + pin)

    # Guest access

    def port_read(self, port: int, size: int) -> int:
        """IN from 0x20, 0x21, 0xa0, 0xa1, 0x4d0 or 0x4d1: one byte; 0 for any other size. Takes the lock."""
        if size != 1:
            return 0
        self._lock.acquire()
        if port >= _ELCR_PORT:
            value = self._chips[port & 1].elcr
        else:
            value = self._read(1 if port >= _SLAVE_PORT else 0, port)
        self._unlock()
        return value

    def port_write(self, port: int, size: int, value: int) -> None:
        """OUT to one of the six ports: one byte; any other size is ignored. Takes the lock."""
        if size != 1:
            return
        self._lock.acquire()
        if port >= _ELCR_PORT:
            self._chips[port & 1].elcr = value & _ELCR_MASKS[port & 1]
        else:
            chip_index = 1 if port >= _SLAVE_PORT else 0
            if port & 1:
                self._write_data(chip_index, value & 0xFF)
            else:
                self._write_command(chip_index, value & 0xFF)
        self._unlock()

    def _read(self, chip_index: int, port: int) -> int:
        chip = self._chips[chip_index]
        if chip.poll:
            chip.poll = 0
            return self._poll_read(chip_index)
        if port & 1:
            return chip.imr
        return chip.isr if chip.read_reg_select else chip.irr

    def _poll_read(self, chip_index: int) -> int:
        chip, master = self._chips[chip_index], self._chips[0]
        pin = chip.pending(chip_index == 0)
        if pin < 0:
            self._update_irq()
            return _SPURIOUS_PIN
        if chip_index:
            master.isr &= ~(1 << _CASCADE_PIN)
            master.irr &= ~(1 << _CASCADE_PIN)
        chip.irr &= ~(1 << pin)
        self._clear_isr(chip_index, pin)
        if chip_index or pin != _CASCADE_PIN:
            self._update_irq()
        return pin

    def _write_command(self, chip_index: int, value: int) -> None:
        chip = self._chips[chip_index]
        if value & _ICW1:
            chip.init4 = value & _ICW1_ICW4
            self._reset_chip(chip_index)
        elif value & _OCW3:
            if value & _OCW3_POLL:
                chip.poll = 1
            if value & _OCW3_READ_REG:
                chip.read_reg_select = value & _OCW3_READ_ISR
            if value & _OCW3_SPECIAL_MASK_ENABLE:
                chip.special_mask = value >> _OCW3_SPECIAL_MASK_SHIFT & 1
        else:
            self._operate(chip_index, value >> _OCW2_COMMAND_SHIFT, value & _OCW2_LEVEL)

    def _operate(self, chip_index: int, command: int, pin: int) -> None:
        chip = self._chips[chip_index]
        if command in (_ROTATE_AUTO_EOI_CLEAR, _ROTATE_AUTO_EOI_SET):
            chip.rotate_on_auto_eoi = command >> 2
            return
        if command in (_NONSPECIFIC_EOI, _ROTATE_NONSPECIFIC_EOI):
            rank = chip.priority(chip.isr)
            if rank == _PINS_PER_CHIP:
                return
            pin = (rank + chip.priority_add) & 7
        elif command not in (_SPECIFIC_EOI, _SET_PRIORITY, _ROTATE_SPECIFIC_EOI):
            return
        if command in (_ROTATE_NONSPECIFIC_EOI, _SET_PRIORITY, _ROTATE_SPECIFIC_EOI):
            chip.priority_add = (pin + 1) & 7
        if command != _SET_PRIORITY:
            self._clear_isr(chip_index, pin)
        self._update_irq()

    def _write_data(self, chip_index: int, value: int) -> None:
        chip = self._chips[chip_index]
        if chip.init_state == 0:
            changed, chip.imr = chip.imr ^ value, value
            for pin in range(_PINS_PER_CHIP):
                if changed >> pin & 1 and self._notifier is not None:
                    self._notifier.mask_changed(chip_index * _PINS_PER_CHIP + pin, value >> pin & 1 != 0)
            self._update_irq()
        elif chip.init_state == 1:
            chip.irq_base = value & _ICW2_BASE
            chip.init_state = 2
        elif chip.init_state == 2:
            chip.init_state = 3 if chip.init4 else 0
        else:
            chip.special_fully_nested_mode = value >> _ICW4_SFNM_SHIFT & 1
            chip.auto_eoi = value >> _ICW4_AUTO_EOI_SHIFT & 1
            chip.init_state = 0

    def _reset_chip(self, chip_index: int) -> None:
        chip = self._chips[chip_index]
        forgotten = chip.irr & ~chip.elcr
        chip.last_irr = 0
        chip.irr &= chip.elcr
        chip.imr = chip.priority_add = chip.special_mask = chip.read_reg_select = 0
        if not chip.init4:
            chip.special_fully_nested_mode = chip.auto_eoi = 0
        chip.init_state = 1
        # A source that waits for the end of a request that was just forgotten would wait for ever.
        for pin in range(_PINS_PER_CHIP):
            if forgotten >> pin & 1:
                self._clear_isr(chip_index, pin)

    # State

    def get_state(self) -> PicState:
        """KVM_GET_IRQCHIP of both chips. Takes the lock."""
        with self._lock:
            return PicState(*(replace(chip) for chip in self._chips))

    def set_state(self, state: PicState) -> None:
        """KVM_SET_IRQCHIP of both chips. Takes the lock."""
        self._lock.acquire()
        self._chips = (replace(state.master), replace(state.slave))
        self._update_irq()
        self._unlock()
