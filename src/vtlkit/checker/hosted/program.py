"""`HostedProgram`: tasks over the host API as a `Program` for both searches."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

from vtlkit.checker.hosted.book import Book
from vtlkit.checker.hosted.common import Common
from vtlkit.checker.hosted.host import CheckHost
from vtlkit.checker.hosted.identity import identity_of
from vtlkit.checker.hosted.sections import Diverged
from vtlkit.checker.hosted.trie import Point
from vtlkit.checker.hosted.world import World
from vtlkit.checker.ops import NO_WRITE, Assume, Await, Done, Failure, Fence, Location, Op, Read, Rmw, Value, Write
from vtlkit.checker.program import Again
from vtlkit.host import api as host_api
from vtlkit.host.api import Host
from vtlkit.host.splitmix import SplitMix64

Build = Callable[[Host], object]
_WALKS: Final = 24
"""Random schedules by which it is found out what tasks share."""
_SOLO_STEPS: Final = 500
_OURS: Final = tuple(os.path.dirname(file) for file in (os.path.abspath(__file__), os.path.abspath(host_api.__file__)))
_WALK_STEPS: Final = 5000
_NO_NEWS: Final = Assume(False)
_WORLDS: Final = 24
"""Worlds kept for the next question."""


class HostedProgram:
    """Built by `build`, which makes cells and spawns tasks on the host that it is given."""

    def __init__(self, build: Build, model: str = "sc", *, rounds: int | None = None) -> None:
        """`rounds`: a task that has gone round so many times, doing the same and being told the same, is followed no
        further (`given_up` counts the places); as many as there are threads, unless given."""
        self._rounds = rounds
        self.given_up = 0
        self._build = build
        self._book = Book(model)
        self._worlds: list[World] = []
        self._initial: dict[Location, Value] = {}
        self.names: Sequence[str] = ()
        self.builds = 0
        """Worlds built so far."""
        self._learn()
        self.prepare("graphs")

    # --- Program ---------------------------------------------------------------------------------------------------

    @property
    def threads(self) -> int:
        """Number of tasks, and of timers that are used."""
        return len(self.names)

    def initial(self, location: Location) -> Value:
        """What the word was when the tasks began."""
        return self._initial[location]

    def next_op(self, thread: int, results: tuple[Value, ...]) -> Op | Done:
        """See `Program`. Raises Again: call `again` and begin the search anew."""
        point = self._point(thread, results)
        if point.op is None:
            self._world_at(point)
        assert point.op is not None
        if point.round is None:
            point.round = isinstance(point.op, Read) and bool(self._book.rounds) and point.goes_round(self._book.rounds)
            self.given_up += point.round
        return _NO_NEWS if point.round else point.op

    def identity(self, thread: int, results: tuple[Value, ...]) -> Hashable | None:
        """See `Program`. None if tasks share more than words of the host."""
        if self._book.causal:
            return None
        op = self.next_op(thread, results)
        return identity_of(op, self._world_at(self._point(thread, results)).runners[thread])

    @property
    def causal(self) -> bool:
        """Whether tasks share other data than words of the host, under locks: then only sequences are identities."""
        return self._book.causal

    def prepare(self, engine: str) -> None:
        """Which search is to come: "states" follows endless loops, where it can tell states apart."""
        self._book.rounds = 0 if engine == "states" and not self.causal else self._rounds or max(self.threads, 2)

    def place(self, thread: int, results: tuple[Value, ...]) -> str:
        """See `Program`: the innermost line that is not the host's."""
        world = self._world_at(self._point(thread, results))
        resumed = world.runners[thread].greenlet
        frame = None if resumed is None else resumed.gr_frame
        while frame is not None and frame.f_code.co_filename.startswith(_OURS):
            frame = frame.f_back
        if frame is None:
            return ""
        return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"

    def sleeper_condition_holds(
        self, thread: int, results: tuple[Value, ...], memory: Mapping[Location, Value]
    ) -> bool | None:
        """Whether a thread that sleeps for ever would go on if it were woken: then its wake-up was lost.

        It is run alone from there, on what memory is at the end. None: it does not sleep, or goes on for too long.
        """
        op = self.next_op(thread, results)
        if not isinstance(op, Await) or op.woken is None:
            return None
        sleep, words = op, {**self._initial, **memory, op.location: op.woken}
        for _ in range(_SOLO_STEPS):
            results = (*results, perform(op, words))
            op = self.next_op(thread, results)
            if isinstance(op, Done) or not can_run(op, words):
                return not (isinstance(op, Await) and op.location == sleep.location)
        return None

    def again(self) -> None:
        """What was learnt makes another program of this: forget what the tasks do."""
        self._drop_worlds()
        self._book.forget()
        self.given_up = 0
        self._learn()

    # --- worlds ----------------------------------------------------------------------------------------------------

    def _point(self, thread: int, results: tuple[Value, ...]) -> Point:
        point = self._root(thread)
        for result in results:
            point = point.child(result)
        return point

    def _root(self, thread: int) -> Point:
        return self._book.root(thread, self.names[thread])

    def _new_world(self) -> World:
        world = World(self._book)
        self._build(CheckHost(world))
        self.builds += 1
        functions = [runner.function for runner in world.runners]
        if self._book.walks:
            world.objects.walk(functions)
        if not self._book.causal:
            world.common = Common(functions)
        return world

    def _world_at(self, point: Point) -> World:
        """A world whose task stands at `point`: the one that is nearest, or a new one."""
        near = (point, point.parent)
        for index, world in enumerate(self._worlds):
            if world.runners[point.number].point in near:
                del self._worlds[index]
                try:
                    world.reach(point)
                except Diverged:
                    world.end()
                    break
                self._keep(world)
                return world
        world = self._new_world()
        world.reach(point)
        self._keep(world)
        return world

    def _keep(self, world: World) -> None:
        self._worlds.insert(0, world)
        if len(self._worlds) > _WORLDS:
            self._worlds.pop().end()

    def finish(self) -> None:
        """The search is over."""
        while self._worlds:
            self._worlds.pop().end()

    def _drop_worlds(self) -> None:
        for world in self._worlds:
            world.end()
        self._worlds.clear()

    # --- what is shared --------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """Run the tasks in one world at a time, until that brings nothing new."""
        accesses, rounds = self._book.accesses, self._book.rounds
        accesses.probing = True
        self._book.rounds = 0
        seed = 0
        while seed < _WALKS:
            known = self._known()
            try:
                self._walk(SplitMix64(seed))
            except Again:
                seed = 0
                continue
            finally:
                self._book.forget()
            seed = 0 if self._known() != known and seed else seed + 1
        accesses.probing = False
        self._book.rounds = rounds
        world = self._new_world()
        self.names = [runner.name for runner in world.runners]
        self._initial = {name: word.value for name, word in world.words.items()}
        self._book.forget()
        self._worlds.append(self._new_world())
        world.end()

    def _known(self) -> tuple[object, ...]:
        book = self._book
        queued = sum(map(len, book.queues.values()))
        return frozenset(book.accesses.shared), len(book.timers), queued, book.walks, book.causal

    def _walk(self, chance: SplitMix64) -> None:
        """One schedule, sequentially consistent; it may end anyhow."""
        world = self._new_world()
        memory: dict[Location, Value] = {name: word.value for name, word in world.words.items()}
        try:
            for _ in range(_WALK_STEPS):
                ready = [number for number in range(len(world.runners)) if can_run(world.next_op(number), memory)]
                if not ready:
                    return
                number = ready[chance.below(len(ready))]
                world.advance(number, perform(world.next_op(number), memory))
        finally:
            world.end()


def can_run(op: Op | Done, memory: Mapping[Location, Value]) -> bool:
    """Whether a thread that is to do this is not ended, failed or made to wait."""
    match op:
        case Done() | Failure():
            return False
        case Assume():
            return op.holds
        case Await():
            return op.until(memory[op.location])
        case Rmw():
            return op.until is None or op.until(memory[op.location])
        case _:
            return True


def perform(op: Op | Done, memory: dict[Location, Value]) -> Value:
    """Do it at once; its result."""
    match op:
        case Read() | Await():
            return memory[op.location]
        case Write():
            memory[op.location] = op.value
            return None
        case Rmw():
            old = memory[op.location]
            new = op.update(old)
            if new is not NO_WRITE:
                memory[op.location] = new
            return old
        case Fence() | Assume():
            return None
        case _:
            raise AssertionError(f"{op!r} is not to be done")
