"""A search on several processes comes to what a search on one does, and leaves none of them behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.checker.graphs.random_programs import random_program
from vtlkit.checker.check import check
from vtlkit.checker.graphs import parallel, search
from vtlkit.checker.graphs.parallel import Slots
from vtlkit.checker.graphs.report import Exploration, Verdict
from vtlkit.checker.graphs.search import explore
from vtlkit.checker.hosted import HostedProgram
from vtlkit.checker.ops import Failure, Read, lock, unlock
from vtlkit.checker.program import Program, Threads
from vtlkit.checker.programs import counted
from vtlkit.checker.programs.threads import Script
from vtlkit.host.api import Host

LOCKING = ("lock", "locks", "trylock", "read", "increment", "stray")


@pytest.fixture(autouse=True)
def _forks_often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a long search does, on a short one. No child is left behind."""
    monkeypatch.setattr(search, "PAYS_AFTER", 3)
    monkeypatch.setattr(parallel, "_SPLIT_EVERY", 2)
    monkeypatch.setattr(parallel, "_TELL_EVERY", 5)
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def told(result: Exploration) -> tuple[object, ...]:
    return result.verdict, result.executions, result.blocked, result.deadlocks, result.text, result.counterexample


def same(make: Callable[[], Program], model: str = "sc", *, deadlock_is_failure: bool = False) -> Exploration:
    alone = explore(make(), model, deadlock_is_failure=deadlock_is_failure)
    for count in (1, 3):
        together = explore(make(), model, slots=Slots(count), deadlock_is_failure=deadlock_is_failure)
        assert told(together) == told(alone)
        assert together.all_visited == alone.all_visited
    return alone


@pytest.mark.parametrize("model", ["sc", "tso", "rc11"])
@pytest.mark.parametrize("name", ["casrot(6)", "binc(3)", "filesystem(16)", "lastzero(5)"])
def test_known_counts(name: str, model: str) -> None:
    (program,) = [item.program for item in counted.catalogue() if item.name == name]
    same(lambda: program, model)


@pytest.mark.parametrize("seed", range(25))
def test_random_programs(seed: int) -> None:
    same(lambda: random_program(seed, 8))


@pytest.mark.parametrize("seed", range(40))
def test_what_is_put_off_at_locks_is_looked_at_once(seed: int) -> None:
    same(lambda: random_program(seed, 9, LOCKING))


def one_turn() -> Script:
    yield lock("l")
    yield unlock("l")


def test_five_threads_and_one_lock() -> None:
    assert same(lambda: Threads(*[one_turn] * 5)).executions == 120


def late_failure() -> Program:
    def reader() -> Script:
        if (yield Read("x")) == 4 and (yield Read("y")) == 0:
            yield Failure("too late")

    base = counted.incrementers(4, "x", "y")
    return Threads(*base._threads, reader)


@pytest.mark.parametrize("model", ["sc", "rc11"])
def test_a_failure_is_the_one_that_a_search_on_one_process_finds(model: str) -> None:
    assert same(late_failure, model).verdict is Verdict.FAILS


def test_a_deadlock_too() -> None:
    found = [same(lambda seed=seed: random_program(seed, 9, LOCKING), deadlock_is_failure=True) for seed in range(12)]  # type: ignore[misc]
    assert any(each.verdict is Verdict.DEADLOCKS for each in found)


def test_progress_grows_to_the_end() -> None:
    seen: list[int] = []
    result = explore(
        counted.incrementers(3, "x", "y"), progress=lambda so_far: seen.append(so_far.executions), slots=Slots(2)
    )
    assert seen == sorted(seen)
    assert seen[-1] == result.executions == 36
    assert result.frontier == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_whoever_is_interrupted_leaves_nobody_behind(error: type[BaseException]) -> None:
    found = Exploration("sc")

    def progress(_found: Exploration) -> None:
        raise error

    with pytest.raises(error):
        explore(counted.casw(5), progress=progress, slots=Slots(2), into=found)
    assert found.executions > 0


def test_a_process_that_dies_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()
    whole = search.Search.extend

    def extend(self: search.Search, graph: object) -> None:
        if os.getpid() != parent and self.result.executions > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(self, graph)  # type: ignore[arg-type]

    monkeypatch.setattr(search.Search, "extend", extend)
    assert explore(counted.incrementers(3, "x", "y"), slots=Slots(2)).executions == 36


def test_slots_are_given_back() -> None:
    slots = Slots(2)
    explore(counted.incrementers(3, "x", "y"), slots=slots)
    assert [slots.take(), slots.take(), slots.take()] == [True, True, False]


def test_what_went_round_is_counted_once() -> None:
    def build(host: Host) -> None:
        cells = [host.cell(0, name) for name in "ab"]
        lock, shared = host.lock("lock"), [0]

        def spinner() -> None:
            while not cells[0].load() or not cells[1].load():
                pass

        def writer(which: int) -> Callable[[], None]:
            def write() -> None:
                with lock:
                    shared[0] += 1
                cells[which].store(1)

            return write

        host.spawn(spinner, "spinner")
        host.spawn(spinner, "another")
        host.spawn(writer(0), "first")
        host.spawn(writer(1), "second")

    alone = check(HostedProgram(build), "sc")
    together = check(HostedProgram(build), "sc", slots=Slots(2))
    assert alone.notes
    assert (together.verdict, together.executions, together.blocked) == (alone.verdict, alone.executions, alone.blocked)
    assert together.notes == alone.notes
