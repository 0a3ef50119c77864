"""What a thread asks of memory, and what it carries along so that dependencies are known.

A set of reads is an integer with a bit for each; whoever answers chooses the bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vtlkit.checker.litmus.primitives import Does, Mark
from vtlkit.checker.litmus.syntax import Address, Scalar


class Ended(Exception):
    """A thread cannot go on: it has done at `line` what no program may do. Who answers throws it into the thread."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Tagged:
    """A value, and the reads that it was computed from."""

    value: Scalar
    reads: int = 0


@dataclass(frozen=True, slots=True)
class Reads:
    """The reads that a request depends on: by its address, its data, and by the branches it stands in."""

    address: int = 0
    data: int = 0
    control: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """Answered by the value."""

    at: Address
    mark: Mark
    reads: Reads
    line: int


@dataclass(frozen=True, slots=True)
class Store:
    """No answer."""

    at: Address
    value: Scalar
    mark: Mark
    reads: Reads
    line: int


@dataclass(frozen=True, slots=True)
class Modify:
    """Atomic: `update` gives the new value, or None where nothing is written; it raises Ended where there is none.
    Answered by the old value.

    `full`: between two full barriers where it writes. `carries`: what is written is computed from what was read.
    """

    at: Address
    update: Callable[[Scalar], Scalar | None]
    mark: Mark
    full: bool
    carries: bool
    reads: Reads
    line: int


@dataclass(frozen=True, slots=True)
class Locking:
    """LOCK, TRYLOCK (answered by 1 if it is taken), IS_LOCKED (by 1 if so) or UNLOCK."""

    does: Does
    at: Address
    reads: Reads
    line: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """A fence of this kind; `at` is the domain of SRCU's, and `index` what its end is given."""

    fence: str
    at: Address | None
    index: Scalar
    line: int


@dataclass(frozen=True, slots=True)
class Fault:
    """The thread ends here: it did what no program may do."""

    text: str
    line: int


Request = Load | Store | Modify | Locking | Barrier | Fault
