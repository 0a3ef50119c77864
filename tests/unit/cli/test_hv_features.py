"""`--hv`: what a list of names selects, and what is said of one that selects nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.cli.hv_features import parse_hv
from vtlkit.kvm.hyperv.features import EVERYTHING, NEEDS, NOTHING, REFUSED, SWITCHES, VALUES, HvFeatures, spelled

pytestmark = pytest.mark.tlfs("discovery.selection")


def parsed(text: str) -> HvFeatures:
    features = parse_hv(text)
    assert features is not None
    return features


def test_everything_and_nothing() -> None:
    assert parse_hv("none") is None
    assert parse_hv("all") == parse_hv("hv-passthrough") == EVERYTHING


def test_exactly_those_that_are_named() -> None:
    assert parsed("hv-vpindex,hv-synic") == NOTHING.changed(vpindex=True, synic=True)
    assert parsed("hv-tlbflush=on,hv-vpindex=on,hv-relaxed=off") == NOTHING.changed(vpindex=True, tlbflush=True)


def test_order_of_names_does_not_matter_to_what_they_need() -> None:
    assert parsed("hv-synic,hv-vpindex") == parsed("hv-vpindex,hv-synic")


def test_all_but_one() -> None:
    assert parsed("all,-hv-stimer") == EVERYTHING.changed(stimer=False, stimer_direct=False)
    assert parsed("all,hv-reset=off") == EVERYTHING.changed(reset=False)
    assert parsed("all,-hv-reset,hv-reset") == EVERYTHING
    # What is off already may be left out.
    assert parsed("all,-hv-avic") == EVERYTHING


@pytest.mark.parametrize("name", [name for name in SWITCHES if getattr(EVERYTHING, name)])
def test_one_is_left_out_with_those_that_need_it(name: str) -> None:
    features = parsed(f"all,-{spelled(name)}")
    assert not getattr(features, name)
    for other in SWITCHES:
        needs = NEEDS.get(other, ())
        if other != name and getattr(EVERYTHING, other):
            assert getattr(features, other) == all(getattr(features, needed) for needed in needs)


def test_values() -> None:
    assert parsed("hv-spinlocks=0xfff") == NOTHING.changed(spinlocks=0xFFF)
    assert parsed("all,hv-spinlocks=100").spinlocks == 100
    assert parsed("all,-hv-spinlocks").spinlocks == 0xFFFFFFFF
    assert parsed("all,hv-vendor-id=GenuineIntel").vendor_id == "GenuineIntel"
    assert parsed("all,hv-version-id-build=0X10").version_id_build == 16


def test_names_of_qemu_for_what_is_so_anyway() -> None:
    assert parsed("all,hv-enforce-cpuid") == parsed("all,hv-enforce-cpuid=on") == EVERYTHING
    assert parsed("all,hv-apicv") == EVERYTHING.changed(avic=True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hv-stimr", "there is no feature 'hv-stimr': did you mean hv-stimer?"),
        ("vpindex", "there is no feature 'vpindex': did you mean hv-vpindex?"),
        ("hv_synic", "there is no feature 'hv_synic': did you mean hv-synic?"),
        ("All", "there is no feature 'All': did you mean all?"),
        ("foo", "there is no feature 'foo': 'vtlkit info' lists them"),
        ("", "an item is empty; 'vtlkit info' lists the features"),
        ("all,", "an item is empty; 'vtlkit info' lists the features"),
        ("hv-stimer", "hv-stimer needs hv-time"),
        ("hv-stimer,hv-time,hv-synic", "hv-synic needs hv-vpindex"),
        ("hv-ports,hv-vsm,hv-vpindex,hv-vapic", "hv-ports, hv-vsm need hv-synic"),
        ("none,hv-synic", "none stands alone: it is no Hyper-V interface at all"),
        ("-hv-vsm", "'-hv-vsm' leaves out of nothing: begin with all, as in all,-hv-vsm"),
        ("all,-hv-spinlocks=1", "'-hv-spinlocks=1': what is left out has no value; write -hv-spinlocks"),
        ("hv-vapic=maybe", "hv-vapic is on or off, not 'maybe'"),
        ("hv-spinlocks", "hv-spinlocks takes a value: write hv-spinlocks=0xfff"),
        ("hv-spinlocks=many", "hv-spinlocks: 'many' is no number; write hv-spinlocks=0xfff"),
        ("hv-spinlocks=0x100000000", "hv-spinlocks: 0x100000000 is not from 0 to 0xffffffff"),
        ("hv-vendor-id=Thirteen chars", "hv-vendor-id: 'Thirteen chars' is not up to 12 printable ASCII characters"),
        ("all,-hv-enforce-cpuid", "hv-enforce-cpuid is always on"),
        ("hv-evmcs", "hv-evmcs can not be had: nested virtualisation is not offered"),
    ],
)
def test_complaints(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}$"):
        parse_hv(text)


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_had_says_why(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        parse_hv(f"all,{name}")


_WORDS = st.sampled_from([*(spelled(name) for name in (*SWITCHES, *VALUES)), "all", "none", "-", "=", "on", "0x1", " "])


@given(st.one_of(st.text(), st.lists(_WORDS).map("".join), st.lists(_WORDS).map(",".join)))
def test_any_text_is_a_selection_or_refused(text: str) -> None:
    try:
        features = parse_hv(text)
    except ValueError:
        return
    if features is not None:
        features.check()
