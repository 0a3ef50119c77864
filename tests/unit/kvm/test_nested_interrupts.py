"""Interrupts and NMIs while L2 runs: whose flag counts, what ends L2, what waits for GIF. The processor is a script."""

from __future__ import annotations

import pytest

from tests.unit.kvm.core_rig import Script, recorder, script
from tests.unit.kvm.nested_rig import L2_RIP, Nest
from vtlkit.engine.scripted import ops
from vtlkit.kvm.events import PENDING_INIT
from vtlkit.kvm.kvm_run import Io, Shutdown
from vtlkit.kvm.nested.vmcb import (
    EVENTINJ_VALID,
    V_INTR_MASKING,
    V_INTR_PRIO_SHIFT,
    V_IRQ,
)
from vtlkit.x86 import msr
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.registers import EFER_SVME, RFLAGS_IF
from vtlkit.x86.svm import SvmExit


def pend(nest: Nest, vector: int = 0x41) -> None:
    nest.vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)


def test_an_intercepted_interrupt_ends_l2_before_its_first_instruction() -> None:
    def after(_nest: Nest) -> Script:
        yield ops.Intercepted("stgi")
        yield ops.Compute(1)

    seen: list[int] = []
    executed: list[int] = []
    nest = Nest(
        script(ops.Host(lambda: executed.append(1)), ops.Vmmcall()),
        before=(ops.Intercepted("clgi"), ops.Host(lambda: pend(nest))),
        after=after,
        handlers={0x41: recorder(seen)},
    )
    nest.interrupts_on()
    nest.control.int_ctl = V_INTR_MASKING
    nest.intercept(SvmExit.INTR)
    assert nest.enter() == SvmExit.INTR
    assert executed == []
    assert seen == [0x41], "L1 takes it once GIF is set"
    assert nest.save.rip == L2_RIP


def test_the_event_of_the_entry_is_delivered_before_an_intercepted_interrupt_ends_l2() -> None:
    seen: list[int] = []
    nest = Nest(
        script(ops.Vmmcall()),
        before=(ops.Intercepted("clgi"), ops.Host(lambda: pend(nest))),
        handlers={0x71: recorder(seen, ops.Vmmcall())},
    )
    nest.interrupts_on()
    nest.control.int_ctl = V_INTR_MASKING
    nest.intercept(SvmExit.INTR)
    nest.control.event_inj = EVENTINJ_VALID | 0x71
    assert nest.enter() == SvmExit.INTR
    assert seen == [0x71]
    assert nest.save.rip != L2_RIP
    assert not nest.control.event_inj & EVENTINJ_VALID
    assert nest.control.exit_int_info == 0


@pytest.mark.parametrize("masking", [False, True])
@pytest.mark.parametrize("l1_if", [False, True])
@pytest.mark.parametrize("l2_if", [False, True])
@pytest.mark.parametrize("intercepted", [False, True])
@pytest.mark.parametrize("shadow", [False, True])
def test_what_blocks_an_interrupt(masking: bool, l1_if: bool, l2_if: bool, intercepted: bool, shadow: bool) -> None:
    """The table of svm_interrupt_blocked: asked from inside L2, with an interrupt pending."""
    found: list[tuple[bool, bool]] = []

    def ask() -> None:
        vcpu = nest.vcpu
        nest.cpu.interrupt_shadow = shadow
        found.append((vcpu.vendor.interrupt_blocked(vcpu), vcpu.vendor.injection_allowed(vcpu)))
        vcpu.vtl_inactive = True
        found.append((vcpu.vendor.interrupt_blocked(vcpu), False))
        vcpu.vtl_inactive = False
        nest.cpu.interrupt_shadow = False

    nest = Nest(script(ops.Host(ask), ops.Vmmcall()))
    if l1_if:
        nest.interrupts_on()
    nest.save.rflags = nest.save.rflags & ~RFLAGS_IF | (RFLAGS_IF if l2_if else 0)
    if masking:
        nest.control.int_ctl = V_INTR_MASKING
    if intercepted:
        nest.intercept(SvmExit.INTR)
    assert nest.enter() == SvmExit.VMMCALL
    flag = l1_if if masking else l2_if
    blocked = not flag or (shadow and not intercepted)
    assert found[0] == (blocked, not blocked and not intercepted)
    # RFLAGS.IF of an inactive VTL does not count; that L1 masks its guest's interrupts does.
    flag = l1_if if masking else True
    assert found[1][0] == (not flag or (shadow and not intercepted))


@pytest.mark.parametrize("intercepted", [False, True])
def test_l2_halts_and_a_virtual_interrupt_wakes_it(intercepted: bool) -> None:
    seen: list[int] = []
    nest = Nest(script(ops.Sti(), ops.Hlt(), ops.Vmmcall()), handlers={0x81: recorder(seen)})
    nest.control.int_ctl = V_IRQ | 0xF << V_INTR_PRIO_SHIFT | V_INTR_MASKING
    nest.control.int_vector = 0x81
    if intercepted:
        nest.intercept(SvmExit.VINTR)
    codes: list[int] = []
    nest.run(lambda: codes.append(nest.enter()))
    assert codes == [SvmExit.VINTR if intercepted else SvmExit.VMMCALL]
    assert bool(nest.control.int_ctl & V_IRQ) == intercepted
    assert seen == ([] if intercepted else [0x81])


@pytest.mark.parametrize(("tpr", "taken"), [(0x8, False), (0x7, True)])
def test_the_virtual_tpr_holds_virtual_interrupts_off(tpr: int, taken: bool) -> None:
    seen: list[int] = []
    nest = Nest(script(ops.MovToCr(8), ops.Sti(), ops.Compute(2), ops.Vmmcall()), handlers={0x81: recorder(seen)})
    nest.save.rax = tpr
    nest.control.int_ctl = V_IRQ | 0x8 << V_INTR_PRIO_SHIFT | V_INTR_MASKING
    nest.control.int_vector = 0x81
    assert nest.enter() == SvmExit.VMMCALL
    assert bool(seen) == taken
    assert nest.control.int_ctl & 0xF == tpr
    assert nest.vcpu.apic.get_tpr() == 0, "the local APIC's is L1's"


def test_an_intercepted_nmi_stays_pending_for_l1() -> None:
    def after(_nest: Nest) -> Script:
        yield ops.Intercepted("stgi")
        yield ops.Compute(1)

    seen: list[int] = []
    nest = Nest(
        script(ops.Host(lambda: nest.vcpu.deliver_nmi()), ops.Compute(5), ops.Vmmcall()),
        after=after,
        handlers={2: recorder(seen)},
    )
    nest.intercept(SvmExit.NMI)
    assert nest.enter() == SvmExit.VMMCALL, "the request is looked at when the guest is left"
    assert seen == [2]


def test_init_ends_l2_and_waits_for_gif() -> None:
    def after(_nest: Nest) -> Script:
        yield ops.Compute(3)
        yield ops.Out(0x98, 1, 0)
        yield ops.Intercepted("stgi")

    nest = Nest(script(ops.Host(lambda: nest.vcpu.deliver_init()), ops.Cpuid(), ops.Vmmcall()), after=after)
    nest.intercept(SvmExit.INIT)
    nest.store()
    exit_ = nest.vcpu.run()
    assert isinstance(exit_, Io)
    assert exit_.port == 0x98
    nest.load()
    assert nest.control.exit_code == SvmExit.INIT
    assert nest.vcpu.events.apic_events.test(PENDING_INIT)
    assert nest.cpu.get_msr(msr.MSR_EFER) & EFER_SVME
    # STGI lets it in: the boot processor begins anew, where VMRUN without EFER.SVME has no handler.
    assert isinstance(nest.vcpu.run(), Shutdown)
    assert not nest.vcpu.events.apic_events.test(PENDING_INIT)
    assert not nest.cpu.get_msr(msr.MSR_EFER)


def test_clgi_holds_everything_until_stgi() -> None:
    seen: list[int] = []
    order: list[str] = []
    machine = Nest(
        script(ops.Vmmcall()),
        before=(
            ops.Intercepted("clgi"),
            ops.Host(lambda: pend(machine)),
            ops.Host(lambda: machine.vcpu.deliver_nmi()),
            ops.Cpuid(),
            ops.Host(lambda: order.append(f"{len(seen)} before")),
            ops.Intercepted("stgi"),
            ops.Compute(3),
            ops.Host(lambda: order.append(f"{len(seen)} after")),
        ),
        handlers={0x41: recorder(seen), 2: recorder(seen)},
    )
    machine.interrupts_on()
    assert machine.enter() == SvmExit.VMMCALL
    assert order == ["0 before", "2 after"]
    assert sorted(seen) == [2, 0x41]
