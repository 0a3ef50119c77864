"""The automaton's tables as arrays, for whole frontiers of packed states at once."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vtlkit.checker.states.automaton import (
    FLUSH,
    NO_STEP,
    NO_WORD,
    OP,
    WRITES,
    Automaton,
)
from vtlkit.checker.states.layout import Layout

Packed = NDArray[np.int64]

CLOSED: Final = np.iinfo(np.int64).max
UNKNOWN: Final = np.iinfo(np.int64).min
"""Instead of what a step adds to a packed state."""

RESTS: Final = 1
GAVE_UP: Final = 2
WAITS: Final = 4
"""What a thread in a local state is that has no step."""


class Table:
    """One way of one group: for each local state, which word decides; for each of its values, where it leads.

    A row stands at `base` + number of the value. Row 0 is closed.
    """

    def __init__(self, automaton: Automaton, layout: Layout, group: int, way: int) -> None:
        self._automaton, self._layout, self._group, self._way = automaton, layout, group, way
        size = 1 << layout.local_bits[group]
        self.shift = np.zeros(size, np.int64)
        self.mask = np.zeros(size, np.int64)
        self.base = np.zeros(size, np.int64)
        self.word = np.full(size, NO_STEP, np.int64)
        self.state = np.full(size, WAITS, np.uint8)
        self.access = np.zeros(1, np.uint8)
        self.threads = automaton.groups[group]
        self.steps = {thread: np.full(1, CLOSED, np.int64) for thread in self.threads}
        """For each thread: what a row adds to a packed state."""
        self._locals = 0
        self._rows = 1
        self.update()

    def update(self) -> None:
        """Take in local states that are new. They must have room in the layout."""
        found = self._automaton.locals[self._group]
        for number in range(self._locals, len(found)):
            local = found[number]
            word = local.words[self._way]
            self.state[number] = GAVE_UP if local.gave_up else RESTS if local.ended or local.may_sleep else WAITS
            if word == NO_STEP:
                continue
            self.base[number] = self._rows
            bits = 0
            if word != NO_WORD:
                bits = self._layout.word_bits[word]
                self.word[number] = word
                self.shift[number] = self._layout.word_shift[word]
                self.mask[number] = (1 << bits) - 1
            self._rows += 1 << bits
        self._locals = len(found)
        missing = self._rows - self.access.size
        if missing > 0:
            missing = max(missing, self.access.size)
            self.access = np.concatenate([self.access, np.zeros(missing, np.uint8)])
            for thread, steps in self.steps.items():
                self.steps[thread] = np.concatenate([steps, np.full(missing, UNKNOWN, np.int64)])

    def set(self, local: int, value: int, target: tuple[int, int] | None) -> None:
        """Fill one row."""
        row = int(self.base[local]) + value
        word = int(self.word[local])
        item = self._automaton.locals[self._group][local]
        if self._way == OP:
            access = item.access
            if item.writes_sometimes and word >= 0 and not self._automaton.writes(item, value):
                access &= ~WRITES
            self.access[row] = access
        for thread in self.threads:
            step = CLOSED
            if target is not None:
                step = (target[0] - local) << self._layout.thread_shift[thread]
                if word >= 0:
                    step += (target[1] - value) << self._layout.word_shift[word]
            self.steps[thread][row] = step

    @property
    def bytes(self) -> int:
        """Memory."""
        return 33 * self.shift.size + (1 + 8 * len(self.threads)) * self.access.size


class Tables:
    """All tables under one layout."""

    def __init__(self, automaton: Automaton, layout: Layout) -> None:
        self.automaton, self.layout = automaton, layout
        ways = (OP, FLUSH) if automaton.buffered else (OP,)
        self.tables = {
            (group, way): Table(automaton, layout, group, way) for group in range(len(automaton.groups)) for way in ways
        }
        for (group, way, local, value), target in _by_way(automaton):
            self.tables[group, way].set(local, value, target)
        self.columns = [
            (thread, way, self.tables[group, way]) for thread, group in enumerate(automaton.group_of) for way in ways
        ]

    def fill(self, table: Table, group: int, way: int, locals_: list[int], values: list[int]) -> bool:
        """Ask the automaton for rows. False: it has outgrown the layout, and these tables are of no use any more."""
        targets = [self.automaton.row(group, *item) for item in zip(locals_, [way] * len(locals_), values, strict=True)]
        if self.layout.outgrown():
            return False
        for (own, _), other in self.tables.items():
            if own == group:
                other.update()
        for local, value, target in zip(locals_, values, targets, strict=True):
            table.set(local, value, target)
        return True

    @property
    def bytes(self) -> int:
        """Memory."""
        return sum(table.bytes for table in self.tables.values())


def _by_way(
    automaton: Automaton,
) -> list[tuple[tuple[int, int, int, int], tuple[int, int] | None]]:
    return [((group, way, local, value), target) for (group, local, way, value), target in automaton.rows.items()]


def unique(states: Packed) -> Packed:
    """Sorted (where they are), each once."""
    states.sort()
    if states.size < 2:
        return states
    kept = np.empty(states.size, np.bool_)
    kept[0] = True
    np.not_equal(states[1:], states[:-1], out=kept[1:])
    return states[kept]


def member(states: Packed, among: Packed) -> NDArray[np.bool_]:
    """For each state whether it is in a sorted array."""
    if not among.size:
        return np.zeros(states.size, np.bool_)
    place = np.searchsorted(among, states)
    place[place == among.size] = 0
    return np.equal(among[place], states)
