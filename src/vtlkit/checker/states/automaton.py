"""A program as tables: (a thread's local state, value of one word) -> (local state, value), grown as pairs are met.

A local state is where the thread is and, under TSO, what its store buffer holds. What nobody else sees or waits for is
no step: stores into the buffer, fences with nothing to wait for. It is done in the step before ("folded").
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from vtlkit.checker.ops import (
    NO_WRITE,
    Assume,
    Await,
    Done,
    Failure,
    Fence,
    Location,
    Op,
    Order,
    Read,
    Rmw,
    Value,
    Write,
)
from vtlkit.checker.program import Program

OP: Final = 0
FLUSH: Final = 1
"""The two ways a thread goes on: its next operation; the oldest entry of its store buffer."""

NO_STEP: Final = -1
NO_WORD: Final = -2
"""Instead of a word's number: this way is not open, whatever memory holds; the step touches no word."""

BUFFER_LIMIT: Final = 8
FOLDED_AT_MOST: Final = 64
"""Operations in one step: a loop of nothing but fences must end somewhere."""

READS: Final = 1
WRITES: Final = 2
PLAIN: Final = 4


@runtime_checkable
class Symmetric(Protocol):
    """A program that knows which of its threads nobody tells apart."""

    def symmetric(self) -> Sequence[Sequence[int]]:
        """Groups of thread numbers: if two of a group change places, the program is the same."""
        ...


@runtime_checkable
class KnowsSleepers(Protocol):
    """A program that knows what its sleepers sleep for."""

    def sleeper_condition_holds(
        self, thread: int, results: tuple[Value, ...], memory: Mapping[Location, Value]
    ) -> bool | None:
        """Whether what a thread sleeps for has come about; None if it does not sleep, or that is not known."""
        ...


@dataclass(eq=False, slots=True)
class Node:
    """Where a thread is: all sequences of results that lead to the same future. `results` is one of them."""

    results: tuple[Value, ...]
    op: Op | Done
    number: int
    children: dict[tuple[type, Value], Node] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Local:
    """A local state. `buffer` holds (word, number of the value), the oldest first."""

    node: Node
    buffer: tuple[tuple[int, int], ...]
    draining: bool
    """A SEQ_CST store is in the buffer: nothing goes on before it is out."""
    words: tuple[int, int] = (NO_STEP, NO_STEP)
    """For each way, the word that decides where it leads."""
    forwarded: int = NO_STEP
    """Value that a load takes from the buffer."""

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return isinstance(self.node.op, Done) and not self.buffer

    @property
    def gave_up(self) -> bool:
        """Whether the run is of no interest any more."""
        return isinstance(self.node.op, Assume) and not self.node.op.holds

    @property
    def may_sleep(self) -> bool:
        """Whether it may be left waiting."""
        return isinstance(self.node.op, Await) and self.node.op.may_sleep

    @property
    def fails(self) -> bool:
        """Whether a promise is broken here."""
        return isinstance(self.node.op, Failure)

    @property
    def access(self) -> int:
        """READS, WRITES (an RMW only may) and PLAIN, of the next operation."""
        op = self.node.op
        if isinstance(op, Read | Await):
            return READS | (PLAIN if op.order is Order.PLAIN else 0)
        if isinstance(op, Write):
            return WRITES | (PLAIN if op.order is Order.PLAIN else 0)
        return READS | WRITES if isinstance(op, Rmw) else 0

    @property
    def writes_sometimes(self) -> bool:
        """Whether the old value decides if the next operation writes."""
        return isinstance(self.node.op, Rmw)


class Words:
    """Numbers for locations, and for the values of each; 0 is the initial one."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._numbers: dict[Location, int] = {}
        self._value_numbers: list[dict[tuple[type, Value], int]] = []
        self.locations: list[Location] = []
        self.values: list[list[Value]] = []

    def word(self, location: Location) -> int:
        """Number of a location."""
        number = self._numbers.get(location)
        if number is None:
            number = self._numbers[location] = len(self.locations)
            self.locations.append(location)
            self.values.append([])
            self._value_numbers.append({})
            self.value(number, self._program.initial(location))
        return number

    def value(self, word: int, value: Value) -> int:
        """Number of a value. True is not 1: a thread could tell."""
        numbers = self._value_numbers[word]
        number = numbers.setdefault((type(value), value), len(numbers))
        if number == len(self.values[word]):
            self.values[word].append(value)
        return number


class Automaton:
    """The tables of one program under one model. Threads of one group share their local states."""

    def __init__(self, program: Program, buffered: bool, symmetry: bool, buffer_limit: int = BUFFER_LIMIT) -> None:
        self.program = program
        self.buffered = buffered
        self.buffer_limit = buffer_limit
        self.words = Words(program)
        self.groups: list[tuple[int, ...]] = _groups(program, symmetry)
        self.group_of = [0] * program.threads
        for group, members in enumerate(self.groups):
            for thread in members:
                self.group_of[thread] = group
        self.locals: list[list[Local]] = [[] for _ in self.groups]
        self.rows: dict[tuple[int, int, int, int], tuple[int, int] | None] = {}
        self.plain = False
        """Whether an access was met that may not race."""
        self.full = False
        """Whether a store had to wait as the buffer was full."""
        self.unmerged = False
        """Whether a thread has no identity but its results."""
        self._nodes: list[dict[Hashable, Node]] = [{} for _ in self.groups]
        self._local_numbers: list[dict[tuple[int, tuple[tuple[int, int], ...], bool], int]] = [{} for _ in self.groups]
        self.roots = [self._node(group, ()) for group in range(len(self.groups))]
        self.start = [self._arrive(group, root, (), False) for group, root in enumerate(self.roots)]

    def row(self, group: int, local: int, way: int, value: int) -> tuple[int, int] | None:
        """Where a way leads if its word has this value (0 without a word): local state, value. None: it is not open."""
        key = group, local, way, value
        if key not in self.rows:
            self.rows[key] = self._compute(group, self.locals[group][local], way, value)
        return self.rows[key]

    def writes(self, local: Local, value: int) -> bool:
        """Whether the next operation, an RMW, writes if its word has this value."""
        op = local.node.op
        assert isinstance(op, Rmw)
        old = self.words.values[self.words.word(op.location)][value]
        return not (op.until is not None and not op.until(old)) and op.update(old) is not NO_WRITE

    def fold(
        self, group: int, node: Node, buffer: tuple[tuple[int, int], ...], draining: bool
    ) -> list[tuple[Node, tuple[tuple[int, int], ...], bool]]:
        """Everything from here to the next operation that is a step: all but the last one are no steps."""
        passed = [(node, buffer, draining)]
        while len(passed) <= FOLDED_AT_MOST:
            draining = draining and bool(buffer)
            op = node.op
            if draining:
                break
            if isinstance(op, Write) and self.buffered:
                if len(buffer) >= self.buffer_limit:
                    self.full = True
                    break
                word = self.words.word(op.location)
                buffer = (*buffer, (word, self.words.value(word, op.value)))
                draining = op.order is Order.SEQ_CST
                self.plain = self.plain or op.order is Order.PLAIN
            elif not (isinstance(op, Assume) and op.holds) and not (
                isinstance(op, Fence) and not (self.buffered and buffer and op.order is Order.SEQ_CST)
            ):
                break
            node = self.child(group, node, None)
            passed.append((node, buffer, draining))
        passed[-1] = node, buffer, draining and bool(buffer)
        return passed

    def child(self, group: int, node: Node, result: Value) -> Node:
        """Where the thread is after the operation had this result."""
        key = type(result), result
        child = node.children.get(key)
        if child is None:
            child = node.children[key] = self._node(group, (*node.results, result))
        return child

    def _node(self, group: int, results: tuple[Value, ...]) -> Node:
        thread = self.groups[group][0]
        op = self.program.next_op(thread, results)
        if not isinstance(op, Op | Done):
            raise TypeError(f"thread {thread} yields {op!r}, which is no operation")
        identity: Hashable = None
        if not isinstance(op, Done | Failure):
            identity = self.program.identity(thread, results)
            self.unmerged = self.unmerged or identity is None
        elif isinstance(op, Failure) or _hashable(op.result):
            identity = type(op), op
        nodes = self._nodes[group]
        key = ("results", results) if identity is None else ("identity", identity)
        node = nodes.get(key)
        if node is None:
            node = nodes[key] = Node(results, op, len(nodes))
        return node

    def _arrive(self, group: int, node: Node, buffer: tuple[tuple[int, int], ...], draining: bool) -> int:
        """Number of the local state in which a thread stands that has come to `node`."""
        node, buffer, draining = self.fold(group, node, buffer, draining)[-1]
        key = node.number, buffer, draining
        numbers = self._local_numbers[group]
        number = numbers.get(key)
        if number is None:
            number = numbers[key] = len(numbers)
            local = Local(node, buffer, draining)
            self._describe(local)
            self.locals[group].append(local)
            self.plain = self.plain or bool(local.access & PLAIN)
        return number

    def _describe(self, local: Local) -> None:
        op, buffer = local.node.op, local.buffer
        way = NO_STEP
        if local.draining or (buffer and isinstance(op, Rmw)):
            pass
        elif isinstance(op, Read | Await | Rmw):
            way = self.words.word(op.location)
            held = [value for word, value in buffer if word == way]
            if held:
                local.forwarded, way = held[-1], NO_WORD
        elif isinstance(op, Write):
            way = NO_STEP if self.buffered else self.words.word(op.location)
        elif (isinstance(op, Fence) and not (buffer and op.order is Order.SEQ_CST)) or (
            isinstance(op, Assume) and op.holds
        ):
            way = NO_WORD
        local.words = way, buffer[0][0] if buffer else NO_STEP

    def _compute(self, group: int, local: Local, way: int, value: int) -> tuple[int, int] | None:
        word, op, node = local.words[way], local.node.op, local.node
        if word == NO_STEP:
            return None
        if way == FLUSH:
            return self._arrive(group, node, local.buffer[1:], local.draining), local.buffer[0][1]
        written, result = value, None
        if isinstance(op, Read | Await | Rmw):
            number = self.words.word(op.location)
            result = self.words.values[number][value if word != NO_WORD else local.forwarded]
            if not isinstance(op, Read) and op.until is not None and not op.until(result):
                return None
            if isinstance(op, Rmw) and (new := op.update(result)) is not NO_WRITE:
                written = self.words.value(number, new)
        elif isinstance(op, Write):
            written = self.words.value(word, op.value)
        return self._arrive(group, self.child(group, node, result), local.buffer, False), written


def _groups(program: Program, symmetry: bool) -> list[tuple[int, ...]]:
    """Of the threads, in the order of their first members; who is like nobody else is alone."""
    found = [tuple(sorted(group)) for group in program.symmetric()] if isinstance(program, Symmetric) else []
    if not symmetry:
        found = []
    grouped = {thread for group in found for thread in group}
    return sorted([*found, *[(thread,) for thread in range(program.threads) if thread not in grouped]])


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
