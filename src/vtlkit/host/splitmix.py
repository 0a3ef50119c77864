"""The hosts' own random generator: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).

Promise: a seed means the same numbers under every Python. One 64-bit word of state; not for secrets.
"""

from __future__ import annotations

_MASK64 = (1 << 64) - 1
_EXACT_BITS = 32
"""A draw uses this many bits more than `count` needs, so that no value is likelier than another by more than 2**-32."""


class SplitMix64:
    """Not safe to share between threads without a lock."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK64

    def next64(self) -> int:
        """64 random bits."""
        self._state = state = (self._state + 0x9E3779B97F4A7C15) & _MASK64
        word = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK64
        return word ^ (word >> 31)

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        word = self.next64()
        bits = 64
        while count >> (bits - _EXACT_BITS):
            word = word << 64 | self.next64()
            bits += 64
        return (word * count) >> bits
