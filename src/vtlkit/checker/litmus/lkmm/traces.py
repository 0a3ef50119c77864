"""Every trace of every thread, for every value that its reads might find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from vtlkit.checker.litmus.lkmm.events import WRITES, NeedsValue, Recorder, Trace, possible
from vtlkit.checker.litmus.primitives import PRIMITIVES, VALUE
from vtlkit.checker.litmus.syntax import (
    Address,
    Assign,
    Binary,
    Call,
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
    ThreadCode,
    Unary,
)

TRACES_LIMIT: Final = 20_000
"""Of one thread: beyond that a test is not small."""

Values = dict[Address, list[Scalar]]


def all_traces(test: LitmusTest) -> list[list[Trace]]:
    """For each thread its traces, in which reads find what some thread might have written.

    Raises LitmusError for a thread with more than TRACES_LIMIT.
    """
    values, found = _from_below(test)
    return _from_above(test, values) if any(map(_may_go_round, test.threads)) else found


def _may_go_round(thread: ThreadCode) -> bool:
    """Whether it has what lets a value be its own reason: branches or plain accesses."""
    if any(isinstance(statement, If | Put) for statement in thread.body):
        return True
    return any(_is_plain(part) for part in _expressions(thread.body))


def _is_plain(part: Expression) -> bool:
    match part:
        case Dereference():
            return True
        case Unary(_, operand, _):
            return _is_plain(operand)
        case Binary(_, left, right, _):
            return _is_plain(left) or _is_plain(right)
        case Call(_, arguments, _):
            return any(map(_is_plain, arguments))
    return False


def _from_below(test: LitmusTest) -> tuple[Values, list[list[Trace]]]:
    """Begin with the initial values, and add what is written when these are read, until nothing is new.

    A value that comes by a chain of distinct writes is found: there are no more rounds than writes.
    """
    values: Values = {address: [value] for address, value in test.initial.items()}
    rounds = 0
    while True:
        found = [_of_thread(test, thread, values) for thread in range(len(test.threads))]
        writes = sum(max((_writes(trace) for trace in traces), default=0) for traces in found)
        rounds += 1
        new = False
        for address, written in _written(found).items():
            known = values.setdefault(address, [test.initial.get(address, 0)])
            more = [value for value in written if value not in known]
            known += more
            new |= bool(more)
        if not new or rounds > writes:
            return values, found


def _from_above(test: LitmusTest, values: Values) -> list[list[Trace]]:
    """Begin also with every value that the program names, and take away what nobody writes when the others are read.

    What stands behind a branch does not depend on it, so a store there may be the reason why the branch was taken: such
    values have no beginning, and are not found from below. Nor are those that plain accesses hand round in a circle.
    """
    named = list(_constants(test))
    addresses = {Address(name) for thread in test.threads for name in thread.parameters} | values.keys()
    now: Values = {
        address: list(dict.fromkeys([test.initial.get(address, 0), *values.get(address, ()), *named]))
        for address in addresses
    }
    while True:
        found = [_of_thread(test, thread, now) for thread in range(len(test.threads))]
        written = _written(found)
        left: Values = {}
        for address, known in now.items():
            there = written.get(address, {})
            left[address] = [value for value in known if value == test.initial.get(address, 0) or value in there]
        if left == now:
            return found
        now = left


def _writes(trace: Trace) -> int:
    return sum(event.kind in WRITES for event in trace.events)


def _written(found: list[list[Trace]]) -> dict[Address, dict[Scalar, None]]:
    """What these traces write, in the order in which it is met."""
    written: dict[Address, dict[Scalar, None]] = {}
    for traces in found:
        for trace in traces:
            for event in trace.events:
                if event.kind in WRITES and event.at is not None:
                    written.setdefault(event.at, {})[event.value] = None
    return written


def _of_thread(test: LitmusTest, thread: int, values: Values) -> list[Trace]:
    recorder = Recorder(test, thread)
    found: list[Trace] = []
    todo: list[tuple[Scalar, ...]] = [()]
    while todo:
        given = todo.pop()
        try:
            found.append(recorder.trace(given))
        except NeedsValue as need:
            choices: Sequence[Scalar] = possible(need.lock, values.get(need.at, [test.initial.get(need.at, 0)]))
            todo += [(*given, choice) for choice in reversed(choices)]
        if len(found) + len(todo) > TRACES_LIMIT:
            line = test.threads[thread].line
            raise LitmusError(line, f"P{thread} has more than {TRACES_LIMIT} possible runs: too many for --model lkmm")
    return found


def _constants(test: LitmusTest) -> Iterator[Scalar]:
    """Numbers and addresses that the program names as values."""
    yield from (0, 1)
    yield from test.initial.values()
    yield from test.registers.values()
    for thread in test.threads:
        for part in _expressions(thread.body):
            for value in _named(part):
                if isinstance(value, int):
                    yield value
                elif value in thread.parameters:
                    yield Address(value)


def _expressions(statements: tuple[Statement, ...]) -> Iterator[Expression]:
    for statement in statements:
        match statement:
            case Assign(_, value, _) | Evaluate(value, _):
                yield value
            case Put(address, value, _):
                yield from (Dereference(address, 0), value)
            case If(condition, then, otherwise, _):
                yield condition
                yield from _expressions(then + otherwise)


def _named(part: Expression) -> Iterator[int | str]:
    """Numbers and names in the place of a value: not those that only say where an access goes."""
    match part:
        case Number(value, _):
            yield value
        case Name(name, _):
            yield name
        case Dereference(address, _):
            yield from () if isinstance(address, Name) else _named(address)
        case Unary(_, operand, _):
            yield from _named(operand)
        case Binary(_, left, right, _):
            yield from (*_named(left), *_named(right))
        case Call(name, arguments, _):
            for kind, argument in zip(PRIMITIVES[name].parameters, arguments, strict=True):
                if kind == VALUE or not isinstance(argument, Name):
                    yield from _named(argument)
