"""What several tasks can reach beside words of the host: lists, objects, variables of the function around them.

As long as none of it changes, it is as good as constant. Once it does, the program shares data (under locks, if it
obeys the house's rule), and its words have to carry what happened before.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Final

from vtlkit.checker.hosted.objects import HOST, PLAIN, parts_of

_CONSTANT: Final = (
    tuple,
    frozenset,
    range,
    type,
    Enum,
    FunctionType,
    MethodType,
    BuiltinFunctionType,
    ModuleType,
    CodeType,
)
_UNSEEN: Final = ("builtins", "itertools", "_random", "random", "io", "_io", "queue", "_queue")
"""Modules of types whose state is not looked at: such an object counts as changed."""


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
        return any(not _same(_contents(value), contents) for value, contents in self._snapshots)


def _reachable(function: object) -> list[object]:
    found: list[object] = []
    seen: set[int] = set()
    todo = [function]
    while todo:
        value = todo.pop()
        if id(value) in seen or type(value) in PLAIN or type(value).__module__.startswith(HOST):
            continue
        seen.add(id(value))
        found.append(value)
        if isinstance(value, FunctionType):
            todo += value.__closure__ or ()
        if isinstance(value, MethodType):
            # Of a timer of the host, which itself is none of this.
            todo += filter(None, [getattr(value.__self__, "_callback", None)])
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
    return not isinstance(value, _CONSTANT)


def _contents(value: object) -> tuple[object, ...]:
    """One level of it; of what shows nothing, something new each time."""
    if isinstance(value, CellType):
        return _cell(value)
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    if isinstance(value, set | frozenset):
        return tuple(sorted(value, key=repr))
    if isinstance(value, bytearray | array):
        return tuple(value)
    if not isinstance(value, list | deque) and type(value).__module__ in _UNSEEN:
        return (object(),)
    return tuple(parts_of(value))


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """Plain values are equal, all else is the same."""
    return len(one) == len(other) and all(
        a is b or (type(a) is type(b) and type(a) in PLAIN and a == b) for a, b in zip(one, other, strict=True)
    )
