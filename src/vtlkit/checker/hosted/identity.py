"""What a suspended task will do, as a value: where its functions stand and what their variables are.

For tasks that share nothing but words of the host; see `frames` for generators, and docs/design/checker.md. Host
objects are known by name. What a task alone holds, lists and objects too, counts by its contents, and by where else it
is held: two variables with one list are not two with equal lists.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Final

from vtlkit.checker.hosted.callers import hides_nothing
from vtlkit.checker.hosted.host import CheckHost
from vtlkit.checker.hosted.sync import CheckLock, CheckQueue, CheckRwSem, CheckTask
from vtlkit.checker.hosted.timers import CheckTimer
from vtlkit.checker.hosted.words import CheckBitmap, CheckCell, Word
from vtlkit.checker.hosted.world import Runner, World
from vtlkit.checker.ops import Done, Op

_PLAIN: Final = frozenset((int, str, bytes, bool, type(None), type(...)))
_DEEPEST: Final = 12
_ITERATORS: Final = frozenset((type(iter(range(0))), type(iter(range(1 << 70))), type(iter(())), type(iter([]))))
_NAMED: Final = (CheckLock, CheckRwSem, CheckQueue, CheckTask, CheckTimer, Word, Runner)
_WORDS: Final = (CheckCell, CheckBitmap)
_ALONE: Final = (CheckHost, World)
"""One in each world. All there is to know of objects of the host is in words, but for `Runner.private`."""


class Unknown(Exception):
    """Something whose later behaviour is not seen in what it is now."""


def identity_of(op: Op | Done, runner: Runner) -> Hashable | None:
    """Of a task that is about to do `op`; None if that cannot be told."""
    if runner.world.book.makes:
        # Objects are named by where they were made: by all that a task was told before.
        return None
    if isinstance(op, Done) or runner.greenlet is None:
        return "ended", repr(op)
    held = tuple([lock.name for lock in runner.held])
    parts: list[object] = [runner.number, type(op), runner.barrier, held, runner.private()]
    contents = _Contents()
    frame: FrameType | None = runner.greenlet.gr_frame
    callee: FrameType | None = None
    try:
        parts += [contents.of(getattr(op, name)) for name in op.__slots__]
        while frame is not None:
            if not hides_nothing(frame, callee):
                return None
            variables = [(name, contents.of(value)) for name, value in sorted(frame.f_locals.items(), key=_name)]
            parts.append((frame.f_code, id(frame.f_globals), frame.f_lasti, tuple(variables)))
            frame, callee = frame.f_back, frame
    except Unknown:
        return None
    return tuple(parts)


def _name(item: tuple[str, object]) -> str:
    return item[0]


class _Contents:
    """Values as something that is equal where they cannot be told apart; what may change has a number of its own."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []
        """What has a number must not go away meanwhile, or its id would be another's."""

    def of(self, value: object, depth: int = 0) -> Hashable:
        """Raises Unknown."""
        kind = type(value)
        if kind in _PLAIN:
            return kind, value
        if kind is float:
            return kind, repr(value)
        if kind is range:
            assert isinstance(value, range)
            return kind, value.start, value.stop, value.step
        if isinstance(value, enum.Enum):
            return kind, self.of(value.value, depth)
        if isinstance(value, type | ModuleType | CodeType):
            return id(value)
        if depth > _DEEPEST:
            raise Unknown
        if isinstance(value, _ALONE):
            return id(kind)
        if isinstance(value, _NAMED):
            return kind, value.name
        if isinstance(value, _WORDS):
            return kind, value._word.name
        return self._callable(value, depth + 1) or self._fixed(value, depth + 1) or self._numbered(value, depth + 1)

    def _fixed(self, value: object, depth: int) -> Hashable:
        """What cannot change itself: its parts may."""
        kind = type(value)
        if isinstance(value, tuple) and not hasattr(value, "__dict__"):
            return kind, tuple([self.of(item, depth) for item in value])
        if kind is frozenset:
            # In its own order, which somebody may look at.
            assert isinstance(value, frozenset)
            return kind, tuple([self.of(item, depth) for item in value])
        if kind.__module__ == Done.__module__ and is_dataclass(value):
            return kind, tuple([self.of(getattr(value, field.name), depth) for field in fields(value)])
        return None

    def _callable(self, value: object, depth: int) -> Hashable:
        match value:
            case FunctionType():
                cells = tuple([self.of(cell, depth) for cell in value.__closure__ or ()])
                defaults = self.of(value.__defaults__, depth), self.of(value.__kwdefaults__, depth)
                return id(value.__code__), id(value.__globals__), cells, defaults, self.of(vars(value), depth)
            case MethodType():
                return "method", self.of(value.__func__, depth), self.of(value.__self__, depth)
            case BuiltinFunctionType():
                return "builtin", value.__qualname__, self.of(value.__self__, depth)
            case partial() if type(value) is partial:
                parts = value.func, value.args, value.keywords
                return partial, tuple([self.of(part, depth) for part in parts])
        return None

    def _numbered(self, value: object, depth: int) -> Hashable:
        known = self._numbers.get(id(value))
        if known is not None:
            return "again", known
        self._numbers[id(value)] = len(self._kept)
        self._kept.append(value)
        kind = type(value)
        if kind is list:
            assert isinstance(value, list)
            return kind, tuple([self.of(item, depth) for item in value])
        if kind is dict:
            assert isinstance(value, dict)
            return kind, tuple([(self.of(key, depth), self.of(item, depth)) for key, item in value.items()])
        if isinstance(value, CellType):
            try:
                return kind, self.of(value.cell_contents, depth)
            except ValueError:
                return (kind,)
        if kind in _ITERATORS:
            reduced = value.__reduce__()
            assert isinstance(reduced, tuple)
            return (kind, *[self.of(item, depth) for item in reduced[1:]])
        return self._object(value, depth)

    def _object(self, value: object, depth: int) -> Hashable:
        kind = type(value)
        if not all(cls is object or _is_transparent(cls) for cls in kind.__mro__):
            raise Unknown
        attributes = sorted(getattr(value, "__dict__", {}).items(), key=_name)
        slots = [(name, getattr(value, name)) for name in _slots(kind) if hasattr(value, name)]
        return kind, tuple([(name, self.of(item, depth)) for name, item in (*attributes, *slots)])


def _is_transparent(cls: type) -> bool:
    """Whether all that its instances hold are attributes: it is written in Python."""
    package = cls.__module__.partition(".")[0]
    return package in ("abc", "typing", "contextlib") or (
        package != "builtins" and package not in sys.stdlib_module_names
    )


def _slots(kind: type) -> list[str]:
    names = []
    for cls in kind.__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            hidden = name.startswith("__") and not name.endswith("__")
            names.append(f"_{cls.__name__.lstrip('_')}{name}" if hidden else name)
    return [name for name in names if name not in ("__weakref__", "__dict__")]
