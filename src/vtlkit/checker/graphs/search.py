"""Visit every consistent execution graph of a program, each once, without remembering any.

The search adds one event at a time. A read is tried with every write that is there; for a write that is added after a
read that could have read it, the graph goes back: the read takes it, and what was added since, and is not needed for
the write, is deleted. Many graphs could go back to one; only that in which everything deleted was added maximally does
(docs/design/checker-graphs.md). What is left to do is a stack of graphs, of polynomial size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vtlkit.checker.graphs.consistency import MODELS
from vtlkit.checker.graphs.deferral import Deferral, first_waiter
from vtlkit.checker.graphs.graph import Graph, members
from vtlkit.checker.graphs.races import find_race
from vtlkit.checker.graphs.report import Execution, Exploration, Failing, Verdict
from vtlkit.checker.graphs.unfolding import EVENTS_LIMIT, FENCE, READ, RMW_WRITE, WRITE, Node, Unfolding
from vtlkit.checker.program import Program

PROGRESS_EVERY: Final = 1000
"""Graphs between two calls of `progress`."""


def explore(
    program: Program,
    model: str = "sc",
    *,
    visit: Callable[[Execution], object] | None = None,
    visit_asleep: Callable[[Execution], object] | None = None,
    progress: Callable[[Exploration], object] | None = None,
    deadlock_is_failure: bool = False,
    check_duplicates: bool = False,
    limit: int | None = None,
    events_limit: int = EVENTS_LIMIT,
    keep_looking: int = 0,
    into: Exploration | None = None,
) -> Exploration:
    """Explore all executions of a program under a model of `MODELS`.

    `visit` sees each complete execution, which changes when it returns; `visit_asleep` those that count as blocked
    because of threads that may be left waiting. The search ends early at the first failure: a
    broken assertion, a race of plain accesses, with `deadlock_is_failure` a deadlock. It ends as INCOMPLETE behind
    `limit` executions, blocked ones included. `check_duplicates` remembers every graph, to test the search itself.

    After the first failure up to `keep_looking` more graphs are taken to their ends, for one that fails with fewer
    events; `Exploration.all_visited` says whether none was left. `into` is where the result is kept from the beginning,
    for a caller who may interrupt the search.

    Raises ValueError for an unknown model, and Unbounded for a thread of more than `events_limit` events.
    """
    if model not in MODELS:
        raise ValueError(f"no memory model '{model}': there are {', '.join(MODELS)}")
    search = _Search(Unfolding(program, events_limit), MODELS[model])
    search.visit, search.visit_asleep, search.progress = visit, visit_asleep, progress
    search.deadlock_is_failure, search.limit = deadlock_is_failure, limit
    search.keys = set() if check_duplicates else None
    search.keep_looking = keep_looking
    if into is not None:
        into.model = model
        search.result = into
    search.run()
    return search.result


class _Search:
    """One search: its stack and its result."""

    def __init__(self, unfolding: Unfolding, model: type[Graph]) -> None:
        self.todo = [model(unfolding)]
        self.result = Exploration(model.name)
        self.visit: Callable[[Execution], object] | None = None
        self.visit_asleep: Callable[[Execution], object] | None = None
        self.progress: Callable[[Exploration], object] | None = None
        self.deadlock_is_failure = False
        self.limit: int | None = None
        self.keys: set[tuple[object, ...]] | None = None
        self.keep_looking = 0

    def run(self) -> None:
        todo = self.todo
        result = self.result
        while todo and result.verdict is Verdict.HOLDS:
            self._extend(todo.pop())
        while todo and self.keep_looking and result.verdict is not Verdict.INCOMPLETE:
            self.keep_looking -= 1
            self._extend(todo.pop())
        result.all_visited = not todo
        result.frontier = len(todo)

    def _extend(self, graph: Graph) -> None:
        """Take one graph to its end, leaving every other way to go on the stack."""
        while True:
            thread = graph.next_thread()
            if thread < 0:
                self._complete(graph)
                return
            node = graph.current[thread]
            kind = node.kind
            if kind == READ:
                following = self._try_each(graph, node, graph.sources(node))
            elif kind in (WRITE, RMW_WRITE):
                following = self._add_write(graph, node)
            elif kind == FENCE:
                graph.fence(node)
                following = graph if graph.admit(node) else None
            else:
                self._fail(graph, Verdict.FAILS, str(getattr(node.op, "text", "")), node)
                if not self.keep_looking:
                    return
                # The others go on: what they write may take this thread back.
                graph.current[node.thread] = graph.unfolding.stopped(node)
                following = graph
            if following is None:
                return
            graph = following

    def _add_write(self, graph: Graph, node: Node) -> Graph | None:
        prefix = graph.porf[node.previous]
        for deferral in graph.deferred:
            if deferral.graphs and deferral.matters(graph, node, prefix):
                self.todo += deferral.graphs
                deferral.graphs.clear()
        readers = graph.reads.get(node.loc, 0) & ~prefix & ~graph.stuck
        if readers:
            waiter = first_waiter(graph, node) if node.kind == WRITE else 0
            if waiter and (taken := self._gone_back(graph, node, prefix, waiter)):
                self._release(graph, node, prefix, readers, waiter, taken)
                return None
            for number in members(readers, graph.threads):
                self.todo += self._gone_back(graph, node, prefix, number)
        return self._placed(graph, node)

    def _placed(self, graph: Graph, node: Node) -> Graph | None:
        places = graph.places(node, graph.floor(node) + 1)
        return self._try_each(graph, node, places) if places else None

    def _try_each(self, graph: Graph, node: Node, choices: list[int]) -> Graph | None:
        """The graph with an event added in the last way; those with it in the others go on the stack."""
        *others, last = choices
        is_read = node.kind == READ
        for index in others:
            branch = graph.copy()
            if is_read:
                branch.read(node, index)
            else:
                branch.write(node, index)
            if branch.admit(node):
                self.todo.append(branch)
        if is_read:
            graph.read(node, last)
        else:
            graph.write(node, last)
        return graph if graph.admit(node) else None

    def _release(self, graph: Graph, node: Node, prefix: int, readers: int, waiter: int, taken: list[Graph]) -> None:
        """A write releases a lock to a waiter. Put off what leaves this waiter with what it has read."""
        deferral = Deferral(graph, node, waiter)
        for number in members(readers & ~graph.bits[waiter], graph.threads):
            keeps_waiter = graph.upto[number] & graph.bits[waiter]
            chosen = deferral.graphs if keeps_waiter else self.todo
            chosen += self._gone_back(graph, node, prefix, number)
        forward = self._placed(graph, node)
        if forward is not None:
            deferral.graphs.append(forward)
        for branch in taken:
            branch.deferred = (*(other for other in branch.deferred if other.graphs), deferral)
        self.todo += taken

    def _gone_back(self, graph: Graph, node: Node, prefix: int, number: int) -> list[Graph]:
        """The graphs where a read, on which the write does not depend, reads from the write that is to be added."""
        deleted = graph.alive & ~prefix & ~graph.upto[number]
        if deleted & graph.stuck or not graph.maximal(number, prefix):
            return []
        if not all(graph.maximal(other, prefix) for other in members(deleted, graph.threads)):
            return []
        read = graph.node[number]
        restricted = graph.without(read, deleted)
        first = max(restricted.floor(node), restricted.floor(read)) + 1
        places = restricted.places(node, first)
        found = []
        for index in places:
            branch = restricted if index == places[-1] else restricted.copy()
            branch.write(node, index)
            branch.reread(read, index)
            if branch.admit(node) and branch.admit(read):
                found.append(branch)
        return found

    def _complete(self, graph: Graph) -> None:
        result = self.result
        if graph.unfolding.plain and (race := find_race(graph)) is not None:
            self._fail(graph, Verdict.RACES, str(race), race.first, race.second)
            return
        execution = Execution(graph)
        if execution.blocked:
            result.blocked += 1
            if execution.deadlocked:
                result.deadlocks += 1
                if self.deadlock_is_failure:
                    self._fail(graph, Verdict.DEADLOCKS, execution.deadlock_text())
            elif self.visit_asleep is not None and execution.asleep:
                self.visit_asleep(execution)
        else:
            result.executions += 1
            if self.visit is not None:
                self.visit(execution)
        if self.keys is not None:
            key = execution.key()
            result.duplicates += key in self.keys
            self.keys.add(key)
        total = result.executions + result.blocked
        if self.progress is not None and not total % PROGRESS_EVERY:
            result.frontier = len(self.todo)
            self.progress(result)
        if self.limit is not None and total >= self.limit and self.todo and result.verdict is Verdict.HOLDS:
            result.verdict = Verdict.INCOMPLETE

    def _fail(self, graph: Graph, verdict: Verdict, text: str, *culprits: Node) -> None:
        result = self.result
        execution = Execution(graph)
        steps = execution.steps(*culprits)
        if result.failing is not None and result.failing.events <= len(steps):
            return
        result.verdict = verdict
        result.text = text
        result.counterexample = steps
        # A graph that goes on is no longer this one.
        result.failing = Failing(Execution(graph.copy()), culprits, len(steps))
