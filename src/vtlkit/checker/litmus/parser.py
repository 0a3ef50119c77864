"""Parser of a whole litmus test: header, initial values, threads, and the question about the end."""

from __future__ import annotations

from collections.abc import Callable

from vtlkit.checker.litmus.code import body
from vtlkit.checker.litmus.cursor import Cursor
from vtlkit.checker.litmus.lexer import END, NAME, NUMBER, body_start, recorded_result, tokens
from vtlkit.checker.litmus.syntax import (
    Address,
    Assign,
    Both,
    Compare,
    Constant,
    Declare,
    Either,
    If,
    LitmusError,
    LitmusTest,
    Not,
    Place,
    Proposition,
    Register,
    Scalar,
    Statement,
    ThreadCode,
)


def parse(text: str) -> LitmusTest:
    """Read a test. Raises LitmusError, which names the line, for what is not one or is not supported."""
    name = _name(text)
    start = body_start(text)
    cursor = Cursor(tokens(text[start:], text.count("\n", 0, start) + 1))
    initial = _Initial(cursor)
    threads = _threads(cursor)
    keep: Proposition | None = None
    locations: tuple[Place, ...] = ()
    while True:
        if cursor.accept("filter"):
            keep = _proposition(cursor)
        elif cursor.accept("locations"):
            locations = (*locations, *_locations(cursor))
        else:
            break
    quantifier, condition = _question(cursor)
    if cursor.here.kind != END:
        raise cursor.error("nothing expected behind the condition")
    recorded, race = recorded_result(text)
    test = LitmusTest(
        name,
        initial.memory,
        initial.registers,
        threads,
        quantifier,
        condition,
        keep,
        locations,
        recorded,
        race,
        initial.sizes,
    )
    _check(test)
    return test


def _name(text: str) -> str:
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(maxsplit=1)
        if not words:
            continue
        if words[0] != "C":
            shown = words[0] if len(words[0]) < 20 else f"{words[0][:20]}..."
            raise LitmusError(number, f"no litmus test in C: the first line is 'C name', found '{shown}'")
        if len(words) < 2:
            raise LitmusError(number, "the test has no name: the first line is 'C name'")
        return words[1].split()[0]
    raise LitmusError(1, "the file is empty")


class _Initial:
    """The initial values."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self.memory: dict[Address, Scalar] = {}
        self.registers: dict[Register, Scalar] = {}
        self.sizes: dict[str, int] = {}
        cursor.expect("{", "before the initial values")
        while not cursor.accept("}"):
            if not cursor.accept(";"):
                self._one()
                if not cursor.sees("}"):
                    cursor.expect(";", "behind an initial value")

    def _one(self) -> None:
        cursor = self._cursor
        cursor.skip_type()
        while cursor.accept("*", "const", "volatile"):
            pass
        if cursor.here.kind == NUMBER or (_is_thread(cursor.here.text) and cursor.ahead(1) == ":"):
            register = _register(cursor)
            self.registers[register] = self._value() if cursor.accept("=") else 0
            return
        bracketed = cursor.accept("[")
        name = cursor.name("the name of a shared variable")
        if bracketed:
            cursor.expect("]", "behind a variable's name")
        if cursor.accept("["):
            self._array(name)
        else:
            self.memory[Address(name)] = self._value() if cursor.accept("=") else 0

    def _array(self, name: str) -> None:
        cursor = self._cursor
        line = cursor.line
        size = cursor.integer() if not cursor.sees("]") else 0
        cursor.expect("]", "behind an array's length")
        values: list[Scalar] = []
        if cursor.accept("="):
            cursor.expect("{", "before an array's values")
            while not cursor.accept("}"):
                values.append(self._value())
                if not cursor.sees("}"):
                    cursor.expect(",", "between an array's values")
        size = size or len(values)
        if not 0 < size <= 64 or len(values) > size:
            raise LitmusError(
                line, f"the array {name} has {len(values)} values for {size} elements; 1 to 64 are possible"
            )
        self.sizes[name] = size
        for index in range(size):
            self.memory[Address(name, index)] = values[index] if index < len(values) else 0

    def _value(self) -> Scalar:
        cursor = self._cursor
        if cursor.here.kind == NAME and cursor.ahead(1) == "(":
            # ATOMIC_INIT(1), __SPIN_LOCK_UNLOCKED(lock): the value is inside, or nothing.
            macro = cursor.take().text
            cursor.take()
            if macro not in ("ATOMIC_INIT", "ATOMIC64_INIT", "ATOMIC_LONG_INIT"):
                raise cursor.error(
                    f"{macro}() is no initial value: a number, a variable or ATOMIC_INIT() expected before"
                )
            value = _scalar(cursor)
            cursor.expect(")", f"behind the value of {macro}")
            return value
        return _scalar(cursor)


def _scalar(cursor: Cursor) -> Scalar:
    """A number, or a variable, which stands for its address."""
    while cursor.sees("(") and cursor.sees_type(1):
        cursor.take()
        cursor.skip_type()
        while cursor.accept("*"):
            pass
        cursor.expect(")", "behind the type of a cast")
    if cursor.accept("("):
        inner = _scalar(cursor)
        cursor.expect(")")
        return inner
    if cursor.here.kind == NUMBER or cursor.sees("-"):
        return cursor.integer()
    cursor.accept("&")
    if cursor.accept("NULL"):
        return 0
    return _address(cursor)


def _address(cursor: Cursor) -> Address:
    name = cursor.name("a number or the name of a shared variable")
    if not cursor.accept("["):
        return Address(name)
    index = cursor.integer()
    cursor.expect("]", "behind an index")
    return Address(name, index)


def _is_thread(text: str) -> bool:
    return text[:1] == "P" and text[1:].isdecimal() and len(text) < 5


def _register(cursor: Cursor) -> Register:
    number = int(cursor.take().text[1:]) if cursor.here.kind == NAME else cursor.integer()
    cursor.expect(":", "between a thread's number and its register")
    return Register(number, cursor.name("the name of a register"))


def _threads(cursor: Cursor) -> tuple[ThreadCode, ...]:
    threads: list[ThreadCode] = []
    while (cursor.here.kind == NAME and _is_thread(cursor.here.text)) or cursor.sees_type():
        line = cursor.line
        cursor.skip_type()
        name = cursor.name("a thread")
        if name != f"P{len(threads)}":
            raise LitmusError(line, f"thread P{len(threads)} expected, found '{name}'")
        threads.append(ThreadCode(_parameters(cursor), body(cursor), line))
    if not threads:
        raise cursor.error("thread P0 expected")
    return tuple(threads)


def _parameters(cursor: Cursor) -> frozenset[str]:
    cursor.expect("(", "behind a thread's name")
    names: set[str] = set()
    while not cursor.accept(")"):
        cursor.skip_type()
        pointer = False
        while cursor.sees("*") or cursor.sees("const", "volatile", "__rcu"):
            pointer |= cursor.take().text == "*"
        if cursor.sees(")") and not pointer:
            continue  # (void)
        line = cursor.line
        name = cursor.name("the name of a parameter")
        while cursor.accept("["):
            pointer = True
            if not cursor.sees("]"):
                cursor.integer()
            cursor.expect("]", "behind an array's length")
        if not pointer:
            raise LitmusError(
                line, f"the parameter {name} is no pointer: threads get the addresses of shared variables"
            )
        names.add(name)
        if not cursor.sees(")"):
            cursor.expect(",", "between parameters")
    return frozenset(names)


def _locations(cursor: Cursor) -> list[Place]:
    cursor.expect("[", "behind 'locations'")
    found: list[Place] = []
    while not cursor.accept("]"):
        found.append(_place(cursor))
        if not cursor.sees("]"):
            cursor.expect(";", "between locations")
    return found


def _question(cursor: Cursor) -> tuple[str, Proposition]:
    denied = cursor.accept("~")
    for quantifier in ("exists", "forall"):
        if cursor.accept(quantifier):
            if denied and quantifier == "forall":
                raise LitmusError(cursor.line, "'~forall' is no condition: write 'exists' with what must not hold")
            return ("~" if denied else "") + quantifier, _proposition(cursor)
    raise cursor.error("'exists', '~exists' or 'forall' expected")


def _chain(
    cursor: Cursor, operand: Callable[[Cursor], Proposition], join: type[Both] | type[Either], *operators: str
) -> Proposition:
    found = operand(cursor)
    while cursor.accept(*operators):
        found = join(found, operand(cursor))
    return found


def _proposition(cursor: Cursor) -> Proposition:
    return _chain(cursor, _conjunction, Either, "\\/", "||")


def _conjunction(cursor: Cursor) -> Proposition:
    return _chain(cursor, _atom, Both, "/\\", "&&")


def _atom(cursor: Cursor) -> Proposition:
    if cursor.accept("~", "not", "!"):
        return Not(_atom(cursor))
    if cursor.accept("("):
        inner = _proposition(cursor)
        cursor.expect(")", "behind a part of the condition")
        return inner
    if cursor.sees("true", "false"):
        return Constant(cursor.take().text == "true")
    place = _place(cursor)
    equal = cursor.sees("=", "==")
    if not equal and not cursor.sees("!=", "<>"):
        raise cursor.error("'=' or '!=' expected")
    cursor.take()
    if cursor.ahead(1) == ":":
        return Compare(place, _register(cursor), equal)
    return Compare(place, _scalar(cursor), equal)


def _place(cursor: Cursor) -> Place:
    if (cursor.here.kind == NUMBER or _is_thread(cursor.here.text)) and cursor.ahead(1) == ":":
        return _register(cursor)
    if cursor.accept("["):
        address = _address(cursor)
        cursor.expect("]", "behind a variable's name")
        return address
    cursor.accept("*")
    return _address(cursor)


def _set_in(statements: tuple[Statement, ...]) -> set[str]:
    """The registers that are declared or set there."""
    found: set[str] = set()
    for statement in statements:
        match statement:
            case Declare(register, _) | Assign(register, _, _):
                found.add(register)
            case If(_, then, otherwise, _):
                found |= _set_in(then) | _set_in(otherwise)
    return found


def _check(test: LitmusTest) -> None:
    """Raises LitmusError where the question names a thread, a register or a variable that is not there."""
    variables = {address.name for address in test.initial}
    variables |= {value.name for value in test.initial.values() if isinstance(value, Address)}
    variables |= {name for thread in test.threads for name in thread.parameters}
    for place in (*test.observed, *test.registers):
        if isinstance(place, Register):
            if place.thread >= len(test.threads):
                raise LitmusError(0, f"{place}: there is no thread P{place.thread}")
            if place not in test.registers and place.name not in _set_in(test.threads[place.thread].body):
                raise LitmusError(0, f"{place}: P{place.thread} has no register {place.name}")
        elif place.name not in variables:
            raise LitmusError(0, f"{place}: there is no shared variable {place.name}")
        elif place.index and not 0 <= place.index < test.sizes.get(place.name, 1):
            raise LitmusError(0, f"{place}: the array has {test.sizes.get(place.name, 1)} elements")
