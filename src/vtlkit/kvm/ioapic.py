"""The I/O APIC: 24 pins, version 0x11 (no EOI register: the local APIC's EOI broadcast ends level interrupts).

Mirrors arch/x86/kvm/ioapic.c. Promise: while a level-triggered pin is unmasked and asserted, its interrupt is in some
local APIC's IRR or ISR, or on its way there; Remote IRR says so.

Shared: everything here is under the IRQCHIP lock, which the public methods take themselves. Local APICs are reached
with the lock held: `ApicOwner.make_request` and `kick` must not need it. The RTC is tracked as KVM does: a pin-8
interrupt is coalesced until every CPU that accepted it has ended it, so that the caller can repeat a lost tick.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from vtlkit.host.api import Lock
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.ipi import IpiBus, Irq
from vtlkit.x86.apic import (
    IO_APIC_DEFAULT_PHYS_BASE,
    IOAPIC_DELIVERY_MODE,
    IOAPIC_DELIVERY_MODE_SHIFT,
    IOAPIC_DEST_LOGICAL,
    IOAPIC_DEST_SHIFT,
    IOAPIC_MASKED,
    IOAPIC_NUM_PINS,
    IOAPIC_READ_ONLY,
    IOAPIC_REG_APIC_ID,
    IOAPIC_REG_ARB_ID,
    IOAPIC_REG_REDIRECTION,
    IOAPIC_REG_SELECT,
    IOAPIC_REG_VERSION,
    IOAPIC_REG_WINDOW,
    IOAPIC_REMOTE_IRR,
    IOAPIC_TRIGGER_LEVEL,
    IOAPIC_VECTOR,
    IOAPIC_VERSION_ID,
)

IOAPIC_DEFAULT_BASE_ADDRESS = IO_APIC_DEFAULT_PHYS_BASE
IOAPIC_MEM_LENGTH = 0x100
RTC_GSI = 8

_ID_SHIFT = 24
_ID_MASK = 0xF
_VERSION_PINS_SHIFT = 16
_U32_MASK = 0xFFFFFFFF
_HIGH_SHIFT = 32


class PinNotifier(Protocol):
    """Who wants to know what the guest does to an interrupt pin. Called with the IRQCHIP lock held: no call back."""

    def acked(self, pin: int) -> None:
        """The guest ended the pin's interrupt (`kvm_notify_acked_irq`)."""

    def mask_changed(self, pin: int, masked: bool) -> None:
        """The guest masked or unmasked the pin (`kvm_fire_mask_notifiers`)."""


@dataclass(frozen=True, slots=True)
class IoApicState:
    """`struct kvm_ioapic_state`: `irr` holds the asserted lines whose interrupt was not delivered as an edge."""

    base_address: int
    ioregsel: int
    id: int
    irr: int
    redirtbl: tuple[int, ...]


class IoApic:
    """One I/O APIC in front of the APIC namespace `bus`, and of others to which single pins are routed.

    A pin's interrupt is ended by an EOI on the bus that it was sent on, wherever the pin is routed by then.
    """

    __slots__ = (
        "_ack_pins",
        "_bus",
        "_heard",
        "_id",
        "_ioregsel",
        "_irq_states",
        "_irr",
        "_irr_delivered",
        "_lock",
        "_notifier",
        "_pin_bus",
        "_redirtbl",
        "_rtc_pending",
        "_sent_on",
        "base_address",
    )

    def __init__(self, lock: Lock, bus: IpiBus) -> None:
        """`lock` is the `Vm`'s IRQCHIP lock, shared with the PIC."""
        self._lock = lock
        self._bus = bus
        self._notifier: PinNotifier | None = None
        self._ack_pins = 0
        self.base_address = IOAPIC_DEFAULT_BASE_ADDRESS
        self._irq_states = [0] * IOAPIC_NUM_PINS
        self._redirtbl = [IOAPIC_MASKED] * IOAPIC_NUM_PINS
        self._ioregsel = self._id = self._irr = self._irr_delivered = 0
        self._rtc_pending: dict[int, int] = {}
        self._pin_bus = [bus] * IOAPIC_NUM_PINS
        self._sent_on = [bus] * IOAPIC_NUM_PINS
        self._heard: list[IpiBus] = []
        self._hear(bus)

    def _hear(self, bus: IpiBus) -> None:
        bus.watch_edge_eoi(partial(self._edge_eoi, bus))
        self._heard.append(bus)

    def set_pin_buses(self, buses: Mapping[int, IpiBus]) -> None:
        """Send the interrupts of these pins on these buses from now on, those of the others on the first. Takes the
        lock."""
        with self._lock:
            for pin in range(IOAPIC_NUM_PINS):
                bus = self._pin_bus[pin] = buses.get(pin, self._bus)
                if bus not in self._heard:
                    self._hear(bus)
            self._update_ack_vectors()

    def set_notifier(self, notifier: PinNotifier, ack_pins: int) -> None:
        """Tell `notifier` of mask changes, and of acknowledgements of the pins whose bit is set in `ack_pins`."""
        with self._lock:
            self._notifier = notifier
            self._ack_pins = ack_pins
            self._update_ack_vectors()

    # Guest access

    def mmio_read(self, offset: int, size: int) -> int:
        """Load `size` bytes at `offset` of the 0x100-byte window. Takes the IRQCHIP lock."""
        with self._lock:
            if offset == IOAPIC_REG_SELECT:
                result = self._ioregsel
            elif offset == IOAPIC_REG_WINDOW:
                result = self._read_indirect()
            else:
                result = 0
        return result & ((1 << 8 * size) - 1)

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Store `size` bytes at `offset`; the upper half of an 8-byte store is lost. Takes the IRQCHIP lock."""
        value &= (1 << 8 * min(size, 4)) - 1
        with self._lock:
            if offset == IOAPIC_REG_SELECT:
                self._ioregsel = value & 0xFF
            elif offset == IOAPIC_REG_WINDOW:
                self._write_indirect(value)

    def _read_indirect(self) -> int:
        register = self._ioregsel
        if register == IOAPIC_REG_VERSION:
            return (IOAPIC_NUM_PINS - 1) << _VERSION_PINS_SHIFT | IOAPIC_VERSION_ID
        if register in (IOAPIC_REG_APIC_ID, IOAPIC_REG_ARB_ID):
            return self._id << _ID_SHIFT
        pin = (register - IOAPIC_REG_REDIRECTION) >> 1
        if not 0 <= pin < IOAPIC_NUM_PINS:
            return _U32_MASK
        entry = self._redirtbl[pin]
        return entry >> _HIGH_SHIFT if register & 1 else entry & _U32_MASK

    def _write_indirect(self, value: int) -> None:
        register = self._ioregsel
        if register == IOAPIC_REG_APIC_ID:
            self._id = value >> _ID_SHIFT & _ID_MASK
        pin = (register - IOAPIC_REG_REDIRECTION) >> 1
        if not 0 <= pin < IOAPIC_NUM_PINS:
            return
        old = self._redirtbl[pin]
        if register & 1:
            new = old & _U32_MASK | value << _HIGH_SHIFT
        else:
            new = old & _U32_MASK << _HIGH_SHIFT | value & ~IOAPIC_READ_ONLY | old & IOAPIC_READ_ONLY
        if not new & IOAPIC_TRIGGER_LEVEL:
            # Operating systems switch a pin to edge and back to end its interrupt without an EOI register.
            new &= ~IOAPIC_REMOTE_IRR
        self._redirtbl[pin] = new
        self._update_ack_vectors()
        if (old ^ new) & IOAPIC_MASKED and self._notifier is not None:
            self._notifier.mask_changed(pin, new & IOAPIC_MASKED != 0)
        if new & IOAPIC_TRIGGER_LEVEL and self._irr >> pin & 1:
            self._service(pin, False)

    # Lines

    def set_irq(
        self, pin: int, level: int, source_id: int = 0, *, line_status: bool = False, bus: IpiBus | None = None
    ) -> int:
        """Drive a pin; sources are wired-OR. Takes the IRQCHIP lock.

        Returns as KVM_IRQ_LINE_STATUS: CPUs reached, 0 if coalesced with an earlier interrupt, -1 if masked.
        `line_status` says that the caller looks at the answer, which turns on RTC tracking. `bus` is that of the
        caller's route, so that it and the pin are of one table; what follows the rise is sent as `set_pin_buses` says.
        """
        with self._lock:
            if level:
                self._irq_states[pin] |= 1 << source_id
            else:
                self._irq_states[pin] &= ~(1 << source_id)
            return self._set_line(pin, self._irq_states[pin] != 0, line_status, bus)

    def _set_line(self, pin: int, asserted: bool, line_status: bool, bus: IpiBus | None = None) -> int:
        mask = 1 << pin
        if not asserted:
            self._irr &= ~mask
            return 1
        if pin == RTC_GSI and line_status and self._rtc_pending:
            return 0
        was_asserted = self._irr & mask
        self._irr |= mask
        if not self._redirtbl[pin] & IOAPIC_TRIGGER_LEVEL:
            self._irr_delivered &= ~mask
            if was_asserted:
                return 0
        return self._service(pin, line_status, bus)

    def _service(self, pin: int, line_status: bool, bus: IpiBus | None = None) -> int:
        entry = self._redirtbl[pin]
        level = entry & IOAPIC_TRIGGER_LEVEL != 0
        if entry & IOAPIC_MASKED or (level and entry & IOAPIC_REMOTE_IRR):
            return -1
        irq = Irq(
            vector=entry & IOAPIC_VECTOR,
            delivery_mode=(entry & IOAPIC_DELIVERY_MODE) >> IOAPIC_DELIVERY_MODE_SHIFT,
            dest_id=entry >> IOAPIC_DEST_SHIFT,
            logical=entry & IOAPIC_DEST_LOGICAL != 0,
            trig_level=level,
        )
        if not level:
            self._irr_delivered |= 1 << pin
        bus = self._pin_bus[pin] if bus is None else bus
        self._sent_on[pin] = bus
        if pin == RTC_GSI and line_status:
            accepted = bus.deliver(irq, None, self._rtc_pending.__setitem__)
            self._update_ack_vectors()
        else:
            accepted = bus.deliver(irq)
        if accepted and level:
            self._redirtbl[pin] |= IOAPIC_REMOTE_IRR
        return accepted

    # Ends of interrupts

    def eoi(self, vcpu_id: int, vector: int, bus: IpiBus | None = None) -> None:
        """A local APIC broadcasts the EOI of a level-triggered vector (`kvm_ioapic_update_eoi`) on its bus, the first
        unless given. Takes the lock."""
        bus = self._bus if bus is None else bus
        with self._lock:
            self._rtc_eoi(vcpu_id, vector)
            for pin, entry in enumerate(self._redirtbl):
                if entry & IOAPIC_VECTOR != vector or self._sent_on[pin] is not bus:
                    continue
                self._notify_acked(pin)
                if not entry & IOAPIC_TRIGGER_LEVEL:
                    continue
                self._redirtbl[pin] &= ~IOAPIC_REMOTE_IRR
                if self._irr >> pin & 1:
                    self._service(pin, False)

    def _edge_eoi(self, bus: IpiBus, vcpu_id: int, vector: int) -> None:
        with self._lock:
            self._rtc_eoi(vcpu_id, vector)
            for pin, entry in enumerate(self._redirtbl):
                if entry & IOAPIC_VECTOR == vector and self._sent_on[pin] is bus:
                    self._notify_acked(pin)

    def _notify_acked(self, pin: int) -> None:
        if self._notifier is not None and self._ack_pins >> pin & 1:
            self._notifier.acked(pin)

    def _rtc_eoi(self, vcpu_id: int, vector: int) -> None:
        if self._rtc_pending.get(vcpu_id) == vector:
            del self._rtc_pending[vcpu_id]

    def _update_ack_vectors(self) -> None:
        vectors = 0
        for pin, entry in enumerate(self._redirtbl):
            if self._ack_pins >> pin & 1:
                vectors |= 1 << (entry & IOAPIC_VECTOR)
        for vector in self._rtc_pending.values():
            vectors |= 1 << vector
        vectors |= 1 << (self._redirtbl[RTC_GSI] & IOAPIC_VECTOR)
        for heard in self._heard:
            heard.set_ack_vectors(vectors)

    # State

    def reset(self) -> None:
        """A machine reset: as after creation, Remote IRR included, for the local APICs have forgotten what they serve.

        KVM's `kvm_ioapic_reset` leaves the rest to user space's KVM_SET_IRQCHIP. Takes the lock.
        """
        with self._lock:
            self._redirtbl = [IOAPIC_MASKED] * IOAPIC_NUM_PINS
            self._irq_states = [0] * IOAPIC_NUM_PINS
            self._update_ack_vectors()
            self._ioregsel = self._id = self._irr = self._irr_delivered = 0
            self._rtc_pending.clear()

    def get_state(self) -> IoApicState:
        """KVM_GET_IRQCHIP."""
        with self._lock:
            irr = self._irr & ~self._irr_delivered
            return IoApicState(self.base_address, self._ioregsel, self._id, irr, tuple(self._redirtbl))

    def set_state(self, state: IoApicState) -> None:
        """KVM_SET_IRQCHIP: take over the registers and send what was asserted. EINVAL: wrong number of pins.

        Interrupts in service are taken to have been sent where the pins are routed: set the routes before.
        """
        if len(state.redirtbl) != IOAPIC_NUM_PINS:
            raise KvmError(errno.EINVAL, f"an I/O APIC state has {IOAPIC_NUM_PINS} entries, not {len(state.redirtbl)}")
        with self._lock:
            self.base_address = state.base_address
            self._ioregsel = state.ioregsel
            self._id = state.id
            self._redirtbl = list(state.redirtbl)
            self._irr = self._irr_delivered = 0
            self._rtc_pending.clear()
            self._sent_on = list(self._pin_bus)
            self._update_ack_vectors()
            for pin in range(IOAPIC_NUM_PINS):
                if state.irr >> pin & 1:
                    self._set_line(pin, True, False)
