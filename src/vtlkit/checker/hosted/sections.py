"""Which critical sections a world has been through: a task may enter one only if the world is where it was told.

The data that a lock protects is as the world's tasks have left it. A task that takes the lock is told who let it go
last (`LockWord.after`). If the world has gone further, with another task in the section or through it once more, what
the task would see is not what it was told of: then this is not the world for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.checker.hosted.lockword import LockWord
from vtlkit.checker.ops import NO_WRITE, Done, Op, Rmw, Value, Write

if TYPE_CHECKING:
    from vtlkit.checker.hosted.trie import Point
    from vtlkit.checker.hosted.world import Runner


class Diverged(Exception):
    """This world has gone another way: what is asked for needs a new one."""


class _Section:
    """Of one lock. Who has it for itself, who shares it, and where it was last let go by one that had it for itself."""

    __slots__ = ("left", "owner", "sharers")

    def __init__(self) -> None:
        self.owner: Runner | None = None
        self.sharers: set[Runner] = set()
        self.left: Point | None = None


class Sections:
    """One world's."""

    def __init__(self) -> None:
        self._sections: dict[object, _Section] = {}

    def passes(self, runner: Runner, op: Op | Done, result: Value) -> None:
        """A task is told the result of what it does to a lock. Raises Diverged."""
        if isinstance(op, Write) and isinstance(op.value, LockWord):
            self._leave(runner, self._of(op.location))
        elif isinstance(op, Rmw) and isinstance(result, LockWord):
            new = op.update(result)
            if new is NO_WRITE:
                return
            assert isinstance(new, LockWord)
            section = self._of(op.location)
            if new.holder is not None and result.holder is None:
                self._enter(runner, section, result)
            elif new.holder is None and result.holder is not None:
                self._leave(runner, section)
            elif new.readers > result.readers:
                self._share(runner, section, result)
            elif new.readers < result.readers:
                section.sharers.discard(runner)

    def _of(self, location: object) -> _Section:
        return self._sections.setdefault(location, _Section())

    def _enter(self, runner: Runner, section: _Section, told: LockWord) -> None:
        self._was_left(section, told)
        if any(other.point not in told.after for other in section.sharers):
            raise Diverged
        section.sharers.clear()
        section.owner = runner

    def _share(self, runner: Runner, section: _Section, told: LockWord) -> None:
        self._was_left(section, told)
        section.sharers.add(runner)

    def _was_left(self, section: _Section, told: LockWord) -> None:
        """Whoever had it for itself is known to have let it go, or is just about to."""
        if section.owner is not None:
            if section.owner.point not in told.after:
                raise Diverged
            section.left, section.owner = section.owner.point, None
        left = section.left
        if left is not None and not any(each.number == left.number and each.depth >= left.depth for each in told.after):
            raise Diverged

    def _leave(self, runner: Runner, section: _Section) -> None:
        # Another may have entered already: it was enough that this one stood before its last step in there.
        if section.owner is runner:
            section.left, section.owner = runner.point, None
