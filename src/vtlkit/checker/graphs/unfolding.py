"""A program's unfolding: what each thread does next after each sequence of results, remembered.

The search adds the same event in many graphs. A thread's state is the sequence of results that it was given, so it is a
node of a tree that all graphs share, and running a thread one step again is one dictionary look-up. A node also carries
everything about the event that depends on its own thread alone: its number and bit, and its predecessors of each kind.
"""

from __future__ import annotations

from typing import Final

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

READ: Final = 0
WRITE: Final = 1
RMW_WRITE: Final = 2
FENCE: Final = 3
FAILURE: Final = 4
DONE: Final = 5
BLOCKED: Final = 6
"""Kinds of a node. Those below DONE can run; an RMW that writes is a READ followed by an RMW_WRITE."""

EVENTS_LIMIT: Final = 200
"""Events of a thread, unless the caller says otherwise."""


class Unbounded(Exception):
    """A thread goes on and on: this engine needs loops with an end."""


class _Children(dict[Value, "Node"]):
    """Successors of a node by the operation's result, made when first asked for."""

    __slots__ = ("_node",)

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._node = node

    def __missing__(self, result: Value) -> Node:
        self[result] = child = self._node.unfolding.successor(self._node, result)
        return child


class Node:
    """An event that a thread performs after one sequence of results; or that it has ended, failed or waits.

    Numbers of events: row * threads + thread, where rows count a thread's events from 1. Row 0 stands for "nothing",
    and 0 also for the initial write of every location. `bit` is the event's bit in masks; that of row 0 is 0.
    """

    __slots__ = (
        "acquires",
        "bit",
        "children",
        "fenced_at",
        "initial",
        "kind",
        "loc",
        "number",
        "old",
        "op",
        "order",
        "ordered_at",
        "parent",
        "plain",
        "previous",
        "releases",
        "results",
        "same_at",
        "sequential",
        "takes",
        "thread",
        "unfolding",
        "value",
        "waits",
        "written_at",
    )

    def __init__(self, unfolding: Unfolding, thread: int, kind: int, op: Op | Done, parent: Node | None) -> None:
        self.unfolding = unfolding
        self.thread = thread
        self.kind = kind
        self.op = op
        self.parent = parent
        self.results: tuple[Value, ...] = ()
        """Of all operations before this one."""
        self.old: Value = None
        """RMW_WRITE: what its read found."""
        self.number: int = (parent.number if parent is not None else thread) + unfolding.threads
        self.previous = self.number - unfolding.threads
        self.bit = 1 << (self.number - unfolding.threads)
        self.children = _Children(self)
        self.loc = -1
        self.value: Value = None
        """Of a write."""
        self.initial: Value = None
        """Of the location that is accessed."""
        self.waits = isinstance(op, Await)
        self.takes = isinstance(op, Rmw) and op.until is not None
        self.order = Order.PLAIN
        self.acquires = self.releases = self.sequential = self.plain = False
        self.same_at = self.written_at = self.ordered_at = self.fenced_at = 0
        """Numbers of the thread's last event before this one that: is at this location; is a write; keeps later loads
        behind it under TSO; is a fence that releases. 0: there is none."""
        if kind < FAILURE:
            self._describe(op)
            self._look_back()

    def _describe(self, op: object) -> None:
        assert isinstance(op, Read | Write | Rmw | Fence | Await)
        order = self.order = op.order
        self.sequential = order is Order.SEQ_CST
        self.plain = order is Order.PLAIN
        self.acquires = order.acquires and self.kind in (READ, FENCE)
        self.releases = order.releases and self.kind in (WRITE, RMW_WRITE, FENCE)
        if not isinstance(op, Fence):
            self.loc = self.unfolding.location_number(op.location)
            self.initial = self.unfolding.program.initial(op.location)
            if self.plain:
                self.unfolding.plain.add(self.loc)
        if isinstance(op, Write):
            self.value = op.value

    def _look_back(self) -> None:
        event = self.parent
        while event is not None:
            kind = event.kind
            if event.loc == self.loc and kind != FENCE:
                self.same_at = self.same_at or event.number
            if kind in (WRITE, RMW_WRITE):
                self.written_at = self.written_at or event.number
            if kind in (READ, RMW_WRITE) or (kind in (WRITE, FENCE) and event.sequential):
                self.ordered_at = self.ordered_at or event.number
            if kind == FENCE and event.releases:
                self.fenced_at = self.fenced_at or event.number
            event = event.parent

    @property
    def locked(self) -> bool:
        """Whether it is a read-modify-write, which on x86 is a full barrier even where it only reads."""
        return isinstance(self.op, Rmw)


class Unfolding:
    """The tree of all threads' nodes, grown as the search asks for them."""

    def __init__(self, program: Program, events_limit: int = EVENTS_LIMIT) -> None:
        if program.threads < 1:
            raise ValueError("a program has at least one thread")
        self.program = program
        self.threads = program.threads
        self.events_limit = events_limit
        self.locations: list[Location] = []
        self.plain: set[int] = set()
        """Numbers of locations with plain accesses, as far as they were met."""
        self._location_numbers: dict[Location, int] = {}
        self.bits: list[int] = [0] * self.threads
        """Event number -> its bit."""
        self.roots = [self._make(thread, None, ()) for thread in range(self.threads)]

    def location_number(self, location: Location) -> int:
        """Small number of a location."""
        number = self._location_numbers.setdefault(location, len(self.locations))
        if number == len(self.locations):
            self.locations.append(location)
        return number

    def successor(self, node: Node, result: Value) -> Node:
        """What the thread does after `node` had this result."""
        op = node.op
        if node.kind == READ:
            until = op.until if isinstance(op, Await | Rmw) else None
            if until is not None and not until(result):
                return self._enter(Node(self, node.thread, BLOCKED, op, node), (*node.results, result))
            if isinstance(op, Rmw) and (value := op.update(result)) is not NO_WRITE:
                child = Node(self, node.thread, RMW_WRITE, op, node)
                child.value, child.old = value, result
                return self._enter(child, node.results)
        return self._make(node.thread, node, (*node.results, node.old if node.kind == RMW_WRITE else result))

    def stopped(self, node: Node) -> Node:
        """In the place of a failure, for a search that goes on: the thread does nothing more."""
        return self._enter(Node(self, node.thread, BLOCKED, Assume(False), node.parent), node.results)

    def _make(self, thread: int, parent: Node | None, results: tuple[Value, ...]) -> Node:
        op = self.program.next_op(thread, results)
        while isinstance(op, Assume) and op.holds:
            results = (*results, None)
            op = self.program.next_op(thread, results)
        match op:
            case Read() | Await() | Rmw():
                kind = READ
            case Write():
                kind = WRITE
            case Fence():
                kind = FENCE
            case Failure():
                kind = FAILURE
            case Done():
                kind = DONE
            case Assume():
                kind = BLOCKED
            case _:
                raise TypeError(f"thread {thread} yields {op!r}, which is no operation")
        return self._enter(Node(self, thread, kind, op, parent), results)

    def _enter(self, node: Node, results: tuple[Value, ...]) -> Node:
        node.results = results
        if node.number >= (self.events_limit + 2) * self.threads:
            raise Unbounded(f"thread {node.thread} performs more than {self.events_limit} events: bound its loops")
        while len(self.bits) <= node.number:
            self.bits.append(1 << (len(self.bits) - self.threads))
        return node
