"""Reads a run as it is told, and holds it against the program and the machine that it claims to have run on."""

from __future__ import annotations

from collections.abc import Sequence

from vtlkit.checker.ops import Await, Done, Fence, Location, Read, Rmw, Value, Write
from vtlkit.checker.program import Program
from vtlkit.checker.result import Step


class Reader:
    """Walks the steps of a run: each must be what the thread does next, and see what the machine would show it."""

    def __init__(self, program: Program, model: str) -> None:
        self.program = program
        self.ordered = model in ("sc", "tso")
        self.buffered = model == "tso"
        self.memory: dict[Location, Value] = {}
        self.buffers: list[list[tuple[Location, Value]]] = [[] for _ in range(program.threads)]
        self.results: list[tuple[Value, ...]] = [()] * program.threads
        self.steps: Sequence[Step] = ()

    def read(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        for index, step in enumerate(steps):
            if step.buffered:
                assert self.buffered
                location, value = self.buffers[step.thread].pop(0)
                assert (step.location, step.written) == (location, value)
                self.memory[location] = value
            elif not step.what.startswith("fails"):
                result = self._perform(index, step)
                self.results[step.thread] = (*self.results[step.thread], result)

    def ended(self) -> bool:
        """Whether every thread has, and nothing is left in a store buffer."""
        threads = range(self.program.threads)
        done = all(isinstance(self.program.next_op(thread, self.results[thread]), Done) for thread in threads)
        return done and not any(self.buffers)

    def _perform(self, index: int, step: Step) -> Value:
        op = self.program.next_op(step.thread, self.results[step.thread])
        assert not isinstance(op, Done)
        assert step.location == getattr(op, "location", None)
        if isinstance(op, Fence):
            return None
        if isinstance(op, Write):
            assert (step.read, step.written) == (None, op.value)
            if step.what.startswith("stores"):
                self.buffers[step.thread].append((op.location, op.value))
            else:
                assert not self.buffers[step.thread], "an older store is still in the buffer"
                self.memory[op.location] = op.value
            return None
        self._look(index, step)
        if isinstance(op, Rmw):
            assert not self.buffers[step.thread], "a locked instruction drains the buffer"
            if step.written is not None:
                assert op.update(step.read) == step.written
                self.memory[op.location] = step.written
        else:
            assert isinstance(op, Read) or (isinstance(op, Await) and op.until(step.read))
        return step.read

    def _look(self, index: int, step: Step) -> None:
        """What is read is what the source wrote; where there is one order of all, that was the last write."""
        if step.source is None:
            value = self.program.initial(step.location)
        else:
            source = self.steps[step.source]
            assert step.source < index
            assert source.location == step.location
            value = source.written
        assert step.read == value
        if not self.ordered:
            return
        assert not step.stale
        own = [held for location, held in self.buffers[step.thread] if location == step.location]
        seen = own[-1] if own else self.memory.get(step.location, self.program.initial(step.location))
        assert step.read == seen
