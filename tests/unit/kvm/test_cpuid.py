"""CPUID offers what can be executed: against what the embedded CPU's translator implements."""

from __future__ import annotations

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, Script
from tests.unit.kvm.hyperv.timer_rig import offer_hyperv
from vtlkit.engine.scripted import ops
from vtlkit.engine.unicorn.registers import FEATURES, MAXPHYADDR, FeatureWord
from vtlkit.hvdef.cpuid import HvPartitionPrivilege
from vtlkit.hvdef.msrs import HV_X64_MSR_TSC_INVARIANT_CONTROL
from vtlkit.kvm.cpuid import CpuidTable, answer, supported
from vtlkit.x86 import cpuid as bits
from vtlkit.x86.registers import CR4_OSXSAVE, CR4_PKE, XCR0_PKRU, XCR0_SSE, XCR0_X87

TABLE = CpuidTable(supported(1_000_000, MAXPHYADDR))
WORDS = [
    (FeatureWord.FEAT_1_EDX, 1, 0, "edx", 0),
    (
        FeatureWord.FEAT_1_ECX,
        1,
        0,
        "ecx",
        bits.CPUID_1_ECX_X2APIC | bits.CPUID_1_ECX_TSC_DEADLINE | bits.CPUID_1_ECX_HYPERVISOR,
    ),
    (FeatureWord.FEAT_7_0_EBX, 7, 0, "ebx", bits.CPUID_7_0_EBX_TSC_ADJUST),
    (FeatureWord.FEAT_7_0_ECX, 7, 0, "ecx", bits.CPUID_7_0_ECX_UMIP),
    (FeatureWord.FEAT_8000_0001_EDX, 0x80000001, 0, "edx", 0),
    (FeatureWord.FEAT_8000_0001_ECX, 0x80000001, 0, "ecx", 0),
    (FeatureWord.FEAT_XSAVE, 0xD, 1, "eax", 0),
    (FeatureWord.FEAT_XSAVE_COMP_LO, 0xD, 0, "eax", 0),
    (FeatureWord.FEAT_XSAVE_COMP_HI, 0xD, 0, "edx", 0),
]
"""Word, leaf, subleaf, register, and the bits in it that are the hypervisor's own to provide."""
NOT_OFFERED = {FeatureWord.FEAT_8000_0001_ECX: bits.CPUID_80000001_ECX_SVM}
"""The translator's SVM is what the engine itself is built on."""


def test_every_word_is_compared() -> None:
    assert {word for word, *_ in WORDS} == set(FEATURES)


@pytest.mark.parametrize(("word", "leaf", "index", "register", "provided"), WORDS, ids=lambda value: str(value))
def test_offers_what_the_translator_executes(
    word: FeatureWord, leaf: int, index: int, register: str, provided: int
) -> None:
    entry = TABLE.find(leaf, index)
    assert entry is not None
    executed = FEATURES[word] & ~NOT_OFFERED.get(word, 0)
    assert getattr(entry, register) == executed | provided, f"{getattr(entry, register) ^ (executed | provided):#x}"


def test_random_numbers_are_not_the_hosts() -> None:
    assert not FEATURES[FeatureWord.FEAT_1_ECX] & bits.CPUID_1_ECX_RDRAND


def test_the_xsave_area_grows_with_xcr0() -> None:
    component = TABLE.find(0xD, 9)
    assert component is not None
    size, offset = component.eax, component.ebx
    for xcr0, wanted in (
        (XCR0_X87, 576),
        (XCR0_X87 | XCR0_SSE, 576),
        (XCR0_X87 | XCR0_SSE | XCR0_PKRU, offset + size),
    ):
        _, ebx, ecx, _ = answer(TABLE, 0xD, 0, CR4_OSXSAVE | CR4_PKE, xcr0, True)
        assert (ebx, ecx) == (wanted, offset + size)


@pytest.mark.tlfs("msrs.reenlightenment")
def test_the_invariant_tsc_is_hidden_until_the_guest_exposes_it() -> None:
    seen: list[int] = []

    def wrmsr(index: int, value: int) -> Script:
        yield ops.Set(index, "rcx")
        yield ops.Set(0, "rdx")
        yield ops.Set(value)
        yield ops.Wrmsr()

    def program(_engine: object) -> Script:
        for _ in range(2):
            yield ops.Set(0x80000007)
            yield ops.Cpuid()
            seen.append(machine.cpu.regs.rdx >> 8 & 1)
            yield from wrmsr(HV_X64_MSR_TSC_INVARIANT_CONTROL, 1)
        yield ops.Out(DONE, 1, 0)

    machine = Machine(program)
    machine.vcpu.run()
    assert seen == [1], "the control is not offered: its write is #GP, and the invariant TSC is there"
    machine = Machine(program)
    offer_hyperv(machine.vcpu)
    machine.vcpu.hv.privileges |= HvPartitionPrivilege.AccessTscInvariantControls
    seen.clear()
    machine.vcpu.run()
    assert seen == [0, 1]
