"""An encoder for the little ACPI Machine Language that a DSDT without methods needs (ACPI specification, chapter 20).

Promise: every function returns the complete encoding of one object, so objects nest by concatenation. Pure.
"""

from __future__ import annotations

import struct
from typing import Final

_ZERO_OP: Final = b"\x00"
_ONE_OP: Final = b"\x01"
_NAME_OP: Final = b"\x08"
_BYTE_PREFIX: Final = b"\x0a"
_WORD_PREFIX: Final = b"\x0b"
_DWORD_PREFIX: Final = b"\x0c"
_STRING_PREFIX: Final = b"\x0d"
_QWORD_PREFIX: Final = b"\x0e"
_SCOPE_OP: Final = b"\x10"
_BUFFER_OP: Final = b"\x11"
_PACKAGE_OP: Final = b"\x12"
_DEVICE_OP: Final = b"\x5b\x82"
_ROOT_CHAR: Final = b"\x5c"
_NAME_SEGMENT_SIZE: Final = 4
_PACKAGE_LENGTH_LIMITS: Final = (1 << 6, 1 << 12, 1 << 20, 1 << 28)

_IO_PORT_TAG: Final = 0x47
_IRQ_TAG: Final = 0x22
_END_TAG: Final = b"\x79\x00"
_DECODE_16: Final = 1
_DWORD_ADDRESS_TAG: Final = 0x87
_WORD_ADDRESS_TAG: Final = 0x88
_MEMORY_RANGE: Final = 0
_IO_RANGE: Final = 1
_BUS_RANGE: Final = 2
_MIN_MAX_FIXED: Final = 0x0C
_ENTIRE_RANGE: Final = 3
_READ_WRITE_UNCACHED: Final = 1


def name_string(path: str) -> bytes:
    """A one-segment name, with a leading backslash if it is absolute: `_SB_` or `\\_S5_`. Padded with underscores."""
    root = path.startswith("\\")
    segment = path.lstrip("\\")
    if not 0 < len(segment) <= _NAME_SEGMENT_SIZE:
        raise ValueError(f"AML name {path!r}: one segment of 1 to {_NAME_SEGMENT_SIZE} characters is supported")
    return (_ROOT_CHAR if root else b"") + segment.ljust(_NAME_SEGMENT_SIZE, "_").encode("ascii")


def package_length(body_size: int) -> bytes:
    """PkgLength for a body of `body_size` bytes: counts itself, 1 to 4 bytes. ValueError from 256 MiB."""
    for extra, limit in enumerate(_PACKAGE_LENGTH_LIMITS):
        total = body_size + extra + 1
        if total < limit:
            if extra == 0:
                return bytes((total,))
            return bytes((extra << 6 | total & 0xF,)) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"AML package of {body_size} bytes: the encoding ends at 256 MiB")


def integer(value: int) -> bytes:
    """An unsigned integer of up to 64 bits, in its shortest form."""
    if value < 2:
        return _ONE_OP if value else _ZERO_OP
    for prefix, size in ((_BYTE_PREFIX, 1), (_WORD_PREFIX, 2), (_DWORD_PREFIX, 4)):
        if value >> (8 * size) == 0:
            return prefix + value.to_bytes(size, "little")
    return _QWORD_PREFIX + value.to_bytes(8, "little")


def string(text: str) -> bytes:
    return _STRING_PREFIX + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """An EISA identifier such as PNP0501 as the integer that _HID takes: 3 letters of 5 bits, then 4 hex digits."""
    letters, digits = text[:3], int(text[3:], 16)
    vendor = 0
    for letter in letters:
        vendor = vendor << 5 | ord(letter) - ord("A") + 1
    return _DWORD_PREFIX + struct.pack(">HH", vendor, digits)


def name(path: str, value: bytes) -> bytes:
    """Name(path, value)."""
    return _NAME_OP + name_string(path) + value


def _sized(opcode: bytes, body: bytes) -> bytes:
    return opcode + package_length(len(body)) + body


def scope(path: str, body: bytes) -> bytes:
    return _sized(_SCOPE_OP, name_string(path) + body)


def device(path: str, body: bytes) -> bytes:
    return _sized(_DEVICE_OP, name_string(path) + body)


def package(*elements: bytes) -> bytes:
    """Package of at most 255 elements."""
    return _sized(_PACKAGE_OP, bytes((len(elements),)) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    return _sized(_BUFFER_OP, integer(len(data)) + data)


def resources(*descriptors: bytes) -> bytes:
    """A resource template, as the buffer that _CRS takes."""
    return buffer(b"".join(descriptors) + _END_TAG)


def io_ports(first: int, count: int) -> bytes:
    """IO(Decode16) for fixed ports."""
    return struct.pack("<BBHHBB", _IO_PORT_TAG, _DECODE_16, first, first, 1, count)


def irq(number: int) -> bytes:
    """IRQNoFlags: an ISA interrupt, 0 to 15, edge-triggered and active high."""
    return struct.pack("<BH", _IRQ_TAG, 1 << number)


def _word_range(kind: int, specific: int, first: int, last: int) -> bytes:
    body = struct.pack("<BBBHHHHH", kind, _MIN_MAX_FIXED, specific, 0, first, last, 0, last - first + 1)
    return struct.pack("<BH", _WORD_ADDRESS_TAG, len(body)) + body


def bus_numbers(first: int, last: int) -> bytes:
    """WordBusNumber."""
    return _word_range(_BUS_RANGE, 0, first, last)


def io_window(first: int, last: int) -> bytes:
    """WordIO that the bridge forwards. The window must be smaller than the whole port space."""
    return _word_range(_IO_RANGE, _ENTIRE_RANGE, first, last)


def memory_window(first: int, last: int) -> bytes:
    """DWordMemory that the bridge forwards."""
    body = struct.pack(
        "<BBBIIIII", _MEMORY_RANGE, _MIN_MAX_FIXED, _READ_WRITE_UNCACHED, 0, first, last, 0, last - first + 1
    )
    return struct.pack("<BH", _DWORD_ADDRESS_TAG, len(body)) + body
