"""Programs with a known number of executions, and litmus shapes: they promise nothing, their count is the answer.

The names and counts are those by which stateless model checkers are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vtlkit.checker.program import Threads
from vtlkit.checker.programs import counted, litmus
from vtlkit.checker.protocols import Protocol, Sizes

_BENCHMARKS = "benchmarks of model checkers"
_SHAPES = "litmus shapes"


def _sized(name: str, summary: str, make: Callable[[int], Threads], n: int, large: int | None = None) -> Protocol:
    def build(_model: str, sizes: Sizes) -> Threads:
        if sizes["n"] < 1:
            raise ValueError("n is at least 1")
        return make(sizes["n"])

    more: tuple[Sizes, ...] = ({"n": large},) if large else ()
    return Protocol(name, summary, build, {"n": n}, more, engine="graphs", promises_nothing=True, group=_BENCHMARKS)


def _fixed(name: str, summary: str, program: Threads, group: str) -> Protocol:
    def build(_model: str, _sizes: Sizes) -> Threads:
        return program

    return Protocol(name, summary, build, engine="graphs", promises_nothing=True, group=group)


def _benchmarks() -> Iterator[Protocol]:
    yield _sized("ainc", "n threads increment one location", lambda n: counted.incrementers(n, "x"), 5, 7)
    yield _sized("binc", "n threads increment two locations", lambda n: counted.incrementers(n, "x", "y"), 3, 4)
    yield _sized("cinc", "n threads increment three locations", lambda n: counted.incrementers(n, "x", "y", "z"), 3, 4)
    yield _sized("inc", "n threads add, not atomically", counted.inc, 3, 4)
    yield _sized("casrot", "thread i replaces i - 1 by i", counted.casrot, 6, 9)
    yield _sized("casw", "n threads compare and swap, then write", counted.casw, 3, 5)
    yield _sized("wcas", "one writes, n compare and swap", counted.wcas, 5, 9)
    yield _sized("wainc", "one writes, n increment", counted.wainc, 4, 5)
    yield _sized("readers", "one writes, n read", counted.readers, 8, 13)
    yield _sized("n-writers", "n + 1 write, one reads", counted.writers, 4)
    yield _sized("lastzero", "one looks for the last zero of an array that n fill", counted.lastzero, 5, 15)
    yield _sized("indexer", "n threads insert into a hash table", counted.indexer, 12, 15)
    yield _sized("filesystem", "n threads allocate blocks for inodes under locks", counted.filesystem, 14, 19)
    yield _sized("fib_bench", "two threads add two variables n times", counted.fibonacci, 2, 5)
    yield _fixed("big0", "two readers and two writers of four locations", counted.big0(), _BENCHMARKS)
    yield _fixed("peterson", "mutual exclusion by acquire and release alone", counted.peterson(), _BENCHMARKS)


def _shapes() -> Iterator[Protocol]:
    for shape in litmus.catalogue():
        yield _fixed(shape.name, "executions that the model allows", shape.program, _SHAPES)


PROTOCOLS = (*_benchmarks(), *_shapes())
