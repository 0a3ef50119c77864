"""Where a suspended function stands, to tell whether a task goes round: its position, and its variables as far as these
are plain data. A loop that counts stands somewhere else each time, though its code does not.
"""

from __future__ import annotations

import enum
import gc
from collections.abc import Generator
from types import FrameType
from typing import Any, Final

_PLAIN: Final = frozenset((int, bool, str, bytes, float, type(None), range))
_COLLECTIONS: Final = frozenset((dict, list, tuple, set, frozenset))
_LARGEST: Final = 64
"""Items of a collection that is looked into."""
_ITERATORS: Final = frozenset((type(iter(range(0))), type(iter(())), type(iter([])), enumerate))


def place_of(frame: FrameType) -> tuple[object, ...]:
    """Equal for equal places. What is no plain data is left out, so two places that differ in that alone are equal."""
    variables = [(name, part) for name, value in frame.f_locals.items() if (part := _plain(value)) is not None]
    return id(frame.f_code), frame.f_lasti, *variables


def place_of_script(script: Generator[Any, Any, Any]) -> tuple[object, ...]:
    """The same of a generator that is suspended, with how far the loops on its stack have come; () if it has ended."""
    frame = getattr(script, "gi_frame", None)
    if frame is None:
        return ()
    iterators = [value.__reduce__()[1:] for value in gc.get_referents(script) if type(value) in _ITERATORS]
    return *place_of(frame), *[part for value in iterators if (part := _plain(value)) is not None]


def _plain(value: object) -> object:
    """What can be printed and compared; None if it is nothing of the kind."""
    kind = type(value)
    if kind in _PLAIN:
        return kind.__name__, value
    if kind not in _COLLECTIONS:
        return (kind.__name__, value) if isinstance(value, enum.Enum) else None
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, list | tuple | set | frozenset) and len(value) <= _LARGEST:
        items = [_plain(item) for item in value]
        return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
    return None
