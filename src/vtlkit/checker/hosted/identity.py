"""What a suspended task will do, as a value: where its functions stand and what their variables are.

For tasks that share nothing but words of the host; see `frames` for generators, and docs/design/checker.md. Host
objects are known by name. What a task alone holds, lists and objects too, counts by its contents.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Final

from vtlkit.checker.hosted.stacks import only_known
from vtlkit.checker.hosted.world import Runner
from vtlkit.checker.ops import Done, Op

_PLAIN: Final = frozenset((int, str, bytes, float, bool, type(None), type(...), range, CodeType))
_DEEPEST: Final = 12
_ITERATORS: Final = frozenset((type(iter(range(0))), type(iter(range(1 << 70))), type(iter(())), type(iter([]))))


class Unknown(Exception):
    """Something whose later behaviour is not seen in what it is now."""


def identity_of(op: Op | Done, runner: Runner) -> Hashable | None:
    """Of a task that is about to do `op`; None if that cannot be told."""
    if isinstance(op, Done) or runner.greenlet is None:
        return "ended", repr(op)
    held = tuple([lock.name for lock in runner.held])
    parts: list[object] = [runner.number, type(op), runner.barrier, held, runner.private()]
    frame: FrameType | None = runner.greenlet.gr_frame
    try:
        parts += [_value(getattr(op, name), 0) for name in op.__slots__]
        while frame is not None:
            if not only_known(frame.f_code, frame.f_lasti):
                return None
            variables = [(name, _value(value, 0)) for name, value in sorted(frame.f_locals.items())]
            parts.append((frame.f_code, frame.f_lasti, tuple(variables)))
            frame = frame.f_back
    except Unknown:
        return None
    return tuple(parts)


def _value(value: object, depth: int) -> Hashable:
    """Equal for values that cannot be told apart. Raises Unknown."""
    if type(value) in _PLAIN:
        return type(value), value
    if depth > _DEEPEST:
        raise Unknown
    deeper = depth + 1
    match value:
        case enum.Enum() | type() | ModuleType():
            return value
        case tuple() | list() | frozenset() | set():
            items = [_value(item, deeper) for item in value]
            return type(value), frozenset(items) if isinstance(value, frozenset | set) else tuple(items)
        case dict():
            return dict, tuple([(_value(key, deeper), _value(item, deeper)) for key, item in value.items()])
        case FunctionType():
            cells = tuple([_value(cell, deeper) for cell in value.__closure__ or ()])
            return value.__code__, cells, _value(value.__defaults__, deeper), _value(value.__kwdefaults__, deeper)
        case CellType():
            try:
                return _value(value.cell_contents, deeper)
            except ValueError:
                return "empty"
        case MethodType():
            return _value(value.__func__, deeper), _value(value.__self__, deeper)
        case BuiltinFunctionType():
            return value.__qualname__, _value(value.__self__, deeper)
        case partial():
            return partial, _value(value.func, deeper), _value(value.args, deeper), _value(value.keywords, deeper)
    return _object(value, deeper)


def _object(value: object, depth: int) -> Hashable:
    kind = type(value)
    if kind.__module__.startswith(("vtlkit.checker.hosted", "vtlkit.host.")):
        # Of the host: all there is to know of it is in words, but for what the runner's own part says.
        return kind, str(getattr(value, "name", ""))
    if kind.__module__.startswith("vtlkit.checker.ops") or (is_dataclass(value) and kind.__hash__ is not None):
        return kind, tuple([(field.name, _value(getattr(value, field.name), depth)) for field in fields(value)])  # type: ignore[arg-type]
    if kind in _ITERATORS:
        reduced = value.__reduce__()
        assert isinstance(reduced, tuple)
        return (kind, *[_value(item, depth) for item in reduced[1:]])
    if hasattr(value, "__dict__") and kind.__module__ not in ("builtins",):
        attributes = tuple([(name, _value(item, depth)) for name, item in sorted(vars(value).items())])
        return kind, attributes, tuple([_slot(value, name, depth) for name in _slots(kind)])
    raise Unknown


def _slots(kind: type) -> list[str]:
    return [name for cls in kind.__mro__ for name in getattr(cls, "__slots__", ()) if name != "__weakref__"]


def _slot(value: object, name: str, depth: int) -> Hashable:
    return (name, _value(getattr(value, name), depth)) if hasattr(value, name) else (name, "unset")
