"""The heart of a local APIC: its address, and the way of an interrupt from a sender through IRR and ISR to its EOI.

Mirrors `__apic_accept_irq`, `kvm_apic_has_interrupt`, `kvm_get_apic_interrupt`, `apic_set_eoi` and
`kvm_lapic_set_base` of arch/x86/kvm/lapic.c; `lapic.LocalApic` puts the guest's registers on top.

Promise: an interrupt that `accept_irq` accepted stays in IRR until the vCPU takes it, and a vCPU that decides to block
while it is being accepted is woken.

Shared with senders on other tasks, and nothing else is:

* `irr`, set by senders, cleared by the vCPU; `tmr`, set or cleared by senders, read by the vCPU;
* `arb_prio`, advanced by senders;
* `address`, stored by the vCPU, loaded by senders (`ipi.ApicAddress`);
* the timer's `pending` (`lapic_timer`).

Registers, ISR, PPR and the timer belong to the vCPU's own task: whoever holds the vCPU's mutex. A method says if it is
for any task; all others are for that one. A sender writes TMR, then IRR, then makes the request, then kicks: the vCPU
that finds an IRR bit finds its trigger mode, and one that misses it is kicked after the bit is there. No method takes a
lock or blocks. docs/design/interrupts.md has the races.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtlkit.host.api import Bitmap, Cell
from vtlkit.kvm.cpuid import DEFAULT_MAXPHYADDR
from vtlkit.kvm.ipi import ApicAddress, DestMap, IpiBus, Irq
from vtlkit.kvm.lapic_owner import ApicListener, ApicOwner
from vtlkit.kvm.lapic_regs import LVT_WRITABLE, NR_REGS, REG_SHIFT
from vtlkit.kvm.lapic_timer import LapicTimer
from vtlkit.kvm.requests import Req
from vtlkit.x86 import apic as regs
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.msr import APICBASE_ENABLE, X2APIC_ENABLE

if TYPE_CHECKING:
    from vtlkit.trace.tracer import VcpuTrace

_PRIORITY_CLASS = 0xF0
_TASKPRI = regs.APIC_TASKPRI >> REG_SHIFT
_APICBASE_RESERVED_LOW = 0x2FF
_NR_LVT_WITHOUT_CMCI = 6


@dataclass(frozen=True, slots=True)
class LapicStatistics:
    """Counters since creation."""

    interrupts: int
    eois: int
    ipis_sent: int
    timer_interrupts: int


class LapicCore:
    """What senders and the run loop see of one local APIC."""

    __slots__ = (
        "_base",
        "_bus",
        "_eois",
        "_interrupts",
        "_ipis_sent",
        "_is_bsp",
        "_isr",
        "_lvts",
        "_maxphyaddr",
        "_owner",
        "_ppr",
        "_regs",
        "_timer_interrupts",
        "_x2apic_supported",
        "address",
        "apic_id",
        "arb_prio",
        "irr",
        "listener",
        "on_eoi",
        "timer",
        "tmr",
        "trace",
    )

    def __init__(
        self, owner: ApicOwner, bus: IpiBus, *, apic_id: int, is_bsp: bool | None = None, cmci: bool = False
    ) -> None:
        """`apic_id` is the initial and x2APIC ID (32 bits); vCPU 0 is the bootstrap processor unless `is_bsp` is given.

        `cmci` adds the LVT entry of machine-check capability MCG_CMCI_P.
        """
        host, name = owner.host, f"vcpu{owner.vcpu_id}-apic"
        self._owner = owner
        self._bus = bus
        self.apic_id = apic_id
        self._is_bsp = owner.vcpu_id == 0 if is_bsp is None else is_bsp
        self._lvts = tuple(LVT_WRITABLE) if cmci else tuple(LVT_WRITABLE)[:_NR_LVT_WITHOUT_CMCI]
        self.irr: Bitmap = host.bitmap(f"{name}-irr")
        self.tmr: Bitmap = host.bitmap(f"{name}-tmr")
        self.arb_prio: Cell[int] = host.cell(0, f"{name}-arb-prio")
        self.address: Cell[ApicAddress] = host.cell(ApicAddress(x2apic_id=apic_id), f"{name}-address")
        self.timer = LapicTimer(owner)
        self.on_eoi: Callable[[int], None] | None = None
        """Called with each vector whose in-service bit an EOI cleared (the SynIC's ear)."""
        self.listener: ApicListener | None = None
        """Told of accesses by the own vCPU, if user space intercepts any: see `unheard`."""
        self.trace: VcpuTrace | None = None
        self._regs = [0] * NR_REGS
        self._isr = 0
        self._ppr = 0
        self._base = 0
        self._x2apic_supported = True
        self._maxphyaddr = DEFAULT_MAXPHYADDR
        self._interrupts = self._eois = self._ipis_sent = self._timer_interrupts = 0
        bus.register(self)

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """For accesses that are user space's own and not the guest's: they do not trap. The vCPU does not run."""
        listener, self.listener = self.listener, None
        try:
            yield
        finally:
            self.listener = listener

    def destroy(self) -> None:
        """Stop the timer and leave the namespace (`kvm_free_lapic`)."""
        self.timer.cancel()
        self._bus.unregister(self)

    def cpuid_changed(self, *, x2apic: bool, tsc_deadline: bool, maxphyaddr: int) -> None:
        """KVM_SET_CPUID2: may the guest use x2APIC mode and the TSC deadline; its physical address width in bits."""
        self._x2apic_supported = x2apic
        self._maxphyaddr = maxphyaddr
        mask = regs.APIC_LVT_TIMER_MODE_MASK if tsc_deadline else regs.APIC_LVT_TIMER_PERIODIC
        self.timer.mode_mask = mask

    # IA32_APICBASE

    @property
    def x2apic_mode(self) -> bool:
        return self._base & X2APIC_ENABLE != 0

    @property
    def hw_enabled(self) -> bool:
        return self._base & APICBASE_ENABLE != 0

    @property
    def sw_enabled(self) -> bool:
        return self._regs[regs.APIC_SPIV >> REG_SHIFT] & regs.APIC_SPIV_APIC_ENABLED != 0

    def get_base(self) -> int:
        """IA32_APICBASE."""
        return self._base

    def set_base(self, value: int, host_initiated: bool) -> bool:
        """Write IA32_APICBASE (`kvm_set_apic_base`); False is #GP: a reserved bit, or a transition the SDM forbids."""
        enable, x2apic = value & APICBASE_ENABLE, value & X2APIC_ENABLE
        if value & _APICBASE_RESERVED_LOW or value >> self._maxphyaddr:
            return False
        if x2apic and (not enable or not self._x2apic_supported):
            return False
        if not host_initiated:
            if self.x2apic_mode and enable and not x2apic:
                return False
            if not self.hw_enabled and x2apic:
                return False
        self._set_base(value)
        return True

    def _set_base(self, value: int) -> None:
        old, self._base = self._base, value
        changed = old ^ value
        if changed & value & APICBASE_ENABLE:
            self._set_reg(regs.APIC_ID, (self.apic_id & regs.APIC_BROADCAST) << regs.APIC_XAPIC_ID_SHIFT)
        if changed & value & X2APIC_ENABLE:
            self._set_reg(regs.APIC_ID, self.apic_id)
            self._set_reg(regs.APIC_LDR, regs.x2apic_ldr(self.apic_id))
        self._publish_address()
        if changed:
            self._owner.apic_base_changed(old, value)

    def _publish_address(self) -> None:
        lvt0 = self._reg(regs.APIC_LVT0) & (regs.APIC_MODE_MASK | regs.APIC_LVT_MASKED)
        new = ApicAddress(
            x2apic_id=self.apic_id,
            xapic_id=self._reg(regs.APIC_ID) >> regs.APIC_XAPIC_ID_SHIFT,
            ldr=self._reg(regs.APIC_LDR),
            dfr=self._reg(regs.APIC_DFR),
            hw_enabled=self.hw_enabled,
            sw_enabled=self.sw_enabled,
            x2apic_mode=self.x2apic_mode,
            lvt0_extint=lvt0 == regs.APIC_DM_EXTINT,
            lvt0_nmi=lvt0 == regs.APIC_DM_NMI,
        )
        if new != self.address.load():
            self.address.store(new)
            self._bus.address_changed()

    def _reg(self, offset: int) -> int:
        return self._regs[offset >> REG_SHIFT]

    def _set_reg(self, offset: int, value: int) -> None:
        self._regs[offset >> REG_SHIFT] = value

    # Accepting

    def deliver(self, irq: Irq, dest_map: DestMap | None = None) -> int:
        """Accept a message that is addressed to this APIC (`kvm_apic_set_irq`); 1 if accepted. From any task."""
        return self.accept_irq(irq.delivery_mode, irq.vector, irq.level, irq.trig_level, dest_map)

    def accept_irq(self, mode: int, vector: int, level: int, trig_level: bool, dest_map: DestMap | None = None) -> int:
        """`__apic_accept_irq`: 1 if the interrupt was accepted, 0 if it was dropped. From any task; never blocks."""
        owner = self._owner
        if mode == DeliveryMode.FIXED or mode == DeliveryMode.LOWEST:
            if mode == DeliveryMode.LOWEST:
                self.arb_prio.fetch_add(1)
            address = self.address.load()
            if (trig_level and not level) or not (address.sw_enabled and address.hw_enabled):
                return 0
            if dest_map is not None:
                dest_map(owner.vcpu_id, vector)
            if self.tmr.test(vector) != trig_level:
                if trig_level:
                    self.tmr.set(vector)
                else:
                    self.tmr.clear(vector)
            if self.trace is not None:
                self.trace.accept_irq(self.apic_id, vector, DeliveryMode(mode).name, trig_level)
            # Fully ordered: TMR before IRR. Pairs with get_interrupt, which reads IRR and at EOI reads TMR.
            self.irr.test_and_set(vector)
            owner.make_request(Req.EVENT)
        elif mode == DeliveryMode.NMI:
            owner.deliver_nmi()
        elif mode == DeliveryMode.SMI:
            owner.deliver_smi()
        elif mode == DeliveryMode.INIT:
            if trig_level and not level:
                return 0
            owner.deliver_init()
            owner.make_request(Req.EVENT)
        elif mode == DeliveryMode.STARTUP:
            owner.deliver_sipi(vector)
            owner.make_request(Req.EVENT)
        else:
            # ExtINT comes through accept_pic_intr; a remote read has no one to answer it.
            return 0
        owner.kick()
        return 1

    def nmi_watchdog_tick(self) -> None:
        """A PIT tick on LINT0, if LVT0 makes it an NMI. From any task."""
        address = self.address.load()
        if address.hw_enabled and address.lvt0_nmi:
            self.accept_irq(DeliveryMode.NMI, 0, 1, False)

    def accept_pic_intr(self) -> bool:
        """Whether the PIC's output reaches this CPU: no APIC in the way, or LVT0 passes it. From any task."""
        if not self._bus.lint0_wired:
            return False
        address = self.address.load()
        return not address.hw_enabled or address.lvt0_extint

    def local_deliver(self, lvt: int) -> int:
        """An interrupt of a local source through its LVT entry (`kvm_apic_local_deliver`); 1 if accepted."""
        value = self._reg(lvt)
        if not self.hw_enabled or value & regs.APIC_LVT_MASKED:
            return 0
        accepted = self.accept_irq(
            (value & regs.APIC_MODE_MASK) >> regs.APIC_MODE_SHIFT,
            value & regs.APIC_VECTOR_MASK,
            1,
            value & regs.APIC_LVT_LEVEL_TRIGGER != 0,
        )
        if accepted and lvt == regs.APIC_LVTPC:
            self._set_reg(lvt, value | regs.APIC_LVT_MASKED)
        return accepted

    # Taking interrupts

    def _compute_ppr(self) -> int:
        tpr, isr = self._regs[_TASKPRI], self._isr
        if not isr:
            return tpr
        in_service = isr.bit_length() - 1 & _PRIORITY_CLASS
        return tpr if tpr & _PRIORITY_CLASS >= in_service else in_service

    @property
    def ppr(self) -> int:
        """The processor priority: what it lets through has a higher class (bits 7:4)."""
        return self._ppr

    def _update_ppr(self) -> None:
        old = self._ppr
        self._ppr = new = self._compute_ppr()
        if new < old and (self.has_interrupt() >= 0 or self._owner.wants_windows()):
            self._owner.make_request(Req.EVENT)

    def has_interrupt(self) -> int:
        """The highest requested vector that PPR lets through, or -1 (`kvm_apic_has_interrupt`)."""
        irr = self.irr.load()
        if not irr or not self._base & APICBASE_ENABLE:
            return -1
        vector = irr.bit_length() - 1
        return vector if vector & _PRIORITY_CLASS > self._ppr else -1

    def get_interrupt(self) -> int:
        """Take the interrupt of `has_interrupt`: out of IRR, into service (`kvm_get_apic_interrupt`); -1 if none."""
        vector = self.has_interrupt()
        if vector < 0:
            return -1
        self._interrupts += 1
        self.irr.test_and_clear(vector)
        if self._owner.hv_auto_eoi(vector):
            # PPR was not raised, so another interrupt may be deliverable at once.
            if self.has_interrupt() >= 0:
                self._owner.make_request(Req.EVENT)
        else:
            self._isr |= 1 << vector
            self._ppr = self._compute_ppr()
        return vector

    def set_eoi(self) -> None:
        """End the highest interrupt in service (`apic_set_eoi`); nothing if there is none."""
        if not self._isr:
            return
        self._eois += 1
        vector = self._isr.bit_length() - 1
        if self.trace is not None:
            self.trace.eoi(self.apic_id, vector)
        self._isr ^= 1 << vector
        self._ppr = self._compute_ppr()
        if self.on_eoi is not None:
            self.on_eoi(vector)
        if self.tmr.test(vector):
            self._owner.eoi_ioapic(vector)
        else:
            self._bus.edge_eoi(self._owner.vcpu_id, vector)
        if self.listener is not None:
            self.listener.eoi(vector)
        # For what was there before; a sender makes the request of its own after it has set the bit.
        if self.has_interrupt() >= 0 or self._owner.wants_windows():
            self._owner.make_request(Req.EVENT)

    def private_eoi(self) -> int:
        """The highest vector in service, if its EOI would do nothing but take it out of ISR; else -1."""
        isr = self._isr
        if not isr or self.irr.load() or self.listener is not None or self._owner.wants_windows():
            return -1
        vector = isr.bit_length() - 1
        return -1 if self.tmr.test(vector) or self._bus.edge_eoi_wanted(vector) else vector

    def statistics(self) -> LapicStatistics:
        """What this APIC did so far."""
        return LapicStatistics(self._interrupts, self._eois, self._ipis_sent, self._timer_interrupts)
