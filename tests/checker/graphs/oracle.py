"""What the search must find under SC and TSO, found by running the program on a machine without graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vtlkit.checker.graphs.unfolding import BLOCKED, DONE, FENCE, READ, RMW_WRITE, WRITE, Node, Unfolding
from vtlkit.checker.ops import Await, Rmw, Value

Event = int
"""`Node.number`; 0 is any initial write."""
Key = tuple[frozenset[tuple[Event, Event]], frozenset[tuple[int, tuple[Event, ...]]]]
"""(read, write it reads from); (location, its writes in coherence order)."""


@dataclass(frozen=True)
class State:
    """Of the machine. A buffer holds numbers of writes, the oldest first."""

    nodes: tuple[Node, ...]
    buffers: tuple[tuple[Event, ...], ...]
    rf: frozenset[tuple[Event, Event]]
    co: frozenset[tuple[int, tuple[Event, ...]]]


class Machine:
    """Runs an unfolding in all ways. `buffered`: stores wait in a buffer of their thread."""

    def __init__(self, unfolding: Unfolding, buffered: bool) -> None:
        self.unfolding = unfolding
        self.buffered = buffered
        self.writes: dict[Event, dict[tuple[Value, ...], Node]] = {}
        self.complete: set[Key] = set()
        self.stuck: set[Key] = set()

    def run(self) -> None:
        threads = self.unfolding.threads
        start = State(tuple(self.unfolding.roots), ((),) * threads, frozenset(), frozenset())
        todo, seen = [start], {start}
        while todo:
            state = todo.pop()
            following = list(self._steps(state))
            if not following:
                key = state.rf, state.co
                if all(node.kind == DONE for node in state.nodes):
                    self.complete.add(key)
                elif all(node.kind == DONE or isinstance(node.op, Await | Rmw) for node in state.nodes):
                    self.stuck.add(key)
            for new in following:
                if new not in seen:
                    seen.add(new)
                    todo.append(new)

    def _steps(self, state: State) -> Iterator[State]:
        for thread, node in enumerate(state.nodes):
            buffer = state.buffers[thread]
            if buffer:
                yield self._flush(state, thread)
            if node.kind == READ and not (node.locked and buffer):
                yield from self._read(state, node)
            elif node.kind == WRITE:
                yield self._write(state, node)
            elif node.kind == FENCE and not (node.sequential and buffer):
                yield self._with(state, node.children[None])

    def _find(self, state: State, number: Event, loc: int) -> Node:
        """The node of a write: on the path to where its thread is."""
        node: Node | None = state.nodes[number % self.unfolding.threads]
        while node is not None and (node.number != number or node.kind not in (WRITE, RMW_WRITE)):
            node = node.parent
        assert node is not None
        assert node.loc == loc
        return node

    def _read(self, state: State, node: Node) -> Iterator[State]:
        co = dict(state.co).get(node.loc, ())
        source = co[-1] if co else 0
        for number in state.buffers[node.thread]:
            path: Node | None = node
            while path is not None and path.number != number:
                path = path.parent
            if path is not None and path.loc == node.loc:
                source = number
        value = self._find(state, source, node.loc).value if source else node.initial
        child = node.children[value]
        if child.kind == BLOCKED:
            return
        new = self._with(state, child)
        rf = state.rf | {(node.number, source)}
        if child.kind == RMW_WRITE:
            new = self._with(new, child.children[None])
            yield State(new.nodes, new.buffers, rf, self._appended(new.co, child))
        else:
            yield State(new.nodes, new.buffers, rf, new.co)

    def _write(self, state: State, node: Node) -> State:
        new = self._with(state, node.children[None])
        if not self.buffered:
            return State(new.nodes, new.buffers, new.rf, self._appended(new.co, node))
        buffers = list(new.buffers)
        buffers[node.thread] += (node.number,)
        state = State(new.nodes, tuple(buffers), new.rf, new.co)
        if node.sequential:
            while state.buffers[node.thread]:
                state = self._flush(state, node.thread)
        return state

    def _flush(self, state: State, thread: int) -> State:
        number, *rest = state.buffers[thread]
        node: Node | None = state.nodes[thread]
        while node is not None and node.number != number:
            node = node.parent
        assert node is not None
        buffers = list(state.buffers)
        buffers[thread] = tuple(rest)
        return State(state.nodes, tuple(buffers), state.rf, self._appended(state.co, node))

    @staticmethod
    def _appended(co: frozenset[tuple[int, tuple[Event, ...]]], node: Node) -> frozenset[tuple[int, tuple[Event, ...]]]:
        orders = dict(co)
        orders[node.loc] = (*orders.get(node.loc, ()), node.number)
        return frozenset(orders.items())

    @staticmethod
    def _with(state: State, child: Node) -> State:
        nodes = list(state.nodes)
        nodes[child.thread] = child
        return State(tuple(nodes), state.buffers, state.rf, state.co)
