"""What a suspended generator will do, as a value: its position, its variables, its stack, and what it has yielded.

Two suspended threads of equal identity behave alike for ever, if they share nothing but locations. So only values that
cannot change are taken: numbers, strings, tuples and frozen sets of such, enumerations, functions whose closures are
such; an iterator over a range or a tuple counts by its position. Anything else: there is no identity.
"""

from __future__ import annotations

import enum
import gc
from collections.abc import Generator, Hashable
from types import BuiltinFunctionType, CellType, CodeType, FrameType, FunctionType, ModuleType
from typing import Final

from vtlkit.checker.ops import Op, Value

_PLAIN: Final = frozenset((int, str, bytes, float, bool, type(None), type(...), range, CodeType))
_ITERATORS: Final = frozenset((type(iter(range(0))), type(iter(range(1 << 70))), type(iter(())), enumerate))


class _Unknown(Exception):
    """A value whose later changes would go unseen."""


def identity_of(op: Op, generator: Generator[Op, Value, object]) -> Hashable | None:
    """Of a suspended generator that has yielded `op`, down its `yield from`s; None if it holds what may change."""
    parts: list[object] = [type(op)]
    current: object = generator
    try:
        parts += [_value(getattr(op, name)) for name in op.__slots__]
        while isinstance(current, Generator):
            frame = getattr(current, "gi_frame", None)
            if frame is None:
                return None
            inner = getattr(current, "gi_yieldfrom", None)
            # Variables by name, and everything the frame refers to: its evaluation stack is seen nowhere else.
            variables = frame.f_locals
            names = tuple([(name, _value(value)) for name, value in sorted(variables.items())])
            held = [value for value in gc.get_referents(current) if value is not inner and value is not variables]
            stack = tuple([_value(value) for value in held if type(value) is not FrameType])
            parts.append((frame.f_code, frame.f_lasti, names, stack))
            current = inner
        if current is not None:
            parts.append(_value(current))
    except _Unknown:
        return None
    return tuple(parts)


def _value(value: object) -> Hashable:
    """Something equal for values that cannot be told apart, now or later. Raises _Unknown."""
    if isinstance(value, enum.Enum):
        return value
    if type(value) in _PLAIN or isinstance(value, type | ModuleType):
        return type(value), value
    if isinstance(value, tuple | frozenset):
        items = [_value(item) for item in value]
        return type(value), frozenset(items) if isinstance(value, frozenset) else tuple(items)
    if isinstance(value, FunctionType):
        cells = tuple([_value(cell.cell_contents) for cell in value.__closure__ or ()])
        return value.__code__, cells, _value(value.__defaults__)
    if isinstance(value, CellType):
        return _value(value.cell_contents)
    if isinstance(value, BuiltinFunctionType):
        return value.__qualname__, _value(value.__self__)
    if type(value) in _ITERATORS:
        reduced = value.__reduce__()
        assert isinstance(reduced, tuple)
        return (type(value), *[_value(item) for item in reduced[1:]])
    raise _Unknown
