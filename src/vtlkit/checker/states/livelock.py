"""Livelock: states that have steps, and from which no end can be reached any more. Looked for once all are known.

Most states reach an end through deeper ones: one pass over the levels, the deepest first, finds these and needs no
edges. For what is left the edges are kept, and followed backwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vtlkit.checker.result import ProblemKind
from vtlkit.checker.states.outcome import NO_END, Problem
from vtlkit.checker.states.tables import Packed

if TYPE_CHECKING:
    from vtlkit.checker.states.arrays import ArraySearch

Flags = NDArray[np.bool_]


def find(search: ArraySearch) -> Problem | None:
    """A shortest run into a state from which no end can be reached."""
    if not search.ends:
        search.result.notes.append(NO_END)
        return None
    states = search.merged()
    good = np.zeros(states.size, np.bool_)
    for level in reversed(search.levels):
        for chunk in search.chunks(level):
            _look_ahead(search, chunk, states, good)
    if not good.all():
        _follow_back(search, states, good)
    if good.all():
        return None
    for depth, level in enumerate(search.levels):
        bad = level[~good[np.searchsorted(states, level)]]
        if bad.size:
            return Problem(ProblemKind.LIVELOCK, search.path(search.layout.unpack(int(bad[0])), depth))
    raise AssertionError("a state that is on no level")


def _look_ahead(search: ArraySearch, chunk: Packed, states: Packed, good: Flags) -> None:
    """Mark those of a chunk that have no steps, or one into what is marked."""
    moved = np.zeros(chunk.size, np.bool_)
    found = np.zeros(chunk.size, np.bool_)
    for opened, after in search.steps(chunk):
        moved[opened] = True
        found[opened] |= good[np.searchsorted(states, after)]
    good[np.searchsorted(states, chunk)] = found | ~moved


def _follow_back(search: ArraySearch, states: Packed, good: Flags) -> None:
    """Mark what reaches a marked state by any way."""
    sources, targets = [], []
    for chunk in search.chunks(states[~good]):
        place = np.searchsorted(states, chunk)
        for opened, after in search.steps(chunk):
            sources.append(place[opened])
            targets.append(np.searchsorted(states, after))
    source, target = np.concatenate(sources), np.concatenate(targets)
    order = np.argsort(target, kind="stable")
    source, target = source[order], target[order]
    frontier = np.unique(target[good[target]])
    while frontier.size:
        first = np.searchsorted(target, frontier)
        counts = np.searchsorted(target, frontier, side="right") - first
        # The edges into each state of the frontier stand together: their numbers, one after the other.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        before = source[np.repeat(first, counts) + within]
        frontier = np.unique(before[~good[before]])
        good[frontier] = True
