"""Hypervisor leaves: what each switch announces, and that nothing is announced which is not there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.hyperv.rig import ALL_FEATURES
from vtlkit.hvdef.cpuid import HvEnlightenments, HvFeaturesEdx
from vtlkit.hvdef.cpuid import HvPartitionPrivilege as Privilege
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.hyperv.cpuid import cpuid_leaves
from vtlkit.kvm.hyperv.features import MAXIMA, NEEDS, NOTHING, REFUSED, SWITCHES, VALUES, HvFeatures, spelled

Edx = HvFeaturesEdx


def leaf(features: HvFeatures, function: int) -> tuple[int, ...]:
    return next(registers[1:] for registers in cpuid_leaves(features) if registers[0] == function)


def privileges(features: HvFeatures) -> Privilege:
    eax, ebx, _, _ = leaf(features, 0x40000003)
    return Privilege(eax | ebx << 32)


def alone(name: str) -> HvFeatures:
    """A feature and what it needs, nothing else."""
    wanted, todo = set(), [name]
    while todo:
        one = todo.pop()
        wanted.add(one)
        todo += NEEDS.get(one, ())
    return NOTHING.changed(**dict.fromkeys(wanted, True))


@pytest.mark.tlfs("discovery.presence")
def test_presence() -> None:
    leaves = cpuid_leaves(ALL_FEATURES)
    assert [registers[0] for registers in leaves] == list(range(0x40000000, 0x4000000B))
    assert leaf(ALL_FEATURES, 0x40000000) == (0x4000000A, 0x7263694D, 0x666F736F, 0x76482074)
    assert leaf(ALL_FEATURES, 0x40000001) == (0x31237648, 0, 0, 0)


@pytest.mark.tlfs("discovery.features")
def test_everything() -> None:
    eax, ebx, ecx, edx = leaf(ALL_FEATURES, 0x40000003)
    assert [bit for bit in range(32) if eax >> bit & 1] == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13]
    assert [bit for bit in range(32) if ebx >> bit & 1] == [4, 5, 6, 7, 15, 16, 17, 19, 20, 21]
    assert ecx == 0
    assert [bit for bit in range(32) if edx >> bit & 1] == [4, 5, 8, 10, 12, 14, 15, 17, 18, 19, 20, 23, 28, 30, 31]


@pytest.mark.tlfs("discovery.features")
def test_nothing() -> None:
    assert leaf(NOTHING, 0x40000003) == (1 << 5, 0, 0, 1 << 18)
    assert leaf(NOTHING, 0x40000004) == (0, 0xFFFFFFFF, 36, 0)


@pytest.mark.tlfs("discovery.hints")
def test_hints() -> None:
    hints, spins, address_bits, reserved = leaf(ALL_FEATURES, 0x40000004)
    assert [bit for bit in range(32) if hints >> bit & 1] == [2, 3, 5, 10, 11]
    assert (spins, address_bits, reserved) == (0xFFF, 36, 0)
    assert cpuid_leaves(ALL_FEATURES, physical_address_bits=40)[4][3] == 40
    assert leaf(ALL_FEATURES.changed(avic=True), 0x40000004)[0] >> 9 & 1
    masks = HvEnlightenments.UseExProcessorMasks
    assert leaf(alone("ipi"), 0x40000004)[0] == masks | HvEnlightenments.UseSyntheticClusterIpi
    assert leaf(alone("tlbflush"), 0x40000004)[0] == masks | HvEnlightenments.UseHypercallForRemoteFlush


@pytest.mark.tlfs("discovery.version-and-limits")
def test_limits_hardware_and_leaves_of_what_is_not_there() -> None:
    assert cpuid_leaves(ALL_FEATURES, max_vps=16)[5] == (0x40000005, 16, 0, 0, 0)
    # MSR bitmaps and second-level address translation; no hypervisor above this one.
    assert leaf(ALL_FEATURES, 0x40000006) == (1 << 1 | 1 << 3, 0, 0, 0)
    for function in range(0x40000007, 0x4000000B):
        assert leaf(ALL_FEATURES, function) == (0, 0, 0, 0)


@pytest.mark.tlfs("discovery.version-and-limits")
def test_version_and_vendor() -> None:
    assert leaf(ALL_FEATURES, 0x40000002) == (20348, 10 << 16, 0, 0)
    told = ALL_FEATURES.changed(
        vendor_id="vtlkit",
        version_id_build=1,
        version_id_major=2,
        version_id_minor=3,
        version_id_spack=4,
        version_id_sbranch=5,
        version_id_snumber=6,
    )
    assert leaf(told, 0x40000002) == (1, 2 << 16 | 3, 4, 5 << 24 | 6)
    assert b"".join(word.to_bytes(4, "little") for word in leaf(told, 0x40000000)[1:]) == b"vtlkit".ljust(12, b"\0")
    assert leaf(told, 0x40000001)[0] == 0x31237648


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_changes_a_leaf(name: str) -> None:
    on = alone(name)
    assert cpuid_leaves(on) != cpuid_leaves(on.changed(**{name: False}))


@pytest.mark.parametrize("name", NEEDS)
def test_features_that_do_not_go_together(name: str) -> None:
    for needed in NEEDS[name]:
        with pytest.raises(KvmError, match=f"{spelled(name)}.* needs? {spelled(needed)}"):
            alone(name).changed(**{needed: False}).check()


def test_all_that_lack_a_feature_are_named() -> None:
    with pytest.raises(KvmError, match="hv-stimer, hv-ports, hv-vsm need hv-synic"):
        cpuid_leaves(ALL_FEATURES.changed(synic=False))


@pytest.mark.parametrize("name", MAXIMA)
def test_values_that_do_not_fit(name: str) -> None:
    assert cpuid_leaves(ALL_FEATURES.changed(**{name: MAXIMA[name]})) != cpuid_leaves(ALL_FEATURES)
    for value in (-1, MAXIMA[name] + 1):
        with pytest.raises(KvmError, match=f"{spelled(name)}: "):
            cpuid_leaves(ALL_FEATURES.changed(**{name: value}))


@pytest.mark.parametrize("text", ["longer than twelve", "caf\xe9", "line\n"])
def test_vendors_that_do_not_fit(text: str) -> None:
    with pytest.raises(KvmError, match="hv-vendor-id"):
        cpuid_leaves(ALL_FEATURES.changed(vendor_id=text))


@pytest.mark.tlfs("discovery.vsm-privileges")
@given(st.sets(st.sampled_from(SWITCHES)))
def test_vsm_only_with_its_privileges(names: set[str]) -> None:
    features = NOTHING.changed(**dict.fromkeys(names, True))
    try:
        found = privileges(features)
    except KvmError:
        assert any(needed not in names for name in names for needed in NEEDS.get(name, ()))
        return
    vsm = Privilege.AccessVsm | Privilege.AccessVpRegisters | Privilege.AccessSynicRegs
    assert ("vsm" in names) == (found & Privilege.AccessVsm != 0) == (found & vsm == vsm)


def test_leaves_are_plain_numbers() -> None:
    """A flag of an enumeration would lose bits when it is inverted."""
    assert {type(word) for registers in cpuid_leaves(ALL_FEATURES) for word in registers} == {int}


def test_names() -> None:
    assert spelled("tlbflush_ext") == "hv-tlbflush-ext"
    assert not {spelled(name) for name in (*SWITCHES, *VALUES)} & set(REFUSED)
