"""L1 runs L2: what ends L2, what #VMEXIT says of it, and what of it is L1's business. The processor is a script."""

from __future__ import annotations

import errno
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.core_rig import RAM_SIZE, Machine, Script, recorder, script
from tests.unit.kvm.nested_rig import IO_MAP, L2_RIP, MSR_MAP, VMCB, Nest
from vtlkit.engine.api import PORT_BITMAP_SIZE, Cpuid, Event, Exit, PortIntercept
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.msrs import HV_X64_MSR_GUEST_OS_ID
from vtlkit.kvm.cpuid import for_vcpu
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.events import PENDING_INIT
from vtlkit.kvm.kvm_run import InterceptedMsr, Io, Shutdown
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.nested.intercepts import Intercepts, nested_exit
from vtlkit.kvm.nested.vmcb import (
    EVENTINJ_TYPE_SHIFT,
    EVENTINJ_VALID,
    INTERRUPT_SHADOW,
    V_INTR_MASKING,
    V_INTR_PRIO_SHIFT,
    V_IRQ,
    VMCB_SAVE_OFFSET,
    VmcbControl,
    VmcbSave,
)
from vtlkit.kvm.requests import Req
from vtlkit.kvm.uapi import Cap, HvFeatures, Kvm, NestedState, UserIntercepts, hv_cpuid_entries
from vtlkit.x86 import msr
from vtlkit.x86.apic import APIC_LVTT, APIC_TDCR, APIC_TMICT, DeliveryMode
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import CR0_CD, CR0_NW, CR0_PE, CR0_TS, EFER_LMA, EFER_SVME, RFLAGS_IF, RFLAGS_VM, Segment
from vtlkit.x86.svm import EXCEPTION_BASE, VMEXIT_INVALID, SvmExit

PIC_MASK: Final = 0x21
"""A port that the hypervisor answers itself."""
SPEAKER: Final = 0x61
INSTRUCTIONS: Final[dict[str, tuple[Op, SvmExit]]] = {
    "cpuid": (ops.Cpuid(), SvmExit.CPUID),
    "pause": (ops.Pause(), SvmExit.PAUSE),
    "rdtsc": (ops.Rdtsc(), SvmExit.RDTSC),
    "clgi": (ops.Intercepted("clgi"), SvmExit.CLGI),
    "stgi": (ops.Intercepted("stgi"), SvmExit.STGI),
    "pushf": (ops.Intercepted("pushf"), SvmExit.PUSHF),
    "popf": (ops.Intercepted("popf"), SvmExit.POPF),
    "wbinvd": (ops.Intercepted("wbinvd"), SvmExit.WBINVD),
    "invd": (ops.Intercepted("invd"), SvmExit.INVD),
    "lgdt": (ops.Intercepted("lgdt"), SvmExit.GDTR_WRITE),
    "ltr": (ops.Intercepted("ltr"), SvmExit.TR_WRITE),
    "invlpga": (ops.Intercepted("invlpga"), SvmExit.INVLPGA),
}
"""L2's instructions that need nothing else, and what L1 sees if it intercepts them."""


@given(
    program=st.lists(st.sampled_from(sorted(INSTRUCTIONS)), max_size=6),
    wanted=st.sets(st.sampled_from(sorted(INSTRUCTIONS))),
)
def test_the_first_intercepted_instruction_ends_l2_and_no_other(program: list[str], wanted: set[str]) -> None:
    nest = Nest(script(*(INSTRUCTIONS[name][0] for name in program), ops.Vmmcall()))
    nest.save.rax = VMCB
    nest.intercept(*(INSTRUCTIONS[name][1] for name in wanted))
    expected, position = next(
        ((INSTRUCTIONS[name][1], at) for at, name in enumerate(program) if name in wanted),
        (SvmExit.VMMCALL, len(program)),
    )
    assert nest.enter() == expected
    assert nest.save.rip == L2_RIP + position
    assert nest.control.next_rip == nest.save.rip + 1


@given(vector=st.sampled_from([0, 1, 3, 4, 5, 6, 11, 12, 13, 16, 17, 18]), mask=st.integers(0, 0xFFFFFFFF))
def test_exceptions_end_l2_by_the_mask(vector: int, mask: int) -> None:
    def handler(_engine: object, event: Event) -> Script:
        assert nest.vcpu.guest_mode
        taken.append(event.vector)
        return iter_vmmcall()

    def iter_vmmcall() -> Script:
        yield ops.Vmmcall()

    taken: list[int] = []
    error = 0x18 if vector in (11, 12, 13) else None
    nest = Nest(script(ops.Fault(vector, error)), handlers={vector: handler})
    nest.control.intercept_exceptions = mask
    code = nest.enter()
    if mask >> vector & 1:
        assert (code, nest.control.exit_info_1, taken) == (EXCEPTION_BASE + vector, error or 0, [])
        assert nest.save.rip == L2_RIP
    else:
        assert (code, taken) == (SvmExit.VMMCALL, [vector])


@given(index=st.sampled_from([0x10, 0x1FFF, 0xC0000080, 0xC0001FFF, 0xC0010114, 0x40000000]), bits=st.integers(0, 3))
def test_the_msr_map_decides_reads_and_writes_apart(index: int, bits: int) -> None:
    nest = Nest(script(ops.Set(index, "rcx"), ops.Rdmsr(), ops.Vmmcall()), handlers={13: recorder([], ops.Vmmcall())})
    nest.intercept(SvmExit.MSR)
    bases = {0: 0, 0xC0000000: 0x800, 0xC0010000: 0x1000}
    first = max((base for base in bases if base <= index < base + 0x2000), default=None)
    if first is not None:
        number = index - first
        nest.ram.view[MSR_MAP + bases[first] + number // 4] = bits << number % 4 * 2
    code = nest.enter()
    if first is None or bits & 1:
        assert (code, nest.control.exit_info_1) == (SvmExit.MSR, 0)
    else:
        assert code == SvmExit.VMMCALL


def test_a_written_msr_says_so() -> None:
    nest = Nest(script(ops.Set(msr.MSR_STAR, "rcx"), ops.Wrmsr(), ops.Vmmcall()))
    nest.intercept(SvmExit.MSR)
    number = msr.MSR_STAR - 0xC0000000
    nest.ram.view[MSR_MAP + 0x800 + number // 4] = 2 << number % 4 * 2
    assert nest.enter() == SvmExit.MSR
    assert nest.control.exit_info_1 == 1


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("write", [False, True])
def test_ports_by_the_io_map(size: int, write: bool) -> None:
    access: Op = ops.Out(SPEAKER, size, 0) if write else ops.In(SPEAKER, size)
    nest = Nest(script(access, ops.Vmmcall()))
    nest.intercept(SvmExit.IOIO)
    nest.ram.view[IO_MAP + (SPEAKER + size - 1) // 8] = 1 << (SPEAKER + size - 1) % 8
    assert nest.enter() == SvmExit.IOIO
    info = nest.control.exit_info_1
    assert (info >> 16, info >> 4 & 7, info & 1) == (SPEAKER, size, not write)
    assert nest.control.exit_info_2 == nest.save.rip + 1


def test_the_io_map_counts_as_it_is_when_the_port_is_accessed() -> None:
    def poke() -> None:
        nest.ram.view[IO_MAP + PIC_MASK // 8] = 1 << PIC_MASK % 8

    nest = Nest(script(ops.In(PIC_MASK, 1), ops.Host(poke), ops.In(PIC_MASK, 1), ops.Vmmcall()))
    nest.intercept(SvmExit.IOIO)
    assert nest.enter() == SvmExit.IOIO
    assert nest.save.rip == L2_RIP + 2


@pytest.mark.parametrize("others", [False, True])
def test_a_port_that_nobody_wants_any_more_is_accessed(others: bool) -> None:
    """Another processor of L1 clears the bit while this one is on its way out: the access is made again."""

    def clear(reason: Exit) -> None:
        if isinstance(reason, PortIntercept):
            nest.ram.view[IO_MAP + PIC_MASK // 8] = 0
            left.append(reason)

    left: list[Exit] = []
    nest = Nest(script(ops.In(PIC_MASK, 1), ops.Vmmcall()))
    nest.intercept(SvmExit.IOIO)
    nest.ram.view[IO_MAP + PIC_MASK // 8] = 1 << PIC_MASK % 8
    if others:
        nest.vcpu.set_user_intercepts(UserIntercepts(port_reads=bytes(PORT_BITMAP_SIZE), cpuid_all=True))
    nest.cpu.on_exit = clear
    assert nest.enter() == SvmExit.VMMCALL
    assert len(left) == 1
    assert nest.save.rax & 0xFF == 0, "the PIC has answered"


@pytest.mark.parametrize(("long_mode", "last"), [(True, (1 << 64) - 1), (False, (1 << 32) - 1)])
def test_the_last_instruction_of_the_address_space(long_mode: bool, last: int) -> None:
    """nRIP, and EXITINFO2 of a port, are behind it: at the beginning."""
    nest = Nest(script())
    nest.vcpu.engine.regs.rip = last
    sregs = nest.cpu.get_sregs()
    sregs.efer, sregs.cs = (EFER_LMA, Segment(8, 0, 0xFFFFFFFF, 0xA9B)) if long_mode else (0, sregs.cs)
    nest.cpu.set_sregs(sregs)
    control = VmcbControl(intercept_3=0xFFFFFFFF)
    intercepts = Intercepts(control, None, b"\xff" * PORT_BITMAP_SIZE)
    exits = [
        nested_exit(nest.vcpu, intercepts, reason) for reason in (Cpuid(1), PortIntercept(1, 5, 1, False, False, False))
    ]
    assert [exit_ and exit_.next_rip for exit_ in exits] == [0, 0]
    assert exits[1] is not None
    assert exits[1].info_2 == 0


@pytest.mark.parametrize(
    ("number", "write", "code"),
    [
        (0, False, 0x00),
        (2, False, 0x02),
        (3, False, 0x03),
        (4, False, 0x04),
        (0, True, 0x10),
        (2, True, 0x12),
        (3, True, 0x13),
    ],
)
def test_control_registers_one_by_one(number: int, write: bool, code: int) -> None:
    move: Op = ops.MovToCr(number) if write else ops.MovFromCr(number)
    nest = Nest(script(move, ops.Vmmcall()))
    nest.save.rax = nest.save.cr0 if number == 0 else 0
    nest.control.intercept_cr = 1 << number + (16 if write else 0)
    assert nest.enter() == code


@pytest.mark.parametrize(("changed", "code"), [(CR0_TS, SvmExit.VMMCALL), (CR0_CD, SvmExit.CR0_SEL_WRITE)])
def test_selective_writes_of_cr0(changed: int, code: SvmExit) -> None:
    nest = Nest(script(ops.MovToCr(0), ops.Vmmcall()))
    nest.save.cr0 &= ~(CR0_CD | CR0_NW)
    nest.save.rax = nest.save.cr0 | changed
    nest.intercept(SvmExit.CR0_SEL_WRITE)
    assert nest.enter() == code


def test_what_nobody_intercepts_the_hypervisor_does_for_l2() -> None:
    nest = Nest(script(ops.Set(1), ops.Cpuid(), ops.Vmmcall()))
    assert nest.enter() == SvmExit.VMMCALL
    entry = nest.vcpu.cpuid.find(1)
    assert entry is not None
    assert nest.save.rax == entry.eax


def test_l1_goes_on_with_its_own_registers() -> None:
    def after(nest: Nest) -> Script:
        found.append((nest.cpu.regs.rax, nest.cpu.regs.rsp, nest.cpu.rflags & RFLAGS_IF, nest.vcpu.gif))
        yield ops.Compute(1)

    found: list[tuple[int, int, int, bool]] = []
    nest = Nest(script(ops.Set(7), ops.Set(9, "rsp"), ops.Set(11, "rbx"), ops.Vmmcall()), after=after)
    nest.save.rsp = 0x5000
    nest.cpu.regs.rsp = 0x6000
    assert nest.enter() == SvmExit.VMMCALL
    assert found == [(VMCB, 0x6000, 0, False)]
    assert (nest.save.rax, nest.save.rsp) == (7, 9)
    assert nest.cpu.regs.rbx == 11, "the other general registers are nobody's in particular"


# --- interrupts -------------------------------------------------------------------------------------------------------


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
def test_gif_holds_a_virtual_interrupt_off(intercepted: bool) -> None:
    """L1 lets L2 execute CLGI; whatever makes the vCPU look meanwhile, STGI lets it in."""

    def look() -> None:
        looks.append((nest.vcpu.nested.virtual_interrupt(), len(seen)))
        nest.vcpu.make_request(Req.EVENT)

    looks: list[tuple[int, int]] = []
    seen: list[int] = []
    nest = Nest(
        script(
            *(ops.Intercepted("clgi"), ops.Sti(), ops.Compute(2), ops.Host(look), ops.Rdtsc(), ops.Host(look)),
            *(ops.Rdtsc(), ops.Compute(2), ops.Intercepted("stgi"), ops.Compute(2), ops.Vmmcall()),
        ),
        handlers={0x81: recorder(seen)},
    )
    nest.control.int_ctl = V_IRQ | 0xF << V_INTR_PRIO_SHIFT
    nest.control.int_vector = 0x81
    if intercepted:
        nest.intercept(SvmExit.VINTR)
    assert nest.enter() == (SvmExit.VINTR if intercepted else SvmExit.VMMCALL)
    assert looks == [(-1, 0), (-1, 0)]
    assert seen == ([] if intercepted else [0x81])


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


def test_switching_svm_off_lets_in_what_gif_held_up() -> None:
    """EFER.SVME := 0 sets GIF, as STGI would."""
    seen: list[int] = []
    order: list[list[int]] = []
    machine = Nest(
        script(ops.Vmmcall()),
        before=(
            *(ops.Intercepted("clgi"), ops.Host(lambda: pend(machine)), ops.Cpuid()),
            *(ops.Set(msr.MSR_EFER, "rcx"), ops.Set(0, "rdx"), ops.Set(0), ops.Wrmsr(), ops.Compute(1)),
            *(ops.Host(lambda: order.append(seen.copy())), ops.Set(EFER_SVME), ops.Wrmsr()),
        ),
        handlers={0x41: recorder(seen)},
    )
    machine.interrupts_on()
    assert machine.enter() == SvmExit.VMMCALL
    assert order == [[0x41]]


@pytest.mark.parametrize("masking", [False, True])
def test_what_an_l2_of_an_inactive_vtl_would_take(masking: bool) -> None:
    """By the flag that counts: with V_INTR_MASKING that is L1's, whatever L2's own is."""
    nest = Nest(script(ops.Out(0x98, 1, 0), ops.Vmmcall()))
    nest.interrupts_on()
    nest.control.int_ctl = V_INTR_MASKING if masking else 0
    nest.intercept(SvmExit.INTR)
    nest.store()
    nest.vcpu.run()
    nest.vcpu.complete_exit()
    pend(nest)
    nest.vcpu.vtl_inactive = True
    found: list[tuple[bool, bool]] = []
    nest.run(lambda: found.append((nest.vcpu.wake_event_pending(), nest.vcpu.interrupt_deliverable())))
    assert found == [(True, masking)]


# --- VMRUN itself -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("area", "field", "value"),
    [
        ("control", "asid", 0),
        ("control", "nested_ctl", 1),
        ("control", "tlb_control", 2),
        ("control", "intercept_4", 0),
        ("control", "iopm_base_pa", (1 << 52) - 0x1000),
        ("control", "msrpm_base_pa", (1 << 52) - 0x1000),
        ("control", "event_inj", EVENTINJ_VALID | 1 << EVENTINJ_TYPE_SHIFT),
        ("control", "event_inj", EVENTINJ_VALID | 3 << EVENTINJ_TYPE_SHIFT | 2),
        ("control", "event_inj", EVENTINJ_VALID | 3 << EVENTINJ_TYPE_SHIFT | 32),
        ("save", "efer", 0),
        ("save", "efer", EFER_SVME | 1 << 9),
        ("save", "cr0", 1 << 32),
        ("save", "cr0", CR0_NW),
        ("save", "cr4", 1 << 63),
        ("save", "dr6", 1 << 32),
        ("save", "dr7", 1 << 32),
    ],
)
def test_vmrun_refuses_a_control_block_that_breaks_a_rule(area: str, field: str, value: int) -> None:
    nest = Nest(script(ops.Vmmcall()))
    setattr(getattr(nest, area), field, value)
    assert nest.enter() == VMEXIT_INVALID
    assert nest.save.rip == L2_RIP


@pytest.mark.parametrize(
    ("address", "hsave", "cpl", "svme", "vector"),
    [
        (VMCB + 8, VMCB, 0, True, Vector.GP),
        (RAM_SIZE, VMCB, 0, True, Vector.GP),
        (VMCB, 0, 0, True, Vector.GP),
        (VMCB, VMCB, 3, True, Vector.GP),
        (VMCB, VMCB, 0, False, Vector.UD),
    ],
)
def test_vmrun_faults(address: int, hsave: int, cpl: int, svme: bool, vector: Vector) -> None:
    seen: list[int] = []
    program = script(ops.Set(address), ops.Intercepted("vmrun"))
    machine = Machine(program, handlers={v: recorder(seen, ops.Out(0x99, 1, 0)) for v in (6, 13)}, nested=True)
    sregs = machine.cpu.get_sregs()
    sregs.cr0 |= CR0_PE
    sregs.ss.attributes |= cpl << 5
    machine.cpu.set_sregs(sregs)
    machine.cpu.set_msr(msr.MSR_EFER, EFER_SVME if svme else 0)
    machine.vcpu.nested.hsave_pa = hsave
    machine.vcpu.run()
    assert seen == [vector]


def test_without_the_capability_there_is_no_svm() -> None:
    machine = Machine(script())
    entry = machine.vcpu.cpuid.find(0x80000001)
    assert entry is not None
    assert not entry.ecx & 4
    assert machine.vcpu.cpuid.find(0x8000000A) is None
    assert not machine.vcpu.msrs.set(msr.MSR_EFER, EFER_SVME)
    assert not machine.vcpu.msrs.set(msr.MSR_VM_HSAVE_PA, 0x1000)
    assert machine.vcpu.msrs.get(msr.MSR_VM_CR) == msr.VM_CR_SVMDIS


def test_the_capability_offers_svm_and_comes_before_the_first_vcpu() -> None:
    machine = Machine(script(), nested=True)
    entry = machine.vcpu.cpuid.find(0x8000000A)
    assert entry is not None
    assert entry.ebx
    assert machine.vcpu.msrs.set(msr.MSR_EFER, EFER_SVME)
    assert not machine.vcpu.msrs.set(msr.MSR_VM_CR, msr.VM_CR_SVMDIS), "SVM is on"
    assert machine.vcpu.msrs.set(msr.MSR_VM_HSAVE_PA, 0x3000)
    assert not machine.vcpu.msrs.set(msr.MSR_VM_HSAVE_PA, 0x3008)
    for value in (0, 1):
        with pytest.raises(KvmError) as caught:
            machine.vm.enable_cap(Cap.NESTED, value)
        assert caught.value.errno == errno.EINVAL


def test_a_locked_vm_cr_keeps_svm_off() -> None:
    machine = Machine(script(), nested=True)
    msrs = machine.vcpu.msrs
    assert msrs.set(msr.MSR_VM_CR, msr.VM_CR_SVMDIS | msr.VM_CR_LOCK)
    assert not msrs.set(msr.MSR_EFER, EFER_SVME)
    assert msrs.set(msr.MSR_VM_CR, 0)
    assert msrs.get(msr.MSR_VM_CR) == msr.VM_CR_SVMDIS | msr.VM_CR_LOCK
    assert not msrs.set(msr.MSR_VM_CR, 1 << 5)


# --- what is around it ------------------------------------------------------------------------------------------------


def test_reset_leaves_l2() -> None:
    nest = Nest(script(ops.Out(0x99, 1, 0), ops.Vmmcall()))
    nest.store()
    nest.vcpu.run()
    assert nest.vcpu.guest_mode
    nest.vcpu.reset_to_power_on()
    assert (nest.vcpu.guest_mode, nest.vcpu.gif, nest.vcpu.nested.hsave_pa) == (False, True, 0)
    assert nest.vcpu.mp_state is MpState.RUNNABLE


def test_l2_survives_save_and_restore() -> None:
    """L2 stops at user space, is saved, and goes on in another VM with the same memory."""
    first = Nest(script(ops.Out(0x99, 1, 0), ops.Cpuid(), ops.Vmmcall()))
    first.intercept(SvmExit.CPUID)
    first.control.tsc_offset = 0x1234
    first.store()
    first.vcpu.run()
    first.vcpu.complete_exit()
    state = first.vcpu.get_nested_state()
    assert state.guest_mode
    assert not state.run_pending

    second = Nest(script(ops.Compute(1), ops.Cpuid()))
    second.ram.view[:] = first.ram.view
    sregs, regs = first.vcpu.get_sregs(), first.vcpu.get_regs()
    second.vcpu.set_sregs(sregs)
    second.vcpu.set_regs(regs)
    host = VmcbSave.unpack(state.host)
    second.cpu.programs[regs.rip + sregs.cs.base] = script(ops.Cpuid())
    second.cpu.programs[host.rip + host.cs.base] = script(ops.Out(0x99, 1, 0))
    second.vcpu.set_nested_state(state)
    assert second.vcpu.get_nested_state() == state
    second.vcpu.run()
    second.load()
    assert not second.vcpu.guest_mode
    assert second.control.exit_code == SvmExit.CPUID
    assert second.cpu.regs.rax == VMCB


def test_a_pending_entry_is_saved_with_its_event() -> None:
    nest = Nest(script(ops.Compute(1), ops.Vmmcall()), handlers={0x71: recorder([])})
    nest.control.event_inj = EVENTINJ_VALID | 0x71
    state = NestedState(
        True, True, True, VMCB, nest.control.pack(), VmcbSave(cr0=CR0_PE, efer=EFER_SVME, rip=0x77).pack()
    )
    nest.vcpu.set_nested_state(state)
    assert nest.cpu.injected() == Event(0, 0x71)  # type: ignore[arg-type]
    assert nest.vcpu.get_nested_state() == state
    # The ordinary events have it, too, whichever of the two is set first.
    events = nest.vcpu.get_vcpu_events()
    nest.vcpu.set_vcpu_events(events)
    assert nest.vcpu.nested.entry_pending()
    other = Nest(script(ops.Compute(1), ops.Vmmcall()), handlers={0x71: recorder([])})
    other.vcpu.set_vcpu_events(events)
    other.vcpu.set_nested_state(state)
    assert other.vcpu.nested.entry_pending()
    assert other.vcpu.get_nested_state() == state


def test_no_state_is_set_in_the_middle_of_an_access() -> None:
    nest = Nest(script(ops.In(0x98, 1), ops.Vmmcall()))
    nest.store()
    assert isinstance(nest.vcpu.run(), Io)
    for state in (nest.vcpu.get_nested_state(), NestedState()):
        with pytest.raises(KvmError) as caught:
            nest.vcpu.set_nested_state(state)
        assert caught.value.errno == errno.EBUSY
        assert nest.vcpu.guest_mode


@pytest.mark.parametrize("host", [VmcbSave(cr0=CR0_PE), VmcbSave(cr0=CR0_PE | 1 << 32, efer=EFER_SVME)])
def test_l1s_registers_are_ones_that_can_have_executed_vmrun(host: VmcbSave) -> None:
    nest = Nest(script(ops.Vmmcall()))
    for part in (host, VmcbSave(efer=EFER_SVME), VmcbSave(cr0=CR0_PE, efer=EFER_SVME, rflags=RFLAGS_VM)):
        with pytest.raises(KvmError) as caught:
            nest.vcpu.set_nested_state(NestedState(True, True, False, VMCB, nest.control.pack(), part.pack()))
        assert caught.value.errno == errno.EINVAL
        assert not nest.vcpu.guest_mode


@pytest.mark.parametrize(
    "state",
    [
        NestedState(True, True, False, VMCB, b"", b""),
        NestedState(True, True, False, VMCB + 8, VmcbControl().pack(), VmcbSave().pack()),
        NestedState(True, True, False, VMCB, VmcbControl().pack(), VmcbSave().pack()),
    ],
)
def test_a_state_that_cannot_be_is_refused(state: NestedState) -> None:
    nest = Nest(script(ops.Vmmcall()))
    with pytest.raises(KvmError) as caught:
        nest.vcpu.set_nested_state(state)
    assert caught.value.errno == errno.EINVAL
    assert not nest.vcpu.guest_mode


def test_a_shutdown_of_l2_is_l1s() -> None:
    nest = Nest(script(ops.Fault(13, 0)))
    nest.intercept(SvmExit.SHUTDOWN)
    assert nest.enter() == SvmExit.SHUTDOWN


def test_an_exception_of_the_hypervisors_own_is_l1s_if_it_wants() -> None:
    """RDMSR of an MSR that is not there: the hypervisor raises #GP for L2."""
    nest = Nest(script(ops.Set(0x1234, "rcx"), ops.Rdmsr(), ops.Vmmcall()))
    nest.control.intercept_exceptions = 1 << Vector.GP
    assert nest.enter() == EXCEPTION_BASE + Vector.GP
    assert nest.save.rip == L2_RIP + 1


def test_an_event_cut_short_is_named() -> None:
    """The handler of the injected event is missing: #GP, which L1 intercepts, comes of the delivery."""
    nest = Nest(script(ops.Vmmcall()))
    nest.control.intercept_exceptions = 1 << Vector.GP
    nest.control.event_inj = EVENTINJ_VALID | 0x71
    assert nest.enter() == EXCEPTION_BASE + Vector.GP
    assert nest.control.exit_info_1 == 0x71 << 3 | 3
    assert nest.control.exit_int_info == EVENTINJ_VALID | 0x71
    assert nest.save.rip == L2_RIP


def test_the_shadow_goes_in_and_comes_out() -> None:
    nest = Nest(script(ops.Vmmcall()))
    nest.control.int_state = INTERRUPT_SHADOW
    assert nest.enter() == SvmExit.VMMCALL
    assert nest.control.int_state & INTERRUPT_SHADOW


def test_kvm_makes_all_its_vms_nested() -> None:
    machine = Machine(script())
    assert Kvm(machine.vm.host, machine.vm.engines, nested=True).create_vm().nested
    assert not Kvm(machine.vm.host, machine.vm.engines).create_vm().nested
    assert VMCB_SAVE_OFFSET == VmcbControl.SIZE


def test_a_vtl_switch_from_l2_is_undefined() -> None:
    """L1 lets VMMCALL through."""
    seen: list[int] = []
    nest = Nest(
        script(ops.Set(HvCallCode.HvCallVtlCall), ops.Vmmcall(), ops.Intercepted("vmrun")),
        handlers={Vector.UD: recorder(seen, ops.Intercepted("vmrun"))},
    )
    entries = for_vcpu(nest.vm.get_supported_cpuid(), 0, 1) + hv_cpuid_entries(HvFeatures())
    nest.vcpu.set_cpuid2(entries)
    assert nest.vcpu.set_msr(HV_X64_MSR_GUEST_OS_ID, 1)
    nest.control.intercept_4 &= ~(1 << SvmExit.VMMCALL - SvmExit.VMRUN)
    assert nest.enter() == SvmExit.VMRUN
    assert seen == [Vector.UD]


def test_user_space_sees_what_it_intercepts_of_l2_too() -> None:
    """RDMSR of the TSC, which is answered with L2's offset otherwise."""
    nest = Nest(script(ops.Set(msr.MSR_IA32_TSC, "rcx"), ops.Rdmsr(), ops.Vmmcall()))
    nest.vcpu.set_user_intercepts(UserIntercepts(msr_reads=frozenset({msr.MSR_IA32_TSC})))
    nest.store()
    assert nest.vcpu.run() == InterceptedMsr(1, msr.MSR_IA32_TSC, False)
    assert nest.vcpu.guest_mode


def test_a_timer_under_the_vmx_run_loop_ends_l2() -> None:
    """The slow path of the preemption timer."""

    def arm() -> None:
        apic = nest.vcpu.apic
        apic.mmio_write(APIC_TDCR, 4, 0xB)
        apic.mmio_write(APIC_LVTT, 4, 0x41)
        apic.mmio_write(APIC_TMICT, 4, 2000)

    nest = Nest(script(ops.Compute(1 << 40)), before=(ops.Host(arm),), vendor="vmx")
    nest.interrupts_on()
    nest.control.int_ctl = V_INTR_MASKING
    nest.intercept(SvmExit.INTR)
    codes: list[int] = []
    nest.run(lambda: codes.append(nest.enter()))
    assert codes == [SvmExit.INTR]
    assert nest.vcpu.statistics.exits["preemption_timer"]
