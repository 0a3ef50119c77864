"""The local APIC of one vCPU, in xAPIC and x2APIC mode.

Mirrors arch/x86/kvm/lapic.c; the timer is in `lapic_timer`, destinations are in `ipi`, tables in `lapic_regs`.

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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vtlkit.host.api import Bitmap, Cell
from vtlkit.kvm.ipi import ApicAddress, DestMap, IpiBus, Irq
from vtlkit.kvm.lapic_regs import (
    LVT_WRITABLE,
    NR_REGS,
    READABLE_X2APIC,
    READABLE_XAPIC,
    REG_SHIFT,
    pack_page,
    page_bitmap,
    page_reg,
    vector_reg,
)
from vtlkit.kvm.lapic_timer import LapicTimer, TimerOwner
from vtlkit.kvm.requests import Req
from vtlkit.x86 import apic as regs
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.msr import APIC_BASE_MSR, APICBASE_BSP, APICBASE_ENABLE, X2APIC_ENABLE

_U32_MASK = 0xFFFFFFFF
_REG_OFFSET_MASK = 0xF
_MAX_REG_OFFSET = 0x3F0
_PRIORITY_CLASS = 0xF0
_CR8_SHIFT = 4
_CR8_MASK = 0xF
_SPIV_WRITABLE = regs.APIC_SPIV_VECTOR | regs.APIC_SPIV_APIC_ENABLED | regs.APIC_SPIV_FOCUS_DISABLED
_SPIV_RESET = 0xFF
_APICBASE_RESERVED_LOW = 0x2FF
_DFR_MODEL_FIXED = 0x0FFFFFFF
_ICR2_WRITABLE = 0xFF000000
_DEFAULT_MAXPHYADDR = 36
_NR_LVT_WITHOUT_CMCI = 6
_VECTOR_REGS = range(regs.APIC_ISR, regs.APIC_IRR + (regs.APIC_ISR_NR << REG_SHIFT))


class ApicOwner(TimerOwner, Protocol):
    """What a local APIC needs of its vCPU. Methods marked (any) are called by senders on other tasks."""

    def make_request(self, request: Req) -> None:
        """Set the request bit, ordering earlier stores before it; no kick (any)."""

    def kick(self) -> None:
        """Wake the vCPU if it blocks, force an exit if it runs guest code (`kvm_vcpu_kick`); never blocks (any)."""

    def guest_tsc(self) -> int:
        """The guest's TSC now."""

    def tsc_to_ns(self, guest_tsc: int) -> int:
        """The host time, in ns, at which the guest's TSC reads `guest_tsc`."""

    def deliver_nmi(self) -> None:
        """Queue an NMI (any). The APIC kicks afterwards; so for the three that follow."""

    def deliver_smi(self) -> None:
        """Queue an SMI (any)."""

    def deliver_init(self) -> None:
        """Queue an INIT, which forgets a SIPI that was queued before it (any)."""

    def deliver_sipi(self, vector: int) -> None:
        """Queue a start-up IPI (any)."""

    def apic_base_changed(self, old: int, new: int) -> None:
        """IA32_APICBASE went from `old` to `new`: map, move or unmap the MMIO page; update CPUID's APIC bit."""

    def eoi_ioapic(self, vector: int) -> None:
        """Broadcast the EOI of a level-triggered vector to the I/O APIC."""

    def hv_auto_eoi(self, vector: int) -> bool:
        """Whether a SynIC SINT with auto-EOI uses `vector`."""


@dataclass(frozen=True, slots=True)
class LapicStatistics:
    """Counters since creation."""

    interrupts: int
    eois: int
    ipis_sent: int
    timer_interrupts: int


class LocalApic:
    """One local APIC. It is off until `reset(init_event=False)`, which every vCPU does first (`kvm_vcpu_reset`)."""

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
        "on_eoi",
        "timer",
        "tmr",
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
        self._regs = [0] * NR_REGS
        self._isr = 0
        self._ppr = 0
        self._base = 0
        self._x2apic_supported = True
        self._maxphyaddr = _DEFAULT_MAXPHYADDR
        self._interrupts = self._eois = self._ipis_sent = self._timer_interrupts = 0
        bus.register(self)

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

    # IA32_APICBASE and reset

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

    def reset(self, init_event: bool) -> None:
        """RESET, or INIT, which keeps IA32_APICBASE and the xAPIC ID (`kvm_lapic_reset`)."""
        if not init_event:
            bsp = APICBASE_BSP if self._is_bsp else 0
            self._set_base(regs.APIC_DEFAULT_PHYS_BASE | APICBASE_ENABLE | bsp)
            self._set_reg(regs.APIC_ID, (self.apic_id & regs.APIC_BROADCAST) << regs.APIC_XAPIC_ID_SHIFT)
        self.timer.reset()
        for lvt in self._lvts:
            self._set_reg(lvt, regs.APIC_LVT_MASKED)
        self.timer.set_mode(regs.APIC_LVT_MASKED)
        if self._is_bsp:
            self._set_reg(regs.APIC_LVT0, regs.APIC_DM_EXTINT)
        self._set_reg(regs.APIC_LVR, self._version())
        self._set_reg(regs.APIC_DFR, regs.APIC_DFR_FLAT)
        self._set_reg(regs.APIC_SPIV, _SPIV_RESET)
        self._set_reg(regs.APIC_TASKPRI, 0)
        if not self.x2apic_mode:
            self._set_reg(regs.APIC_LDR, 0)
        for offset in (regs.APIC_ESR, regs.APIC_ICR, regs.APIC_ICR2):
            self._set_reg(offset, 0)
        self._isr = 0
        self._set_bitmap(self.irr, 0)
        self._set_bitmap(self.tmr, 0)
        self._update_ppr()
        self.arb_prio.store(0)
        self._publish_address()

    def _version(self) -> int:
        # No directed EOI: the I/O APIC is version 0x11 and has no EOI register to direct it to.
        return regs.APIC_VERSION | (len(self._lvts) - 1) << regs.APIC_LVR_MAXLVT_SHIFT

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

    # Registers

    def _reg(self, offset: int) -> int:
        return self._regs[offset >> REG_SHIFT]

    def _set_reg(self, offset: int, value: int) -> None:
        self._regs[offset >> REG_SHIFT] = value

    def _read(self, offset: int) -> int:
        if offset in _VECTOR_REGS:
            if offset < regs.APIC_TMR:
                return vector_reg(self._isr, offset)
            return vector_reg((self.tmr if offset < regs.APIC_IRR else self.irr).load(), offset)
        if offset == regs.APIC_PROCPRI:
            return self._ppr
        if offset == regs.APIC_TMCCT:
            return self.timer.current_count()
        if offset == regs.APIC_TMICT:
            return self.timer.initial_count
        if offset == regs.APIC_TDCR:
            return self.timer.tdcr
        return self._regs[offset >> REG_SHIFT]

    def _readable(self, offset: int) -> bool:
        if offset == regs.APIC_LVTCMCI:
            return offset in self._lvts
        return offset in (READABLE_X2APIC if self.x2apic_mode else READABLE_XAPIC)

    def mmio_read(self, offset: int, size: int) -> int:
        """Load `size` bytes at `offset` of the page; all ones if the page is not there, 0 from a reserved register."""
        if not self.hw_enabled or self.x2apic_mode:
            return (1 << 8 * size) - 1
        byte = offset & _REG_OFFSET_MASK
        register = offset - byte
        if byte + size > 4 or offset > _MAX_REG_OFFSET or not self._readable(register):
            return 0
        return self._read(register) >> 8 * byte & ((1 << 8 * size) - 1)

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Store to the page. Only aligned 32-bit stores to registers count; KVM ignores others, and so does this.

        May make requests of the own vCPU without a kick: the caller looks at them before it runs more guest code.
        """
        if self._base & (APICBASE_ENABLE | X2APIC_ENABLE) != APICBASE_ENABLE:
            return
        if size != 4 or offset & _REG_OFFSET_MASK:
            return
        self._write(offset, value & _U32_MASK)

    def x2apic_msr_read(self, index: int) -> int | None:
        """RDMSR of an x2APIC register (MSR number 0x800 to 0x8ff); None is #GP."""
        offset = (index - APIC_BASE_MSR) << REG_SHIFT
        if not self.x2apic_mode or not self._readable(offset):
            return None
        if offset == regs.APIC_ICR:
            return self._reg(regs.APIC_ICR) | self._reg(regs.APIC_ICR2) << 32
        return self._read(offset)

    def x2apic_msr_write(self, index: int, value: int) -> bool:
        """WRMSR of an x2APIC register; False is #GP."""
        offset = (index - APIC_BASE_MSR) << REG_SHIFT
        if not self.x2apic_mode:
            return False
        if offset == regs.APIC_ICR:
            return self._x2apic_icr_write(value)
        return not value >> 32 and self._write(offset, value)

    def _write(self, offset: int, value: int) -> bool:
        handler = _WRITE_HANDLERS.get(offset)
        return handler is not None and handler(self, value)

    def _write_id(self, value: int) -> bool:
        if self.x2apic_mode:
            return False
        self._set_reg(regs.APIC_ID, value & regs.APIC_BROADCAST << regs.APIC_XAPIC_ID_SHIFT)
        self._publish_address()
        return True

    def _write_tpr(self, value: int) -> bool:
        self._set_reg(regs.APIC_TASKPRI, value & regs.APIC_TPRI_MASK)
        self._update_ppr()
        return True

    def _write_eoi(self, _value: int) -> bool:
        self.set_eoi()
        return True

    def _write_ldr(self, value: int) -> bool:
        if self.x2apic_mode:
            return False
        self._set_reg(regs.APIC_LDR, value & regs.APIC_LDR_MASK)
        self._publish_address()
        return True

    def _write_dfr(self, value: int) -> bool:
        if self.x2apic_mode:
            return False
        self._set_reg(regs.APIC_DFR, value | _DFR_MODEL_FIXED)
        self._publish_address()
        return True

    def _write_spiv(self, value: int) -> bool:
        self._set_reg(regs.APIC_SPIV, value & _SPIV_WRITABLE)
        if not value & regs.APIC_SPIV_APIC_ENABLED:
            for lvt in self._lvts:
                self._regs[lvt >> REG_SHIFT] |= regs.APIC_LVT_MASKED
            self.timer.pending.store(0)
        self._publish_address()
        return True

    def _write_icr(self, value: int) -> bool:
        value &= ~regs.APIC_ICR_BUSY
        self._send_ipi(value, self._reg(regs.APIC_ICR2) >> regs.APIC_XAPIC_ID_SHIFT)
        self._set_reg(regs.APIC_ICR, value)
        return True

    def _write_icr2(self, value: int) -> bool:
        if self.x2apic_mode:
            return False
        self._set_reg(regs.APIC_ICR2, value & _ICR2_WRITABLE)
        return True

    def _x2apic_icr_write(self, value: int) -> bool:
        if value & regs.APIC_ICR_RESERVED:
            return False
        value &= ~regs.APIC_ICR_BUSY
        low, dest_id = value & _U32_MASK, value >> 32
        self._send_ipi(low, dest_id)
        self._set_reg(regs.APIC_ICR, low)
        self._set_reg(regs.APIC_ICR2, dest_id)
        return True

    def _write_lvt(self, offset: int, value: int, writable: int) -> bool:
        if offset not in self._lvts:
            return False
        if not self.sw_enabled:
            value |= regs.APIC_LVT_MASKED
        self._set_reg(offset, value & writable)
        return True

    def _write_lvt0(self, value: int) -> bool:
        self._write_lvt(regs.APIC_LVT0, value, LVT_WRITABLE[regs.APIC_LVT0])
        self._publish_address()
        return True

    def _write_lvtt(self, value: int) -> bool:
        self._write_lvt(regs.APIC_LVTT, value, LVT_WRITABLE[regs.APIC_LVTT] | self.timer.mode_mask)
        self.timer.set_mode(self._reg(regs.APIC_LVTT))
        return True

    def _write_tmict(self, value: int) -> bool:
        self.timer.set_initial_count(value)
        return True

    def _write_tdcr(self, value: int) -> bool:
        self.timer.set_tdcr(value)
        return True

    def _write_esr(self, value: int) -> bool:
        # No error is ever recorded, so the register stays 0; in x2APIC mode only 0 may be written.
        return not (self.x2apic_mode and value)

    def _write_self_ipi(self, value: int) -> bool:
        if not self.x2apic_mode or value & ~regs.APIC_VECTOR_MASK:
            return False
        self._send_ipi(regs.APIC_DEST_SELF | value, 0)
        return True

    # Sending and accepting

    def _send_ipi(self, icr: int, dest_id: int) -> None:
        self._ipis_sent += 1
        irq = Irq(
            vector=icr & regs.APIC_VECTOR_MASK,
            delivery_mode=(icr & regs.APIC_MODE_MASK) >> regs.APIC_MODE_SHIFT,
            dest_id=dest_id,
            logical=icr & regs.APIC_DEST_LOGICAL != 0,
            level=1 if icr & regs.APIC_INT_ASSERT else 0,
            trig_level=icr & regs.APIC_INT_LEVELTRIG != 0,
            shorthand=(icr & regs.APIC_SHORT_MASK) >> regs.APIC_SHORT_SHIFT,
        )
        self._bus.deliver(irq, self)

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
        tpr = self._regs[regs.APIC_TASKPRI >> REG_SHIFT]
        in_service = self._isr.bit_length() - 1 if self._isr else 0
        if tpr & _PRIORITY_CLASS >= in_service & _PRIORITY_CLASS:
            return tpr
        return in_service & _PRIORITY_CLASS

    def _update_ppr(self) -> None:
        old = self._ppr
        self._ppr = self._compute_ppr()
        if self._ppr < old and self.has_interrupt() >= 0:
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
        self._isr ^= 1 << vector
        self._update_ppr()
        if self.on_eoi is not None:
            self.on_eoi(vector)
        if self.tmr.test(vector):
            self._owner.eoi_ioapic(vector)
        else:
            self._bus.edge_eoi(self._owner.vcpu_id, vector)
        self._owner.make_request(Req.EVENT)

    def get_tpr(self) -> int:
        """CR8: the task priority class, 0 to 15."""
        return self._reg(regs.APIC_TASKPRI) >> _CR8_SHIFT

    def set_tpr(self, cr8: int) -> None:
        """Write CR8 (4 bits); may make the EVENT request of the own vCPU."""
        self._write_tpr((cr8 & _CR8_MASK) << _CR8_SHIFT)

    # Timer

    def pending_timer(self) -> bool:
        """Whether an expiry waits to go through an LVT that lets it through (`apic_has_pending_timer`)."""
        if not self.timer.pending.load():
            return False
        return self.sw_enabled and self.hw_enabled and not self._reg(regs.APIC_LVTT) & regs.APIC_LVT_MASKED

    def inject_pending_timer(self) -> None:
        """Send a pending expiry through the LVT (`kvm_inject_apic_timer_irqs`)."""
        if self.timer.pending.xchg(0):
            self._timer_interrupts += self.local_deliver(regs.APIC_LVTT)
            self.timer.injected()

    def get_tscdeadline(self) -> int:
        """IA32_TSC_DEADLINE: 0 unless the APIC is on and the LVT is in TSC-deadline mode."""
        return self.timer.tscdeadline if self.hw_enabled else 0

    def set_tscdeadline(self, guest_tsc: int) -> None:
        """Write IA32_TSC_DEADLINE; ignored unless the APIC is on and the LVT is in TSC-deadline mode."""
        if self.hw_enabled:
            self.timer.set_tscdeadline(guest_tsc)

    # State

    def statistics(self) -> LapicStatistics:
        """What this APIC did so far."""
        return LapicStatistics(self._interrupts, self._eois, self._ipis_sent, self._timer_interrupts)

    def get_state(self) -> bytes:
        """The register page, 1 KiB (KVM_GET_LAPIC)."""
        page = {index << REG_SHIFT: value for index, value in enumerate(self._regs)}
        page[regs.APIC_PROCPRI] = self._ppr
        page[regs.APIC_TMICT] = self.timer.initial_count
        page[regs.APIC_TDCR] = self.timer.tdcr
        page[regs.APIC_TMCCT] = self.timer.current_count()
        if self.x2apic_mode and not self._bus.x2apic_format:
            page[regs.APIC_ID] = self.apic_id << regs.APIC_XAPIC_ID_SHIFT & _U32_MASK
        bitmaps = {regs.APIC_ISR: self._isr, regs.APIC_TMR: self.tmr.load(), regs.APIC_IRR: self.irr.load()}
        return pack_page(page, bitmaps)

    def set_state(self, page: bytes) -> None:
        """Take over a register page (KVM_SET_LAPIC). IA32_APICBASE comes first, as it says how to read the page.

        Raises ValueError, and changes nothing, if the page has the wrong size or, in x2APIC format, another APIC's ID.
        """
        if len(page) != regs.APIC_REGISTERS_SIZE:
            raise ValueError(f"a local APIC state has {regs.APIC_REGISTERS_SIZE} bytes, not {len(page)}")
        if self.x2apic_mode and self._bus.x2apic_format and page_reg(page, regs.APIC_ID) != self.apic_id:
            raise ValueError(f"state of APIC {page_reg(page, regs.APIC_ID)} given to APIC {self.apic_id}")
        self._regs = [page_reg(page, index << REG_SHIFT) for index in range(NR_REGS)]
        self._set_reg(regs.APIC_LVR, self._version())
        if self.x2apic_mode:
            self._set_reg(regs.APIC_ID, self.apic_id)
            self._set_reg(regs.APIC_LDR, regs.x2apic_ldr(self.apic_id))
        self._isr = page_bitmap(page, regs.APIC_ISR)
        self._set_bitmap(self.tmr, page_bitmap(page, regs.APIC_TMR))
        self._set_bitmap(self.irr, page_bitmap(page, regs.APIC_IRR))
        self._publish_address()
        self._ppr = self._compute_ppr()
        self.timer.restore(
            self._reg(regs.APIC_LVTT),
            initial_count=self._reg(regs.APIC_TMICT),
            tdcr=self._reg(regs.APIC_TDCR),
            current_count=page_reg(page, regs.APIC_TMCCT),
        )
        self.arb_prio.store(0)
        self._owner.make_request(Req.EVENT)

    @staticmethod
    def _set_bitmap(bitmap: Bitmap, wanted: int) -> None:
        different = bitmap.load() ^ wanted
        while different:
            bit = different.bit_length() - 1
            different ^= 1 << bit
            if wanted >> bit & 1:
                bitmap.set(bit)
            else:
                bitmap.clear(bit)


def _lvt_handler(offset: int) -> Callable[[LocalApic, int], bool]:
    writable = LVT_WRITABLE[offset]
    return lambda apic, value: apic._write_lvt(offset, value, writable)


_WRITE_HANDLERS: dict[int, Callable[[LocalApic, int], bool]] = {
    regs.APIC_ID: LocalApic._write_id,
    regs.APIC_TASKPRI: LocalApic._write_tpr,
    regs.APIC_EOI: LocalApic._write_eoi,
    regs.APIC_LDR: LocalApic._write_ldr,
    regs.APIC_DFR: LocalApic._write_dfr,
    regs.APIC_SPIV: LocalApic._write_spiv,
    regs.APIC_ESR: LocalApic._write_esr,
    regs.APIC_ICR: LocalApic._write_icr,
    regs.APIC_ICR2: LocalApic._write_icr2,
    regs.APIC_LVTT: LocalApic._write_lvtt,
    regs.APIC_LVTTHMR: _lvt_handler(regs.APIC_LVTTHMR),
    regs.APIC_LVTPC: _lvt_handler(regs.APIC_LVTPC),
    regs.APIC_LVT0: LocalApic._write_lvt0,
    regs.APIC_LVT1: _lvt_handler(regs.APIC_LVT1),
    regs.APIC_LVTERR: _lvt_handler(regs.APIC_LVTERR),
    regs.APIC_LVTCMCI: _lvt_handler(regs.APIC_LVTCMCI),
    regs.APIC_TMICT: LocalApic._write_tmict,
    regs.APIC_TDCR: LocalApic._write_tdcr,
    regs.APIC_SELF_IPI: LocalApic._write_self_ipi,
}
