"""The search over graphs on several processes: its stack is work that nobody else needs.

A process that searches forks whenever a slot is free, and the child takes every other graph of the stack. So what is to
be sent is only counts, down one pipe, in pieces that the system does not tear apart. What is put off (`deferral`) is on
both sides of a fork; a file that can be made only once says who may look at it.

Counts of a search that finds nothing are those of the search on one process, whoever did what. At a failure, or
whatever else cannot be told by a number, all that is thrown away: the caller searches on alone, and finds what it would
have found.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vtlkit.checker.graphs.deferral import Deferral
    from vtlkit.checker.graphs.graph import Graph
    from vtlkit.checker.graphs.search import Search

PAYS_AFTER: Final = 4000
"""Graphs on one process before it is worth while to fork: about a tenth of a second."""
_SPLIT_EVERY: Final = 400
"""Graphs between two forks of one process."""
_TELL_EVERY: Final = 1000
"""Graphs between two messages."""
_MESSAGE: Final = struct.Struct("<cqqq")
_BORN, _COUNTS, _GONE, _STOP = b"b", b"c", b"g", b"s"


class Slots:
    """Processors that may be used beside the one that a search runs on. Searches of several processes share them."""

    def __init__(self, count: int) -> None:
        """`count` is 0 or more."""
        self._semaphore = get_context("fork").Semaphore(count)

    def take(self) -> bool:
        """One of them, if it is free. Never blocks."""
        return self._semaphore.acquire(block=False)

    def give(self) -> None:
        """It is free again."""
        self._semaphore.release()


class Notes:
    """What processes leave behind for each other: files in a directory of one search."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)

    def first(self, name: str) -> bool:
        """Whether nobody has asked that before."""
        try:
            os.close(os.open(self._directory / name, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def leave(self, numbers: Iterable[int]) -> None:
        """For `left`."""
        (self._directory / f"left-{os.getpid()}").write_text(" ".join(map(str, numbers)))

    def left(self) -> set[int]:
        """All that was left."""
        return {int(word) for path in self._directory.glob("left-*") for word in path.read_text().split()}


def search_on_processes(search: Search, slots: Slots, tell: Callable[[int, int, int, int], object]) -> bool:
    """Search all of a stack. `tell` is given executions, blocked executions and deadlocks since it was called last, and
    the number of processes.

    False if that was of no use: then the stack is what it was, and counts are to be forgotten. Raises what `tell`
    raises; no process is left behind.
    """
    with tempfile.TemporaryDirectory(prefix="vtlkit-check-") as directory:
        notes = Notes(directory)
        source, sink = os.pipe()
        worker = _Worker(search, slots, notes, sink)
        _share(search.todo)
        sys.stdout.flush()
        sys.stderr.flush()
        # Ctrl-C is the caller's to answer, from the first moment: the child ignores it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        child = _fork()
        if not child:
            os.setpgid(0, 0)
            os.close(source)
            worker.run()
        os.close(sink)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            if not _listen(source, tell):
                return False
            program = search.todo[0].unfolding.program
            if (more := getattr(program, "went_round", None)) is not None:
                more |= notes.left()
            return True
        finally:
            os.close(source)
            _end(child)


def _listen(source: int, tell: Callable[[int, int, int, int], object]) -> bool:
    processes = 1
    with open(source, "rb", buffering=0, closefd=False) as stream:
        while processes:
            message = stream.read(_MESSAGE.size)
            if not message:
                # All have gone, one of them without a word.
                return False
            kind, executions, blocked, deadlocks = _MESSAGE.unpack(message)
            if kind == _STOP:
                return False
            processes += (kind == _BORN) - (kind == _GONE)
            tell(executions, blocked, deadlocks, processes)
    return True


def _end(child: int) -> None:
    """Of all processes of one search: they are a group of their own."""
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # The first has ended, and with it the group; or it has not come to make one.
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    os.waitpid(child, 0)


class _Worker:
    """The search in one process."""

    def __init__(self, search: Search, slots: Slots, notes: Notes, sink: int) -> None:
        self._search = search
        self._slots = slots
        self._notes = notes
        self._sink = sink
        self._told = (0, 0, 0)
        self._first = True
        """The others give their slot back."""

    def run(self) -> None:
        """Search the stack, and end the process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Nobody waits for those that have ended.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        status = 1
        try:
            while not self._run():
                # It has become another process, which begins with nothing on its Python stack.
                self._first = False
            self._leave()
            if not self._first:
                self._slots.give()
            self._tell(_GONE)
            status = 0
        except BrokenPipeError:
            pass
        except BaseException:  # noqa: BLE001 - the caller comes to the same, and tells of it
            self._send(_STOP, 0, 0, 0)
        finally:
            os._exit(status)

    def _run(self) -> bool:
        """False in a child that it has forked."""
        search = self._search
        result = search.result
        self._told = (result.executions, result.blocked, result.deadlocks)
        search.progress = None
        search.notes = self._notes
        todo = search.todo
        count = 0
        while todo:
            search.extend(todo.pop())
            if search.failed:
                raise _Stopped
            count += 1
            if not count % _TELL_EVERY:
                self._tell(_COUNTS)
            if not count % _SPLIT_EVERY and len(todo) > 1 and self._slots.take():
                _share(todo)
                self._tell(_BORN)
                # The oldest have most below them: the child begins with one of these, and this one keeps others.
                if not _fork():
                    todo[:] = todo[0::2]
                    return False
                todo[:] = todo[1::2]
        return True

    def _leave(self) -> None:
        program = self._search.unfolding.program
        if went_round := getattr(program, "went_round", None):
            self._notes.leave(went_round)

    def _tell(self, kind: bytes) -> None:
        result = self._search.result
        counts = result.executions, result.blocked, result.deadlocks
        self._send(kind, *[now - before for now, before in zip(counts, self._told, strict=True)])
        self._told = counts

    def _send(self, kind: bytes, *counts: int) -> None:
        os.write(self._sink, _MESSAGE.pack(kind, *counts))


class _Stopped(Exception):
    """A failure was found."""


def _fork() -> int:
    with warnings.catch_warnings():
        # Of threads, which are the caller's: this one is all that a child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _share(todo: Iterable[Graph]) -> None:
    """Name everything that is put off, and may be met in two processes from now on."""
    left: list[Deferral] = [each for graph in todo for each in graph.deferred]
    seen: set[int] = set()
    while left:
        deferral = left.pop()
        if id(deferral) in seen:
            continue
        seen.add(id(deferral))
        if not deferral.name:
            deferral.name = f"deferral-{os.getpid()}-{len(seen)}-{id(deferral)}"
        left += [each for graph in deferral.graphs for each in graph.deferred]
