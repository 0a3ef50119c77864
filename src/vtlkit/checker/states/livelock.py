"""Livelock: states that have steps, and from which no end can be reached any more. Looked for once all are known.

The steps are kept as pairs of places among the sorted states, and followed backwards from the states that have none.
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
    bad = without_way_out(search, search.merged())
    if not bad.size:
        return None
    for depth, level in enumerate(search.levels):
        here = level[member(level, bad)]
        if here.size:
            return Problem(ProblemKind.LIVELOCK, search.path(search.layout.unpack(int(here[0])), depth))
    raise AssertionError("a state that is on no level")


def without_way_out(search: ArraySearch, states: Packed) -> Packed:
    """Those of all states, sorted, from which none can be reached that has no step."""
    good = np.ones(states.size, np.bool_)
    sources, targets = [], []
    begin = 0
    for chunk in search.chunks(states):
        for column in search.tables.columns:
            opened, after = search.step(column, chunk)
            source = (opened + begin).astype(np.int32)
            good[source] = False
            sources.append(source)
            targets.append(np.searchsorted(states, after).astype(np.int32))
        begin += chunk.size
    source, target = np.concatenate(sources), np.concatenate(targets)
    result = search.result
    result.memory_bytes = max(result.memory_bytes, search.bytes() + 6 * source.nbytes)
    # The steps into each state stand together, from `first` on.
    source = source[np.argsort(target, kind="stable")]
    counts = np.bincount(target, minlength=states.size)
    first = np.cumsum(counts) - counts
    frontier = np.flatnonzero(good)
    while frontier.size:
        sizes = counts[frontier]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        before = source[np.repeat(first[frontier], sizes) + within].astype(np.int64)
        frontier = unique(before[~good[before]])
        good[frontier] = True
    return states[~good]
