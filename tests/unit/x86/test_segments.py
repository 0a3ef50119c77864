"""Descriptors, gates and access rights: known encodings, round trips, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.x86.registers import Segment
from vtlkit.x86.segments import (
    TYPE_INTERRUPT_GATE,
    TYPE_TRAP_GATE,
    TYPE_TSS_BUSY,
    IdtGate,
    IvtEntry,
    access_rights_to_attributes,
    attributes_to_access_rights,
    decode_descriptor,
    encode_descriptor,
    encode_system_descriptor,
    flat_code32,
    flat_code64,
    flat_data,
    is_code,
    real_mode_segment,
)


@pytest.mark.parametrize(
    ("segment", "value"),
    [
        (flat_code64(), 0x00AF9B000000FFFF),
        (flat_code32(), 0x00CF9B000000FFFF),
        (flat_data(), 0x00CF93000000FFFF),
        (flat_data(0x23, dpl=3), 0x00CFF3000000FFFF),
        (Segment(0x8, 0x12345678, 0x9ABCD, 0x093), 0x1209_9334_5678_ABCD),
    ],
)
def test_known_descriptors(segment: Segment, value: int) -> None:
    data = encode_descriptor(segment)
    assert int.from_bytes(data, "little") == value
    assert decode_descriptor(data, segment.selector) == segment


@st.composite
def segments(draw: st.DrawFn, base_bits: int) -> Segment:
    attributes = draw(st.integers(0, 0xFFF))
    raw = draw(st.integers(0, 0xFFFFF))
    limit = raw << 12 | 0xFFF if attributes & 0x800 else raw
    base = draw(st.integers(0, (1 << base_bits) - 1))
    return Segment(draw(st.integers(0, 0xFFFF)), base, limit, attributes)


@given(segments(32))
def test_descriptor_round_trip(segment: Segment) -> None:
    assert decode_descriptor(encode_descriptor(segment), segment.selector) == segment


@given(segments(64))
def test_system_descriptor_round_trip(segment: Segment) -> None:
    data = encode_system_descriptor(segment)
    assert len(data) == 16
    assert data[12:] == bytes(4)
    assert decode_descriptor(data, segment.selector) == segment


@given(st.binary(min_size=8, max_size=8), st.integers(0, 0xFFFF))
def test_every_descriptor_decodes_and_encodes_back(data: bytes, selector: int) -> None:
    assert encode_descriptor(decode_descriptor(data, selector)) == data


@pytest.mark.parametrize(
    "segment",
    [
        Segment(0, 1 << 32, 0, 0x93),
        Segment(0, 0, 0x100000, 0x93),
        Segment(0, 0, 0xFFFFE, 0x893),
        Segment(0, 0, 0xFFFFFFFFF, 0x893),
    ],
)
def test_what_no_descriptor_holds(segment: Segment) -> None:
    with pytest.raises(ValueError):
        encode_descriptor(segment)


@given(st.binary(max_size=20).filter(lambda data: len(data) not in (8, 16)))
def test_wrong_sizes(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_descriptor(data, 0)
    with pytest.raises(ValueError):
        IdtGate.decode(data)
    if len(data) != 4:
        with pytest.raises(ValueError):
            IvtEntry.decode(data)


@given(st.integers(0, 0xFFF))
def test_access_rights(attributes: int) -> None:
    rights = attributes_to_access_rights(attributes)
    assert rights & 0xF00 == 0
    assert access_rights_to_attributes(rights) == attributes
    assert Segment(attributes=access_rights_to_attributes(rights | 1 << 16)).unusable


def test_known_access_rights() -> None:
    assert attributes_to_access_rights(flat_code64().attributes) == 0xA09B
    assert attributes_to_access_rights(TYPE_TSS_BUSY | 0x80) == 0x8B


gates = st.builds(
    IdtGate,
    offset=st.integers(0, (1 << 64) - 1),
    selector=st.integers(0, 0xFFFF),
    ist=st.integers(0, 7),
    type=st.integers(0, 15),
    dpl=st.integers(0, 3),
    present=st.booleans(),
)


@given(gates)
def test_gate_round_trip(gate: IdtGate) -> None:
    assert IdtGate.decode(gate.encode(long_mode=True)) == gate
    gate.offset &= 0xFFFFFFFF
    gate.ist = 0
    assert IdtGate.decode(gate.encode(long_mode=False)) == gate


def test_known_gates() -> None:
    gate = IdtGate(0xFFFF8000_12345678, 0x10, 2, TYPE_INTERRUPT_GATE, 3)
    assert gate.encode(True).hex() == "7856100002ee34120080ffff00000000"
    assert IdtGate(0x12345678, 0x08, 0, TYPE_TRAP_GATE).encode(False).hex() == "78560800008f3412"
    assert IvtEntry.decode(bytes.fromhex("53ff00f0")) == IvtEntry(0xFF53, 0xF000)
    assert IvtEntry(0xFF53, 0xF000).encode() == bytes.fromhex("53ff00f0")


@pytest.mark.parametrize(
    ("gate", "long_mode"),
    [
        (IdtGate(offset=1 << 32), False),
        (IdtGate(offset=1 << 64), True),
        (IdtGate(ist=1), False),
        (IdtGate(ist=8), True),
        (IdtGate(selector=1 << 16), True),
        (IdtGate(type=16), True),
        (IdtGate(dpl=4), True),
    ],
)
def test_impossible_gates(gate: IdtGate, long_mode: bool) -> None:
    with pytest.raises(ValueError):
        gate.encode(long_mode)


def test_real_mode_segments() -> None:
    assert real_mode_segment(0xB800) == Segment(0xB800, 0xB8000, 0xFFFF, 0x93)
    assert is_code(real_mode_segment(0x7C0, code=True))
    assert not is_code(real_mode_segment(0))
    assert not is_code(Segment(attributes=TYPE_TSS_BUSY | 0x80))
