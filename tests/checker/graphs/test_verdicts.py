"""What the search says of broken programs: assertions, races, deadlocks, lost wake-ups, and of what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.checker.handover import scripts
from vtlkit.checker.check import MODELS
from vtlkit.checker.graphs.report import Execution, Exploration, Verdict
from vtlkit.checker.graphs.search import explore
from vtlkit.checker.graphs.unfolding import Unbounded
from vtlkit.checker.ops import (
    Assume,
    Await,
    Failure,
    Fence,
    Op,
    Order,
    Read,
    Rmw,
    Write,
    increment,
    lock,
    unlock,
)
from vtlkit.checker.program import Thread, Threads
from vtlkit.checker.programs import counted
from vtlkit.checker.programs.threads import Script, steps


def message_passing(data: Order, write: Order, read: Order) -> Threads:
    def receiver() -> Script:
        if (yield Read("flag", read)):
            found = yield Read("data", data)
            if found != 1:
                yield Failure(f"data is {found}")

    return Threads(steps(Write("data", 1, data), Write("flag", 1, write)), receiver)


def block(wakers: int, barrier: bool = True, look_again: bool = True) -> Threads:
    """The scripts of `handover`, with nobody who says whether the sleeper was forgotten."""
    return Threads(*scripts(wakers, barrier, look_again))


@pytest.mark.parametrize("model", MODELS)
def test_a_message_with_release_and_acquire_arrives(model: str) -> None:
    result = explore(message_passing(Order.PLAIN, Order.RELEASE, Order.ACQUIRE), model)
    assert (result.verdict, result.executions) == (Verdict.HOLDS, 2)


def test_a_relaxed_message_fails_where_the_model_lets_it() -> None:
    program = message_passing(Order.RELAXED, Order.RELAXED, Order.RELAXED)
    assert [explore(program, model).verdict for model in MODELS] == [Verdict.HOLDS, Verdict.HOLDS, Verdict.FAILS]
    result = explore(program, "rc11")
    assert result.text == "data is 0"
    assert [str(step) for step in result.counterexample] == [
        "thread 0: writes data = 1 (relaxed)",
        "thread 0: writes flag = 1 (relaxed)",
        "thread 1: reads flag = 1 (relaxed), of thread 0",
        "thread 1: reads data = 0 (relaxed), initial value, overwritten later",
        "thread 1: fails: data is 0",
    ]


def test_a_counterexample_shows_only_what_the_failure_depends_on() -> None:
    program = Threads(steps(Write("z", 1)), steps(Write("x", 1)), steps(Read("x"), Failure("always")))
    result = explore(program)
    assert {step.thread for step in result.counterexample} <= {1, 2}
    assert "always" in str(result.counterexample[-1])


@pytest.mark.parametrize("model", MODELS)
def test_plain_accesses_race_unless_something_orders_them(model: str) -> None:
    result = explore(message_passing(Order.PLAIN, Order.RELAXED, Order.ACQUIRE), model)
    assert result.verdict is Verdict.RACES
    assert result.text == "data race: thread 0 writes data, thread 1 reads data"
    assert any("data" in step.text for step in result.counterexample)


@pytest.mark.parametrize("model", MODELS)
def test_fences_order_plain_accesses(model: str) -> None:
    def program(write: Order, read: Order) -> Threads:
        writer = steps(Write("data", 1, Order.PLAIN), Fence(write), Write("flag", 1))
        reader = steps(Await("flag", bool, Order.RELAXED), Fence(read), Read("data", Order.PLAIN))
        return Threads(writer, reader)

    assert explore(program(Order.RELEASE, Order.ACQUIRE), model).verdict is Verdict.HOLDS
    assert explore(program(Order.ACQUIRE, Order.ACQUIRE), model).verdict is Verdict.RACES
    assert explore(program(Order.RELEASE, Order.RELEASE), model).verdict is Verdict.RACES


@pytest.mark.parametrize("model", MODELS)
def test_an_rmw_carries_a_release_on_and_a_store_does_not(model: str) -> None:
    def program(between: Op) -> Threads:
        writer = steps(Write("data", 1, Order.PLAIN), Write("flag", 1, Order.RELEASE))
        helper = steps(Await("flag", lambda value: value == 1, Order.RELAXED), between)
        reader = steps(Await("flag", lambda value: value == 2), Read("data", Order.PLAIN))
        return Threads(writer, helper, reader)

    assert explore(program(increment("flag")), model).verdict is Verdict.HOLDS
    assert explore(program(Write("flag", 2)), model).verdict is Verdict.RACES


@pytest.mark.parametrize("model", MODELS)
def test_a_lock_orders_plain_accesses(model: str) -> None:
    def adder() -> Script:
        yield lock("l")
        value = yield Read("x", Order.PLAIN)
        assert isinstance(value, int)
        yield Write("x", value + 1, Order.PLAIN)
        yield unlock("l")

    totals: Counter[object] = Counter()
    program = Threads(adder, adder, adder)
    result = explore(program, model, visit=lambda execution: totals.update([execution.memory["x"]]))
    assert (result.verdict, totals, result.blocked) == (Verdict.HOLDS, {3: 6}, 0)


@pytest.mark.parametrize("model", MODELS)
def test_locks_in_two_orders_deadlock(model: str) -> None:
    def taker(first: str, second: str) -> Thread:
        return steps(lock(first), lock(second), unlock(second), unlock(first))

    good = explore(Threads(taker("a", "b"), taker("a", "b")), model)
    assert (good.executions, good.blocked) == (2, 0)
    bad = explore(Threads(taker("a", "b"), taker("b", "a")), model)
    assert (bad.executions, bad.blocked, bad.deadlocks) == (2, 1, 1)
    stopped = explore(Threads(taker("a", "b"), taker("b", "a")), model, deadlock_is_failure=True)
    assert stopped.verdict is Verdict.DEADLOCKS
    assert stopped.text == "thread 0 waits on b, which is 1 and stays so; thread 1 waits on a, which is 1 and stays so"


@pytest.mark.parametrize("model", MODELS)
def test_blocking_loses_no_event(model: str) -> None:
    counts = [explore(block(wakers), model, deadlock_is_failure=True) for wakers in (1, 2)]
    assert all(result.verdict is Verdict.HOLDS and not result.blocked for result in counts)


def test_blocking_without_a_barrier_loses_an_event_on_x86_but_not_under_sc() -> None:
    results = [explore(block(1, barrier=False), model, deadlock_is_failure=True) for model in MODELS]
    assert [result.verdict for result in results] == [Verdict.HOLDS, Verdict.DEADLOCKS, Verdict.DEADLOCKS]
    assert results[1].text == "thread 0 waits on blocking, which is 1 and stays so"


@pytest.mark.parametrize("model", MODELS)
def test_blocking_without_a_second_check_loses_an_event_everywhere(model: str) -> None:
    assert explore(block(1, look_again=False), model, deadlock_is_failure=True).verdict is Verdict.DEADLOCKS


def test_who_may_sleep_is_no_deadlock() -> None:
    def program(may_sleep: bool) -> Threads:
        return Threads(steps(Await("x", bool, may_sleep=may_sleep)), steps(Write("y", 1)))

    assert (explore(program(False)).deadlocks, explore(program(True)).deadlocks) == (1, 0)
    # Who may be left waiting is as good as ended.
    assert (explore(program(True)).executions, explore(program(True)).blocked) == (1, 0)


def test_a_pulse_can_be_seen_or_missed() -> None:
    result = explore(Threads(steps(Write("x", 1), Write("x", 0)), steps(Await("x", bool))))
    assert (result.executions, result.deadlocks) == (1, 1)


def test_an_assumption_that_fails_blocks() -> None:
    def thread() -> Script:
        value = yield Read("x")
        yield Assume(value == 1)

    result = explore(Threads(thread, steps(Write("x", 1))))
    assert (result.executions, result.blocked, result.deadlocks) == (1, 1, 0)


@pytest.mark.parametrize(("model", "both_zero"), [("sc", 0), ("tso", 1), ("rc11", 1)])
def test_executions_tell_registers_and_memory(model: str, both_zero: int) -> None:
    seen: Counter[tuple[object, ...]] = Counter()

    def visit(execution: Execution) -> None:
        assert execution.memory == {"x": 1, "y": 1}
        seen[execution.results] += 1

    threads = steps(Write("x", 1), Read("y")), steps(Write("y", 1), Read("x"))
    explore(Threads(*threads), model, visit=visit)
    assert seen[((0,), (0,))] == both_zero
    assert sum(seen.values()) == 3 + both_zero


def test_a_limit_ends_the_search_and_progress_is_told() -> None:
    told: list[int] = []

    def progress(so_far: Exploration) -> None:
        told.append(so_far.executions)

    result = explore(counted.casrot(8), progress=progress, limit=1500)
    assert (result.verdict, result.executions, told[-2:]) == (Verdict.INCOMPLETE, 1500, [1400, 1500])
    assert explore(counted.casrot(4), limit=14).verdict is Verdict.HOLDS


def test_what_cannot_be_searched_is_refused() -> None:
    def endless() -> Script:
        while True:
            yield Write("x", 1)

    with pytest.raises(Unbounded, match="thread 0 performs more than 50 events"):
        explore(Threads(endless), events_limit=50)
    with pytest.raises(ValueError, match="no memory model 'psc': there are sc, tso, rc11"):
        explore(Threads(steps()), "psc")
    with pytest.raises(ValueError, match="at least one thread"):
        explore(Threads())

    def wrong() -> Script:
        yield 5  # type: ignore[misc]

    with pytest.raises(TypeError, match="thread 0 yields 5"):
        explore(Threads(wrong))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Read("x", Order.RELEASE),
        lambda: Write("x", 1, Order.ACQUIRE),
        lambda: Fence(Order.RELAXED),
        lambda: Rmw("x", lambda old: old, Order.PLAIN),
        lambda: Await("x", bool, Order.PLAIN),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(make: Callable[[], Op]) -> None:
    with pytest.raises(ValueError, match="cannot have order"):
        make()
