"""The value of a lock's word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.checker.ops import Value

if TYPE_CHECKING:
    from vtlkit.checker.hosted.trie import Point


class LockWord(tuple[Value, ...]):
    """A lock's state, as a tuple; in causal programs with where those stood who let it go before (`after`).

    (holder or None, after), of a semaphore (writer or None, readers, writers that wait, after).
    """

    __slots__ = ()

    @property
    def holder(self) -> Value:
        """Number of the task that has it for itself, or None."""
        return self[0]

    @property
    def readers(self) -> int:
        """How many share it."""
        return self[1] if len(self) > 2 else 0  # type: ignore[return-value]

    @property
    def after(self) -> tuple[Point, ...]:
        """The last element."""
        return self[-1]  # type: ignore[return-value]
