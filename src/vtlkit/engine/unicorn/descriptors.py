"""Descriptors and gates as they lie in the tables (SDM volume 3, sections 3.4.5 and 6.11), decoded and remembered.

Pure functions of the bytes: a table that changes is read again, and its old bytes are merely not asked for any more.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final, NamedTuple

TWO_WORDS: Final = struct.Struct("<II")
LONG_GATE_SIZE: Final = 16
DESC_TYPE_SHIFT: Final = 8
DESC_ACCESSED: Final = 1 << 8
ACCESSED_IN_BYTE_5: Final = 1
DESC_WRITABLE: Final = 1 << 9
DESC_CONFORMING: Final = 1 << 10
DESC_CODE: Final = 1 << 11
DESC_S: Final = 1 << 12
DESC_DPL_SHIFT: Final = 13
DESC_P: Final = 1 << 15
DESC_L: Final = 1 << 21
DESC_B: Final = 1 << 22
DESC_G: Final = 1 << 23


class Descriptor:
    """A code or data descriptor read from a table, and where it lies."""

    __slots__ = ("address", "base", "flags", "limit", "selector")

    def __init__(self, selector: int, address: int, low: int, high: int) -> None:
        self.selector = selector
        self.address = address
        self.base = (low >> 16) | ((high & 0xFF) << 16) | (high & 0xFF000000)
        limit = (low & 0xFFFF) | (high & 0x000F0000)
        self.limit = (limit << 12) | 0xFFF if high & DESC_G else limit
        self.flags = high

    @property
    def dpl(self) -> int:
        return (self.flags >> DESC_DPL_SHIFT) & 3


@lru_cache(maxsize=512)
def accessed_descriptor(selector: int, address: int, raw: bytes) -> Descriptor:
    """A descriptor that nothing changes any more, decoded once."""
    return Descriptor(selector, address, *TWO_WORDS.unpack(raw))


class Gate(NamedTuple):
    """An interrupt or trap gate; `kind` has the S bit on top of the type."""

    offset: int
    selector: int
    kind: int
    ist: int
    dpl: int
    present: bool


@lru_cache(maxsize=512)
def gate_of(raw: bytes) -> Gate:
    low, selector, mid, high = struct.unpack_from("<HHHH", raw)
    offset = low | high << 16
    if len(raw) == LONG_GATE_SIZE:
        offset |= struct.unpack_from("<I", raw, 8)[0] << 32
    return Gate(offset, selector, (mid >> 8) & 0x1F, mid & 7, (mid >> 13) & 3, bool(mid & 0x8000))
