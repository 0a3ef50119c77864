"""GSI routing: from an interrupt line's number, or an MSI, to the chips that it drives.

Mirrors virt/kvm/irqchip.c and the routing half of arch/x86/kvm/irq_comm.c.

Promise: a change of the table is atomic; a line that is driven meanwhile sees the old table or the new one, whole.

Shared: the table is an immutable value in a cell, so `irq_line` and `signal_msi` read it without a lock, from any task;
the chips take the IRQCHIP lock themselves, one after the other. Do not call with a lock that ranks above IRQCHIP held,
so a device drops its own lock first. Writers of the table and of the notifiers are ordered by the `Vm`'s lock of rank
IRQ_ROUTING, which their caller holds.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from vtlkit.host.api import Cell, Host
from vtlkit.hvdef.synic import HV_SYNIC_SINT_COUNT
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.ioapic import IoApic, PinNotifier
from vtlkit.kvm.ipi import IpiBus, Irq
from vtlkit.kvm.pic import PIC_NUM_PINS, Pic
from vtlkit.x86.apic import (
    IOAPIC_NUM_PINS,
    MSI_ADDR_DEST_MASK,
    MSI_ADDR_DEST_MODE_LOGICAL,
    MSI_ADDR_DEST_SHIFT,
    MSI_ADDR_EXT_DEST,
    MSI_ADDR_REDIRECTION_HINT,
    MSI_DATA_DELIVERY_MODE,
    MSI_DATA_DELIVERY_MODE_SHIFT,
    MSI_DATA_TRIGGER_LEVEL,
    MSI_DATA_VECTOR,
)

KVM_MAX_IRQ_ROUTES = 4096
USERSPACE_IRQ_SOURCE_ID = 0
PIT_IRQ_SOURCE_ID = 2

_PINS_PER_PIC = PIC_NUM_PINS // 2
_HIGH_SHIFT = 32
_U32_MASK = 0xFFFFFFFF


class Irqchip(enum.IntEnum):
    """KVM_IRQCHIP_*."""

    PIC_MASTER = 0
    PIC_SLAVE = 1
    IOAPIC = 2


@dataclass(frozen=True, slots=True)
class IrqchipRoute:
    """The GSI drives an input pin of a chip (KVM_IRQ_ROUTING_IRQCHIP); `pin` counts within the chip.

    `group`: the APIC namespace to which the I/O APIC sends the pin's interrupts. The PIC is wired to group 0.
    """

    gsi: int
    irqchip: Irqchip
    pin: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class MsiRoute:
    """A rising GSI sends a message (KVM_IRQ_ROUTING_MSI): `address` is 64 bits, `data` 32."""

    gsi: int
    address: int
    data: int
    group: int = 0
    """The APIC namespace it is sent in. No address bits say so: a guest's logical destinations have all 32."""


@dataclass(frozen=True, slots=True)
class HvSintRoute:
    """A rising GSI raises a synthetic interrupt source of a vCPU (KVM_IRQ_ROUTING_HV_SINT)."""

    gsi: int
    vcpu: int
    """Its VP index."""
    sint: int
    group: int = 0
    """The APIC namespace in which that is the VP's index."""


Route: TypeAlias = IrqchipRoute | MsiRoute | HvSintRoute


class _Table:
    __slots__ = ("by_gsi", "by_pin", "routes")

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self.routes = routes
        by_gsi: dict[int, list[Route]] = {}
        self.by_pin: dict[tuple[Irqchip, int], int] = {}
        for route in routes:
            by_gsi.setdefault(route.gsi, []).append(route)
            if isinstance(route, IrqchipRoute):
                self.by_pin[route.irqchip, route.pin] = route.gsi
        self.by_gsi = {gsi: tuple(targets) for gsi, targets in by_gsi.items()}


def default_routing() -> tuple[Route, ...]:
    """GSI 0 to 15 to the PIC and the I/O APIC, 16 to 23 to the I/O APIC alone (`kvm_setup_default_irq_routing`)."""
    routes: list[Route] = []
    for gsi in range(IOAPIC_NUM_PINS):
        routes.append(IrqchipRoute(gsi, Irqchip.IOAPIC, gsi))
        if gsi < PIC_NUM_PINS:
            chip = Irqchip.PIC_MASTER if gsi < _PINS_PER_PIC else Irqchip.PIC_SLAVE
            routes.append(IrqchipRoute(gsi, chip, gsi % _PINS_PER_PIC))
    return tuple(routes)


def msi_irq(address: int, data: int, *, x2apic_format: bool) -> Irq:
    """Decode a message-signalled interrupt (`kvm_set_msi_irq`). Its level is always "asserted"."""
    dest_id = (address & MSI_ADDR_DEST_MASK) >> MSI_ADDR_DEST_SHIFT
    if x2apic_format:
        dest_id |= address >> _HIGH_SHIFT & MSI_ADDR_EXT_DEST
    return Irq(
        vector=data & MSI_DATA_VECTOR,
        delivery_mode=(data & MSI_DATA_DELIVERY_MODE) >> MSI_DATA_DELIVERY_MODE_SHIFT,
        dest_id=dest_id,
        logical=address & MSI_ADDR_DEST_MODE_LOGICAL != 0,
        trig_level=data & MSI_DATA_TRIGGER_LEVEL != 0,
        msi_redir_hint=address & MSI_ADDR_REDIRECTION_HINT != 0,
    )


class _ChipNotifier:
    """A chip's pins as the notifiers of their GSIs."""

    __slots__ = ("_first_chip", "_routing")

    def __init__(self, routing: IrqRouting, first_chip: Irqchip) -> None:
        self._routing = routing
        self._first_chip = first_chip

    def _notifier(self, pin: int) -> PinNotifier | None:
        chip = self._first_chip
        if chip == Irqchip.PIC_MASTER and pin >= _PINS_PER_PIC:
            chip, pin = Irqchip.PIC_SLAVE, pin - _PINS_PER_PIC
        return self._routing.notifier_of(chip, pin)

    def acked(self, pin: int) -> None:
        notifier = self._notifier(pin)
        if notifier is not None:
            notifier.acked(pin)

    def mask_changed(self, pin: int, masked: bool) -> None:
        notifier = self._notifier(pin)
        if notifier is not None:
            notifier.mask_changed(pin, masked)


class IrqRouting:
    """The routing table of one `Vm`."""

    __slots__ = ("_bus", "_bus_of", "_hv_sint", "_ioapic", "_notifiers", "_pic", "_table")

    def __init__(
        self,
        host: Host,
        bus: IpiBus,
        pic: Pic | None,
        ioapic: IoApic | None,
        *,
        hv_sint: Callable[[int, int, int], int] | None = None,
        bus_of: Callable[[int], IpiBus] | None = None,
    ) -> None:
        """Without PIC and I/O APIC (a split irqchip) only MSI and SINT routes exist; `hv_sint(vcpu, sint, group)`
        raises one. `bus` is group 0's; `bus_of` answers for every group, or raises KvmError: EINVAL.

        The table begins as `default_routing()` if both chips are there, else empty.
        """
        self._bus = bus
        self._bus_of = self._only_bus if bus_of is None else bus_of
        self._pic = pic
        self._ioapic = ioapic
        self._hv_sint = hv_sint
        self._table: Cell[_Table] = host.cell(_Table(()), "irq-routing")
        self._notifiers: Cell[dict[int, PinNotifier]] = host.cell({}, "irq-notifiers")
        self.set_gsi_routing(default_routing() if pic is not None and ioapic is not None else ())

    def _only_bus(self, group: int) -> IpiBus:
        if group:
            raise KvmError(errno.EINVAL, f"there is no APIC ID group {group}")
        return self._bus

    # The table

    def routes(self) -> tuple[Route, ...]:
        """The table as it was set."""
        return self._table.load().routes

    def set_gsi_routing(self, routes: Iterable[Route]) -> None:
        """Replace the whole table (KVM_SET_GSI_ROUTING). Raises KvmError, changing nothing, where KVM says EINVAL."""
        table = tuple(routes)
        if len(table) > KVM_MAX_IRQ_ROUTES:
            raise KvmError(errno.EINVAL, f"{len(table)} routes are more than {KVM_MAX_IRQ_ROUTES}")
        seen: dict[int, list[Route]] = {}
        groups: dict[int, int] = {}
        for route in table:
            self._check(route)
            earlier = seen.setdefault(route.gsi, [])
            for other in earlier:
                if not isinstance(other, IrqchipRoute) or not isinstance(route, IrqchipRoute):
                    raise KvmError(errno.EINVAL, f"GSI {route.gsi} has a second route beside a message or a SINT")
                if other.irqchip == route.irqchip:
                    raise KvmError(errno.EINVAL, f"GSI {route.gsi} drives {route.irqchip.name} twice")
            earlier.append(route)
            if (
                isinstance(route, IrqchipRoute)
                and route.irqchip == Irqchip.IOAPIC
                and groups.setdefault(route.pin, route.group) != route.group
            ):
                raise KvmError(errno.EINVAL, f"pin {route.pin} of the I/O APIC is routed to two groups")
        if self._ioapic is not None:
            # Before the table: what is sent on a bus is ended by those that the I/O APIC hears.
            self._ioapic.set_pin_buses({pin: self._bus_of(group) for pin, group in groups.items()})
        self._table.store_release(_Table(table))
        self._update_notifiers()

    def _check(self, route: Route) -> None:
        if not 0 <= route.gsi < KVM_MAX_IRQ_ROUTES:
            raise KvmError(errno.EINVAL, f"GSI {route.gsi} is not below {KVM_MAX_IRQ_ROUTES}")
        self._bus_of(route.group)
        if isinstance(route, IrqchipRoute):
            pins = IOAPIC_NUM_PINS if route.irqchip == Irqchip.IOAPIC else _PINS_PER_PIC
            if (self._ioapic if route.irqchip == Irqchip.IOAPIC else self._pic) is None:
                raise KvmError(errno.EINVAL, f"GSI {route.gsi} is routed to {route.irqchip.name}, which user space has")
            if not 0 <= route.pin < pins:
                raise KvmError(errno.EINVAL, f"{route.irqchip.name} has no pin {route.pin}")
            if route.group and route.irqchip != Irqchip.IOAPIC:
                raise KvmError(errno.EINVAL, f"{route.irqchip.name} is wired to group 0, not to {route.group}")
        elif isinstance(route, MsiRoute):
            self._check_msi(route.address)
        elif self._hv_sint is None:
            raise KvmError(errno.EINVAL, f"GSI {route.gsi} is routed to a SINT, but there is no SynIC")
        elif not 0 <= route.sint < HV_SYNIC_SINT_COUNT:
            raise KvmError(errno.EINVAL, f"GSI {route.gsi} is routed to SINT {route.sint} of {HV_SYNIC_SINT_COUNT}")

    def _check_msi(self, address: int) -> None:
        if self._bus.x2apic_format and address >> _HIGH_SHIFT & ~MSI_ADDR_EXT_DEST & _U32_MASK:
            raise KvmError(errno.EINVAL, f"MSI address {address:#x} has reserved bits 39:32 set")

    # Interrupts

    def irq_line(
        self, gsi: int, level: int, source_id: int = USERSPACE_IRQ_SOURCE_ID, *, line_status: bool = False
    ) -> int:
        """Drive a GSI (KVM_IRQ_LINE, KVM_IRQ_LINE_STATUS). From any task; takes the IRQCHIP lock.

        Returns how many CPUs it reached, 0 if it was coalesced, -1 if it was masked or goes nowhere.
        """
        result = -1
        for route in reversed(self._table.load_acquire().by_gsi.get(gsi, ())):
            status = self._drive(route, level, source_id, line_status)
            if status >= 0:
                result = status + max(result, 0)
        return result

    def _drive(self, route: Route, level: int, source_id: int, line_status: bool) -> int:
        if isinstance(route, IrqchipRoute):
            if route.irqchip == Irqchip.IOAPIC:
                assert self._ioapic is not None
                bus = self._bus_of(route.group)
                return self._ioapic.set_irq(route.pin, level, source_id, line_status=line_status, bus=bus)
            assert self._pic is not None
            pin = route.pin + (_PINS_PER_PIC if route.irqchip == Irqchip.PIC_SLAVE else 0)
            return self._pic.set_irq(pin, level, source_id)
        if not level:
            return -1
        if isinstance(route, MsiRoute):
            return self._send(route.address, route.data, route.group)
        assert self._hv_sint is not None
        return self._hv_sint(route.vcpu, route.sint, route.group)

    def _send(self, address: int, data: int, group: int) -> int:
        return self._bus_of(group).deliver(msi_irq(address, data, x2apic_format=self._bus.x2apic_format))

    def signal_msi(self, address: int, data: int, group: int = 0) -> int:
        """Send a message (KVM_SIGNAL_MSI) in a group: CPUs reached, 0 if none. From any task; never blocks.

        Raises KvmError for address bits 39:32 in x2APIC format, or a group that is not there.
        """
        self._check_msi(address)
        return self._send(address, data, group)

    # Notifiers

    def register_notifier(self, gsi: int, notifier: PinNotifier) -> None:
        """Tell `notifier` when the guest ends, masks or unmasks GSI `gsi`'s interrupt. One per GSI."""
        notifiers = self._notifiers.load()
        assert gsi not in notifiers, f"GSI {gsi} has a notifier"
        self._notifiers.store_release({**notifiers, gsi: notifier})
        self._update_notifiers()

    def notifier_of(self, irqchip: Irqchip, pin: int) -> PinNotifier | None:
        """Who wants to know about a chip's pin."""
        gsi = self._table.load_acquire().by_pin.get((irqchip, pin))
        return self._notifiers.load_acquire().get(gsi) if gsi is not None else None

    def _update_notifiers(self) -> None:
        if self._pic is not None:
            self._pic.set_notifier(_ChipNotifier(self, Irqchip.PIC_MASTER))
        if self._ioapic is not None:
            ack_pins = 0
            for pin in range(IOAPIC_NUM_PINS):
                if self.notifier_of(Irqchip.IOAPIC, pin) is not None:
                    ack_pins |= 1 << pin
            self._ioapic.set_notifier(_ChipNotifier(self, Irqchip.IOAPIC), ack_pins)
