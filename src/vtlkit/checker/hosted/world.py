"""One run of the tasks, under control of whoever asks: each task is a greenlet that stands before its next operation.

A world is built by the protocol's own function, then `advance` tells a task the result of its operation. What a task
does besides (its own variables, and data under locks) is in the world. Nothing here chooses anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from greenlet import GreenletExit, getcurrent, greenlet

from vtlkit.checker.hosted.lockword import LockWord
from vtlkit.checker.hosted.objects import Made, Objects
from vtlkit.checker.hosted.places import place_of
from vtlkit.checker.hosted.sections import Diverged, Sections
from vtlkit.checker.hosted.trie import Point, SharedData
from vtlkit.checker.hosted.words import Word
from vtlkit.checker.ops import Assume, Await, Done, Failure, Fence, Op, Order, Read, Rmw, Value
from vtlkit.checker.program import Again
from vtlkit.host.ranks import RankedLock, check_none_held

if TYPE_CHECKING:
    from vtlkit.checker.hosted.book import Book
    from vtlkit.checker.hosted.common import Common

_FULL = Fence(Order.SEQ_CST)
_READS_ALONE = 20_000


class Runner:
    """One thread of the program: a task, or a timer that may fire."""

    def __init__(self, world: World, number: int, name: str, function: Callable[[], object], *, daemon: bool) -> None:
        self.world = world
        self.number = number
        self.name = name
        self.daemon = daemon
        self.function = function
        self.point: Point = world.book.root(number, name)
        self.where = 0
        """In the code, whatever calls it, with its variables."""
        self.made = 0
        """Objects that it has named."""
        self.held: list[RankedLock] = []
        self.barrier = True
        """It has done nothing since a full barrier, or since it began."""
        self.greenlet: greenlet | None = None
        self.private: Callable[[], tuple[object, ...]] = tuple
        """What the host keeps of the task beside words."""
        self.seen: list[tuple[Op, Value]] = []
        """Its operations since its last `relax`."""
        self.seen_before: list[tuple[object, Value]] | None = None
        """Of those between that and the one before: locations and values, if it only read; and where that was."""
        self.reads_alone = 0
        """Of words that are not shared, since its last operation."""
        self.in_callback = False
        """It runs a timer's callback."""

    def start(self) -> Op | Done:
        """Run it up to its first operation."""
        self.greenlet = greenlet(self._main)
        return self.resume(None)

    def resume(self, result: Value) -> Op | Done:
        """Tell it the result; what it does next."""
        assert self.greenlet is not None
        world = self.world
        before, world.running = world.running, self
        self.greenlet.parent = getcurrent()
        try:
            op: Op | Done = self.greenlet.switch(result)
        finally:
            world.running = before
        if world.accesses.learnt is not None:
            # Whatever the task made of it: its `with` and `except` blocks saw it, too.
            raise world.accesses.learnt
        if world.common is not None and world.common.changed():
            world.book.share_data()
        return op

    def _main(self, _nothing: Value) -> Op | Done:
        try:
            result = self.function()
            check_none_held(self.name, self.held)
        except (Again, GreenletExit, SharedData, Diverged):
            raise
        except AssertionError as error:
            return Failure(str(error) or "assertion failed")
        except Exception as error:  # noqa: BLE001 - it is the finding
            return Failure(f"{type(error).__name__}: {error}")
        return Done(result if isinstance(result, int | str | tuple) else None)

    def kill(self) -> None:
        """End it, `finally` blocks and all."""
        if self.greenlet is not None and not self.greenlet.dead:
            self.greenlet.parent = getcurrent()
            self.greenlet.throw(GreenletExit)


class World:
    """See the module. `book` is what all worlds of a program share."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.accesses = book.accesses
        self.causal = book.causal
        self.common: Common | None = None
        """Data that more than one task can reach."""
        self.words: dict[str, Word] = {}
        self.sections = Sections()
        self.objects = Objects(self)
        self.running: Runner | None = None
        self.runners: list[Runner] = []
        self.dead = False

    def enter(self, word: Word, name: str) -> str:
        """Give a word a name of its own."""
        unique, count = name, 1
        while unique in self.words:
            count += 1
            unique = f"{name}#{count}"
        self.words[unique] = word
        return unique

    def add(self, name: str, function: Callable[[], object], *, daemon: bool) -> Runner:
        """One more thread."""
        runner = Runner(self, len(self.runners), name, function, daemon=daemon)
        self.runners.append(runner)
        return runner

    # --- called by tasks -------------------------------------------------------------------------------------------

    def perform(self, op: Op) -> Value:
        """Do `op` as the running task: give control away, come back with the result."""
        runner = self.running
        if self.dead or runner is None or self.accesses.learnt is not None:
            raise GreenletExit
        if runner.point.op is None and not self.accesses.probing:
            runner.where = _where()
        runner.barrier = op is _FULL or (self.book.locked_orders and isinstance(op, Rmw))
        runner.reads_alone = 0
        assert runner.greenlet is not None
        result: Value = runner.greenlet.parent.switch(op)  # type: ignore[union-attr]
        if self.dead:
            raise GreenletExit
        if self.book.rounds:
            runner.seen.append((op, result))
        return result

    def alone(self, name: str) -> None:
        """The running task has looked at a word that only it is known to touch. Raises AssertionError if it goes on
        and on: nobody else gets to run."""
        runner = self.running
        assert runner is not None
        runner.reads_alone += 1
        if runner.reads_alone > _READS_ALONE:
            if self.accesses.probing:
                # Others may touch it yet.
                self.perform(Assume(False))
            raise AssertionError(f"task '{runner.name}' spins: nobody else touches '{name}'")

    def relax(self) -> None:
        """A round of a loop that spins ends. One that read just what the round before read leads nowhere new: give up
        this execution; another one has the value that ends the loop."""
        runner = self.running
        if runner is None or not self.book.rounds:
            return
        seen, runner.seen = runner.seen, []
        before = runner.seen_before
        only_reads = all(isinstance(op, Read) for op, _ in seen)
        told = [(getattr(op, "location", None), result) for op, result in seen]
        runner.seen_before = [*told, ("", _where())] if only_reads else None
        if seen and only_reads and runner.seen_before == before:
            self.perform(Assume(False))

    def full_barrier(self) -> None:
        """smp_mb: one is enough, where two come together."""
        runner = self.running
        if runner is not None and not runner.barrier and self.book.fences:
            self.perform(_FULL)

    def fence(self, order: Order) -> None:
        """smp_rmb, smp_wmb: nothing under models that keep loads and stores in order."""
        if self.running is not None and not self.running.barrier and self.book.weak:
            self.perform(Fence(order))

    def may_block(self) -> None:
        """Raises AssertionError in a timer's callback."""
        if self.running is not None and self.running.in_callback:
            raise AssertionError("blocking call in interrupt context")

    def wait(self, word: Word, until: Callable[[Value], bool], may_sleep: bool, woken: Value = None) -> Value:
        """Block the running task until the word satisfies `until`."""
        self.may_block()
        if not word.shared:
            if until(word.value):
                return word.read()
            self.accesses.wait_for(word.name)
        return self.perform(Await(word.name, until, Order.ACQUIRE, may_sleep, woken))

    # --- called by the program -------------------------------------------------------------------------------------

    def next_op(self, number: int) -> Op | Done:
        """What a task does next; runs it up to there."""
        runner = self.runners[number]
        if runner.greenlet is None:
            runner.point.found(runner.start(), runner.where)
        assert runner.point.op is not None
        return runner.point.op

    def advance(self, number: int, result: Value) -> None:
        """Tell a task the result of what it does next. Raises Diverged if other tasks stand where they must not."""
        self.next_op(number)
        runner = self.runners[number]
        self._depend(result)
        if self.causal:
            assert runner.point.op is not None
            self.sections.passes(runner, runner.point.op, result)
        following = runner.point.child(result)
        # Where it stands while it runs on: what it makes is named by that.
        runner.point = following
        following.found(runner.resume(result), runner.where)

    def reach(self, point: Point) -> None:
        """Run a task up to `point`, if it is not there or further. Raises Diverged if it has gone another way."""
        runner = self.runners[point.number]
        here = runner.point
        if here is point:
            self.next_op(point.number)
            return
        path = point.path()
        if here.depth > point.depth:
            while here.depth > point.depth:
                assert here.parent is not None
                here = here.parent
            if here is not point:
                raise Diverged
            return
        if here.depth and path[here.depth - 1] is not here:
            raise Diverged
        for step in path[here.depth :]:
            self.advance(point.number, step.result)

    def _depend(self, result: Value) -> None:
        """What a lock's word, or a word that holds an object, says of other tasks has to have happened."""
        if type(result) is Made:
            self.reach(result.after)
        elif type(result) is LockWord:
            for point in result.after:
                self.reach(point)

    def end(self) -> None:
        """End the tasks."""
        self.dead = True
        for runner in self.runners:
            runner.kill()


def _where() -> int:
    """Of the running task's frames: equal for equal places."""
    places = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        places.append(place_of(frame))
        frame = frame.f_back
    return hash(repr(places))
