"""Livelock: states that have steps, and from which no end can be reached any more. Looked for once all are known.

Most states reach an end through deeper ones: one pass over the levels, the deepest first, finds these and needs no
edges. For what is left the edges are kept, and followed backwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vtlkit.checker.result import ProblemKind
from vtlkit.checker.states.outcome import NO_END, Problem
from vtlkit.checker.states.tables import Packed, member, unique

if TYPE_CHECKING:
    from vtlkit.checker.states.arrays import ArraySearch


def find(search: ArraySearch) -> Problem | None:
    """A shortest run into a state from which no end can be reached."""
    if not search.ends:
        search.result.notes.append(NO_END)
        return None
    left: list[Packed] = []
    following: Packed = np.empty(0, np.int64)
    for level in reversed(search.levels):
        parts = [_without_way_ahead(search, chunk, following) for chunk in search.chunks(level)]
        left.append(np.concatenate(parts))
        # What is left of this level is no way to an end for the level before it.
        following = level[~member(level, left[-1])]
    bad = _without_way_back(search, np.sort(np.concatenate(left)))
    if not bad.size:
        return None
    for depth, level in enumerate(search.levels):
        here = level[member(level, bad)]
        if here.size:
            return Problem(ProblemKind.LIVELOCK, search.path(search.layout.unpack(int(here[0])), depth))
    raise AssertionError("a state that is on no level")


def _without_way_ahead(search: ArraySearch, states: Packed, good: Packed) -> Packed:
    """Those that have steps, but none to a good state (of the next level)."""
    moved = np.zeros(states.size, np.bool_)
    place = np.arange(states.size)
    for column in search.tables.columns:
        left = states[place]
        opened, after = search.step(column, left)
        moved[place[opened]] = True
        open_here = np.ones(left.size, np.bool_)
        open_here[opened[member(after, good)]] = False
        place = place[open_here]
    return states[place[moved[place]]]


def _without_way_back(search: ArraySearch, states: Packed) -> Packed:
    """Those that no step leads out of, however many others of them it passes."""
    good = np.zeros(states.size, np.bool_)
    sources, targets = [], []
    begin = 0
    for chunk in search.chunks(states):
        for column in search.tables.columns:
            opened, after = search.step(column, chunk)
            source, target = opened + begin, np.searchsorted(states, after)
            target[target == states.size] = 0
            inside = states[target] == after
            good[source[~inside]] = True
            sources.append(source[inside])
            targets.append(target[inside])
        begin += chunk.size
    if not sources:
        return states
    source, target = np.concatenate(sources), np.concatenate(targets)
    # The edges into each state stand together, from `first` on.
    source = source[np.argsort(target, kind="stable")]
    counts = np.bincount(target, minlength=states.size)
    first = np.cumsum(counts) - counts
    frontier = np.flatnonzero(good)
    while frontier.size:
        sizes = counts[frontier]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        before = source[np.repeat(first[frontier], sizes) + within]
        frontier = unique(before[~good[before]])
        good[frontier] = True
    return states[~good]
