"""What tasks share under locks, and loops: the same by both searches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from tests.checker.hosted.outcomes import by_graphs, checked, failing, outcomes
from tests.checker.hosted.programs import counting, put_back, under_a_lock
from vtlkit.checker.check import MODELS
from vtlkit.checker.hosted.trie import SharedData
from vtlkit.checker.result import Verdict
from vtlkit.host.api import Host, LockRank


def test_a_list_under_a_lock_is_seen_as_it_was_when_the_lock_was_taken() -> None:
    assert outcomes(under_a_lock) == {(None, 0), (None, 1), (None, 2)}


def test_each_of_three_sees_what_was_there() -> None:
    def build(host: Host) -> None:
        lock = host.lock("lock")
        shared: list[int] = []

        def taker(number: int) -> Callable[[], tuple[int, ...]]:
            def take() -> tuple[int, ...]:
                with lock:
                    shared.append(number)
                with lock:
                    return tuple(shared)

            return take

        for number in range(3):
            host.spawn(taker(number), f"taker {number}")  # type: ignore[arg-type]

    for results in outcomes(build):
        longest = max(results, key=len)  # type: ignore[arg-type]
        assert all(longest[: len(each)] == each for each in results)  # type: ignore[index, arg-type]
    assert len(outcomes(build)) == 6 * 6


def test_data_that_is_put_back_is_seen_meanwhile() -> None:
    assert outcomes(put_back) == {(None, 0), (None, 1)}


@pytest.mark.parametrize("kind", [deque, bytearray, set, dict], ids=lambda kind: kind.__name__)
def test_whatever_holds_the_data(kind: type) -> None:
    def build(host: Host) -> None:
        lock = host.lock("lock")
        shared = kind()

        def writer() -> None:
            with lock:
                if isinstance(shared, dict):
                    shared[1] = 1
                else:
                    (shared.add if isinstance(shared, set) else shared.append)(1)

        def reader() -> int:
            with lock:
                return len(shared)

        host.spawn(writer, "writer")
        host.spawn(reader, "reader")  # type: ignore[arg-type]

    assert outcomes(build) == {(None, 0), (None, 1)}


def test_data_under_a_semaphore_between_readers_and_writers() -> None:
    def build(host: Host) -> None:
        sem = host.rwsem("sem")
        shared: list[int] = []

        def writer() -> None:
            for number in range(2):
                with sem.writing():
                    shared.append(number)

        def reader() -> tuple[int, int]:
            with sem.reading():
                first = len(shared)
            with sem.reading():
                return first, len(shared)

        host.spawn(writer, "writer")
        host.spawn(reader, "reader")  # type: ignore[arg-type]

    pairs = {(None, (first, second)) for first in range(3) for second in range(first, 3)}
    assert outcomes(build) == pairs


LOG: list[int] = []
COUNT = 0


@pytest.mark.parametrize("name", ["LOG", "COUNT"])
def test_a_global_is_nothing_to_be_changed(name: str) -> None:
    def build(host: Host) -> None:
        cell = host.cell(0, "cell")

        def task() -> None:
            global COUNT
            cell.fetch_add(1)
            if name == "LOG":
                LOG.append(1)
            else:
                COUNT += 1

        host.spawn(task, "one")
        host.spawn(lambda: cell.store(5), "other")

    with pytest.raises(SharedData, match=f"task 'one' changes the global '{name}'"):
        checked(build)


def test_nested_locks_and_data_under_each() -> None:
    def build(host: Host) -> None:
        outer, inner = host.lock("outer", LockRank.MEMORY_CHANGE), host.lock("inner", LockRank.VCPU)
        one: list[int] = []
        other: list[int] = []

        def both() -> tuple[int, int]:
            with outer:
                one.append(1)
                with inner:
                    other.append(1)
                    return len(one), len(other)

        def only_inner() -> int:
            with inner:
                other.append(1)
                return len(other)

        host.spawn(both, "both")  # type: ignore[arg-type]
        host.spawn(only_inner, "inner")  # type: ignore[arg-type]
        host.spawn(both, "both again")  # type: ignore[arg-type]

    found = outcomes(build)
    assert found == {
        ((one, first), inner, (3 - one, second))
        for one in (1, 2)
        for first, inner, second in ((1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1))
        if (first < second) == (one == 1)
    }


def test_a_lock_that_is_only_tried() -> None:
    def build(host: Host) -> None:
        lock = host.lock("lock")
        shared: list[int] = []

        def trier() -> int:
            if not lock.try_acquire():
                return -1
            shared.append(1)
            found = len(shared)
            lock.release()
            return found

        host.spawn(trier, "one")  # type: ignore[arg-type]
        host.spawn(trier, "other")  # type: ignore[arg-type]

    assert outcomes(build) == {(1, 2), (2, 1), (1, -1), (-1, 1)}


def test_words_that_turn_out_to_be_shared_under_a_lock_begin_the_search_anew() -> None:
    def build(host: Host) -> None:
        lock = host.lock("lock")
        gates = [host.cell(0, f"gate {number}") for number in range(6)]
        late = host.cell(0, "late")

        def writer() -> None:
            for gate in gates:
                gate.store(1)
            with lock:
                late.store(7)

        def reader() -> int:
            # Random schedules hardly ever go through here: one gate open, the next one still shut.
            for number in range(5):
                if not (gates[number].load() and not gates[number + 1].load()):
                    return 0
            with lock:
                return late.load() + 1

        host.spawn(writer, "writer")
        host.spawn(reader, "reader")  # type: ignore[arg-type]

    assert outcomes(build) == {(None, 0), (None, 1)} or outcomes(build) == {(None, 0), (None, 1), (None, 8)}


@pytest.mark.parametrize("model", MODELS)
def test_a_bounded_loop_is_followed_to_its_end_even_if_it_reads_the_same_again_and_again(model: str) -> None:
    assert checked(counting, model, "graphs").verdict is Verdict.COUNTEREXAMPLE


@pytest.mark.parametrize("model", MODELS)
def test_a_bounded_loop_that_relaxes_is_followed_to_its_end(model: str) -> None:
    def build(host: Host) -> None:
        cell = host.cell(0, "cell")

        def reader() -> None:
            for _ in range(5):
                if cell.load():
                    return
                host.relax()
            raise AssertionError("nobody came")

        host.spawn(reader, "reader")
        host.spawn(lambda: cell.store(1), "writer")

    assert "nobody came" in failing(build, model)


@pytest.mark.parametrize("model", MODELS)
def test_an_endless_loop_that_relaxes_ends_in_what_it_waits_for(model: str) -> None:
    def build(host: Host) -> None:
        cell = host.cell(0, "cell")

        def reader() -> int:
            while not cell.load():
                host.relax()
            return cell.load()

        host.spawn(reader, "reader")  # type: ignore[arg-type]
        host.spawn(lambda: cell.store(1), "writer")

    assert by_graphs(build, model) == {(1, None)}


@pytest.mark.parametrize("engine", ["states", "graphs"])
def test_a_task_that_spins_where_nobody_else_goes_is_a_finding(engine: str) -> None:
    def build(host: Host) -> None:
        cell = host.cell(0, "cell")

        def spinner() -> None:
            while not cell.load():
                host.relax()

        host.spawn(spinner, "spinner")
        host.spawn(lambda: None, "other")

    counterexample = checked(build, "sc", engine).counterexample
    assert counterexample is not None
    assert counterexample.text == "task 'spinner' spins: nobody else touches 'cell'"
