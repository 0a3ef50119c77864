"""Shared words of the simulator. Counterpart: READ_ONCE/WRITE_ONCE, atomics and bit operations.

Promise: every access is atomic, because a task loses control only where it offers it. The plain classes never do. The
instrumented ones do before every access: each interleaving of accesses is a possible run (sequential consistency).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from vtlkit.host.api import Bitmap, Cell

if TYPE_CHECKING:
    from vtlkit.host.sim.run import RunLoop

T = TypeVar("T")


class SimCell(Cell[T]):
    """A word whose accesses never switch tasks."""

    __slots__ = ("_value", "name")

    def __init__(self, value: T, name: str) -> None:
        self._value = value
        self.name = name

    def load(self) -> T:
        return self._value

    def store(self, value: T) -> None:
        self._value = value

    def load_acquire(self) -> T:
        return self._value

    def store_release(self, value: T) -> None:
        self._value = value

    def xchg(self, value: T) -> T:
        before = self._value
        self._value = value
        return before

    def cmpxchg(self, old: T, new: T) -> T:
        before = self._value
        if before == old:
            self._value = new
        return before

    def fetch_add(self, delta: T) -> T:
        before = self._value
        self._value = before + delta  # type: ignore[operator]
        return before


class SimBitmap(Bitmap):
    """Bits whose accesses never switch tasks."""

    __slots__ = ("_bits", "name")

    def __init__(self, name: str) -> None:
        self._bits = 0
        self.name = name

    def load(self) -> int:
        return self._bits

    def test(self, bit: int) -> bool:
        return self._bits >> bit & 1 != 0

    def set(self, bit: int) -> None:
        self._bits |= 1 << bit

    def clear(self, bit: int) -> None:
        self._bits &= ~(1 << bit)

    def test_and_set(self, bit: int) -> bool:
        before = self._bits
        self._bits = before | 1 << bit
        return before >> bit & 1 != 0

    def test_and_clear(self, bit: int) -> bool:
        before = self._bits
        self._bits = before & ~(1 << bit)
        return before >> bit & 1 != 0


class InstrumentedCell(SimCell[T]):
    """A word whose every access is a scheduling point."""

    __slots__ = ("_point",)

    def __init__(self, loop: RunLoop, value: T, name: str) -> None:
        super().__init__(value, name)
        self._point = loop.access_point

    def load(self) -> T:
        self._point()
        return super().load()

    def store(self, value: T) -> None:
        self._point()
        super().store(value)

    def load_acquire(self) -> T:
        self._point()
        return super().load_acquire()

    def store_release(self, value: T) -> None:
        self._point()
        super().store_release(value)

    def xchg(self, value: T) -> T:
        self._point()
        return super().xchg(value)

    def cmpxchg(self, old: T, new: T) -> T:
        self._point()
        return super().cmpxchg(old, new)

    def fetch_add(self, delta: T) -> T:
        self._point()
        return super().fetch_add(delta)


class InstrumentedBitmap(SimBitmap):
    """Bits whose every access is a scheduling point."""

    __slots__ = ("_point",)

    def __init__(self, loop: RunLoop, name: str) -> None:
        super().__init__(name)
        self._point = loop.access_point

    def load(self) -> int:
        self._point()
        return super().load()

    def test(self, bit: int) -> bool:
        self._point()
        return super().test(bit)

    def set(self, bit: int) -> None:
        self._point()
        super().set(bit)

    def clear(self, bit: int) -> None:
        self._point()
        super().clear(bit)

    def test_and_set(self, bit: int) -> bool:
        self._point()
        return super().test_and_set(bit)

    def test_and_clear(self, bit: int) -> bool:
        self._point()
        return super().test_and_clear(bit)
