"""ACPI power management hardware as PIIX4 has it (ACPI specification, chapter 4; QEMU's hw/acpi/core.c and piix4.c).

PM1 event and control block, PM timer, GPE0 block and the SMI command port. Promise: SLP_TYP 0 is S5 and 1 is S3, as in
QEMU's pc machine and in our DSDT (`vtlkit.vmm.acpi`); SCI is raised only while SCI_EN; the PM timer is a function of
the host's clock; in S3 the first enabled wake event calls `events.wakeup()` exactly once and leaves WAK_STS set.

Locking: register accesses run under the bus's lock. `rtc_alarm` and the PM timer's callback run in interrupt context:
what they share with register accesses are a status bitmap and one cell, and they drive SCI through `LevelLine`.

    task: SLP_EN                           interrupt context: rtc_alarm
    ------------                           ----------------------------
    suspended := true; events.suspend()    PM1_STS |= RTC_STS
    PM1_STS & PM1_EN? then wake            suspended? then wake

Each side stores before it looks at the other's word, so at least one sees both; `suspended` is taken by cmpxchg, so
one wakes.
"""

from __future__ import annotations

from typing import Final

from vtlkit.host.api import Host
from vtlkit.vmm.devices.events import MachineEvents
from vtlkit.vmm.devices.line import Irq, LevelLine

PM_BASE: Final = 0x600
PM_PORTS: Final = 12
PM1_EVENT_PORT: Final = PM_BASE
PM1_CONTROL_PORT: Final = PM_BASE + 4
PM_TIMER_PORT: Final = PM_BASE + 8
GPE0_PORT: Final = 0xAFE0
GPE0_PORTS: Final = 4
SMI_COMMAND_PORT: Final = 0xB2
SMI_PORTS: Final = 2
SCI_IRQ: Final = 9

ACPI_ENABLE: Final = 0xF1
ACPI_DISABLE: Final = 0xF0
PM_TIMER_HZ: Final = 3579545
_SECOND: Final = 1_000_000_000

TMR_STS: Final = 1 << 0
GBL_STS: Final = 1 << 5
PWRBTN_STS: Final = 1 << 8
RTC_STS: Final = 1 << 10
WAK_STS: Final = 1 << 15
_STATUS_BITS: Final = TMR_STS | GBL_STS | PWRBTN_STS | RTC_STS | WAK_STS
_ENABLE_BITS: Final = TMR_STS | GBL_STS | PWRBTN_STS | RTC_STS
_WAKE_BITS: Final = PWRBTN_STS | RTC_STS

SCI_EN: Final = 1 << 0
SLP_TYP_SHIFT: Final = 10
SLP_TYP: Final = 7 << SLP_TYP_SHIFT
SLP_EN: Final = 1 << 13
_CONTROL_KEPT: Final = 0xFFFF & ~(SLP_EN | SCI_EN)
SLP_TYP_S5: Final = 0
SLP_TYP_S3: Final = 1

_PM1_STS_OFFSET: Final = 0
_PM1_EN_OFFSET: Final = 2
_PM1_CNT_OFFSET: Final = 4
_TIMER_OFFSET: Final = 8


class AcpiPm:
    """Register at PM_BASE for PM_PORTS ports. `timer_bits` is 24, or 32 if the FADT says TMR_VAL_EXT."""

    __slots__ = (
        "_control",
        "_enable",
        "_events",
        "_gpe",
        "_half_period",
        "_host",
        "_status",
        "_suspended",
        "_timer",
        "_timer_mask",
        "_timer_seen",
        "sci",
    )

    def __init__(self, host: Host, irq: Irq, events: MachineEvents, *, timer_bits: int = 24) -> None:
        self._host = host
        self._events = events
        self._timer_mask = (1 << timer_bits) - 1
        self._half_period = 1 << (timer_bits - 1)
        self._status = host.bitmap("pm1-status")
        self._suspended = host.cell(False, "acpi-suspended")
        self._gpe: GpeBlock | None = None
        self._enable = 0
        self._control = 0
        self.sci = LevelLine(irq, self._sci_level)
        self._timer = host.timer(self.sci.update, "pm-timer")
        self._timer_seen = self._timer_half()

    def attach_gpe(self, gpe: GpeBlock) -> None:
        """Let the GPE block's events raise SCI."""
        self._gpe = gpe

    def reset(self, *, waking: bool = False) -> None:
        """Machine reset, or with `waking` the reset at the end of S3, which keeps the status and enable registers."""
        self._control = 0
        self._suspended.store(False)
        if not waking:
            self._enable = 0
            self._clear_status(_STATUS_BITS)
        self._settle()

    # Events from outside

    def press_power_button(self) -> None:
        """The user pressed the power button. Interrupt context is allowed."""
        self._raise(PWRBTN_STS)

    def rtc_alarm(self) -> None:
        """The real-time clock's alarm went off. Interrupt context is allowed."""
        self._raise(RTC_STS)

    def _raise(self, bit: int) -> None:
        self._status.set(bit.bit_length() - 1)
        self._host.smp_mb()
        self._try_wake()
        self.sci.update()

    def _try_wake(self) -> None:
        if self._status.load() & self._enable & _WAKE_BITS and self._suspended.cmpxchg(True, False):
            self._status.set(WAK_STS.bit_length() - 1)
            self._events.wakeup()

    # PM timer

    def _counter(self) -> int:
        return self._host.now_ns() * PM_TIMER_HZ // _SECOND

    def _timer_half(self) -> int:
        """How often the counter's top bit has changed: TMR_STS is set by each change."""
        return self._counter() // self._half_period

    def _pm1_status(self) -> int:
        return self._status.load() | (TMR_STS if self._timer_half() != self._timer_seen else 0)

    def _clear_status(self, mask: int) -> None:
        if mask & TMR_STS:
            self._timer_seen = self._timer_half()
        for bit in (GBL_STS, PWRBTN_STS, RTC_STS, WAK_STS):
            if mask & bit:
                self._status.clear(bit.bit_length() - 1)

    def _sci_level(self) -> bool:
        if not self._control & SCI_EN:
            return False
        if self._pm1_status() & self._enable & _ENABLE_BITS:
            return True
        return self._gpe is not None and self._gpe.pending()

    def _settle(self) -> None:
        self.sci.update()
        if self._enable & TMR_STS and self._timer_half() == self._timer_seen:
            ticks = (self._timer_seen + 1) * self._half_period
            self._timer.start(-(-ticks * _SECOND // PM_TIMER_HZ))
        else:
            self._timer.cancel()

    # Ports

    def read(self, port: int, size: int) -> int:
        offset = port - PM_BASE
        if offset == _TIMER_OFFSET and size == 4:
            return self._counter() & self._timer_mask
        block = bytearray(PM_PORTS)
        block[_PM1_STS_OFFSET:_PM1_EN_OFFSET] = self._pm1_status().to_bytes(2, "little")
        block[_PM1_EN_OFFSET:_PM1_CNT_OFFSET] = self._enable.to_bytes(2, "little")
        block[_PM1_CNT_OFFSET : _PM1_CNT_OFFSET + 2] = self._control.to_bytes(2, "little")
        block[_TIMER_OFFSET:] = (self._counter() & self._timer_mask).to_bytes(4, "little")
        return int.from_bytes(block[offset : offset + size], "little")

    def write(self, port: int, size: int, value: int) -> None:
        offset = port - PM_BASE
        mask = ((1 << (8 * size)) - 1) << (8 * offset)
        bits = value << (8 * offset)
        touched = {
            register: (bits >> (8 * register) & 0xFFFF, mask >> (8 * register) & 0xFFFF)
            for register in (_PM1_STS_OFFSET, _PM1_EN_OFFSET, _PM1_CNT_OFFSET)
        }
        self._clear_status(touched[_PM1_STS_OFFSET][0])
        enable, enable_mask = touched[_PM1_EN_OFFSET]
        self._enable = (self._enable & ~enable_mask | enable) & _ENABLE_BITS
        self._settle()
        control, control_mask = touched[_PM1_CNT_OFFSET]
        if control_mask:
            self._write_control(self._control & ~control_mask | control)

    def _write_control(self, value: int) -> None:
        # SCI_EN belongs to the SMI command port: the operating system preserves it and cannot change it here.
        self._control = value & _CONTROL_KEPT | self._control & SCI_EN
        if not value & SLP_EN:
            return
        sleep_type = (value & SLP_TYP) >> SLP_TYP_SHIFT
        if sleep_type == SLP_TYP_S5:
            self._events.power_off()
        elif sleep_type == SLP_TYP_S3:
            self._suspended.store(True)
            self._events.suspend()
            self._host.smp_mb()
            self._try_wake()

    def set_acpi_mode(self, enabled: bool) -> None:
        """SCI_EN, as the firmware's SMI handler would set it."""
        self._control = self._control & ~SCI_EN | (SCI_EN if enabled else 0)
        self.sci.update()


class GpeBlock:
    """GPE0: 16 status bits (write one to clear) and 16 enable bits. Register at GPE0_PORT for GPE0_PORTS ports.

    `raise_event` may come from interrupt context.
    """

    __slots__ = ("_enable", "_pm", "_status")

    EVENTS: Final = 16

    def __init__(self, host: Host, pm: AcpiPm) -> None:
        self._status = host.bitmap("gpe0-status")
        self._enable = 0
        self._pm = pm
        pm.attach_gpe(self)

    def pending(self) -> bool:
        """Whether an enabled event waits."""
        return bool(self._status.load() & self._enable)

    def raise_event(self, number: int) -> None:
        """Set status bit `number`, 0 to 15."""
        if not 0 <= number < self.EVENTS:
            raise ValueError(f"GPE {number}: the block has 0 to {self.EVENTS - 1}")
        self._status.set(number)
        self._pm.sci.update()

    def reset(self) -> None:
        """Machine reset."""
        self._enable = 0
        self._clear((1 << self.EVENTS) - 1)
        self._pm.sci.update()

    def _clear(self, mask: int) -> None:
        for number in range(self.EVENTS):
            if mask >> number & 1:
                self._status.clear(number)

    def read(self, port: int, size: int) -> int:
        block = self._status.load() | self._enable << self.EVENTS
        return block >> (8 * (port - GPE0_PORT)) & ((1 << (8 * size)) - 1)

    def write(self, port: int, size: int, value: int) -> None:
        shift = 8 * (port - GPE0_PORT)
        bits, mask = value << shift, ((1 << (8 * size)) - 1) << shift
        self._clear(bits & ((1 << self.EVENTS) - 1))
        enable_mask = mask >> self.EVENTS
        self._enable = (self._enable & ~enable_mask | bits >> self.EVENTS) & ((1 << self.EVENTS) - 1)
        self._pm.sci.update()


class SmiCommand:
    """Ports 0xB2 and 0xB3: APM command and status. There is no SMM: the ACPI commands act at once, others only stay."""

    __slots__ = ("_pm", "_registers")

    def __init__(self, pm: AcpiPm) -> None:
        self._pm = pm
        self._registers = bytearray(SMI_PORTS)

    def reset(self) -> None:
        """Machine reset."""
        self._registers = bytearray(SMI_PORTS)

    def read(self, port: int, size: int) -> int:
        offset = port - SMI_COMMAND_PORT
        return int.from_bytes(bytes(self._registers[offset : offset + size]).ljust(size, b"\xff"), "little")

    def write(self, port: int, size: int, value: int) -> None:
        offset = port - SMI_COMMAND_PORT
        room = min(size, SMI_PORTS - offset)
        self._registers[offset : offset + room] = value.to_bytes(size, "little")[:room]
        if offset == 0:
            command = self._registers[0]
            if command in (ACPI_ENABLE, ACPI_DISABLE):
                self._pm.set_acpi_mode(command == ACPI_ENABLE)
