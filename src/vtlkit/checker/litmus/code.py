"""Parser of what threads do: C's declarations, assignments, `if`, expressions and calls of primitives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vtlkit.checker.litmus.cursor import Cursor
from vtlkit.checker.litmus.lexer import NAME, NUMBER
from vtlkit.checker.litmus.primitives import PRIMITIVES
from vtlkit.checker.litmus.syntax import (
    Assign,
    Binary,
    Call,
    Declare,
    Dereference,
    Evaluate,
    Expression,
    If,
    LitmusError,
    Name,
    Number,
    Put,
    Statement,
    Unary,
)

_PRECEDENCE: Final[Mapping[str, int]] = {
    operator: level
    for level, operators in enumerate(
        ("||", "&&", "|", "^", "&", "== !=", "< > <= >=", "<< >>", "+ -", "* / %"),
    )
    for operator in operators.split()
}
_LOOPS: Final = frozenset(["for", "while", "do", "switch", "goto", "return", "break", "continue"])
_CONSTANTS: Final[Mapping[str, int]] = {"NULL": 0, "true": 1, "false": 0}


def body(cursor: Cursor) -> tuple[Statement, ...]:
    """The statements between braces."""
    cursor.expect("{", "before a thread's statements")
    statements: list[Statement] = []
    while not cursor.accept("}"):
        statements += _statement(cursor)
    return tuple(statements)


def _statement(cursor: Cursor) -> list[Statement]:
    """The next statement, as those that it comes to: a declaration may be several, or none."""
    word = cursor.here
    if cursor.accept(";"):
        return []
    if cursor.sees("{"):
        return list(body(cursor))
    if cursor.accept("if"):
        return [_branch(cursor, word.line)]
    if word.text in _LOOPS:
        raise LitmusError(word.line, f"'{word.text}' is not supported: write loops out, with 'if'")
    if cursor.sees_type():
        return _declaration(cursor)
    statements = [_assignment(cursor)]
    cursor.expect(";", "behind a statement")
    return statements


def _branch(cursor: Cursor, line: int) -> If:
    cursor.expect("(", "behind 'if'")
    condition = expression(cursor)
    cursor.expect(")", "behind the condition of an 'if'")
    then = _statement(cursor)
    otherwise = _statement(cursor) if cursor.accept("else") else []
    return If(condition, tuple(then), tuple(otherwise), line)


def _declaration(cursor: Cursor) -> list[Statement]:
    cursor.skip_type()
    found: list[Statement] = []
    while True:
        while cursor.accept("*") or cursor.accept("const", "volatile", "__rcu"):
            pass
        line = cursor.line
        register = cursor.name("the name of a register")
        if cursor.sees("["):
            raise LitmusError(line, "local arrays are not supported: declare shared ones among the initial values")
        assigned = cursor.accept("=")
        found.append(Assign(register, expression(cursor), line) if assigned else Declare(register, line))
        if not cursor.accept(","):
            break
    cursor.expect(";", "behind a declaration")
    return found


def _assignment(cursor: Cursor) -> Statement:
    line = cursor.line
    target = expression(cursor)
    operator = cursor.here.text
    if cursor.accept("="):
        return _assign(target, expression(cursor), line)
    if operator in _PRECEDENCE and cursor.ahead(1) == "=":
        cursor.take()
        cursor.take()
        return _assign(target, Binary(operator, target, expression(cursor), line), line)
    return Evaluate(target, line)


def _assign(target: Expression, value: Expression, line: int) -> Statement:
    match target:
        case Name(name, _):
            return Assign(name, value, line)
        case Dereference(address, _):
            return Put(address, value, line)
    raise LitmusError(line, "only registers and '*pointer' can be assigned to")


def expression(cursor: Cursor, level: int = 0) -> Expression:
    """The longest expression of operators that bind at least as tightly as `level`."""
    left = _unary(cursor)
    while True:
        operator = cursor.here.text
        binding = _PRECEDENCE.get(operator, -1) if cursor.here.kind not in (NAME, NUMBER) else -1
        if binding < level or (cursor.ahead(1) == "=" and operator not in ("==", "!=", "<", ">", "<=", ">=")):
            break
        line = cursor.take().line
        right = expression(cursor, binding + 1)
        if operator in ("&&", "||") and _accesses(right):
            raise LitmusError(line, f"a memory access behind '{operator}' may not happen: use 'if' instead")
        left = Binary(operator, left, right, line)
    if cursor.sees("?"):
        raise LitmusError(cursor.line, "'?:' is not supported: use 'if' instead")
    return left


def _accesses(part: Expression) -> bool:
    match part:
        case Dereference() | Call():
            return True
        case Unary(_, operand, _):
            return _accesses(operand)
        case Binary(_, left, right, _):
            return _accesses(left) or _accesses(right)
    return False


def _unary(cursor: Cursor) -> Expression:
    line = cursor.line
    if cursor.accept("*"):
        return Dereference(_unary(cursor), line)
    if cursor.accept("&"):
        place = _unary(cursor)
        if not isinstance(place, Dereference):
            raise LitmusError(line, "'&' takes '*pointer' or 'array[index]'; a parameter's name is an address already")
        return place.address
    for operator in ("-", "!", "~"):
        if cursor.accept(operator):
            return Unary(operator, _unary(cursor), line)
    if cursor.sees("(") and cursor.sees_type(1):
        cursor.take()
        cursor.skip_type()
        while cursor.accept("*") or cursor.accept("const", "volatile", "__rcu"):
            pass
        cursor.expect(")", "behind the type of a cast")
        return _unary(cursor)
    return _indexed(cursor, _primary(cursor))


def _indexed(cursor: Cursor, found: Expression) -> Expression:
    while cursor.accept("["):
        line = cursor.line
        index = expression(cursor)
        cursor.expect("]", "behind an index")
        found = Dereference(Binary("+", found, index, line), line)
    if cursor.sees("."):
        raise LitmusError(cursor.line, "structures are not supported: use a shared variable for each member")
    return found


def _primary(cursor: Cursor) -> Expression:
    word = cursor.here
    if cursor.accept("("):
        inner = expression(cursor)
        cursor.expect(")", "behind an expression in parentheses")
        return inner
    if word.kind == NUMBER:
        return Number(cursor.integer(), word.line)
    if word.kind != NAME:
        raise cursor.error("an expression expected")
    cursor.take()
    if cursor.sees("("):
        return _call(cursor, word.text, word.line)
    if word.text in _CONSTANTS:
        return Number(_CONSTANTS[word.text], word.line)
    return Name(word.text, word.line)


def _call(cursor: Cursor, name: str, line: int) -> Expression:
    cursor.expect("(")
    arguments: list[Expression] = []
    while not cursor.sees(")"):
        arguments.append(expression(cursor))
        if not cursor.accept(","):
            break
    cursor.expect(")", f"behind the arguments of {name}")
    if name in ("likely", "unlikely") and len(arguments) == 1:
        return arguments[0]
    primitive = PRIMITIVES.get(name)
    if primitive is None:
        raise LitmusError(line, f"{name}() is no primitive that is known here: docs/litmus.md lists them")
    if len(arguments) != len(primitive.parameters):
        wanted = len(primitive.parameters)
        plural = "" if wanted == 1 else "s"
        raise LitmusError(line, f"{name}() takes {wanted} argument{plural}, found {len(arguments)}")
    return primitive.normal(name, tuple(arguments), line)
