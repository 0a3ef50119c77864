"""`vtlkit.layout`: what a definition promises is checked, what does not fit is refused, what fits comes back."""

from __future__ import annotations

import struct
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.layout import Array, Bits, Bytes, Struct, i32, i64, u8, u16, u32, u64


class Inner(Struct, size=4, offsets={"Y": 2}):
    X: u16 = 1
    Y: u16 = 2


class Outer(Struct, size=47, offsets={"Nested": 8, "Raw": 12, "Words": 15, "Signed": 39}):
    A: u64 = 0
    Nested: Inner = Inner()
    Raw: Annotated[bytes, Bytes(3)] = b"\0\0\0"
    Words: Annotated[tuple[int, ...], Array("Q", 3)] = (0, 0, 0)
    Signed: i32 = 0
    Tail: u32 = 0


def unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << bits) - 1)


outers = st.builds(
    Outer,
    A=unsigned(64),
    Nested=st.builds(Inner, X=unsigned(16), Y=unsigned(16)),
    Raw=st.binary(min_size=3, max_size=3),
    Words=st.tuples(unsigned(64), unsigned(64), unsigned(64)),
    Signed=st.integers(-(1 << 31), (1 << 31) - 1),
    Tail=unsigned(32),
)


@given(outers, st.integers(0, 9), st.binary(max_size=9))
def test_round_trip_at_any_offset(value: Outer, offset: int, tail: bytes) -> None:
    packed = value.pack()
    assert len(packed) == Outer.SIZE == 47
    assert Outer.unpack(packed) == value
    assert Outer.unpack_from(bytes(offset) + packed + tail, offset) == value
    buffer = bytearray(b"\xff" * (offset + 47 + len(tail)))
    value.pack_into(buffer, offset)
    assert buffer == b"\xff" * offset + packed + b"\xff" * len(tail)


@given(outers)
def test_fields_lie_where_the_definition_says(value: Outer) -> None:
    packed = value.pack()
    assert packed[:8] == value.A.to_bytes(8, "little")
    assert packed[10:12] == value.Nested.Y.to_bytes(2, "little")
    assert packed[12:15] == value.Raw
    assert packed[23:31] == value.Words[1].to_bytes(8, "little")
    assert struct.unpack_from("<i", packed, 39)[0] == value.Signed


@given(st.binary(max_size=60).filter(lambda data: len(data) != 47))
def test_wrong_sizes_are_refused(data: bytes) -> None:
    with pytest.raises(struct.error):
        Outer.unpack(data)
    if len(data) < 47:
        with pytest.raises(struct.error):
            Outer.unpack_from(data)
        with pytest.raises(struct.error):
            Outer().pack_into(bytearray(data))


@pytest.mark.parametrize(
    "bad",
    [
        Outer(A=1 << 64),
        Outer(A=-1),
        Outer(Raw=b"\0\0"),
        Outer(Raw=b"\0\0\0\0"),
        Outer(Words=(1, 2)),
        Outer(Words=(1, 2, 3, 4)),
        Outer(Signed=1 << 31),
        Outer(Nested=Inner(X=1 << 16)),
    ],
)
def test_values_that_do_not_fit_are_refused(bad: Outer) -> None:
    with pytest.raises(struct.error):
        bad.pack()


def test_nested_defaults_are_not_shared() -> None:
    first, second = Outer(), Outer()
    first.Nested.X = 77
    assert second.Nested == Inner(1, 2)
    assert first != second
    duplicate = first.copy()
    duplicate.Nested.Y = 5
    assert first.Nested == Inner(77, 2)
    assert duplicate.Nested == Inner(77, 5)


def test_a_wrong_definition_fails_when_it_is_made() -> None:
    with pytest.raises(TypeError, match="has 3 bytes, its definition says 4"):

        class Short(Struct, size=4):
            A: u16 = 0
            B: u8 = 0

    with pytest.raises(TypeError, match=r"B is at 0x2, its definition says 0x4"):

        class Moved(Struct, size=4, offsets={"B": 4}):
            A: u16 = 0
            B: u16 = 0

    with pytest.raises(TypeError, match="not a field type"):

        class Strange(Struct, size=4):
            A: str = ""

    with pytest.raises(TypeError, match="without a default: A"):

        class Bare(Struct, size=8):
            A: i64


def test_instances_have_no_other_attributes_and_say_what_they_hold() -> None:
    value = Inner(0x10)
    with pytest.raises(AttributeError):
        value.Z = 1  # type: ignore[attr-defined]
    assert repr(value) == "Inner(X=0x10, Y=0x2)"
    assert value != (0x10, 2)


@given(st.integers(0, 60), st.integers(1, 20), unsigned(64), st.data())
def test_bit_fields(lo: int, width: int, word: int, data: st.DataObject) -> None:
    field = Bits(lo, width)
    value = data.draw(st.integers(0, field.max))
    changed = field.put(word, value)
    assert field.get(changed) == value
    assert changed & ~field.mask == word & ~field.mask
    assert field.make(value) == field.put(0, value)
    assert field.mask.bit_count() == width
    for bad in (field.max + 1, -1):
        with pytest.raises(ValueError):
            field.put(word, bad)


def test_impossible_bit_fields() -> None:
    for lo, width in ((-1, 1), (0, 0)):
        with pytest.raises(ValueError):
            Bits(lo, width)
