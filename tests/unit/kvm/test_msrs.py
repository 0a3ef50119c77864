"""Which MSR takes what: the rules of `kvm_set_msr_common`, for the guest and for user space."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.core_rig import Machine
from vtlkit.kvm.cpuid import CpuidEntry, CpuidTable
from vtlkit.kvm.msrs import MCE_BANKS
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86 import msr
from vtlkit.x86.registers import (
    CR0_PE,
    CR0_PG,
    EFER_FFXSR,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    EFER_SCE,
    EFER_SVME,
)

U64 = (1 << 64) - 1
VALUES = st.integers(0, U64) | st.integers(0, 0xFFF) | st.sampled_from([0, U64, 1 << 63, 1 << 47, 1 << 18])
MTRR_TYPES = {0, 1, 4, 5, 6}
MC_STATUS_WRITE_ENABLE = 1 << 18


def vcpu() -> Vcpu:
    return Machine().vcpu


def without(target: Vcpu, function: int, register: str, bit: int) -> None:
    """Take a feature out of the table that `target` answers CPUID from."""
    entries = []
    for entry in target.cpuid.entries:
        values = {name: getattr(entry, name) for name in ("eax", "ebx", "ecx", "edx")}
        if entry.function == function:
            values[register] &= ~bit
        entries.append(CpuidEntry(entry.function, entry.index, **values, significant_index=entry.significant_index))
    target.cpuid = CpuidTable(entries)


def mtrr_types(value: int) -> bool:
    return all(byte in MTRR_TYPES for byte in value.to_bytes(8, "little"))


def mtrr_default(value: int) -> bool:
    return not value & ~0xCFF and value & 0xFF in MTRR_TYPES


def mtrr_base(value: int) -> bool:
    return not value & 0xF00 and value >> 40 == 0 and value & 0xFF in MTRR_TYPES


def mtrr_mask(value: int) -> bool:
    return not value & 0x7FF and value >> 40 == 0


def bank_control(value: int) -> bool:
    return value in {0, U64, U64 ^ 1, U64 ^ 0x400, U64 ^ 0x401}


STORED: dict[int, Callable[[int], bool]] = {
    msr.MSR_MTRRdefType: mtrr_default,
    msr.MSR_MTRRfix64K_00000: mtrr_types,
    msr.MSR_MTRRfix4K_F8000: mtrr_types,
    msr.MSR_MTRRphysBase0: mtrr_base,
    msr.MSR_MTRRphysBase0 + 14: mtrr_base,
    msr.MSR_MTRRphysMask0: mtrr_mask,
    msr.MSR_IA32_CR_PAT: mtrr_types,
    msr.MSR_IA32_MCG_STATUS: lambda _value: True,
    msr.MSR_IA32_MCG_CTL: lambda value: value in (0, U64),
    msr.MSR_IA32_MC0_CTL: bank_control,
    msr.MSR_IA32_MC0_CTL + 4 * (MCE_BANKS - 1): bank_control,
    msr.MSR_IA32_MC0_STATUS: lambda value: value == 0,
    msr.MSR_IA32_MC0_ADDR: lambda _value: True,
    msr.MSR_IA32_MC0_MISC: lambda _value: True,
    msr.MSR_STAR: lambda _value: True,
}


def pat_rule(value: int) -> bool:
    """PAT knows UC- (7) besides what MTRRs know."""
    return all(byte in MTRR_TYPES | {7} for byte in value.to_bytes(8, "little"))


STORED[msr.MSR_IA32_CR_PAT] = pat_rule


@pytest.mark.parametrize("index", sorted(STORED))
@given(
    value=VALUES
    | st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8]), min_size=8, max_size=8).map(
        lambda types: int.from_bytes(bytes(types), "little")
    )
)
def test_stored_registers_take_what_their_rule_lets_through(index: int, value: int) -> None:
    target = vcpu()
    before = target.msrs.get(index)
    accepted = target.msrs.set(index, value)
    assert accepted is STORED[index](value)
    assert target.msrs.get(index) == (value if accepted else before)


@given(
    index=st.integers(0, 0xFFFFFFFF)
    | st.sampled_from([*range(0x500), *range(0x800, 0x900)])
    | st.integers(0x40000000, 0x400001FF)
    | st.integers(0xC0000080, 0xC0010200),
    value=VALUES,
    host=st.booleans(),
)
def test_no_register_and_no_value_upsets_the_hypervisor(index: int, value: int, host: bool) -> None:
    target = vcpu()
    before = target.msrs.get(index, host_initiated=host)
    assert before is None or 0 <= before <= U64
    assert target.msrs.set(index, value, host_initiated=host) in (True, False)
    after = target.msrs.get(index, host_initiated=host)
    assert after is None or 0 <= after <= U64


@given(
    value=VALUES,
    index=st.sampled_from([msr.MSR_FS_BASE, msr.MSR_KERNEL_GS_BASE, msr.MSR_LSTAR, msr.MSR_CSTAR]),
    la57=st.booleans(),
)
def test_addresses_must_be_canonical(value: int, index: int, la57: bool) -> None:
    target = vcpu()
    if not la57:
        without(target, 7, "ecx", 1 << 16)
    width = 57 if la57 else 48
    canonical = value >> (width - 1) in (0, (1 << (65 - width)) - 1)
    assert target.msrs.set(index, value) is canonical


@given(
    value=st.lists(st.sampled_from([EFER_SCE, EFER_LME, EFER_LMA, EFER_NX, EFER_SVME, EFER_FFXSR, 1 << 3, 1 << 40])),
    paging=st.booleans(),
    lme=st.booleans(),
)
def test_efer(value: list[int], paging: bool, lme: bool) -> None:
    target = vcpu()
    wanted = 0
    for bit in value:
        wanted |= bit
    sregs = target.get_sregs()
    sregs.efer = EFER_LME if lme else 0
    if paging:
        sregs.cr0 |= CR0_PE | CR0_PG
        sregs.efer |= EFER_LMA if lme else 0
    target.set_sregs(sregs)
    legal = not wanted & ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NX)
    legal = legal and not (paging and bool(wanted & EFER_LME) != lme)
    assert target.msrs.set(msr.MSR_EFER, wanted) is legal
    expected = (wanted & ~EFER_LMA) | (sregs.efer & EFER_LMA) if legal else sregs.efer
    assert target.msrs.get(msr.MSR_EFER) == expected


@pytest.mark.parametrize(("bit", "feature"), [(EFER_LME, 1 << 29), (EFER_NX, 1 << 20)])
def test_efer_bits_need_their_feature(bit: int, feature: int) -> None:
    target = vcpu()
    without(target, 0x80000001, "edx", feature)
    assert not target.msrs.set(msr.MSR_EFER, bit)
    assert target.msrs.set(msr.MSR_EFER, bit, host_initiated=True)
    assert not target.msrs.set(msr.MSR_EFER, 1 << 40, host_initiated=True)


# --- time -------------------------------------------------------------------------------------------------------------


@given(value=VALUES, adjust=VALUES)
def test_the_guests_tsc_and_its_adjustment_move_together(value: int, adjust: int) -> None:
    target = vcpu()
    before = target.guest_tsc()
    assert target.msrs.set(msr.MSR_IA32_TSC, value)
    assert target.guest_tsc() == value
    assert target.msrs.get(msr.MSR_IA32_TSC_ADJUST) == value - before & U64
    assert target.msrs.set(msr.MSR_IA32_TSC_ADJUST, adjust)
    assert target.guest_tsc() == before + adjust & U64


@given(value=VALUES, adjust=VALUES)
def test_user_space_sets_each_alone(value: int, adjust: int) -> None:
    """So that a state can be restored in any order."""
    target = vcpu()
    assert target.set_msr(msr.MSR_IA32_TSC_ADJUST, adjust)
    assert target.guest_tsc() == 0
    assert target.set_msr(msr.MSR_IA32_TSC, value)
    assert (target.guest_tsc(), target.get_msr(msr.MSR_IA32_TSC_ADJUST)) == (value, adjust)


@given(value=VALUES, now=st.integers(0, 1 << 40))
def test_the_tsc_runs_with_the_host_clock(value: int, now: int) -> None:
    machine = Machine()
    target = machine.vcpu
    target.write_tsc(value)
    machine.host.spawn(lambda: machine.host.consume_ns(now), "time")
    machine.host.run()
    assert target.guest_tsc() == value + machine.vm.tsc_at(now) & U64


def test_the_deadline_needs_its_timer_mode() -> None:
    target = vcpu()
    assert target.msrs.set(msr.MSR_IA32_TSC_DEADLINE, 5000)
    assert target.msrs.get(msr.MSR_IA32_TSC_DEADLINE) == 0


# --- machine checks, and the rest -------------------------------------------------------------------------------------


def test_bank_status_can_be_set_when_hwcr_says_so() -> None:
    target = vcpu()
    assert not target.msrs.set(msr.MSR_IA32_MC0_STATUS + 4, 5)
    assert target.msrs.set(msr.MSR_K7_HWCR, MC_STATUS_WRITE_ENABLE)
    assert target.msrs.set(msr.MSR_IA32_MC0_STATUS + 4, 5)
    assert target.msrs.get(msr.MSR_IA32_MC0_STATUS + 4) == 5
    assert target.set_msr(msr.MSR_IA32_MC0_STATUS, 7)


def test_there_are_no_more_banks_than_the_capability_says() -> None:
    target = vcpu()
    assert (target.msrs.get(msr.MSR_IA32_MCG_CAP) or 0) & 0xFF == MCE_BANKS
    beyond = msr.MSR_IA32_MC0_CTL + 4 * MCE_BANKS
    assert target.msrs.get(beyond) is None
    assert not target.msrs.set(beyond, 0)
    assert not target.msrs.set(msr.MSR_IA32_MCG_CAP, 0)


@given(value=VALUES)
def test_hwcr(value: int) -> None:
    target = vcpu()
    ignored, writable = 0x40 | 0x100 | 0x8, 1 << 18 | 1 << 24
    legal = not value & ~(ignored | writable)
    assert target.msrs.set(msr.MSR_K7_HWCR, value) is legal
    assert target.msrs.get(msr.MSR_K7_HWCR) == (value & writable if legal else 0)


@given(value=VALUES)
def test_misc_enable(value: int) -> None:
    """PMU bits are read-only and fault, EMON is read-only and does not."""
    target = vcpu()
    before = target.msrs.get(msr.MSR_IA32_MISC_ENABLE)
    assert before is not None
    pmu = msr.MISC_ENABLE_PEBS_UNAVAIL | msr.MISC_ENABLE_BTS_UNAVAIL
    legal = not (value ^ before) & pmu
    assert target.msrs.set(msr.MSR_IA32_MISC_ENABLE, value) is legal
    if legal:
        value &= ~msr.MISC_ENABLE_EMON
        assert target.msrs.get(msr.MSR_IA32_MISC_ENABLE) == value | (before & msr.MISC_ENABLE_EMON)


def test_apic_base_obeys_the_transitions_of_the_manual() -> None:
    target = vcpu()
    x2apic = msr.APICBASE_ENABLE | msr.X2APIC_ENABLE
    base = 0xFEE00000 | msr.APICBASE_BSP
    assert target.msrs.get(msr.MSR_IA32_APICBASE) == base | msr.APICBASE_ENABLE
    assert not target.msrs.set(msr.MSR_IA32_APICBASE, base | msr.X2APIC_ENABLE)
    assert target.msrs.set(msr.MSR_IA32_APICBASE, base | x2apic)
    assert not target.msrs.set(msr.MSR_IA32_APICBASE, base | msr.APICBASE_ENABLE)
    assert target.set_msr(msr.MSR_IA32_APICBASE, base | msr.APICBASE_ENABLE)
    assert target.msrs.set(msr.MSR_IA32_APICBASE, base)
    assert not target.msrs.set(msr.MSR_IA32_APICBASE, base | x2apic)
    assert not target.msrs.set(msr.MSR_IA32_APICBASE, base | 1 << 41)


def test_tsc_aux_needs_rdtscp_and_has_32_bits() -> None:
    target = vcpu()
    assert target.msrs.set(msr.MSR_TSC_AUX, 0xFFFFFFFF_12345678)
    assert target.msrs.get(msr.MSR_TSC_AUX) == 0x12345678
    without(target, 0x80000001, "edx", 1 << 27)
    assert target.msrs.get(msr.MSR_TSC_AUX) is None
    assert not target.msrs.set(msr.MSR_TSC_AUX, 0)
    assert target.get_msr(msr.MSR_TSC_AUX) == 0x12345678


def test_power_up_values_come_back_with_reset() -> None:
    target = vcpu()
    indices = [*STORED, msr.MSR_IA32_MISC_ENABLE, msr.MSR_K7_HWCR, msr.MSR_LSTAR, msr.MSR_EFER]
    fresh = {index: target.get_msr(index) for index in indices}
    for index in indices:
        target.set_msr(index, 1)
    target.reset(init_event=True)
    assert target.get_msr(msr.MSR_IA32_MCG_STATUS) == 1, "INIT keeps most"
    target.reset_to_power_on()
    assert {index: target.get_msr(index) for index in indices} == fresh
