"""Shared words of the threads host. Counterpart: READ_ONCE/WRITE_ONCE, atomics and bit operations.

Promise: every access is atomic. Loads and stores of one attribute are so under the interpreter lock, which also orders
them all; what reads and then writes takes the word's own lock, and so does a store, or it could fall between the two.
"""

from __future__ import annotations

import threading
from typing import TypeVar

from vtlkit.host.api import Bitmap, Cell

T = TypeVar("T")


class ThreadCell(Cell[T]):
    """A word and its lock."""

    __slots__ = ("_lock", "_value", "name")

    def __init__(self, value: T, name: str) -> None:
        self._value = value
        self._lock = threading.Lock()
        self.name = name

    def load(self) -> T:
        return self._value

    def store(self, value: T) -> None:
        with self._lock:
            self._value = value

    def load_acquire(self) -> T:
        return self._value

    def store_release(self, value: T) -> None:
        with self._lock:
            self._value = value

    def xchg(self, value: T) -> T:
        with self._lock:
            before = self._value
            self._value = value
            return before

    def cmpxchg(self, old: T, new: T) -> T:
        with self._lock:
            before = self._value
            if before == old:
                self._value = new
            return before

    def fetch_add(self, delta: T) -> T:
        with self._lock:
            before = self._value
            self._value = before + delta  # type: ignore[operator]
            return before


class ThreadBitmap(Bitmap):
    """Bits and their lock."""

    __slots__ = ("_bits", "_lock", "name")

    def __init__(self, name: str) -> None:
        self._bits = 0
        self._lock = threading.Lock()
        self.name = name

    def load(self) -> int:
        return self._bits

    def test(self, bit: int) -> bool:
        return self._bits >> bit & 1 != 0

    def set(self, bit: int) -> None:
        with self._lock:
            self._bits |= 1 << bit

    def clear(self, bit: int) -> None:
        with self._lock:
            self._bits &= ~(1 << bit)

    def test_and_set(self, bit: int) -> bool:
        with self._lock:
            before = self._bits
            self._bits = before | 1 << bit
            return before >> bit & 1 != 0

    def test_and_clear(self, bit: int) -> bool:
        with self._lock:
            before = self._bits
            self._bits = before & ~(1 << bit)
            return before >> bit & 1 != 0
