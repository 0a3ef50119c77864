"""A program to check: what each thread does next, as a function of what it has been told so far.

Both searches see nothing else. `Threads` makes one of generator functions; `checker.hosted` makes one of tasks over the
host API, which is how the code that ships is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import Protocol

from vtlkit.checker.frames import identity_of
from vtlkit.checker.ops import Done, Failure, Location, Op, Value

Thread = Callable[[], Generator[Op, Value, object]]


class Again(Exception):
    """The program has learnt something about itself that makes it another one: the search has to begin anew.

    Programs that raise it have `prepare(engine)`, to be called before a search, `again()`, to be called when it was
    raised, and `finish()`, to be called when the search is over, which raises it too.
    """


class Program(Protocol):
    """What is checked. `next_op` must be a function: the same results always lead to the same operation."""

    @property
    def threads(self) -> int:
        """Number of threads."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """A name for each thread, for reports."""
        ...

    def initial(self, location: Location) -> Value:
        """Value of a location before any write."""
        ...

    def next_op(self, thread: int, results: tuple[Value, ...]) -> Op | Done:
        """What the thread does after its earlier operations had these results, one for each operation."""
        ...

    def identity(self, thread: int, results: tuple[Value, ...]) -> Hashable | None:
        """What decides all that the thread will ever do, if that is known to be less than the results themselves.

        Two sequences of results with equal identities are followed by the same operations for the same later results.
        None: only the sequence itself is known to decide it.
        """
        ...

    def place(self, thread: int, results: tuple[Value, ...]) -> str:
        """Where in the code the next operation stands ("file.py:12 function"), for reports; "" if unknown."""
        ...


class Threads:
    """A program whose threads are generator functions without arguments."""

    def __init__(
        self, *threads: Thread, initial: Mapping[Location, Value] | None = None, names: Sequence[str] | None = None
    ) -> None:
        self._threads: Sequence[Thread] = threads
        self._initial = dict(initial or {})
        self.names: Sequence[str] = names or [f"thread {number}" for number in range(len(threads))]

    @property
    def threads(self) -> int:
        """Number of threads."""
        return len(self._threads)

    def initial(self, location: Location) -> Value:
        """What the caller named, or 0."""
        return self._initial.get(location, 0)

    def next_op(self, thread: int, results: tuple[Value, ...]) -> Op | Done:
        """Run the thread from its start, as a generator cannot be copied; searches ask once for each sequence."""
        return self._run(thread, results)[0]

    def identity(self, thread: int, results: tuple[Value, ...]) -> Hashable | None:
        """Of the suspended frames; see `frames`."""
        op, generator = self._run(thread, results)
        if generator is None or isinstance(op, Done):
            return "ended", op
        return identity_of(op, generator)

    def place(self, thread: int, results: tuple[Value, ...]) -> str:
        """The innermost frame's line."""
        # The outermost one must stay: it would close the others as it goes.
        outermost = self._run(thread, results)[1]
        generator: object = outermost
        while isinstance(inner := getattr(generator, "gi_yieldfrom", None), Generator):
            generator = inner
        frame = getattr(generator, "gi_frame", None)
        if frame is None:
            return ""
        name = frame.f_code.co_filename.rpartition("/")[2]
        return f"{name}:{frame.f_lineno} {frame.f_code.co_name}"

    def symmetric(self) -> Sequence[Sequence[int]]:
        """Threads made of one function: it cannot know which of them it is, so nobody can."""
        groups: dict[Thread, list[int]] = {}
        for number, thread in enumerate(self._threads):
            groups.setdefault(thread, []).append(number)
        return list(groups.values())

    def _run(self, thread: int, results: tuple[Value, ...]) -> tuple[Op | Done, Generator[Op, Value, object] | None]:
        generator = self._threads[thread]()
        try:
            op = next(generator)
            for result in results:
                op = generator.send(result)
        except StopIteration as end:
            return Done(end.value), None
        except AssertionError as error:
            return Failure(str(error) or "assertion failed"), None
        return op, generator
