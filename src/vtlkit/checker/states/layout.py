"""Where each part of a state stands in its packed form, a number of at most 62 bits.

From the lowest bit up: each thread's local state, each word's value. Parts grow, and none ever changes its place among
the others: so the order of states stays as it is when they are packed anew.
"""

from __future__ import annotations

from typing import Final

from vtlkit.checker.states.automaton import Automaton
from vtlkit.checker.states.machine import State

BITS_LIMIT: Final = 62
LOCAL_BITS: Final = 3
"""At first."""


class TooWide(Exception):
    """A state has more bits than a packed one has room for."""


class Layout:
    """Widths and places, in bits. It changes when `grown` says so."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self.local_bits = [LOCAL_BITS] * len(automaton.groups)
        self.word_bits: list[int] = []
        self.thread_shift: list[int] = []
        self.word_shift: list[int] = []
        self.grow()

    def grow(self) -> list[tuple[int, int]]:
        """Make room for what the automaton has now. Raises TooWide.

        What was packed has to move: bits from the first number on (up to the next pair's) up by the second number. An
        empty list: it is where it was.
        """
        before = self._fields()
        automaton = self._automaton
        for group, locals_ in enumerate(automaton.locals):
            self.local_bits[group] = max(self.local_bits[group], (len(locals_) - 1).bit_length())
        for word, values in enumerate(automaton.words.values):
            bits = (len(values) - 1).bit_length()
            if word == len(self.word_bits):
                self.word_bits.append(bits)
            self.word_bits[word] = max(self.word_bits[word], bits)
        after = self._fields()
        moves: list[tuple[int, int]] = []
        for (old, _), (new, _) in zip(before, after, strict=False):
            distance = new - old
            if distance != (moves[-1][1] if moves else 0):
                moves.append((old, distance))
        if after[-1][0] + after[-1][1] > BITS_LIMIT:
            raise TooWide
        threads = len(automaton.group_of)
        self.thread_shift = [shift for shift, _ in after[:threads]]
        self.word_shift = [shift for shift, _ in after[threads:]]
        return moves

    def outgrown(self) -> bool:
        """Whether something the automaton has now has no room."""
        automaton = self._automaton
        return (
            len(automaton.words.values) > len(self.word_bits)
            or any(len(found) > 1 << bits for found, bits in zip(automaton.locals, self.local_bits, strict=True))
            or any(len(found) > 1 << bits for found, bits in zip(automaton.words.values, self.word_bits, strict=True))
        )

    def pack(self, state: State) -> int:
        """As a number."""
        locals_, values = state
        number = sum(local << shift for local, shift in zip(locals_, self.thread_shift, strict=True))
        return number + sum(value << shift for value, shift in zip(values, self.word_shift, strict=False))

    def unpack(self, number: int) -> State:
        """From a number."""
        groups = self._automaton.group_of
        locals_ = [
            number >> shift & (1 << self.local_bits[group]) - 1
            for shift, group in zip(self.thread_shift, groups, strict=True)
        ]
        values = [
            number >> shift & (1 << bits) - 1 for shift, bits in zip(self.word_shift, self.word_bits, strict=True)
        ]
        while values and not values[-1]:
            values.pop()
        return tuple(locals_), tuple(values)

    def _fields(self) -> list[tuple[int, int]]:
        """(place, width) of every part."""
        fields = []
        shift = 0
        for bits in [*[self.local_bits[group] for group in self._automaton.group_of], *self.word_bits]:
            fields.append((shift, bits))
            shift += bits
        return fields
