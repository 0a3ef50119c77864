"""Where a task stands: a node of the tree of all sequences of results that it can be told, with what it does next."""

from __future__ import annotations

from typing import Final

from vtlkit.checker.ops import Assume, Await, Done, Failure, Fence, Op, Read, Rmw, Value, Write

LONGEST_ROUND: Final = 60
"""Operations of a round that is recognised as such."""


class SharedData(AssertionError):
    """A task did something else although it was told the same: it shares what is no word of the host."""


class Point:
    """A task that has been told `results()` and is about to do `op`, once that is known."""

    __slots__ = ("children", "depth", "number", "op", "parent", "result", "round", "task", "where")

    def __init__(self, number: int, task: str, parent: Point | None, result: Value) -> None:
        self.number = number
        self.task = task
        self.parent = parent
        self.result = result
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.op: Op | Done | None = None
        self.where = 0
        self.round: bool | None = None
        """Whether it has gone round without being told anything new; None: not looked at yet."""
        self.children: dict[Value, Point] = {}

    def child(self, result: Value) -> Point:
        """The point behind a result of `op`."""
        point = self.children.get(result)
        if point is None:
            point = self.children[result] = Point(self.number, self.task, self, result)
        return point

    def path(self) -> list[Point]:
        """From behind the root to here."""
        points: list[Point] = []
        point = self
        while point.parent is not None:
            points.append(point)
            point = point.parent
        points.reverse()
        return points

    def goes_round(self, rounds: int) -> bool:
        """Whether the last operations are so many equal rounds, at the same places, the same, told the same; and the
        next one begins another: a loop that looks at one word for two reasons, and goes on, is none."""
        assert self.op is not None
        here = (*signature(self.op), self.where)
        steps: list[tuple[object, ...]] = []
        point = self
        while point.parent is not None and len(steps) < rounds * LONGEST_ROUND:
            assert point.parent.op is not None
            steps.append((*signature(point.parent.op), point.parent.where, point.result))
            point = point.parent
        for length in range(1, len(steps) // rounds + 1):
            first = steps[:length]
            if steps[length] != first[0] or first[-1][:-1] != here:
                continue
            if all(steps[length * count : length * (count + 1)] == first for count in range(1, rounds)):
                return True
        return False

    def found(self, op: Op | Done, where: int) -> None:
        """The task does `op` here, at a place in the code. Raises SharedData if it did something else before."""
        if self.op is None:
            self.op, self.where = op, where
        elif signature(self.op) != signature(op):
            raise SharedData(
                f"task '{self.task}' {describe(op)}, where it once {describe(self.op)} after being told the same: what "
                "tasks share must be a cell, a bitmap, a queue, or protected by a lock of the host"
            )


def signature(op: Op | Done) -> tuple[object, ...]:
    """What must be the same whenever a task is run again."""
    match op:
        case Write():
            return Write, op.location, op.value
        case Read() | Rmw() | Await():
            return type(op), op.location
        case Fence():
            return Fence, op.order
        case _:
            return (type(op),)


def describe(op: Op | Done) -> str:
    """A phrase for a report."""
    match op:
        case Write():
            return f"writes {op.value!r} to '{op.location}'"
        case Read():
            return f"reads '{op.location}'"
        case Rmw():
            return f"updates '{op.location}' ({op.label})"
        case Await():
            return f"waits for '{op.location}'"
        case Fence():
            return "passes a barrier"
        case Done():
            return "ends"
        case Failure():
            return f"fails ({op.text})"
        case Assume():
            return "gives up"
