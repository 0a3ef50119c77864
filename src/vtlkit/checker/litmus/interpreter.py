"""Runs the statements of one thread, as a generator of requests to memory that is sent what was read.

What it does depends on the answers alone. A value carries the reads that it was computed from, through registers and
operators; a branch adds its condition's reads to what stands in it, and to nothing behind it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Mapping
from typing import Final

from vtlkit.checker.litmus.primitives import POINTER, PRIMITIVES, VALUE, Does, Mark, Primitive
from vtlkit.checker.litmus.requests import Barrier, Ended, Fault, Load, Locking, Modify, Reads, Request, Store, Tagged
from vtlkit.checker.litmus.syntax import (
    Address,
    Assign,
    Binary,
    Call,
    Declare,
    Dereference,
    Evaluate,
    Expression,
    If,
    LitmusError,
    LitmusTest,
    Name,
    Number,
    Put,
    Scalar,
    Statement,
    Unary,
)

Steps = Generator[Request, Tagged, Tagged]


class _Wrong(Exception):
    """An operation on values for which it means nothing."""


def _divide(left: int, right: int) -> int:
    if not right:
        raise _Wrong("divides by 0")
    return abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)


def _shift(shift: Callable[[int, int], int]) -> Callable[[int, int], int]:
    def checked(left: int, right: int) -> int:
        if not 0 <= right < 64:
            raise _Wrong(f"shifts by {right}")
        return shift(left, right)

    return checked


_ARITHMETIC: Final[Mapping[str, Callable[[int, int], int]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
    "%": lambda left, right: left - _divide(left, right) * right,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "&~": lambda left, right: left & ~right,
    "<<": _shift(operator.lshift),
    ">>": _shift(operator.rshift),
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


class Run:
    """One run of one thread: a generator, and its registers when that has ended."""

    def __init__(self, test: LitmusTest, thread: int) -> None:
        self._code = test.threads[thread]
        self._sizes = test.sizes
        self._control = 0
        self._locks = (thread + 1) << 16
        self.registers: dict[str, Tagged] = {
            place.name: Tagged(value) for place, value in test.registers.items() if place.thread == thread
        }
        self.fault: Fault | None = None

    def steps(self) -> Generator[Request, Tagged, None]:
        """Ends behind the last statement, or with a Fault."""
        try:
            yield from self._block(self._code.body)
        except Ended as end:
            self.fault = Fault(str(end), end.line)
            yield self.fault

    def _block(self, statements: tuple[Statement, ...]) -> Generator[Request, Tagged, None]:
        for statement in statements:
            match statement:
                case Declare(register, _):
                    self.registers.setdefault(register, Tagged(0))
                case Assign(register, value, line):
                    if register in self._code.parameters:
                        raise LitmusError(line, f"{register} is a parameter: write *{register} to store there")
                    self.registers[register] = yield from self._value(value)
                case Put(address, value, line):
                    at = yield from self._value(address)
                    new = yield from self._value(value)
                    yield self._store(at, new, Mark.PLAIN, line)
                case Evaluate(value, _):
                    yield from self._value(value)
                case If():
                    yield from self._branch(statement)

    def _branch(self, statement: If) -> Generator[Request, Tagged, None]:
        condition = yield from self._value(statement.condition)
        before = self._control
        self._control |= condition.reads
        yield from self._block(statement.then if condition.value != 0 else statement.otherwise)
        self._control = before

    def _value(self, part: Expression) -> Steps:
        match part:
            case Number(value, _):
                return Tagged(value)
            case Name(name, line):
                if name in self.registers:
                    return self.registers[name]
                if name not in self._code.parameters:
                    raise LitmusError(line, f"{name} is neither a parameter nor a register that has been set")
                return Tagged(Address(name))
            case Dereference(address, line):
                return (yield self._load((yield from self._value(address)), Mark.PLAIN, line))
            case Unary(sign, operand, line):
                inner = yield from self._value(operand)
                return Tagged(_unary(sign, inner.value, line), inner.reads)
            case Binary(sign, left, right, line):
                first = yield from self._value(left)
                second = yield from self._value(right)
                return Tagged(self._binary(sign, first.value, second.value, line), first.reads | second.reads)
            case Call():
                return (yield from self._call(part))

    def _binary(self, sign: str, left: Scalar, right: Scalar, line: int) -> Scalar:
        try:
            return compute(sign, left, right)
        except _Wrong as wrong:
            raise Ended(line, str(wrong)) from None

    def _call(self, call: Call) -> Steps:
        primitive, line = PRIMITIVES[call.name], call.line
        values: list[Tagged] = []
        for argument in call.arguments:
            values.append((yield from self._value(argument)))
        pointers = [value for value, kind in zip(values, primitive.parameters, strict=True) if kind != VALUE]
        operands = [value for value, kind in zip(values, primitive.parameters, strict=True) if kind == VALUE]
        match primitive.does:
            case Does.LOAD:
                return (yield self._load(pointers[0], primitive.mark, line))
            case Does.STORE:
                yield self._store(pointers[0], operands[0], primitive.mark, line)
                if primitive.fence:
                    yield Barrier(primitive.fence, None, 0, line)
                return Tagged(0)
            case Does.MODIFY:
                return (yield from self._modify(primitive, pointers[0], operands, line))
            case Does.BARRIER:
                at = self._place(pointers[0], line) if POINTER in primitive.parameters else None
                yield Barrier(primitive.fence, at, operands[0].value if operands else 0, line)
                return Tagged(0)
            case Does.SRCU_LOCK:
                # Every section has an index that no other value is: a wrong one at the end is seen.
                self._locks += 1
                yield Barrier(primitive.fence, self._place(pointers[0], line), self._locks, line)
                return Tagged(self._locks)
        return (yield Locking(primitive.does, self._place(pointers[0], line), self._reads(pointers[0]), line))

    def _modify(self, primitive: Primitive, at: Tagged, operands: list[Tagged], line: int) -> Steps:
        if primitive.constant is not None:
            operands = [Tagged(primitive.constant)]
        sign, values = primitive.operator, [operand.value for operand in operands]

        def update(old: Scalar) -> Scalar | None:
            match sign:
                case "xchg":
                    return values[0]
                case "cmpxchg":
                    return values[1] if old == values[0] else None
                case "unless":
                    return None if old == values[1] else self._binary("+", old, values[0], line)
            return self._binary(sign, old, values[0], line)

        carries = sign not in ("xchg", "cmpxchg")
        written = operands[1] if sign == "cmpxchg" else operands[0]
        reads = Reads(at.reads, written.reads, self._control)
        place = self._place(at, line)
        old: Tagged = yield Modify(place, update, primitive.mark, primitive.full, carries, reads, line)
        new = update(old.value)
        match primitive.result:
            case "new":
                assert new is not None
                return Tagged(new, old.reads | written.reads)
            case "zero":
                return Tagged(int(new == 0), old.reads | written.reads)
            case "negative":
                return Tagged(int(isinstance(new, int) and new < 0), old.reads | written.reads)
            case "done":
                return Tagged(int(new is not None), old.reads)
        return old

    def _load(self, at: Tagged, mark: Mark, line: int) -> Load:
        return Load(self._place(at, line), mark, self._reads(at), line)

    def _store(self, at: Tagged, value: Tagged, mark: Mark, line: int) -> Store:
        reads = Reads(at.reads, value.reads, self._control)
        return Store(self._place(at, line), value.value, mark, reads, line)

    def _reads(self, at: Tagged) -> Reads:
        return Reads(at.reads, 0, self._control)

    def _place(self, at: Tagged, line: int) -> Address:
        place = at.value
        if not isinstance(place, Address):
            raise Ended(line, f"{place} is used as a pointer")
        if not 0 <= place.index < self._sizes.get(place.name, 1):
            raise Ended(line, f"{place.name}[{place.index}] is outside of its array")
        return place


def _unary(sign: str, value: Scalar, line: int) -> Scalar:
    if sign == "!":
        return int(value == 0)
    if isinstance(value, Address):
        raise Ended(line, f"'{sign}' of the address of {value}")
    return -value if sign == "-" else ~value


def compute(sign: str, left: Scalar, right: Scalar) -> Scalar:
    """C's operator on numbers and addresses. Raises _Wrong for what means nothing."""
    match sign:
        case "==":
            return int(left == right)
        case "!=":
            return int(left != right)
        case "&&":
            return int(left != 0 and right != 0)
        case "||":
            return int(left != 0 or right != 0)
    if isinstance(left, int) and isinstance(right, int):
        return int(_ARITHMETIC[sign](left, right))
    if isinstance(left, Address) and isinstance(right, int) and sign in ("+", "-"):
        return Address(left.name, left.index + (right if sign == "+" else -right))
    if isinstance(left, int) and isinstance(right, Address) and sign == "+":
        return Address(right.name, right.index + left)
    raise _Wrong(f"'{sign}' of an address")
