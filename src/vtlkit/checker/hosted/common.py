"""What several tasks can reach beside words of the host: lists, objects, variables of the function around them.

As long as none of it changes, it is as good as constant. Once it does, the program shares data (under locks, if it
obeys the house's rule), and its words have to carry what happened before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import CellType, FunctionType
from typing import Final

from vtlkit.checker.hosted.objects import PLAIN, parts_of

_HOST: Final = ("vtlkit.checker.hosted", "vtlkit.host.")


class Common:
    """Of one world, from before its tasks began."""

    def __init__(self, functions: Iterable[Callable[[], object]]) -> None:
        reached: dict[int, tuple[object, int]] = {}
        for function in functions:
            for value in _reachable(function):
                _, count = reached.get(id(value), (value, 0))
                reached[id(value)] = value, count + 1
        shared = [value for value, count in reached.values() if count > 1]
        self._snapshots = [(value, _contents(value)) for value in shared if _may_change(value)]

    def changed(self) -> bool:
        """Whether any of it is not what it was."""
        return any(_contents(value) != contents for value, contents in self._snapshots)


def _reachable(function: object) -> list[object]:
    found: list[object] = []
    seen: set[int] = set()
    todo = [function]
    while todo:
        value = todo.pop()
        if id(value) in seen or type(value) in PLAIN or type(value).__module__.startswith(_HOST):
            continue
        seen.add(id(value))
        found.append(value)
        if isinstance(value, FunctionType):
            todo += value.__closure__ or ()
        if isinstance(value, CellType):
            todo += _cell(value)
        elif not isinstance(value, FunctionType):
            todo += parts_of(value)
    return found


def _cell(cell: CellType) -> tuple[object, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _may_change(value: object) -> bool:
    return not isinstance(value, tuple | FunctionType | type)


def _contents(value: object) -> tuple[object, ...]:
    """One level of it: identities of its parts, and plain values themselves."""
    parts: Iterable[object]
    if isinstance(value, CellType):
        parts = _cell(value)
    elif isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, set | frozenset | bytearray):
        parts = sorted(value, key=repr)
    else:
        parts = parts_of(value)
    return tuple([part if type(part) in PLAIN else id(part) for part in parts])
