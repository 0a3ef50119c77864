"""Whether a task that does the same again is in a loop without an end, or in one that only looks alike.

`Point.goes_round` compares operations: places, locations, results. A loop over three things that reads one word each
time looks like a loop that waits. What tells them apart is a variable: that of the `for`, or a count.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from types import FrameType
from typing import Final

from vtlkit.checker.hosted.world import Runner

_PLAIN: Final = frozenset((int, str, bytes, float, bool, type(None)))


def variables(runner: Runner) -> Hashable:
    """Of a task's suspended functions, as far as they mean the same in every world: numbers, texts, names."""
    frame: FrameType | None = None if runner.greenlet is None else runner.greenlet.gr_frame
    found: list[Hashable] = []
    while frame is not None:
        found.append((frame.f_code, frame.f_lasti))
        found += [(name, _told(value)) for name, value in sorted(frame.f_locals.items())]
        frame = frame.f_back
    return tuple(found)


def _told(value: object) -> Hashable:
    if type(value) in _PLAIN:
        return type(value), value
    if isinstance(value, enum.Enum):
        return value
    name = getattr(value, "name", None)
    return type(value), name if type(name) in _PLAIN else None
