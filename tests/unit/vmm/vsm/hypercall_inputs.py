"""Input for random hypercalls: what each call has a use for, mostly, so that many succeed; and then anything."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import Final, TypeAlias

from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF
from vtlkit.hvdef.registers import HvRegisterName
from vtlkit.vmm.vsm.hypercalls import ACCESS_OF_MAP_FLAGS

PAGES: Final = 40
"""Pages of RAM."""
FLAGS: Final = tuple(ACCESS_OF_MAP_FLAGS)
QWORDS: Final = 48
"""Length of an input."""

Word: TypeAlias = Callable[[Random, int], bytes]
"""(source, the caller's VTL) -> eight bytes, or several times eight"""


def hypercall_input(random: Random, code: int, level: int) -> bytes:
    """Input of a call by VTL `level`."""
    shape = SHAPES.get(code) if random.random() < 0.8 else None
    words = [make(random, level) for make in shape or (_partition, random.choice(_SECOND_WORDS))]
    rest = _REST.get(code) if random.random() < 0.8 else random.choice((*_WORDS, None))
    while len(words) < QWORDS:
        words.append((rest or random.choice(_WORDS))(random, level))
    return b"".join(words)


def _vtl(random: Random, level: int) -> int:
    return random.choice((0, 0, 0x10, 0x11, 0x12, 0x13, level | 0x10))


def _partition(random: Random, _level: int) -> bytes:
    return struct.pack("<Q", HV_PARTITION_ID_SELF if random.random() < 0.95 else random.randrange(3))


def _zero(_random: Random, _level: int) -> bytes:
    return bytes(8)


def _ipi(random: Random, level: int) -> bytes:
    return struct.pack(
        "<IBBH", random.choice((0x60, 0x10, 0xFF, 8)), random.choice((0, 0x10, 0x11, level | 0x10)), 0, 0
    )


def _flush_flags(random: Random, _level: int) -> bytes:
    return struct.pack("<Q", random.choice((0, 1, 2, 3, 4, 8, 0x10, 0x30, 0x110)))


def _translate_flags(random: Random, level: int) -> bytes:
    flags = (
        random.choice((0, 1, 2, 3, 4, 8, 0x10, 0x13, 0x20, 0x40, 0x80)) | random.choice((0, 0x10, level | 0x10)) << 56
    )
    return struct.pack("<Q", flags)


def _register_pair(random: Random, _level: int) -> bytes:
    return struct.pack("<II", random.choice(NAMES), random.choice(NAMES))


def _register_value(random: Random, level: int) -> bytes:
    return struct.pack("<IIQ", random.choice(NAMES), 0, 0) + _small(random, level) + bytes(8)


def _vp_and_vtl(random: Random, level: int) -> bytes:
    index = random.choice((0, 1, HV_VP_INDEX_SELF, HV_VP_INDEX_SELF, 7))
    return struct.pack("<IBBH", index, random.choice((0, 0, 0x10, 0x11, 0x12, 0x13, level | 0x10)), 0, 0)


def _map_flags(random: Random, level: int) -> bytes:
    return struct.pack("<IBBH", random.choice(FLAGS), random.choice((0, 0x10, 0x11, level | 0x10)), 0, 0)


def _registers(random: Random, _level: int) -> bytes:
    return struct.pack("<II", random.choice(NAMES), random.choice(NAMES))


def _page_number(random: Random, _level: int) -> bytes:
    return struct.pack("<Q", random.randrange(PAGES + 1))


def _small(random: Random, _level: int) -> bytes:
    return struct.pack("<Q", random.choice((0, 0, 1, 2, 3, 0x10, 0x60, 0x1000, 0x3000, (1 << 64) - 1)))


def _any(random: Random, _level: int) -> bytes:
    return random.randbytes(8)


def _connection(random: Random, _level: int) -> bytes:
    return struct.pack("<IHH", random.randrange(4), random.choice((0, 1, 9, 3000)), 0)


def _type_and_size(random: Random, _level: int) -> bytes:
    return struct.pack("<II", random.choice((1, 0x77, 0x80000000)), random.choice((0, 8, 240, 241)))


def _port_and_vtl(random: Random, level: int) -> bytes:
    return struct.pack("<IBBH", random.randrange(4), random.choice((0, level)), random.choice((0, 0, level)), 0)


def _connection_and_vtl(random: Random, level: int) -> bytes:
    return struct.pack("<IBBH", random.randrange(4), random.choice((0, level)), 0, 0)


def _port(random: Random, _level: int) -> bytes:
    return struct.pack("<II", random.randrange(4), 0)


def _port_type(random: Random, _level: int) -> bytes:
    return struct.pack("<II", random.choice((1, 1, 2, 3)), 0)


def _sint_and_vp(random: Random, _level: int) -> bytes:
    return struct.pack("<II", random.choice((5, 5, 0, 16)), random.randrange(3))


def _vp_vtl_sint(random: Random, level: int) -> bytes:
    return struct.pack("<IBBH", random.randrange(2), random.choice((0, level)), 5, random.choice((0, 7, 3000)))


def _vector_and_vtl(random: Random, level: int) -> bytes:
    return struct.pack("<IBBH", random.choice((0x60, 0xFF, 8)), random.choice((0, 0x10, level | 0x10)), 0, 0)


def _vtl_word(random: Random, level: int) -> bytes:
    return struct.pack("<Q", _vtl(random, level))


def _access_and_type(random: Random, _level: int) -> bytes:
    return struct.pack("<II", random.choice((0, 1, 2, 3, 4)), random.randrange(0x12))


_WORDS: Final[tuple[Word, ...]] = (
    *(_vp_and_vtl, _map_flags, _registers, _page_number, _page_number),
    *(_small, _small, _any),
)
_SECOND_WORDS: Final = (_vp_and_vtl, _vp_and_vtl, _map_flags, *_WORDS)
SHAPES: Final[dict[int, tuple[Word, ...]]] = {
    Call.HvCallFlushVirtualAddressSpace: (_zero, _flush_flags, _small),
    Call.HvCallFlushVirtualAddressList: (_zero, _flush_flags, _small),
    Call.HvCallFlushVirtualAddressSpaceEx: (_zero, _flush_flags, _small, _small, _small),
    Call.HvCallFlushVirtualAddressListEx: (_zero, _flush_flags, _small, _small, _small),
    Call.HvCallSendSyntheticClusterIpi: (_ipi, _small),
    Call.HvCallSendSyntheticClusterIpiEx: (_ipi, _small, _small, _small),
    Call.HvCallModifyVtlProtectionMask: (_partition, _map_flags),
    Call.HvCallGetVpRegisters: (_partition, _vp_and_vtl),
    Call.HvCallSetVpRegisters: (_partition, _vp_and_vtl),
    Call.HvCallTranslateVirtualAddress: (_partition, _vp_and_vtl, _translate_flags, _page_number),
    Call.HvCallTranslateVirtualAddressEx: (_partition, _vp_and_vtl, _translate_flags, _page_number),
    Call.HvCallPostMessage: (_connection, _type_and_size),
    Call.HvCallSignalEvent: (_connection,),
    Call.HvCallSignalEventDirect: (_partition, _vp_vtl_sint),
    Call.HvCallCreatePort: (_partition, _port_and_vtl, _partition, _port_type, _sint_and_vp, _small, _zero),
    Call.HvCallConnectPort: (
        _partition,
        _connection_and_vtl,
        _partition,
        _port,
        _port_type,
        _zero,
        _zero,
        _zero,
        _zero,
    ),
    Call.HvCallDeletePort: (_partition, _port),
    Call.HvCallDisconnectPort: (_partition, _port),
    Call.HvCallAssertVirtualInterrupt: (_partition, _zero, _small, _vector_and_vtl),
    Call.HvCallGetVpIndexFromApicId: (_partition, _vtl_word),
    Call.HvCallGetVpSetFromMda: (_partition, _small, _vtl_word),
    Call.HvCallInstallIntercept: (_partition, _access_and_type, _small),
    Call.HvCallCheckSparseGpaPageVtlAccess: (_partition, _vp_and_vtl),
}
_REST: Final[dict[int, Word]] = {
    Call.HvCallModifyVtlProtectionMask: _page_number,
    Call.HvCallGetVpRegisters: _register_pair,
    Call.HvCallSetVpRegisters: _register_value,
    Call.HvCallCheckSparseGpaPageVtlAccess: _page_number,
    Call.HvCallGetVpIndexFromApicId: _small,
}
NAMES: Final = tuple(int(name) for name in HvRegisterName if name is not HvRegisterName.HvX64RegisterRip)
"""Without RIP: the scripted processor has code at one address only."""
