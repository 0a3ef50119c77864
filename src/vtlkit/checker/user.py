"""A user's own protocols: functions of a Python file, marked by `@protocol`.

    @protocol
    def handover(host, *, wakers: int = 2):
        ...  # makes cells, spawns tasks

The function gets a host, makes what its tasks share and spawns them; its keyword-only parameters are the sizes. One
without a positional parameter returns a program instead: `Threads` of generators.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

if TYPE_CHECKING:
    from vtlkit.checker.program import Program
    from vtlkit.checker.protocols import Build, Protocol, Sizes

Function = TypeVar("Function", bound=Callable[..., Any])

_MARK: Final = "__vtlkit_protocol__"
_GROUP: Final = "yours"


class UserError(Exception):
    """A user's file cannot be used. The text is one line: the file, the line, what is wrong."""


def protocol(function: Function) -> Function:
    """Mark a function as a protocol, for `vtlkit check FILE.py` and `vtlkit.testing.checking`."""
    setattr(function, _MARK, True)
    return function


def is_marked(value: object) -> bool:
    """Whether this is a function that `protocol` marked."""
    return callable(value) and getattr(value, _MARK, False) is True


def as_protocol(function: Callable[..., Any]) -> Protocol:
    """The registry's form of a marked function.

    Raises UserError: its parameters are not a host and whole numbers with defaults.
    """
    import inspect

    from vtlkit.checker.protocols import Protocol

    name, where = function.__name__, _where(function)
    hosts, sizes = [], {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            if type(parameter.default) is not int:
                raise UserError(f"{where}: {name}: '{parameter.name}' is a size: give it a whole number as default")
            sizes[parameter.name] = parameter.default
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            hosts.append(parameter.name)
        else:
            raise UserError(f"{where}: {name}: no *{parameter.name}: take a host, and sizes behind a '*'")
    if len(hosts) > 1:
        raise UserError(f"{where}: {name}: '{hosts[1]}' comes after the host: put sizes behind a '*'")
    summary = (inspect.getdoc(function) or "").partition("\n")[0]
    return Protocol(name, summary, _builder(function, bool(hosts), where), sizes, group=_GROUP)


def load(path: Path) -> dict[str, Protocol]:
    """The protocols of a file by name, in the order in which they stand there.

    Raises UserError: it cannot be read or run, or has none.
    """
    import importlib.util

    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{path}: there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(located(error, path)) from error
    finally:
        del sys.path[0]
    marked = [each for each in vars(module).values() if is_marked(each)]
    if not marked:
        raise UserError(f"{path}: no protocol: mark a function with @protocol of vtlkit.checker")
    return {function.__name__: as_protocol(function) for function in marked}


def located(error: BaseException, path: Path) -> str:
    """One line for an error in a user's file: the innermost line of that file, and what was raised."""
    line = 0
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line = error.lineno or 0
        return f"{path}:{line}: {error.msg}"
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).name == path.name and Path(frame.filename).resolve() == path.resolve():
            line = frame.lineno or 0
    text = " ".join(str(error).split())
    return f"{path}{f':{line}' if line else ''}: {type(error).__name__}{f': {text}' if text else ''}"


def _where(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def _builder(function: Callable[..., Any], takes_host: bool, where: str) -> Build:
    def hosted(model: str, sizes: Sizes) -> Program:
        hosted_program = import_module("vtlkit.checker.hosted").HostedProgram
        return cast("Program", hosted_program(lambda host: function(host, **sizes), model))

    def made(_model: str, sizes: Sizes) -> Program:
        program = function(**sizes)
        if not hasattr(program, "next_op"):
            raise UserError(f"{where}: {function.__name__} returns no program: take a host, or return Threads(...)")
        return cast("Program", program)

    return hosted if takes_host else made
