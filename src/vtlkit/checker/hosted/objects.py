"""Values of words that are objects: named, so that a word's value means the same in every world.

An object that was there before the tasks began has a number, by a walk through what the tasks refer to. One that a task
made is named by the task, where it stood when it first stored it, and a count: to have it, a world runs that task up to
there.
"""

from __future__ import annotations

import enum
import sys
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Final

from vtlkit.checker.ops import Value

if TYPE_CHECKING:
    from vtlkit.checker.hosted.trie import Point
    from vtlkit.checker.hosted.world import World

HOST: Final = ("vtlkit.checker.hosted", "vtlkit.host.")
"""Modules of what a host makes."""
PLAIN: Final = frozenset((int, bool, str, bytes, float, type(None)))


@dataclass(frozen=True, slots=True)
class Known:
    """An object from before the tasks began. `number` 0 and below: the initial value of a word."""

    number: int
    kind: str

    def __repr__(self) -> str:
        return f"<{self.kind} {self.number}>"


@dataclass(frozen=True, slots=True)
class Made:
    """An object that a task made. `after`: where it stood then."""

    after: Point
    count: int
    kind: str

    def __repr__(self) -> str:
        return f"<{self.kind} of '{self.after.task}'>"


class Objects:
    """One world's."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._names: dict[int, Hashable] = {}
        self._objects: dict[Hashable, object] = {}
        """Names are of ids: what is named must not go away."""
        self._initial = 0
        self._kept: list[object] = []
        """What was walked through, so that no new object has an old one's id."""

    def encode(self, value: object) -> Value:
        """What the searches see."""
        if type(value) in PLAIN or isinstance(value, enum.Enum):
            return value
        if isinstance(value, tuple) and all(type(item) in PLAIN for item in value):
            return value
        name = self._names.get(id(value))
        return self._name(value) if name is None else name

    def decode(self, value: Value) -> object:
        """What the task sees."""
        if type(value) is Made and value not in self._objects:
            self._world.reach(value.after)
        return self._objects[value] if type(value) in (Made, Known) else value

    def _name(self, value: object) -> Value:
        task = self._world.running
        kind = type(value).__name__
        if task is None:
            self._initial -= 1
            return self._enter(value, Known(self._initial, kind))
        self._world.book.need_walk()
        self._world.book.make()
        task.made += 1
        return self._enter(value, Made(task.point, task.made, kind))

    def _enter(self, value: object, name: Hashable) -> Value:
        self._names[id(value)] = name
        self._objects[name] = value
        return name

    def walk(self, roots: Iterable[object]) -> None:
        """Name everything of this project that the tasks can reach now."""
        number = 0
        todo = list(roots)
        seen: set[int] = set()
        while todo:
            value = todo.pop()
            if id(value) in seen or type(value) in PLAIN:
                continue
            seen.add(id(value))
            if _is_ours(value) and id(value) not in self._names:
                number += 1
                self._enter(value, Known(number, type(value).__name__))
            self._kept.append(value)
            if type(value).__module__.startswith(HOST):
                # Behind it is the whole search, which grows. What is the program's own is a timer's callback.
                todo += filter(None, [getattr(value, "_callback", None)])
            else:
                todo += parts_of(value)


def parts_of(value: object) -> Iterator[object]:
    if isinstance(value, list | tuple | deque):
        yield from value
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            with suppress(ValueError):
                # One that is not filled yet.
                yield cell.cell_contents
    if _is_ours(value):
        yield from getattr(value, "__dict__", {}).values()
        for cls in type(value).__mro__:
            for slot in getattr(cls, "__slots__", ()):
                if hasattr(value, slot):
                    yield getattr(value, slot)


def _is_ours(value: object) -> bool:
    """An instance of a class of this project or of its user's."""
    package = type(value).__module__.partition(".")[0]
    return not isinstance(value, type) and package != "builtins" and package not in sys.stdlib_module_names
