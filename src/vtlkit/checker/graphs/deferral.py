"""Graphs in which a thread waits for a lock that was free and was not taken by it: looked at only if they can matter.

When U releases a lock to a thread whose read R waits, having read the holder's write H, the search goes on where R
takes the lock from U. It should also go on where R keeps its old read. Nothing can wake R there, unless something is
deleted again, R itself or U; and that takes a write that comes later, does not depend on U, and goes back to a read
that was there before U. Such a write is in the graphs below the first branch, too. So the other branch is put off until
one of them adds such a write. Under a proper lock none does: what follows the release depends on it.
"""

from __future__ import annotations

from vtlkit.checker.graphs.graph import UNWRITTEN, Graph
from vtlkit.checker.graphs.unfolding import BLOCKED, RMW_WRITE, Node


class Deferral:
    """What is put off when one lock is released. Every graph below the first branch has it in `deferred`."""

    __slots__ = ("_before_held", "_held", "_loc", "_older", "_reads", "_release", "_source", "graphs", "name")

    def __init__(self, graph: Graph, release: Node, waiter: int) -> None:
        self.graphs: list[Graph] = []
        self.name = ""
        """Of one that other processes have, too."""
        self._loc = release.loc
        self._release = release.bit
        self._reads = graph.reads.copy()
        held = graph.co[release.loc][-1] if release.loc in graph.co else 0
        self._held = graph.bits[held]
        self._before_held = graph.upto[held] if held else 0
        self._older = bool(self._held & ~graph.upto[waiter])
        """R is older than H, which so cannot be deleted before R is."""
        node = graph.node[held]
        self._source = graph.rf[node.previous] if held and node.kind == RMW_WRITE else -1
        """What H replaced, or -1. Who replaces that as well is in no graph with H."""

    def matters(self, graph: Graph, write: Node, prefix: int) -> bool:
        """Whether this write, with these porf-predecessors, could delete what keeps the graphs from being of use."""
        if prefix & self._release:
            return False
        reads = self._reads.get(write.loc, 0) & ~prefix
        if not prefix & self._held:
            if reads & self._before_held and not self._older:
                return True
            reads &= ~self._before_held
        return bool(reads) and not self._excludes_holder(graph, write, prefix)

    def _excludes_holder(self, graph: Graph, write: Node, prefix: int) -> bool:
        if self._source < 0:
            return False
        if write.kind == RMW_WRITE and write.loc == self._loc and graph.rf[write.previous] == self._source:
            return write.bit != self._held
        co = graph.co.get(self._loc, UNWRITTEN)
        if self._source not in co[:-1]:
            return False
        other = co[co.index(self._source) + 1]
        return bool(prefix & graph.bits[other] & ~self._held) and graph.node[other].kind == RMW_WRITE


def first_waiter(graph: Graph, release: Node) -> int:
    """The oldest read that waits for this write's location with the last value, and is satisfied by it; or 0.

    0 as well where the write has other places than the last: then it is no lock's release.
    """
    if not graph.waiting:
        return 0
    co = graph.co.get(release.loc, UNWRITTEN)
    found = 0
    for node in graph.waiters():
        number = node.number
        if node.loc != release.loc or graph.rf[number] != co[-1] or node.children[release.value].kind == BLOCKED:
            continue
        if not found or not graph.upto[number] & ~graph.upto[found]:
            found = number
    return found if found and graph.floor(release) + 1 == len(co) else 0
