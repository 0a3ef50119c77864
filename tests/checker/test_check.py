"""`check`, the registry, and the helpers for tests: what is proved, what is found, and in which words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from itertools import groupby
from pathlib import Path

import pytest

from tests.checker.handover import Sleepers, counter, handover
from tests.checker.run_reader import Reader
from vtlkit.checker import protocol, protocols
from vtlkit.checker.check import MODELS, Limits, check, engine_for
from vtlkit.checker.ops import Await, Order, Read, Write, lock, unlock
from vtlkit.checker.program import Program, Threads
from vtlkit.checker.programs import counted, litmus
from vtlkit.checker.programs.threads import Script, steps
from vtlkit.checker.protocols import KnownBad, Protocol
from vtlkit.checker.result import Counterexample, ProblemKind, Result, Step, Verdict, Waiting
from vtlkit.checker.telling import describe, heading, rows, waits
from vtlkit.checker.user import UserError, as_protocol, load
from vtlkit.testing.checking import assert_counterexample, assert_proved, assert_variant

LOST = ProblemKind.LOST_WAKE_UP


def graphs(program: Program, model: str = "sc") -> Result:
    return check(program, model, engine="graphs")


def found(program: Program, model: str = "sc") -> Counterexample:
    counterexample = graphs(program, model).counterexample
    assert counterexample is not None
    return counterexample


@pytest.mark.parametrize("model", MODELS)
def test_a_handover_is_proved_and_its_executions_are_the_certificate(model: str) -> None:
    result = graphs(handover(wakers=2), model)
    assert (result.verdict, result.counterexample, result.blocked) == (Verdict.PROVED, None, 0)
    assert result.executions == {"sc": 330, "tso": 330, "rc11": 486}[model]
    assert result.names == ("vcpu", "waker 0", "waker 1")


@pytest.mark.parametrize(("model", "length"), [("sc", None), ("tso", 6), ("rc11", 5)])
def test_without_a_barrier_a_wake_up_is_lost_but_not_under_sc(model: str, length: int | None) -> None:
    if length is None:
        assert_proved(handover, (model,), barrier=0)
        return
    counterexample = assert_counterexample(handover, model, LOST, length, barrier=0)
    assert counterexample.shortest
    Reader(handover(barrier=0), model).read(counterexample.steps)


def test_who_waits_is_told_what_it_missed_and_who_looked_too_early() -> None:
    counterexample = found(handover(wakers=2, look_again=0))
    assert counterexample.kind is LOST
    assert counterexample.text == "vcpu waits for ever, though what should end a wait has happened"
    (waiting,) = counterexample.waiting
    assert (waiting.location, waiting.value, waiting.thread) == ("blocking", 1, 0)
    assert waiting.place.startswith("handover.py:")
    stored = next(index for index, step in enumerate(counterexample.steps) if step.what == "writes blocking = 1")
    wrote = [i for i, step in enumerate(counterexample.steps) if step.thread and step.location == "pending"]
    looked = [i for i, step in enumerate(counterexample.steps) if step.thread and step.location == "blocking"]
    assert waiting.missed == tuple(wrote)
    for index in looked:
        assert f"step {index + 1} looked at blocking before step {stored + 1} stored it" in waiting.why


def test_a_late_store_is_named_by_the_step_that_hands_it_on() -> None:
    (waiting,) = found(handover(barrier=0), "tso").waiting
    assert waiting.why == (
        "looked at pending in step 3, without what step 4 wrote; step 5 looked at blocking before step 6 stored it"
    )
    assert waiting.missed == (3,)


def test_a_read_of_what_was_overwritten_is_marked() -> None:
    steps_told = found(handover(barrier=0), "rc11").steps
    assert [step.what for step in steps_told if step.stale] == ["reads blocking = 0"]


def test_a_deadlock_of_locks_says_who_has_them() -> None:
    def taker(first: str, second: str) -> Threads:
        return Threads(
            steps(lock(first), lock(second), unlock(second), unlock(first)),
            steps(lock(second), lock(first), unlock(first), unlock(second)),
            names=["one", "other"],
        )

    counterexample = found(taker("a", "b"))
    assert (counterexample.kind, len(counterexample.steps)) == (ProblemKind.DEADLOCK, 2)
    assert counterexample.text == "one, other wait for ever"
    assert [each.why for each in counterexample.waiting] == [
        "other wrote it last, in step 2",
        "one wrote it last, in step 1",
    ]


def test_a_store_of_none_is_a_store() -> None:
    def sleeper() -> Script:
        if (yield Read("job")) == 1:
            yield Write("state", None)
            yield Await("state", bool)

    program = Threads(sleeper, steps(Read("state"), Write("job", None)), initial={"job": 1, "state": 1})
    for engine in ("states", "graphs"):
        counterexample = check(program, "sc", engine=engine).counterexample
        assert counterexample is not None
        (waiting,) = counterexample.waiting
        assert "looked at job in step" in waiting.why
        assert [counterexample.steps[index].what for index in waiting.missed] == ["writes job = None"]


def test_what_came_and_went_is_missed() -> None:
    def late() -> Script:
        yield Read("flag")
        yield Await("flag", lambda value: value == 1)

    program = Threads(late, steps(Write("flag", 1), Write("flag", 2)), names=["late", "pulse"])
    for engine in ("states", "graphs"):
        counterexample = check(program, "sc", engine=engine).counterexample
        assert counterexample is not None
        (waiting,) = counterexample.waiting
        told = [step.what for step in counterexample.steps]
        read = [step.thread for step in counterexample.steps].index(0)
        first, last = told.index("writes flag = 1"), told.index("writes flag = 2")
        assert waiting.missed == ((first,) if read < first else ())
        assert waiting.why.startswith(f"pulse wrote it last, in step {last + 1}")
        assert ("was gone before it looked" in waiting.why) == (read < first)


def test_a_place_is_the_innermost_line() -> None:
    def inner() -> Script:
        yield Write("x", 1)
        yield Await("y", bool)

    def outer() -> Script:
        yield from inner()

    counterexample = found(Threads(outer))
    assert counterexample.steps[0].place.endswith(" inner")
    assert counterexample.waiting[0].place.endswith(" inner")


def test_one_that_nobody_wakes_is_told_so() -> None:
    assert found(Threads(steps(Await("x", bool)))).waiting[0].why == "nobody has written it"


def test_a_race_names_both_places() -> None:
    program = Threads(steps(Write("x", 1, Order.PLAIN)), steps(Read("x")), names=["writer", "reader"])
    counterexample = found(program)
    assert counterexample.kind is ProblemKind.DATA_RACE
    assert "writer writes at threads.py:" in counterexample.text
    assert "reader reads at threads.py:" in counterexample.text


def test_a_bound_is_no_proof() -> None:
    limited = check(handover(wakers=2), "sc", engine="graphs", limits=Limits(count=10))
    assert (limited.verdict, limited.notes) == (Verdict.BOUND, ["stopped after 10 executions"])

    states = check(handover(wakers=2), "sc", engine="states", limits=Limits(count=10))
    assert (states.verdict, states.notes[-1]) == (Verdict.BOUND, "stopped after 10 states")
    narrow = check(handover(wakers=2), "sc", engine="states", limits=Limits(memory_bytes=1))
    assert (narrow.verdict, narrow.notes[-1]) == (Verdict.BOUND, "stopped at 1 bytes")

    def endless() -> Script:
        while True:
            yield Write("x", 1)

    result = graphs(Threads(endless, names=["spinner"]))
    assert result.verdict is Verdict.BOUND
    assert result.notes == ["spinner performs more than 200 events: bound its loops"]


def test_progress_is_given_the_result_before_the_search_and_while_it_grows() -> None:
    told: list[Result] = []
    executions: list[int | None] = []

    def progress(so_far: Result) -> None:
        told.append(so_far)
        executions.append(so_far.executions)

    result = check(counted.casrot(7), "sc", engine="graphs", progress=progress)
    assert executions == [0, 100, 200, 300, 400, 500]
    assert all(each is result for each in told)
    assert result.executions == 523


def test_an_interrupted_search_leaves_what_it_knew() -> None:
    known: list[Result] = []

    def progress(so_far: Result) -> None:
        known.append(so_far)
        if so_far.executions:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(counted.casrot(7), "sc", engine="graphs", progress=progress)
    assert (known[0].executions, known[0].verdict) == (100, Verdict.BOUND)


def test_a_program_may_depend_on_the_model() -> None:
    def build(model: str) -> Program:
        return handover(barrier=int(model != "sc"))

    assert [check(build, model).verdict for model in MODELS] == [Verdict.PROVED] * 3


@pytest.mark.parametrize(
    ("model", "engine", "complaint"),
    [
        ("lkmm", None, "no memory model 'lkmm': there are sc, tso, rc11"),
        ("sc", "spin", "no engine 'spin': there are states, graphs"),
        ("rc11", "states", "the engine 'states' knows sc and tso, not rc11"),
    ],
)
def test_what_no_engine_does_is_refused(model: str, engine: str | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        engine_for(model, engine)


def test_rc11_is_for_graphs() -> None:
    assert [engine_for("rc11", wanted) for wanted in (None, "auto", "graphs")] == ["graphs"] * 3


# --- the registry -----------------------------------------------------------------------------------------------------


def test_every_known_count_is_reached_by_name() -> None:
    shapes = {item.name: item for item in litmus.catalogue()}
    sizes = {"ainc": 5, "casrot": 6, "lastzero": 5, "filesystem": 14, "readers": 8}
    sized = {item.name: item for item in counted.catalogue()}
    known = {**shapes, **{name: sized[f"{name}({n})"] for name, n in sizes.items()}, "peterson": sized["peterson"]}
    for name, item in known.items():
        listed = protocols.find(name)
        for model, count in item.counts.items():
            result = check(listed.build(model, listed.sizes), model, engine=listed.engine)
            assert (name, model, result.executions) == (name, model, count)


def test_what_is_listed_is_found_and_groups_are_together() -> None:
    catalogue = protocols.catalogue()
    assert all(protocols.find(name) is each and each.name == name for name, each in catalogue.items())
    headings = [heading for heading, _ in groupby(each.heading for each in catalogue.values())]
    assert len(headings) == len(set(headings))
    with pytest.raises(KeyError):
        protocols.find("wait.nothing")


def test_what_is_not_looked_into_has_no_protocols() -> None:
    for part in protocols._PARTS:
        assert not hasattr(import_module(f"{protocols.__name__}.{part}"), "PROTOCOLS")


def variants(expected: Mapping[str, tuple[ProblemKind, int] | None]) -> Protocol:
    listed = as_protocol(handover)
    bad = KnownBad("no-barrier", "no barriers", listed.build, expected, {"barrier": 0})
    return Protocol("test.handover", "", listed.build, listed.sizes, engine="graphs", known_bad=(bad,))


def test_a_variant_is_held_against_what_is_expected() -> None:
    right = {"sc": None, "tso": (LOST, 6), "rc11": (LOST, 5)}
    assert_variant(variants(right), "no-barrier")
    wrong = ({"sc": (LOST, 6)}, {"tso": None}, {"tso": (LOST, 5)}, {"rc11": (ProblemKind.ASSERTION, 5)})
    for expected in wrong:
        with pytest.raises(AssertionError):
            assert_variant(variants({**right, **expected}), "no-barrier")


# --- for tests --------------------------------------------------------------------------------------------------------


def test_a_failed_proof_shows_the_table() -> None:
    with pytest.raises(AssertionError) as raised:
        assert_proved(counter, ("sc",), n=3)
    text = str(raised.value)
    assert "under sc: assertion in 4 steps" in text
    assert "three is too many" in text
    assert text.splitlines()[1].split() == ["#", "thread", "0", "thread", "1", "thread", "2"]
    assert any(line.split()[:4] == ["1", "rmw", "x:", "0"] for line in text.splitlines())


def test_a_counterexample_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AssertionError, match="under sc: no assertion: proved"):
        assert_counterexample(counter, "sc", ProblemKind.ASSERTION)
    with pytest.raises(AssertionError, match="expected deadlock, found assertion in 4 steps"):
        assert_counterexample(counter, "sc", ProblemKind.DEADLOCK, n=3)
    with pytest.raises(ValueError, match="counter has no size 'm': there are n"):
        assert_proved(counter, m=3)
    assert len(assert_proved(lambda _model, sizes: counter(n=sizes["n"]), n=2)) == 3
    with pytest.raises(ValueError, match="makes no program"):
        assert_proved(lambda _model, _sizes: None)


def test_a_bound_fails_a_proof() -> None:
    def endless() -> Script:
        while (yield Read("x")) == 0:
            yield Write("y", 1)

    with pytest.raises(AssertionError, match=r"not proved: .* performs more than 200 events"):
        assert_proved(lambda _model, _sizes: Threads(endless), ("rc11",))


# --- tables -----------------------------------------------------------------------------------------------------------


def long_run(length: int) -> Counterexample:
    told = [Step(0, f"writes x = {number}", "a.py:1 f", "x", None, number) for number in range(1, length)]
    told.insert(length // 2, Step(1, "reads x = 5", "a.py:9 g", "x", 5, None, 4))
    return Counterexample(ProblemKind.ASSERTION, "text", tuple(told))


def test_a_short_run_is_shown_whole() -> None:
    assert [row.number for row in rows(long_run(60))] == [str(number) for number in range(1, 61)]


def test_of_a_long_run_the_middles_of_stretches_are_left_out_but_not_what_is_referred_to() -> None:
    shown = rows(long_run(100))
    assert [row.number for row in shown] == ["1", "2", "", "5", "", "49", "50", "51", "52", "53", "", "99", "100"]
    assert [row.text for row in shown if not row.number] == ["... 2 steps ...", "... 43 steps ...", "... 45 steps ..."]
    assert shown[7].text == "reads x = 5 <-5"


def test_a_text_of_a_whole_result() -> None:
    told = (Step(0, "writes x = 1", "a.py:1 f", "x", None, 1),)
    waiting = (Waiting(1, ("a", 2), 0, "a.py:5 g", "one reason; another"),)
    result = Result("sc", "graphs", ("one", "other"), Verdict.COUNTEREXAMPLE)
    result.counterexample = Counterexample(ProblemKind.DEADLOCK, "other waits", told, waiting)
    assert heading(result) == "deadlock in 1 step: other waits"
    assert waits(result.counterexample, result.names) == [
        "other waits: a[2] is 0 and stays so (a.py:5 g)",
        "  one reason",
        "  another",
    ]
    assert describe(result).splitlines()[1:3] == ["   #  one", "   1  writes x = 1  a.py:1 f"]


# --- a user's file ----------------------------------------------------------------------------------------------------


def test_a_file_has_its_protocols_in_order() -> None:
    loaded = load(Path(__file__).with_name("handover.py"))
    assert list(loaded) == ["handover", "counter"]
    assert loaded["handover"].sizes == {"wakers": 1, "barrier": 1, "look_again": 1}
    assert loaded["handover"].summary == "The vCPU sleeps through no event."
    assert type(loaded["handover"].build("sc", {"wakers": 2})).__name__ == Sleepers.__name__


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = (", "bad.py:1: '(' was never closed"),
        ("\nimport nothing_like_this", "bad.py:2: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("x = 1", "bad.py: no protocol: mark a function with @protocol of vtlkit.checker"),
        ("\n@protocol\ndef f(host, *, n: int): ...", "bad.py:2: f: 'n' is a size: give it a whole number as default"),
        ("\n@protocol\ndef f(host, other): ...", "bad.py:2: f: 'other' comes after the host: put sizes behind a '*'"),
        ("\n@protocol\ndef f(*hosts): ...", "bad.py:2: f: no *hosts: take a host, and sizes behind a '*'"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text("from vtlkit.checker import protocol" + ("; " if not text.startswith("\n") else "") + text)
    with pytest.raises(UserError, match=re.escape(complaint)):
        load(path)


def test_a_function_that_makes_no_program_is_told_so() -> None:
    @protocol
    def nothing() -> None:
        """Makes nothing."""

    with pytest.raises(UserError, match="nothing returns no program: take a host, or return Threads"):
        as_protocol(nothing).build("sc", {})
