"""An execution graph under construction: events, reads-from, coherence order, and in which order they were added.

What a memory model adds is in its subclasses (`consistency`). They keep one promise that the search relies on: `floor`
says exactly which writes of a location the next event may read from, or be placed behind, so nothing is tried in vain.

Events are numbered as in `program.Node`; a set of events is an integer, one bit for each. Lists are indexed by number
and may hold stale entries for events that are not in the graph (`alive`). Coherence orders are tuples that begin with
0, the initial write: a copy shares them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Self

from vtlkit.checker.graphs.unfolding import BLOCKED, DONE, FENCE, READ, RMW_WRITE, Node, Unfolding

if TYPE_CHECKING:
    from vtlkit.checker.graphs.deferral import Deferral

UNWRITTEN: Final = (0,)
"""Coherence order of a location that nobody has written."""


class Graph:
    """One graph. `copy` is shallow enough to be cheap; everything else changes the graph in place."""

    __slots__ = (
        "alive",
        "bits",
        "co",
        "current",
        "deferred",
        "fresh",
        "low",
        "node",
        "pending",
        "porf",
        "readers",
        "reads",
        "rf",
        "stuck",
        "threads",
        "unfolding",
        "upto",
        "waiting",
    )

    name: ClassVar[str]

    def __init__(self, unfolding: Unfolding) -> None:
        self.unfolding = unfolding
        self.threads = unfolding.threads
        self.bits = unfolding.bits
        self.current = list(unfolding.roots)
        """What each thread does next."""
        self.low = 0
        """No thread below this one can run."""
        self.pending = 0
        """Threads (a bit each) whose next event is the writing half of an RMW: they come first."""
        self.alive = 0
        self.waiting = 0
        """Threads (a bit each) that wait for a lock."""
        self.deferred: tuple[Deferral, ...] = ()
        """What was put off on the way here."""
        self.stuck = 0
        """Events that were not added maximally, whatever else is added: see `maximal`."""
        self.node: list[Node] = list(unfolding.roots)
        self.rf = [0] * self.threads
        """Read -> the write that it reads from."""
        self.porf = [0] * self.threads
        """Event -> itself and what precedes it in program order and reads-from."""
        self.upto = [0] * self.threads
        """Event -> itself and what was added before it."""
        self.readers = [0] * self.threads
        """Write -> its readers; those of initial writes are in `fresh`, by location."""
        self.fresh: dict[int, int] = {}
        self.reads: dict[int, int] = {}
        """Location -> all reads."""
        self.co: dict[int, tuple[int, ...]] = {}
        """Location -> writes in coherence order."""

    def copy(self) -> Self:
        """An independent graph that is equal to this one."""
        new = object.__new__(type(self))
        new.unfolding = self.unfolding
        new.threads = self.threads
        new.bits = self.bits
        new.current = self.current[:]
        new.low = self.low
        new.pending = self.pending
        new.alive = self.alive
        new.waiting = self.waiting
        new.deferred = self.deferred
        new.stuck = self.stuck
        new.node = self.node[:]
        new.rf = self.rf[:]
        new.porf = self.porf[:]
        new.upto = self.upto[:]
        new.readers = self.readers[:]
        new.fresh = self.fresh.copy()
        new.reads = self.reads.copy()
        new.co = self.co.copy()
        return new

    # What a memory model says.

    def floor(self, node: Node) -> int:
        """The first place in its location's coherence order that the next event of a thread may read from.

        A write may be placed behind it and everything later.
        """
        raise NotImplementedError

    def admit(self, node: Node) -> bool:
        """Whether the graph is consistent with the event that was just added, as far as `floor` does not say."""
        return True

    def _placed_read(self, node: Node, source: int, following: int) -> None:
        """A read was added; `following` is the write after its source, or 0."""
        raise NotImplementedError

    def _placed_write(self, node: Node, index: int) -> None:
        """A write was added at `index` of its location's coherence order."""
        raise NotImplementedError

    def _placed_fence(self, node: Node) -> None:
        """A fence was added."""
        raise NotImplementedError

    def _forget(self, gone: int) -> None:
        """Events were taken away. None of them is before one that is left: all were maximal with regard to these."""

    def rank(self, number: int) -> int:
        """Sorting events by this gives an order in which they can have happened."""
        return self.porf[number].bit_count()

    def _grow(self, number: int) -> None:
        more = number + 2 * self.threads - len(self.rf)
        nothing = [0] * more
        self.node += [self.node[0]] * more
        for of_events in (self.rf, self.porf, self.upto, self.readers):
            of_events += nothing

    # Growing.

    def next_thread(self) -> int:
        """Who adds the next event, or -1: a function of the graph, as the search demands."""
        pending = self.pending
        if pending:
            bit = pending & -pending
            self.pending = pending ^ bit
            return bit.bit_length() - 1
        current = self.current
        if self.waiting and (holder := self._holder()) >= 0:
            return holder
        low = self.low
        while low < self.threads and current[low].kind >= DONE:
            low += 1
        self.low = low
        while low < self.threads:
            if self._can_run(current[low]):
                return low
            low += 1
        return -1

    def _holder(self) -> int:
        """A thread that can run and holds a lock for which another waits, or -1.

        It goes first so that the lock is released before others, on which nobody waits, come in between.
        """
        for node in self.waiters():
            holder = self.rf[node.number]
            thread = holder % self.threads
            if holder and self._can_run(self.current[thread]):
                return thread
        return -1

    def waiters(self) -> list[Node]:
        """The reads with which threads wait for locks."""
        found = []
        waiting = self.waiting
        while waiting:
            low = waiting & -waiting
            waiting ^= low
            found.append(self.node[self.current[low.bit_length() - 1].previous])
        return found

    def _can_run(self, node: Node) -> bool:
        return node.kind < DONE and not (node.waits and not self.sources(node))

    def sources(self, node: Node) -> list[int]:
        """Places in the coherence order that this read may read from, ascending.

        A read behind which its thread stops may read only the last write of all: from any other it could never be made
        to read something else. An `Await` is not there before something satisfies it.
        """
        co = self.co.get(node.loc, UNWRITTEN)
        last = len(co) - 1
        first = self.floor(node)
        if first == last and not node.waits:
            return [last]
        found = [index for index in range(first, last) if self._satisfies(node, co[index])]
        if found or not node.waits or self._satisfies(node, co[last]):
            found.append(last)
        return found

    def _satisfies(self, node: Node, write: int) -> bool:
        """Whether a thread goes on after reading from this write."""
        return node.children[self.node[write].value if write else node.initial].kind != BLOCKED

    def places(self, node: Node, first: int) -> list[int]:
        """Places that this write may take, none before `first`. No write comes between the halves of an RMW."""
        co = self.co.get(node.loc, UNWRITTEN)
        end = len(co) + 1
        if node.kind == RMW_WRITE:
            index = co.index(self.rf[node.previous]) + 1
            return [] if not first <= index < end or self._continues(co, index) else [index]
        return [index for index in range(first, end) if not self._continues(co, index)]

    def _continues(self, co: tuple[int, ...], index: int) -> bool:
        """Whether the write at `index` is that of an RMW that reads from the one before it."""
        if index == len(co):
            return False
        node = self.node[co[index]]
        return node.kind == RMW_WRITE and self.rf[node.previous] == co[index - 1]

    def read(self, node: Node, index: int) -> None:
        """Add a read from the write at `index`."""
        number = node.number
        if number >= len(self.rf):
            self._grow(number)
        self.alive |= node.bit
        self.upto[number] = self.alive
        self._read_from(node, index)

    def reread(self, node: Node, index: int) -> None:
        """Put a read that `without` took away back to its old place, now reading from the newest write, at `index`."""
        source = self.co[node.loc][index]
        self.alive |= node.bit
        self.upto[source] |= node.bit
        self.stuck |= self.bits[source]
        self._read_from(node, index)

    def _read_from(self, node: Node, index: int) -> None:
        number = node.number
        bit = node.bit
        loc = node.loc
        co = self.co.get(loc, UNWRITTEN)
        source = co[index]
        self.node[number] = node
        self.rf[number] = source
        self.reads[loc] = self.reads.get(loc, 0) | bit
        if source:
            self.readers[source] |= bit
            self.porf[number] = self.porf[node.previous] | self.porf[source] | bit
            child = node.children[self.node[source].value]
        else:
            self.fresh[loc] = self.fresh.get(loc, 0) | bit
            self.porf[number] = self.porf[node.previous] | bit
            child = node.children[node.initial]
        self.current[node.thread] = child
        if child.kind == RMW_WRITE:
            self.pending |= 1 << node.thread
        elif child.kind == BLOCKED and node.takes:
            self.waiting |= 1 << node.thread
        index += 1
        if index == len(co):
            self._placed_read(node, source, 0)
        else:
            self.stuck |= bit
            self._placed_read(node, source, co[index])

    def write(self, node: Node, index: int) -> None:
        """Add a write at `index`."""
        number = node.number
        if number >= len(self.rf):
            self._grow(number)
        bit = node.bit
        co = self.co.get(node.loc, UNWRITTEN)
        self.node[number] = node
        self.alive |= bit
        self.upto[number] = self.alive
        self.porf[number] = self.porf[node.previous] | bit
        self.readers[number] = 0
        if index == len(co):
            self.co[node.loc] = (*co, number)
        else:
            self.stuck |= bit
            self.co[node.loc] = (*co[:index], number, *co[index:])
        self.current[node.thread] = node.children[None]
        self._placed_write(node, index)

    def fence(self, node: Node) -> None:
        """Add a fence."""
        number = node.number
        if number >= len(self.rf):
            self._grow(number)
        self.node[number] = node
        self.alive |= node.bit
        self.upto[number] = self.alive
        self.porf[number] = self.porf[node.previous] | node.bit
        self.current[node.thread] = node.children[None]
        self._placed_fence(node)

    # Going back.

    def maximal(self, number: int, prefix: int) -> bool:
        """Whether an event was added in the one way that the search counts as the obvious one.

        It is so relative to what was added before it together with `prefix`, the porf-predecessors of the write for
        which it is to be deleted: it comes last in coherence order there, or reads from what does, and no earlier read
        reads it.
        """
        node = self.node[number]
        kind = node.kind
        if kind == FENCE:
            return True
        before = self.upto[number] | prefix
        bits = self.bits
        if kind == READ:
            source = self.rf[number]
            if source and not before & bits[source]:
                return False
        else:
            if self.readers[number] & before:
                return False
            source = number
        for other in reversed(self.co.get(node.loc, UNWRITTEN)):
            if other == source:
                return True
            if before & bits[other]:
                return False
        raise AssertionError("an event's source is in its location's coherence order")

    def without(self, read: Node, deleted: int) -> Self:
        """A copy without `read` and the events of `deleted`; `reread` is to put `read` back."""
        new = self.copy()
        read_bit = read.bit
        gone = deleted | read_bit
        bits = self.bits
        new.alive = alive = self.alive & ~gone
        new.low = 0
        cut = set()
        for number in members(gone, self.threads):
            node = self.node[number]
            if not gone & bits[node.previous]:
                new.current[node.thread] = node
                if node.kind == RMW_WRITE:
                    new.pending |= 1 << node.thread
                else:
                    new.pending &= ~(1 << node.thread)
                    new.waiting &= ~(1 << node.thread)
            if node.kind == READ:
                new._drop_read(node)
            elif node.kind != FENCE:
                cut.add(node.loc)
        for loc in cut:
            new.co[loc] = tuple([number for number in self.co[loc] if not gone & bits[number]])
        before = self.upto[read.number]
        later = alive & ~before
        new.stuck = self.stuck & before & ~read_bit
        if later:
            kept = alive | read_bit
            for number in members(later, self.threads):
                new.upto[number] &= kept
            for number in members(later, self.threads):
                if new._is_stuck(number):
                    new.stuck |= bits[number]
        new._forget(gone)
        return new

    def _drop_read(self, node: Node) -> None:
        source = self.rf[node.number]
        self.reads[node.loc] &= ~node.bit
        if source:
            self.readers[source] &= ~node.bit
        else:
            self.fresh[node.loc] &= ~node.bit

    def _is_stuck(self, number: int) -> bool:
        node = self.node[number]
        if node.kind == FENCE:
            return False
        before = self.upto[number]
        source = self.rf[number] if node.kind == READ else number
        if node.kind != READ and self.readers[number] & before:
            return True
        co = self.co.get(node.loc, UNWRITTEN)
        return any(before & self.bits[other] for other in co[co.index(source) + 1 :])


def members(mask: int, threads: int) -> list[int]:
    """Numbers of the events of a set, ascending."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1 + threads)
        mask ^= low
    return found
