"""A litmus test as a tree: what the parser makes and the interpreter runs. Lines count from 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class LitmusError(Exception):
    """A test that cannot be read or run: `line` of it (0 for the whole), and what is wrong with it."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A shared variable, or an element of an array; also the value of a pointer to it."""

    name: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.name}[{self.index}]" if self.index else self.name


Scalar = int | Address


@dataclass(frozen=True, slots=True)
class Number:
    """A constant."""

    value: int
    line: int


@dataclass(frozen=True, slots=True)
class Name:
    """A register, or a parameter, which is the address of a shared variable."""

    name: str
    line: int


@dataclass(frozen=True, slots=True)
class Dereference:
    """`*address`: a plain access, unless a primitive takes it for the place it names."""

    address: Expression
    line: int


@dataclass(frozen=True, slots=True)
class Unary:
    """`-`, `!` or `~`."""

    operator: str
    operand: Expression
    line: int


@dataclass(frozen=True, slots=True)
class Binary:
    """A C operator with both operands evaluated, left first."""

    operator: str
    left: Expression
    right: Expression
    line: int


@dataclass(frozen=True, slots=True)
class Call:
    """A primitive of the kernel."""

    name: str
    arguments: tuple[Expression, ...]
    line: int


Expression = Number | Name | Dereference | Unary | Binary | Call


@dataclass(frozen=True, slots=True)
class Declare:
    """A register without a value of its own: 0, unless the initial values have one for it."""

    register: str
    line: int


@dataclass(frozen=True, slots=True)
class Assign:
    """`register = value`."""

    register: str
    value: Expression
    line: int


@dataclass(frozen=True, slots=True)
class Put:
    """`*address = value`, a plain store."""

    address: Expression
    value: Expression
    line: int


@dataclass(frozen=True, slots=True)
class Evaluate:
    """An expression whose value nobody wants."""

    value: Expression
    line: int


@dataclass(frozen=True, slots=True)
class If:
    """`if (condition) then else otherwise`."""

    condition: Expression
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...]
    line: int


Statement = Declare | Assign | Put | Evaluate | If


@dataclass(frozen=True, slots=True)
class ThreadCode:
    """One `Pn`."""

    parameters: frozenset[str]
    body: tuple[Statement, ...]
    line: int


@dataclass(frozen=True, slots=True, order=True)
class Register:
    """`thread:name`, at the end of a run."""

    thread: int
    name: str

    def __str__(self) -> str:
        return f"{self.thread}:{self.name}"


Place = Register | Address


@dataclass(frozen=True, slots=True)
class Compare:
    """`place = value` or `place != value`."""

    place: Place
    value: Scalar | Register
    equal: bool


@dataclass(frozen=True, slots=True)
class Constant:
    """`true` or `false`."""

    holds: bool


@dataclass(frozen=True, slots=True)
class Not:
    """`~ operand`."""

    operand: Proposition


@dataclass(frozen=True, slots=True)
class Both:
    """`left /\\ right`."""

    left: Proposition
    right: Proposition


@dataclass(frozen=True, slots=True)
class Either:
    """`left \\/ right`."""

    left: Proposition
    right: Proposition


Proposition = Compare | Constant | Not | Both | Either


def holds(proposition: Proposition, state: Mapping[Place, Scalar]) -> bool:
    """Whether it is true of a final state, in which every place that it names has a value."""
    match proposition:
        case Compare(place, value, equal):
            wanted = state[value] if isinstance(value, Register) else value
            return (state[place] == wanted) is equal
        case Constant(always):
            return always
        case Not(operand):
            return not holds(operand, state)
        case Both(left, right):
            return holds(left, state) and holds(right, state)
        case Either(left, right):
            return holds(left, state) or holds(right, state)


def places(proposition: Proposition) -> set[Place]:
    """What it names."""
    match proposition:
        case Compare(place, value, _):
            return {place, value} if isinstance(value, Register) else {place}
        case Constant():
            return set()
        case Not(operand):
            return places(operand)
        case Both(left, right) | Either(left, right):
            return places(left) | places(right)


@dataclass(frozen=True, slots=True)
class LitmusTest:
    """A litmus test.

    `quantifier` is "exists", "~exists" or "forall"; `recorded` what the file says of its outcome ("" if nothing), and
    `recorded_race` whether that mentions a data race. `sizes` are the lengths of arrays.
    """

    name: str
    initial: Mapping[Address, Scalar]
    registers: Mapping[Register, Scalar]
    threads: tuple[ThreadCode, ...]
    quantifier: str
    condition: Proposition
    keep: Proposition | None = None
    """Of `filter`: executions of which it is not true are none."""
    locations: tuple[Place, ...] = ()
    recorded: str = ""
    recorded_race: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def observed(self) -> tuple[Place, ...]:
        """The places whose values make up a final state, registers first."""
        found = places(self.condition) | set(self.locations)
        if self.keep is not None:
            found |= places(self.keep)
        return tuple(sorted(found, key=lambda place: (isinstance(place, Address), str(place))))
