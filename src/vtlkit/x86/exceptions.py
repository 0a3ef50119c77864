"""Exceptions: vectors, error codes and how two of them combine (SDM volume 3, chapter 6; `kvm_multiple_exception`).

Pure tables. The one rule here that KVM splits over several functions is `combine`: what a processor delivers when an
exception occurs while it is delivering another event.
"""

from __future__ import annotations

import enum
from typing import Final


class Vector(enum.IntEnum):
    """Exception vectors; 32 to 255 belong to interrupts."""

    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    BR = 5
    UD = 6
    NM = 7
    DF = 8
    CSO = 9
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XM = 19
    VE = 20
    CP = 21
    HV = 28
    VC = 29
    SX = 30


HAS_ERROR_CODE: Final = frozenset(
    {
        Vector.DF,
        Vector.TS,
        Vector.NP,
        Vector.SS,
        Vector.GP,
        Vector.PF,
        Vector.AC,
        Vector.CP,
        Vector.VC,
        Vector.SX,
    }
)
"""Exceptions that push an error code outside real mode."""

PFERR_PRESENT: Final = 1 << 0
PFERR_WRITE: Final = 1 << 1
PFERR_USER: Final = 1 << 2
PFERR_RSVD: Final = 1 << 3
PFERR_FETCH: Final = 1 << 4
PFERR_PK: Final = 1 << 5
PFERR_SS: Final = 1 << 6
PFERR_SGX: Final = 1 << 15

SELECTOR_ERR_EXT: Final = 1 << 0
SELECTOR_ERR_IDT: Final = 1 << 1
SELECTOR_ERR_TI: Final = 1 << 2
SELECTOR_ERR_INDEX: Final = 0xFFF8


def selector_error_code(selector: int, *, idt: bool = False, ext: bool = False) -> int:
    """Error code that names a selector, or (`idt`) the vector of an IDT gate; `ext`: an external event caused it."""
    if idt:
        return (selector << 3) | SELECTOR_ERR_IDT | ext
    return (selector & (SELECTOR_ERR_INDEX | SELECTOR_ERR_TI)) | ext


_CONTRIBUTORY: Final = frozenset({Vector.DE, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.CP})
_PAGE_FAULT_CLASS: Final = frozenset({Vector.PF, Vector.VE})


def is_contributory(vector: int) -> bool:
    """Whether two such exceptions in a row make a double fault (SDM volume 3, table 6-4)."""
    return vector in _CONTRIBUTORY


class Combined(enum.Enum):
    """What the second of two exceptions leads to."""

    SERIAL = "serial"
    """The second is delivered; the first, being restartable, will occur again."""
    DOUBLE_FAULT = "double fault"
    SHUTDOWN = "shutdown"


SERIAL: Final = Combined.SERIAL
DOUBLE_FAULT: Final = Combined.DOUBLE_FAULT
SHUTDOWN: Final = Combined.SHUTDOWN


def combine(first: int, second: int) -> Combined:
    """What happens when exception `second` occurs while exception `first` is delivered (SDM volume 3, table 6-5).

    Only for exceptions: an interrupt, an NMI or a software interrupt whose delivery faults is benign, so pass its
    vector only if that is clear of the exception vectors.
    """
    serious = second in _CONTRIBUTORY or second in _PAGE_FAULT_CLASS
    if first == Vector.DF:
        return Combined.SHUTDOWN if serious else Combined.SERIAL
    if first in _PAGE_FAULT_CLASS:
        return Combined.DOUBLE_FAULT if serious else Combined.SERIAL
    if first in _CONTRIBUTORY and second in _CONTRIBUTORY:
        return Combined.DOUBLE_FAULT
    return Combined.SERIAL
