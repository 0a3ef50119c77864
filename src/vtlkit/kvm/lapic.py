"""The local APIC of one vCPU as the guest sees it: its registers in xAPIC and x2APIC mode, its timer, its save format.

Mirrors arch/x86/kvm/lapic.c; `lapic_core` has what senders and the run loop see, with what is shared and how.

Promise: each access does what KVM does for it, reserved registers and bits included. All of this is for the vCPU's own
task; a method takes no lock and does not block, but a write may reach other local APICs, the I/O APIC (EOI) and with it
the IRQCHIP lock.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import lru_cache

from vtlkit.host.api import Bitmap
from vtlkit.kvm import tracing
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.ipi import Irq
from vtlkit.kvm.lapic_core import LapicCore, LapicStatistics
from vtlkit.kvm.lapic_owner import ApicOwner, HvTimer
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
from vtlkit.kvm.requests import Req
from vtlkit.x86 import apic as regs
from vtlkit.x86.msr import APIC_BASE_MSR, APICBASE_BSP, APICBASE_ENABLE, X2APIC_ENABLE

__all__ = ["ApicOwner", "HvTimer", "LapicStatistics", "LocalApic"]

_U32_MASK = 0xFFFFFFFF
_REG_OFFSET_MASK = 0xF
_MAX_REG_OFFSET = 0x3F0
_APICBASE_MODE = APICBASE_ENABLE | X2APIC_ENABLE
_TASKPRI = regs.APIC_TASKPRI >> REG_SHIFT
_TPRI_MASK = regs.APIC_TPRI_MASK
_CR8_SHIFT = 4
_CR8_MASK = 0xF
_SPIV_WRITABLE = regs.APIC_SPIV_VECTOR | regs.APIC_SPIV_APIC_ENABLED | regs.APIC_SPIV_FOCUS_DISABLED
_SPIV_RESET = 0xFF
_DFR_MODEL_FIXED = 0x0FFFFFFF
_ICR2_WRITABLE = 0xFF000000
_VECTOR_REGS = range(regs.APIC_ISR, regs.APIC_IRR + (regs.APIC_ISR_NR << REG_SHIFT))


@lru_cache(maxsize=1024)
def _message(icr: int, dest_id: int) -> Irq:
    """The message that a write of ICR sends; a guest sends few different ones."""
    return Irq(
        vector=icr & regs.APIC_VECTOR_MASK,
        delivery_mode=(icr & regs.APIC_MODE_MASK) >> regs.APIC_MODE_SHIFT,
        dest_id=dest_id,
        logical=icr & regs.APIC_DEST_LOGICAL != 0,
        level=1 if icr & regs.APIC_INT_ASSERT else 0,
        trig_level=icr & regs.APIC_INT_LEVELTRIG != 0,
        shorthand=(icr & regs.APIC_SHORT_MASK) >> regs.APIC_SHORT_SHIFT,
    )


class LocalApic(LapicCore):
    """One local APIC. It is off until `reset(init_event=False)`, which every vCPU does first (`kvm_vcpu_reset`)."""

    __slots__ = ()

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

    # Registers

    def read(self, offset: int) -> int:
        """The register at an offset of the xAPIC page, whatever mode the APIC is in."""
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
        return self.read(register) >> 8 * byte & ((1 << 8 * size) - 1)

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Store to the page. Only aligned 32-bit stores to registers count; KVM ignores others, and so does this.

        May make requests of the own vCPU without a kick: the caller looks at them before it runs more guest code.
        """
        if size != 4 or self._base & _APICBASE_MODE != APICBASE_ENABLE:
            return
        handler = _WRITE_HANDLERS.get(offset)
        if handler is not None and handler(self, value & _U32_MASK) and self.listener is not None:
            self.listener.written(offset, value & _U32_MASK)

    def x2apic_msr_read(self, index: int) -> int | None:
        """RDMSR of an x2APIC register (MSR number 0x800 to 0x8ff); None is #GP."""
        offset = (index - APIC_BASE_MSR) << REG_SHIFT
        if not self.x2apic_mode or not self._readable(offset):
            return None
        if offset == regs.APIC_ICR:
            return self._reg(regs.APIC_ICR) | self._reg(regs.APIC_ICR2) << 32
        return self.read(offset)

    def x2apic_msr_write(self, index: int, value: int) -> bool:
        """WRMSR of an x2APIC register; False is #GP."""
        offset = (index - APIC_BASE_MSR) << REG_SHIFT
        if not self.x2apic_mode:
            return False
        if offset == regs.APIC_ICR:
            return self._x2apic_icr_write(value)
        return not value >> 32 and self.write(offset, value)

    def write(self, offset: int, value: int) -> bool:
        """Write it (32 bits) as the guest does; False if the present mode has no such register to write."""
        handler = _WRITE_HANDLERS.get(offset)
        accepted = handler is not None and handler(self, value)
        if accepted and self.listener is not None:
            self.listener.written(offset, value)
        return accepted

    def _write_id(self, value: int) -> bool:
        if self.x2apic_mode:
            return False
        self._set_reg(regs.APIC_ID, value & regs.APIC_BROADCAST << regs.APIC_XAPIC_ID_SHIFT)
        self._publish_address()
        return True

    def _write_tpr(self, value: int) -> bool:
        self._regs[_TASKPRI] = value & _TPRI_MASK
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

    def _send_ipi(self, icr: int, dest_id: int) -> None:
        if self.listener is not None and self.listener.startup(icr, dest_id):
            return
        self._ipis_sent += 1
        if self.trace is not None:
            tracing.ipi(self.trace, _message(icr, dest_id))
        self._bus.deliver(_message(icr, dest_id), self)

    def send_startup(self, icr: int) -> None:
        """Send after all what left `run` as `InterceptedStartup`; ICR as in x2APIC mode."""
        self._ipis_sent += 1
        self._bus.deliver(_message(icr & _U32_MASK, icr >> 32), self)

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

        Raises KvmError, and changes nothing, if the page has the wrong size or, in x2APIC format, another APIC's ID.
        """
        if len(page) != regs.APIC_REGISTERS_SIZE:
            raise KvmError(errno.EINVAL, f"a local APIC state has {regs.APIC_REGISTERS_SIZE} bytes, not {len(page)}")
        if self.x2apic_mode and self._bus.x2apic_format and page_reg(page, regs.APIC_ID) != self.apic_id:
            raise KvmError(errno.EINVAL, f"state of APIC {page_reg(page, regs.APIC_ID)} given to APIC {self.apic_id}")
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
