"""L1 runs L2: what ends L2, what #VMEXIT says of it, and what of it is L1's business. The processor is a script."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.core_rig import Script, recorder, script
from tests.unit.kvm.nested_rig import IO_MAP, L2_RIP, MSR_MAP, VMCB, Nest
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.x86 import msr
from vtlkit.x86.registers import CR0_CD, CR0_NW, CR0_TS, RFLAGS_IF
from vtlkit.x86.svm import EXCEPTION_BASE, SvmExit

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


@pytest.mark.parametrize(
    ("number", "write", "code"),
    [(0, False, 0x00), (3, False, 0x03), (4, False, 0x04), (0, True, 0x10), (3, True, 0x13)],
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
