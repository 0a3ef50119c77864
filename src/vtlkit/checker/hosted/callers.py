"""Whether a suspended frame hides anything: on its stack, or in a function of C's that it calls and that calls back.

`sum(cell.load() for cell in cells)` keeps what it has added so far where nobody sees it. So of a frame that has called
another one it must be seen that it did so itself.
"""

from __future__ import annotations

from functools import partial
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Final

from vtlkit.checker.hosted import stacks
from vtlkit.checker.hosted.stacks import CONSTANT, NULL, Item
from vtlkit.checker.hosted.sync import CheckLock, CheckRwSem
from vtlkit.host.guards import ReadGuard, WriteGuard

_GUARDS: Final = ("reading", "writing")


class _Unseen(Exception):
    """An expression whose value cannot be told."""


def hides_nothing(frame: FrameType, callee: FrameType | None) -> bool:
    """Whether a frame's variables and position, and those of the frame that it has called, say all there is to know."""
    here = stacks.at(frame.f_code, frame.f_lasti)
    if here is None:
        return False
    if callee is not None and not _calls(here, frame, callee.f_code):
        return False
    return all(_is_settled(item, frame) for item in here.left)


def _calls(here: stacks.Suspended, frame: FrameType, code: CodeType) -> bool:
    """Whether the frame itself, and no function of C's, has called this code."""
    if here.name in ("LOAD_ATTR", "LOAD_METHOD"):
        return here.argument == code.co_name
    if here.name == "BEFORE_WITH":
        return code.co_name == "__enter__"
    if here.callee[0] == "exit":
        return code.co_name == "__exit__"
    try:
        return _leads_to(_value(here.callee, frame), code)
    except _Unseen:
        return False


def _leads_to(function: object, code: CodeType) -> bool:
    if isinstance(function, partial):
        return _leads_to(function.func, code)
    if isinstance(function, MethodType):
        return _leads_to(function.__func__, code)
    if isinstance(function, FunctionType):
        return function.__code__ is code
    kind, name = (function, "__init__") if isinstance(function, type) else (type(function), "__call__")
    methods = [vars(cls).get(name) for cls in kind.__mro__]
    return any(isinstance(method, FunctionType) and method.__code__ is code for method in methods)


def _is_settled(item: Item, frame: FrameType) -> bool:
    """Whether what lies on the stack follows from the variables, as they are now."""
    if item in (NULL, CONSTANT):
        return True
    match item:
        case ("counted",):
            return "range" not in frame.f_globals
        case ("variable", _):
            return True
        case ("exit", within):
            return _is_settled_exit(within, frame)
        case ("global", _) | ("attribute", _, _):
            try:
                value = _value(item, frame)
                if item[0] == "global":
                    return isinstance(value, FunctionType | BuiltinFunctionType | type | ModuleType)
                return _is_settled_method(value, _value(item[1], frame), item[1])
            except _Unseen:
                return False
    return False


def _is_settled_method(method: object, owner: object, item: object) -> bool:
    """A method of what a variable holds."""
    bound = isinstance(method, MethodType | BuiltinFunctionType) and method.__self__ is owner
    return bound and isinstance(item, tuple) and item[0] == "variable"


def _is_settled_exit(item: object, frame: FrameType) -> bool:
    """The exit of a `with`. Which locks of the host a task holds is known, however it came by them."""
    match item:
        case ("variable", _):
            return True
        case ("called", ("attribute", owner, name)) if name in _GUARDS:
            kinds: tuple[type, ...] = (CheckRwSem,)
        case _:
            owner, kinds = item, (CheckLock, ReadGuard, WriteGuard)
    try:
        return isinstance(_value(owner, frame), kinds)
    except _Unseen:
        return False


def _value(item: object, frame: FrameType) -> object:
    """What an expression comes to now. Raises _Unseen. Nothing is executed for it that a task could notice."""
    match item:
        case ("variable" | "closed over", str(name)) if name in frame.f_locals:
            return frame.f_locals[name]
        case ("global", str(name)):
            for names in (frame.f_globals, frame.f_builtins):
                if name in names:
                    return names[name]
        case ("attribute", owner, str(name)):
            return _attribute(_value(owner, frame), name)
    raise _Unseen


def _attribute(owner: object, name: str) -> object:
    kind = type(owner)
    if isinstance(owner, ModuleType | type):
        if name in vars(owner):
            return getattr(owner, name)
        raise _Unseen
    if hasattr(kind, "__getattr__") or kind.__getattribute__ is not object.__getattribute__:
        raise _Unseen
    if any(isinstance(vars(cls).get(name), property) for cls in kind.__mro__) or not hasattr(owner, name):
        raise _Unseen
    return getattr(owner, name)
