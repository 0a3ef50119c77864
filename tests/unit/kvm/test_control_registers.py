"""Which writes of control registers fault (`kvm_set_cr0`, `kvm_set_cr4`, `kvm_set_cr8`), by the rules written out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.core_rig import DONE, Machine, recorder, script
from tests.unit.kvm.test_msrs import without
from vtlkit.engine.scripted import ops
from vtlkit.kvm.control_registers import cr4_allowed, set_cr0, set_cr4
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86 import registers as regs
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import EFER_LMA, EFER_LME

CR0_BITS = [1 << bit for bit in (0, 1, 2, 3, 4, 5, 16, 18, 29, 30, 31)]
CR0_RESERVED = [1 << bit for bit in (6, 15, 17, 28)]
CR4_BITS = [1 << bit for bit in range(23)]


def bits(choice: list[int]) -> st.SearchStrategy[int]:
    return st.sets(st.sampled_from(choice)).map(sum)


def machine_with(cr0: int, cr4: int, efer: int, *, long: bool, cr3: int = 0) -> Vcpu:
    vcpu = Machine().vcpu
    sregs = vcpu.get_sregs()
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = cr0, cr3, cr4, efer
    sregs.cs.attributes |= regs.SEGMENT_L if long else 0
    vcpu.set_sregs(sregs)
    return vcpu


MODES = st.sampled_from(
    [
        (regs.CR0_ET, 0, 0, False),
        (regs.CR0_ET | regs.CR0_PE, 0, 0, False),
        (regs.CR0_ET | regs.CR0_PE, regs.CR4_PAE, EFER_LME, False),
        (regs.CR0_ET | regs.CR0_PE, regs.CR4_PAE, EFER_LME, True),
        (regs.CR0_ET | regs.CR0_PE, 0, EFER_LME, False),
        (regs.CR0_ET | regs.CR0_PE | regs.CR0_PG, 0, 0, False),
        (regs.CR0_ET | regs.CR0_PE | regs.CR0_PG, regs.CR4_PAE, EFER_LME | EFER_LMA, True),
        (regs.CR0_ET | regs.CR0_PE | regs.CR0_PG, regs.CR4_PAE, EFER_LME | EFER_LMA, False),
        (regs.CR0_ET | regs.CR0_PE | regs.CR0_PG, regs.CR4_PAE | regs.CR4_PCIDE, EFER_LME | EFER_LMA, False),
    ]
)
"""CR0, CR4, EFER, CS.L"""


@given(mode=MODES, value=bits(CR0_BITS + CR0_RESERVED + [1 << 32, 1 << 63]))
def test_cr0(mode: tuple[int, int, int, bool], value: int) -> None:
    cr0, cr4, efer, long = mode
    vcpu = machine_with(cr0, cr4, efer, long=long)
    paging, was_paging = bool(value & regs.CR0_PG), bool(cr0 & regs.CR0_PG)
    faults = [
        value >> 32 != 0,
        value & regs.CR0_NW and not value & regs.CR0_CD,
        paging and not value & regs.CR0_PE,
        paging and not was_paging and efer & EFER_LME and not cr4 & regs.CR4_PAE,
        paging and not was_paging and efer & EFER_LME and long,
        not paging and was_paging and efer & EFER_LMA and long,
        not paging and was_paging and cr4 & regs.CR4_PCIDE,
    ]
    assert set_cr0(vcpu, value) is not any(faults)
    after = vcpu.get_sregs()
    if any(faults):
        assert (after.cr0, after.efer) == (cr0, efer)
    else:
        assert after.cr0 == (value & ~sum(CR0_RESERVED)) | regs.CR0_ET
        assert bool(after.efer & EFER_LMA) == bool(paging and efer & EFER_LME)


@given(mode=MODES, value=bits([*CR4_BITS, 1 << 31, 1 << 40]), cr3=st.sampled_from([0, 0x1000, 0x1018]))
def test_cr4(mode: tuple[int, int, int, bool], value: int, cr3: int) -> None:
    cr0, cr4, efer, long = mode
    vcpu = machine_with(cr0, cr4, efer, long=long, cr3=cr3)
    lma = bool(efer & EFER_LMA)
    faults = [
        value & ~cr4_allowed(vcpu),
        lma and not value & regs.CR4_PAE,
        lma and (value ^ cr4) & regs.CR4_LA57,
        value & ~cr4 & regs.CR4_PCIDE and (cr3 & 0xFFF or not lma),
    ]
    assert set_cr4(vcpu, value) is not any(faults)
    assert vcpu.get_sregs().cr4 == (cr4 if any(faults) else value)


@pytest.mark.parametrize(
    ("bit", "function", "register", "feature"),
    [
        (regs.CR4_OSXSAVE, 1, "ecx", 1 << 26),
        (regs.CR4_FSGSBASE, 7, "ebx", 1 << 0),
        (regs.CR4_SMEP, 7, "ebx", 1 << 7),
        (regs.CR4_SMAP, 7, "ebx", 1 << 20),
        (regs.CR4_UMIP, 7, "ecx", 1 << 2),
        (regs.CR4_PKE, 7, "ecx", 1 << 3),
        (regs.CR4_LA57, 7, "ecx", 1 << 16),
    ],
)
def test_cr4_bits_need_their_feature(bit: int, function: int, register: str, feature: int) -> None:
    vcpu = Machine().vcpu
    assert vcpu.cpuid.has(function, register, feature), "offered by default"
    assert set_cr4(vcpu, bit)
    assert set_cr4(vcpu, 0)
    without(vcpu, function, register, feature)
    assert not set_cr4(vcpu, bit)


@given(value=st.integers(0, 15))
def test_cr8_is_the_task_priority(value: int) -> None:
    machine = Machine(script(ops.Set(value), ops.MovToCr(8), ops.Set(0), ops.MovFromCr(8), ops.Out(DONE, 1)))
    assert machine.vcpu.run() == Io(DONE, 1, True, value)
    assert machine.vcpu.get_sregs().cr8 == value


@pytest.mark.parametrize(
    ("register", "value"), [(8, 16), (8, 1 << 31), (0, regs.CR0_PG), (4, 1 << 31), (4, regs.CR4_PCIDE)]
)
def test_a_refused_write_is_a_general_protection_fault_at_the_instruction(register: int, value: int) -> None:
    log: list[int] = []
    program = script(ops.Set(value), ops.MovToCr(register))
    machine = Machine(program, handlers={Vector.GP: recorder(log, ops.Out(DONE, 1, 0))})
    before = machine.vcpu.get_sregs()
    assert isinstance(machine.vcpu.run(), Io)
    assert log == [Vector.GP]
    assert machine.cpu.injections[-1].error_code == 0
    after = machine.vcpu.get_sregs()
    assert (after.cr0, after.cr4, after.cr8) == (before.cr0, before.cr4, before.cr8)


def test_outside_64_bit_code_the_upper_half_does_not_count() -> None:
    machine = Machine(script(ops.Set(1 << 40 | regs.CR0_PE), ops.MovToCr(0), ops.Out(DONE, 1, 0)))
    assert isinstance(machine.vcpu.run(), Io)
    assert machine.vcpu.get_sregs().cr0 == regs.CR0_PE | regs.CR0_ET


@given(word=st.integers(0, 0xFFFF), cr0=bits([regs.CR0_PE, regs.CR0_MP, regs.CR0_EM, regs.CR0_TS, regs.CR0_WP]))
def test_lmsw_sets_the_low_bits_and_never_clears_pe(word: int, cr0: int) -> None:
    machine = Machine(script(ops.Set(word), ops.Intercepted("lmsw"), ops.Out(DONE, 1, 0)))
    sregs = machine.vcpu.get_sregs()
    sregs.cr0 = cr0 | regs.CR0_ET
    machine.vcpu.set_sregs(sregs)
    assert isinstance(machine.vcpu.run(), Io)
    expected = (cr0 & ~0xE) | (word & 0xF) | regs.CR0_ET
    assert machine.vcpu.get_sregs().cr0 == expected


def test_clts_clears_ts() -> None:
    machine = Machine(script(ops.Intercepted("clts"), ops.Out(DONE, 1, 0)))
    sregs = machine.vcpu.get_sregs()
    sregs.cr0 = regs.CR0_TS | regs.CR0_PE | regs.CR0_ET
    machine.vcpu.set_sregs(sregs)
    machine.vcpu.run()
    assert machine.vcpu.get_sregs().cr0 == regs.CR0_PE | regs.CR0_ET


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("value", [regs.CR0_ET, regs.CR0_ET | regs.CR0_WP, regs.CR0_ET | regs.CR0_PE | regs.CR0_WP])
def test_a_vm_without_real_mode(only: bool, value: int) -> None:
    """Whoever is in protected mode stays there; everything else is as it was."""
    vcpu = machine_with(regs.CR0_ET | regs.CR0_PE, 0, 0, long=False)
    vcpu.vm.protected_mode_only = only
    assert set_cr0(vcpu, value) == (bool(value & regs.CR0_PE) or not only)
    assert bool(vcpu.engine.cr0 & regs.CR0_PE) == (only or bool(value & regs.CR0_PE))
