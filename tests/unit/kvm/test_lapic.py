"""The local APIC's registers, modes, reset, and its save format."""

from __future__ import annotations

import pytest

from tests.unit.kvm.irqchip_rig import SPIV_ON, Machine, read, write
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.requests import Req
from vtlkit.x86 import apic as regs
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.msr import APIC_BASE_MSR, APICBASE_BSP, APICBASE_ENABLE, X2APIC_ENABLE

BASE = regs.APIC_DEFAULT_PHYS_BASE
LVTS = (regs.APIC_LVTT, regs.APIC_LVTTHMR, regs.APIC_LVTPC, regs.APIC_LVT0, regs.APIC_LVT1, regs.APIC_LVTERR)


def test_reset_values() -> None:
    machine = Machine(2, enabled=False)
    for n, apic in enumerate(machine.apics):
        assert apic.get_base() == BASE | APICBASE_ENABLE | (APICBASE_BSP if n == 0 else 0)
        assert read(apic, regs.APIC_ID) == n << 24
        assert read(apic, regs.APIC_LVR) == 0x50014
        assert read(apic, regs.APIC_SPIV) == 0xFF
        assert read(apic, regs.APIC_DFR) == 0xFFFFFFFF
        assert read(apic, regs.APIC_LDR) == read(apic, regs.APIC_TASKPRI) == read(apic, regs.APIC_TMICT) == 0
        expected = dict.fromkeys(LVTS, regs.APIC_LVT_MASKED)
        if n == 0:
            expected[regs.APIC_LVT0] = regs.APIC_DM_EXTINT
        assert {lvt: read(apic, lvt) for lvt in LVTS} == expected
    assert [owner.base_changes for owner in machine.owners] == [[(0, BASE | 0x900)], [(0, BASE | 0x800)]]


def test_init_keeps_base_and_id() -> None:
    apic = Machine().apics[0]
    write(apic, regs.APIC_ID, 7 << 24)
    write(apic, regs.APIC_TASKPRI, 0x50)
    apic.accept_irq(DeliveryMode.FIXED, 0x61, 1, True)
    assert apic.set_base(0xFED40000 | APICBASE_ENABLE, False)
    apic.reset(init_event=True)
    assert apic.get_base() == 0xFED40000 | APICBASE_ENABLE
    assert read(apic, regs.APIC_ID) == 7 << 24
    assert read(apic, regs.APIC_TASKPRI) == 0
    assert apic.irr.load() == apic.tmr.load() == 0
    assert not apic.sw_enabled


@pytest.mark.parametrize(
    ("first", "then", "allowed"),
    [
        (APICBASE_ENABLE, APICBASE_ENABLE | X2APIC_ENABLE, True),
        (APICBASE_ENABLE, X2APIC_ENABLE, False),
        (APICBASE_ENABLE, 0, True),
        (APICBASE_ENABLE | X2APIC_ENABLE, APICBASE_ENABLE, False),
        (APICBASE_ENABLE | X2APIC_ENABLE, X2APIC_ENABLE, False),
        (APICBASE_ENABLE | X2APIC_ENABLE, 0, True),
        (0, APICBASE_ENABLE, True),
        (0, X2APIC_ENABLE, False),
        (0, APICBASE_ENABLE | X2APIC_ENABLE, False),
    ],
)
def test_mode_transitions(first: int, then: int, allowed: bool) -> None:
    apic = Machine().apics[0]
    assert apic.set_base(BASE | first, host_initiated=True)
    assert apic.set_base(BASE | then, host_initiated=False) is allowed
    assert apic.get_base() == BASE | (then if allowed else first)
    valid = then != X2APIC_ENABLE
    assert apic.set_base(BASE | then, host_initiated=True) is valid


def test_reserved_bits_of_the_base() -> None:
    apic = Machine().apics[0]
    apic.cpuid_changed(x2apic=False, tsc_deadline=True, maxphyaddr=40)
    assert not apic.set_base(BASE | APICBASE_ENABLE | 1, False)
    assert not apic.set_base(BASE | APICBASE_ENABLE | 1 << 40, False)
    assert apic.set_base(BASE | APICBASE_ENABLE | 1 << 39, False)
    assert not apic.set_base(BASE | APICBASE_ENABLE | X2APIC_ENABLE, True)


def test_disabled_apic_reads_ones_but_keeps_cr8() -> None:
    machine = Machine()
    apic = machine.apics[0]
    apic.set_tpr(3)
    apic.set_base(BASE, False)
    apic.mmio_write(regs.APIC_TASKPRI, 4, 0xFFFFFFFF)
    assert apic.mmio_read(regs.APIC_LVR, 4) == 0xFFFFFFFF
    assert apic.mmio_read(regs.APIC_TASKPRI, 1) == 0xFF
    assert apic.get_tpr() == 3
    apic.set_tpr(0xC)
    assert apic.get_tpr() == 0xC
    assert apic.accept_pic_intr()
    apic.set_base(BASE | APICBASE_ENABLE, False)
    assert read(apic, regs.APIC_LVR) == 0x50014
    assert read(apic, regs.APIC_TASKPRI) == 0xC0
    assert machine.owners[0].base_changes[-2:] == [(BASE | 0x900, BASE), (BASE, BASE | APICBASE_ENABLE)]


def test_enabling_restores_the_xapic_id_and_x2apic_fixes_it() -> None:
    machine = Machine(20)
    apic = machine.apics[19]
    write(apic, regs.APIC_ID, 0xFF << 24)
    assert read(apic, regs.APIC_ID) == 0xFF << 24
    assert apic.set_base(BASE | APICBASE_ENABLE | X2APIC_ENABLE, False)
    assert read(apic, regs.APIC_ID) == 19
    assert read(apic, regs.APIC_LDR) == 0x10008
    assert apic.set_base(BASE, False)
    assert apic.set_base(BASE | APICBASE_ENABLE, False)
    assert read(apic, regs.APIC_ID) == 19 << 24


@pytest.mark.parametrize(
    "offset",
    [regs.APIC_ID, regs.APIC_LDR, regs.APIC_DFR, regs.APIC_ICR2, regs.APIC_LVR, regs.APIC_ISR, regs.APIC_TMCCT],
)
def test_x2apic_read_only_registers_fault(offset: int) -> None:
    assert not Machine(x2apic=True).apics[0].x2apic_msr_write(APIC_BASE_MSR + (offset >> 4), 0)


@pytest.mark.parametrize(
    "offset",
    [
        regs.APIC_EOI,
        regs.APIC_SELF_IPI,
        regs.APIC_DFR,
        regs.APIC_ICR2,
        regs.APIC_ARBPRI,
        regs.APIC_LVTCMCI,
        0,
        0x400,
        0xFF0,
    ],
)
def test_x2apic_unreadable_registers_fault(offset: int) -> None:
    assert Machine(x2apic=True).apics[0].x2apic_msr_read(APIC_BASE_MSR + (offset >> 4)) is None


def test_x2apic_reserved_bits_fault() -> None:
    apic = Machine(x2apic=True).apics[0]
    for offset, value in [
        (regs.APIC_TASKPRI, 1 << 32),
        (regs.APIC_ESR, 1),
        (regs.APIC_SELF_IPI, 0x100),
        (regs.APIC_ICR, 1 << 13),
        (regs.APIC_ICR, 1 << 16),
        (regs.APIC_ICR, 1 << 20),
    ]:
        assert not apic.x2apic_msr_write(APIC_BASE_MSR + (offset >> 4), value)
    assert apic.x2apic_msr_write(APIC_BASE_MSR + (regs.APIC_ESR >> 4), 0)


def test_msrs_fault_in_xapic_mode_and_mmio_is_gone_in_x2apic_mode() -> None:
    apic = Machine().apics[0]
    assert apic.x2apic_msr_read(APIC_BASE_MSR + 3) is None
    assert not apic.x2apic_msr_write(APIC_BASE_MSR + 8, 0)
    apic = Machine(x2apic=True).apics[0]
    assert apic.mmio_read(regs.APIC_LVR, 4) == 0xFFFFFFFF
    apic.mmio_write(regs.APIC_TASKPRI, 4, 0x30)
    assert apic.get_tpr() == 0


def test_x2apic_icr_is_one_register_and_busy_never_reads_set() -> None:
    apic = Machine(x2apic=True).apics[0]
    icr = 0x1234_0000_0000 | regs.APIC_INT_ASSERT | 0x55
    assert apic.x2apic_msr_write(APIC_BASE_MSR + 0x30, icr | regs.APIC_ICR_BUSY)
    assert apic.x2apic_msr_read(APIC_BASE_MSR + 0x30) == icr


def test_mmio_access_sizes() -> None:
    apic = Machine().apics[0]
    assert apic.mmio_read(regs.APIC_LVR, 1) == 0x14
    assert apic.mmio_read(regs.APIC_LVR + 2, 1) == 5
    assert apic.mmio_read(regs.APIC_LVR, 2) == 0x14
    assert apic.mmio_read(regs.APIC_LVR + 2, 4) == 0
    assert apic.mmio_read(regs.APIC_LVR, 8) == 0
    assert apic.mmio_read(regs.APIC_EOI, 4) == 0
    assert apic.mmio_read(0xFFC, 4) == 0
    for offset, size in [(regs.APIC_TASKPRI, 1), (regs.APIC_TASKPRI, 8), (regs.APIC_TASKPRI + 4, 4)]:
        apic.mmio_write(offset, size, 0x70)
    assert apic.get_tpr() == 0


def test_lvts_stay_masked_while_software_disabled() -> None:
    apic = Machine().apics[0]
    write(apic, regs.APIC_LVT1, regs.APIC_DM_NMI)
    write(apic, regs.APIC_LVTT, 0xEE)
    write(apic, regs.APIC_SPIV, 0xFF)
    assert all(read(apic, lvt) & regs.APIC_LVT_MASKED for lvt in LVTS)
    write(apic, regs.APIC_LVT1, regs.APIC_DM_NMI)
    assert read(apic, regs.APIC_LVT1) == regs.APIC_DM_NMI | regs.APIC_LVT_MASKED
    write(apic, regs.APIC_SPIV, SPIV_ON)
    assert read(apic, regs.APIC_LVT1) == regs.APIC_DM_NMI | regs.APIC_LVT_MASKED
    write(apic, regs.APIC_LVT1, regs.APIC_DM_NMI)
    assert read(apic, regs.APIC_LVT1) == regs.APIC_DM_NMI


def test_writable_bits() -> None:
    apic = Machine().apics[0]
    for offset, expected in [
        (regs.APIC_LVTT, 0x710FF),
        (regs.APIC_LVTPC, 0x117FF),
        (regs.APIC_LVT0, 0x1F7FF),
        (regs.APIC_LVTERR, 0x110FF),
        (regs.APIC_SPIV, 0x3FF),
        (regs.APIC_TDCR, 0xB),
        (regs.APIC_LDR, 0xFF000000),
        (regs.APIC_ICR2, 0xFF000000),
        (regs.APIC_ESR, 0),
        (regs.APIC_LVTCMCI, 0),
    ]:
        write(apic, offset, 0xFFFFFFFF)
        assert read(apic, offset) == expected, hex(offset)
    write(apic, regs.APIC_DFR, 0)
    assert read(apic, regs.APIC_DFR) == regs.APIC_DFR_CLUSTER


def test_timer_mode_bits_follow_cpuid() -> None:
    apic = Machine().apics[0]
    apic.cpuid_changed(x2apic=True, tsc_deadline=False, maxphyaddr=36)
    write(apic, regs.APIC_LVTT, 0xFFFFFFFF)
    assert read(apic, regs.APIC_LVTT) == 0x310FF


def test_software_disabled_apic_takes_only_what_the_manual_says() -> None:
    machine = Machine(enabled=False)
    apic, owner = machine.apics[0], machine.owners[0]
    assert apic.accept_irq(DeliveryMode.FIXED, 0x40, 1, False) == 0
    assert apic.accept_irq(DeliveryMode.LOWEST, 0x40, 1, False) == 0
    assert apic.irr.load() == 0
    assert owner.kicks == 0
    for mode in (DeliveryMode.NMI, DeliveryMode.SMI, DeliveryMode.INIT, DeliveryMode.STARTUP):
        assert apic.accept_irq(mode, 0x9A, 1, False) == 1
    assert owner.events == ["nmi", "smi", "init", ("sipi", 0x9A)]
    assert owner.kicks == 4


def test_init_deassert_and_extint_messages_are_dropped() -> None:
    machine = Machine()
    for mode, level, trig in [
        (DeliveryMode.INIT, 0, True),
        (DeliveryMode.FIXED, 0, True),
        (DeliveryMode.EXTINT, 1, False),
        (DeliveryMode.REMRD, 1, False),
    ]:
        assert machine.apics[0].accept_irq(mode, 0x40, level, trig) == 0
    assert machine.owners[0].events == []
    assert machine.owners[0].kicks == 0


def test_accepting_requests_before_it_kicks() -> None:
    machine = Machine()
    apic, owner = machine.apics[0], machine.owners[0]
    seen: list[tuple[bool, bool, bool]] = []
    owner.on_kick = lambda: seen.append((apic.tmr.test(0x81), apic.irr.test(0x81), Req.EVENT in owner.requests))
    apic.accept_irq(DeliveryMode.FIXED, 0x81, 1, True)
    assert seen == [(True, True, True)]


def test_tmr_follows_the_last_sender_and_decides_the_eoi_broadcast() -> None:
    machine = Machine()
    apic, owner = machine.apics[0], machine.owners[0]
    for level in (True, False, True):
        apic.accept_irq(DeliveryMode.FIXED, 0x79, 1, level)
        assert read(apic, regs.APIC_TMR + 0x30) >> 25 & 1 == level
        assert apic.get_interrupt() == 0x79
        owner.eois.clear()
        write(apic, regs.APIC_EOI, 0)
        assert owner.eois == ([0x79] if level else [])


def test_lowering_tpr_requests_an_event() -> None:
    machine = Machine()
    apic, owner = machine.apics[0], machine.owners[0]
    apic.set_tpr(9)
    apic.accept_irq(DeliveryMode.FIXED, 0x91, 1, False)
    owner.requests.clear()
    assert apic.has_interrupt() == -1
    write(apic, regs.APIC_TASKPRI, 0x95)
    assert Req.EVENT not in owner.requests
    apic.set_tpr(8)
    assert owner.requests == {Req.EVENT}
    assert apic.get_interrupt() == 0x91
    assert read(apic, regs.APIC_PROCPRI) == 0x90


def test_auto_eoi_leaves_nothing_in_service_and_looks_for_more() -> None:
    machine = Machine()
    apic, owner = machine.apics[0], machine.owners[0]
    owner.auto_eoi.add(0x55)
    apic.accept_irq(DeliveryMode.FIXED, 0x55, 1, False)
    apic.accept_irq(DeliveryMode.FIXED, 0x54, 1, False)
    owner.requests.clear()
    assert apic.get_interrupt() == 0x55
    assert owner.requests == {Req.EVENT}
    assert read(apic, regs.APIC_PROCPRI) == 0
    assert apic.get_interrupt() == 0x54


def test_eoi_without_an_interrupt_in_service_does_nothing() -> None:
    machine = Machine()
    write(machine.apics[0], regs.APIC_EOI, 0)
    assert machine.owners[0].requests == set()
    assert machine.owners[0].eois == []


def test_eoi_hook_hears_every_vector() -> None:
    apic = Machine().apics[0]
    heard: list[int] = []
    apic.on_eoi = heard.append
    for vector in (0x41, 0x61):
        apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)
        assert apic.get_interrupt() == vector
    apic.set_eoi()
    apic.set_eoi()
    assert heard == [0x61, 0x41]
    assert apic.statistics().eois == apic.statistics().interrupts == 2


def test_accept_pic_intr_follows_lvt0() -> None:
    machine = Machine(2)
    bsp, other = machine.apics
    assert bsp.accept_pic_intr()
    assert not other.accept_pic_intr()
    write(bsp, regs.APIC_LVT0, regs.APIC_DM_NMI)
    assert not bsp.accept_pic_intr()
    machine.bus.nmi_watchdog()
    assert [owner.events for owner in machine.owners] == [["nmi"], []]
    write(bsp, regs.APIC_LVT0, regs.APIC_DM_NMI | regs.APIC_LVT_MASKED)
    machine.bus.nmi_watchdog()
    assert machine.owners[0].events == ["nmi"]


def test_performance_counter_interrupt_masks_itself() -> None:
    apic = Machine().apics[0]
    write(apic, regs.APIC_LVTPC, 0x44)
    assert apic.local_deliver(regs.APIC_LVTPC) == 1
    assert read(apic, regs.APIC_LVTPC) == 0x44 | regs.APIC_LVT_MASKED
    assert apic.local_deliver(regs.APIC_LVTPC) == 0


@pytest.mark.parametrize("x2apic", [False, True])
def test_state_round_trip(x2apic: bool) -> None:
    machine = Machine(2, x2apic=x2apic)
    apic = machine.apics[1]
    write(apic, regs.APIC_TASKPRI, 0x20)
    apic.accept_irq(DeliveryMode.FIXED, 0xA3, 1, True)
    assert apic.get_interrupt() == 0xA3
    apic.accept_irq(DeliveryMode.FIXED, 0x35, 1, False)
    write(apic, regs.APIC_LVTERR, 0x33)
    page = apic.get_state()
    assert len(page) == 0x400
    assert page[regs.APIC_ID : regs.APIC_ID + 4] == bytes([0, 0, 0, 1])
    other = Machine(2, x2apic=x2apic).apics[1]
    other.set_state(page)
    assert other.get_state() == page
    assert other.has_interrupt() == -1
    other.set_eoi()
    assert other.get_interrupt() == 0x35


def test_x2apic_format_state_names_its_apic() -> None:
    machine = Machine(3, x2apic=True)
    machine.bus.x2apic_format = True
    page = machine.apics[2].get_state()
    assert page[regs.APIC_ID : regs.APIC_ID + 4] == bytes([2, 0, 0, 0])
    with pytest.raises(KvmError, match="APIC 2 given to APIC 1"):
        machine.apics[1].set_state(page)
    with pytest.raises(KvmError, match="1024 bytes"):
        machine.apics[2].set_state(page[:-1])
    machine.apics[2].set_state(page)
