"""What the search over states says of broken programs, and where it has to stop."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from vtlkit.checker.ops import (
    Assume,
    Await,
    Failure,
    Fence,
    Location,
    Op,
    Order,
    Read,
    Value,
    Write,
    increment,
    lock,
    unlock,
)
from vtlkit.checker.program import Threads
from vtlkit.checker.programs.threads import Script, steps
from vtlkit.checker.protocols.kernel_models import (
    BlockBug,
    InhibitBug,
    KickBug,
    kick_all,
    kvm_block,
    tlb_inhibit,
)
from vtlkit.checker.result import Counterexample, ProblemKind, Result, Verdict
from vtlkit.checker.states.search import explore

BOTH = pytest.mark.parametrize("arrays", [True, False], ids=["arrays", "dictionary"])


def problem(result: Result) -> Counterexample:
    assert result.verdict is Verdict.COUNTEREXAMPLE
    assert result.counterexample is not None
    return result.counterexample


class Sleepers(Threads):
    """A program that knows what its sleepers sleep for: that something is pending."""

    def sleeper_condition_holds(
        self, thread: int, results: tuple[Value, ...], memory: Mapping[Location, Value]
    ) -> bool | None:
        op = self.next_op(thread, results)
        return bool(memory["pending"]) if isinstance(op, Await) else None


def sleeper(barrier: bool) -> Sleepers:
    def task() -> Script:
        yield Write("blocking", 1)
        if barrier:
            yield Fence()
        if not (yield Read("pending")):
            yield Await("blocking", lambda value: value == 0)

    def waker() -> Script:
        yield Write("pending", 1)
        if barrier:
            yield Fence()
        if (yield Read("blocking")):
            yield Write("blocking", 0)

    return Sleepers(task, waker, names=["task", "waker"])


@BOTH
def test_a_lost_wake_up_is_told_step_by_step(arrays: bool) -> None:
    assert explore(sleeper(barrier=False), "sc", arrays=arrays).verdict is Verdict.PROVED
    assert explore(sleeper(barrier=True), "tso", arrays=arrays).verdict is Verdict.PROVED
    found = problem(explore(sleeper(barrier=False), "tso", arrays=arrays))
    assert found.kind is ProblemKind.LOST_WAKE_UP
    assert sorted(step.what for step in found.steps) == [
        "hands on blocking = 1 to memory",
        "hands on pending = 1 to memory",
        "reads blocking = 0",
        "reads pending = 0",
        "stores blocking = 1 into its store buffer",
        "stores pending = 1 into its store buffer",
    ]
    assert [step.buffered for step in found.steps].count(True) == 2
    (waiting,) = found.waiting
    assert (waiting.thread, waiting.location, waiting.value) == (0, "blocking", 1)
    assert waiting.place.endswith("task")
    assert waiting.why == "task waits on blocking, which is 1 and stays so, though what it waits for has come about"


@BOTH
def test_a_write_that_a_waiter_missed_is_named(arrays: bool) -> None:
    def late() -> Script:
        yield Read("flag")
        yield Await("flag", lambda value: value == 1)

    program = Threads(late, steps(Write("flag", 1), Write("flag", 2)))
    found = problem(explore(program, arrays=arrays))
    assert found.kind is ProblemKind.DEADLOCK
    assert [found.steps[index].what for index in found.waiting[0].missed] in (
        [],
        ["writes flag = 1", "writes flag = 2"],
        ["writes flag = 2"],
    )
    early = Threads(late, steps(Await("go", bool), Write("flag", 1), Write("flag", 2)), steps(Write("go", 1)))
    assert len(problem(explore(early, arrays=arrays)).steps) == len(problem(explore(early, arrays=not arrays)).steps)


@BOTH
def test_locks_taken_in_opposite_order_end_in_a_deadlock(arrays: bool) -> None:
    release = unlock("a"), unlock("b")
    program = Threads(steps(lock("a"), lock("b"), *release), steps(lock("b"), lock("a"), *release))
    found = problem(explore(program, arrays=arrays))
    assert found.kind is ProblemKind.DEADLOCK
    assert len(found.steps) == 2
    assert {(item.thread, item.location, item.value) for item in found.waiting} == {(0, "b", 1), (1, "a", 1)}


@BOTH
def test_who_may_sleep_may_be_left_asleep(arrays: bool) -> None:
    guest = steps(Await("kick", bool, may_sleep=True))
    assert explore(Threads(guest, steps(Write("x", 1))), arrays=arrays).verdict is Verdict.PROVED
    stuck = Threads(guest, steps(Await("x", bool)))
    assert problem(explore(stuck, arrays=arrays)).waiting[0].thread == 1


@BOTH
def test_a_run_of_no_interest_is_no_deadlock(arrays: bool) -> None:
    result = explore(Threads(steps(Assume(False)), steps(Await("x", bool))), arrays=arrays)
    assert result.verdict is Verdict.PROVED


@BOTH
def test_a_failure_before_the_first_step_is_found(arrays: bool) -> None:
    found = problem(explore(Threads(steps(Fence(), Failure("at once"))), arrays=arrays))
    assert (found.kind, found.text) == (ProblemKind.ASSERTION, "at once")
    assert [step.what for step in found.steps] == ["fence (sc)", "fails: at once"]


@BOTH
@pytest.mark.parametrize("model", ["sc", "tso"])
def test_a_race_names_both_places(model: str, arrays: bool) -> None:
    def writer() -> Script:
        yield Write("data", 1, Order.PLAIN)

    def reader() -> Script:
        yield Read("data", Order.PLAIN)

    found = problem(explore(Threads(writer, reader), model, arrays=arrays))
    assert found.kind is ProblemKind.DATA_RACE
    assert found.text.startswith("data race: thread 0 writes data at test_verdicts.py:")
    assert ", thread 1 reads data at test_verdicts.py:" in found.text
    assert explore(Threads(reader, reader), model, arrays=arrays).verdict is Verdict.PROVED


@BOTH
def test_a_marked_write_met_before_the_plain_read_races_too(arrays: bool) -> None:
    def late() -> Script:
        for _ in range(3):
            yield Read("other")
        yield Read("data", Order.PLAIN)

    found = problem(explore(Threads(steps(Write("data", 1)), late), arrays=arrays))
    assert found.kind is ProblemKind.DATA_RACE
    assert len(found.steps) == 5


@BOTH
def test_a_spinner_whose_flag_never_comes_is_a_livelock(arrays: bool) -> None:
    def spinner() -> Script:
        while not (yield Read("flag")):
            pass

    def setter() -> Script:
        if (yield Read("permission")) == 0:
            yield Write("flag", 1)

    assert explore(Threads(spinner, setter), arrays=arrays).verdict is Verdict.PROVED
    thief = steps(Write("permission", 1))
    found = problem(explore(Threads(spinner, setter, thief), arrays=arrays))
    assert found.kind is ProblemKind.LIVELOCK
    assert [step.what for step in found.steps] == ["writes permission = 1"]
    assert "thread 0 at test_verdicts.py" in found.text
    assert explore(Threads(spinner, setter, thief), arrays=arrays, livelock=False).verdict is Verdict.PROVED


@BOTH
def test_without_any_end_livelock_is_not_judged(arrays: bool) -> None:
    def forever() -> Script:
        while True:
            yield increment("x", 0)

    result = explore(Threads(forever, forever), arrays=arrays)
    assert result.verdict is Verdict.PROVED
    assert "no run comes to an end: livelock is not judged" in result.notes


@BOTH
@pytest.mark.parametrize("model", ["sc", "tso"])
def test_a_loop_of_nothing_but_fences_is_a_step(model: str, arrays: bool) -> None:
    def forever() -> Script:
        while True:
            yield Fence()

    result = explore(Threads(forever, steps(Write("x", 1))), model, arrays=arrays)
    assert result.verdict is Verdict.PROVED
    assert result.transitions


@BOTH
def test_a_limit_ends_the_search_without_a_verdict(arrays: bool) -> None:
    result = explore(kick_all(3), arrays=arrays, limit=500)
    assert result.verdict is Verdict.BOUND
    assert result.states is not None
    assert 500 <= result.states < 2000
    assert result.frontier > 0
    assert explore(kick_all(3), arrays=arrays, memory_limit=100_000).verdict is Verdict.BOUND


@BOTH
def test_what_is_known_so_far_can_be_seen_at_any_time(arrays: bool) -> None:
    class Enough(Exception):
        pass

    seen: list[Result] = []

    def progress(result: Result) -> None:
        seen.append(result)
        if result.depth == 5:
            raise Enough

    with pytest.raises(Enough):
        explore(kick_all(2), arrays=arrays, progress=progress)
    assert seen[0] is seen[-1]
    assert (seen[0].verdict, seen[0].depth) == (Verdict.BOUND, 5)
    assert seen[0].states


def test_states_too_wide_for_arrays_are_searched_without() -> None:
    def writers(count: int) -> Threads:
        return Threads(*[steps(*[Write((own, word), 1) for word in range(count)]) for own in "ab"])

    note = "a state has too many bits for arrays: searched in plain Python"
    narrow, wide = explore(writers(20), arrays=True), explore(writers(40), arrays=True)
    assert (narrow.states, wide.states) == (21**2, 41**2)
    assert note not in narrow.notes
    assert note in wide.notes


def test_a_full_store_buffer_is_said() -> None:
    program = Threads(steps(*[Write("x", value) for value in range(1, 5)]))
    note = "a store buffer was full: runs that need more than 3 entries are left out"
    assert note in explore(program, "tso", buffer_limit=3).notes
    assert not [note for note in explore(program, "tso", buffer_limit=4).notes if "full" in note]


@BOTH
def test_true_is_not_one(arrays: bool) -> None:
    def picky() -> Script:
        if (yield Read("x")) is True:
            yield Failure("true")

    found = problem(explore(Threads(steps(Write("x", 1), Write("x", True)), picky), arrays=arrays))
    assert len(found.steps) == 4


@BOTH
def test_results_that_cannot_be_compared_are_no_obstacle(arrays: bool) -> None:
    def lists() -> Script:
        return [(yield Read("x"))]  # type: ignore[return-value]

    ends = []
    explore(Threads(lists), arrays=arrays, visit=lambda results, _memory: ends.append(results))
    assert ends == [([0],)]


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="no memory model 'rc11' for the search over states: there are sc, tso"):
        explore(kvm_block(1), "rc11")
    with pytest.raises(ValueError, match="limit is 0: it must be at least 1"):
        explore(kvm_block(1), limit=0)
    with pytest.raises(ValueError, match="at least one thread"):
        explore(Threads())
    with pytest.raises(TypeError, match="which is no operation"):
        explore(Threads(steps("read")))  # type: ignore[arg-type]


@pytest.mark.parametrize(("threads", "states"), [(2, 29), (3, 214), (4, 1276)])
def test_kvm_block(threads: int, states: int) -> None:
    result = explore(kvm_block(threads - 1), symmetry=False)
    assert (result.verdict, result.states) == (Verdict.PROVED, states)
    assert explore(kvm_block(threads - 1), "tso").verdict is Verdict.PROVED


def test_symmetry_leaves_one_of_each_kind_of_state() -> None:
    plain, reduced = explore(kvm_block(4), symmetry=False), explore(kvm_block(4))
    assert (plain.states, reduced.states) == (6834, 885)
    assert "waker 0, waker 1, waker 2, waker 3" in reduced.notes[0]


@pytest.mark.parametrize(("threads", "inhibit", "kick"), [(2, 242, 103), (3, 4492, 2268), (4, 85_840, 48_451)])
def test_the_larger_protocols(threads: int, inhibit: int, kick: int) -> None:
    result = explore(tlb_inhibit(threads - 1))
    assert (result.verdict, result.states) == (Verdict.PROVED, inhibit)
    result = explore(kick_all(threads - 1))
    assert (result.verdict, result.states) == (Verdict.PROVED, kick)


KNOWN_BAD = [
    (kvm_block(2, BlockBug.NO_RECHECK), "sc", ProblemKind.DEADLOCK, 6),
    (kvm_block(2, BlockBug.NO_BARRIER), "sc", None, 0),
    (kvm_block(2, BlockBug.NO_BARRIER), "tso", ProblemKind.DEADLOCK, 7),
    (tlb_inhibit(2, bug=InhibitBug.CLEAR_NOT_SYNCHRONIZED), "sc", ProblemKind.DEADLOCK, 23),
    (tlb_inhibit(2, bug=InhibitBug.SET_NOT_SYNCHRONIZED), "sc", ProblemKind.ASSERTION, 7),
    (tlb_inhibit(2, bug=InhibitBug.SUSPENDED_FIRST), "sc", ProblemKind.DEADLOCK, 18),
    (kick_all(3, bug=KickBug.TESTED_EARLY), "sc", ProblemKind.DEADLOCK, 11),
    (kick_all(3, bug=KickBug.CONSUMED), "sc", ProblemKind.DEADLOCK, 19),
]


@BOTH
@pytest.mark.parametrize(("program", "model", "kind", "length"), KNOWN_BAD)
def test_known_bad_variants(program: Threads, model: str, kind: ProblemKind | None, length: int, arrays: bool) -> None:
    result = explore(program, model, arrays=arrays)
    if kind is None:
        assert result.verdict is Verdict.PROVED
        return
    found = problem(result)
    told = [step for step in found.steps if not step.what.startswith(("fence", "fails"))]
    assert (found.kind, len([step for step in told if "into its" not in step.what])) == (kind, length)


def test_operations_that_are_never_a_step_alone() -> None:
    ops: list[Op] = [Write("x", 1), Fence(Order.RELEASE), Write("y", 1), Fence(), Read("x")]
    under_sc, under_tso = explore(Threads(steps(*ops))), explore(Threads(steps(*ops)), "tso")
    assert (under_sc.states, under_tso.states) == (4, 4)
