"""Checkers with a part missing: what the other tests compare must then come out differently."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import pytest

from tests.checker.hosted import test_stacks
from tests.checker.hosted.outcomes import by_graphs, by_states
from tests.checker.hosted.programs import counting, put_back, under_a_lock
from vtlkit.checker.check import check
from vtlkit.checker.hosted import HostedProgram, identity
from vtlkit.checker.hosted.common import Common
from vtlkit.checker.hosted.lockword import LockWord
from vtlkit.checker.hosted.sections import Diverged, Sections
from vtlkit.checker.hosted.sync import CheckQueue
from vtlkit.checker.hosted.trie import Point
from vtlkit.checker.result import ProblemKind, Verdict
from vtlkit.host.api import Host

Patch = pytest.MonkeyPatch


def sleeping(host: Host) -> None:
    """Right as long as `wake` has its barrier."""
    queue, flag = host.wait_queue("queue"), host.cell(0, "flag")

    def waker() -> None:
        flag.store(1)
        queue.wake()

    host.spawn(lambda: host.wait_event(queue, lambda: flag.load() == 1), "sleeper")  # type: ignore[arg-type]
    host.spawn(waker, "waker")


def outcome(build: Callable[[Host], object]) -> object:
    """What the search finds, or that it stumbles."""
    try:
        return by_states(build)
    except Diverged:
        return "diverged"


KEEPERS = (
    "a_context_manager",
    "walrus_over_a_pushed_variable",
    "a_pushed_variable_that_a_closure_changes",
    "the_end_of_a_range",
    "a_chained_comparison",
    "an_argument_already_evaluated",
)


@pytest.mark.parametrize("name", KEEPERS)
def test_an_identity_that_forgets_the_stack(name: str, monkeypatch: Patch) -> None:
    program = test_stacks.program(getattr(test_stacks, name))
    found = by_states(program)
    monkeypatch.setattr(identity, "hides_nothing", lambda _frame, _callee: True)
    assert by_states(program) < found


@pytest.mark.parametrize("name", ["key_of_a_minimum"])
def test_an_identity_that_forgets_functions_of_c(name: str, monkeypatch: Patch) -> None:
    program = test_stacks.program(getattr(test_stacks, name))
    monkeypatch.setattr("vtlkit.checker.hosted.callers._calls", lambda *_: True)
    assert by_states(program) < by_graphs(program)


def test_an_identity_that_takes_equal_lists_for_one(monkeypatch: Patch) -> None:
    class Forgetful(identity._Contents):
        def _numbered(self, value: object, depth: int) -> Hashable:
            self._numbers.clear()
            return super()._numbered(value, depth)

    program = test_stacks.program(test_stacks.one_of_two_lists)
    found = by_states(program)
    monkeypatch.setattr(identity, "_Contents", Forgetful)
    assert by_states(program) < found


def test_lock_words_that_carry_nothing(monkeypatch: Patch) -> None:
    found = outcome(under_a_lock)

    def nothing(_word: LockWord) -> tuple[Point, ...]:
        return ()

    monkeypatch.setattr(LockWord, "after", property(nothing))
    assert outcome(under_a_lock) != found
    monkeypatch.setattr(Sections, "passes", lambda *_: None)
    assert outcome(under_a_lock) != found


def test_worlds_that_have_gone_too_far(monkeypatch: Patch) -> None:
    found = outcome(under_a_lock)
    monkeypatch.setattr(Sections, "passes", lambda *_: None)
    assert outcome(under_a_lock) != found


def test_data_that_nobody_watches(monkeypatch: Patch) -> None:
    found = outcome(put_back)
    monkeypatch.setattr(Common, "changed", lambda _common: False)
    assert outcome(put_back) != found


def test_rounds_that_do_not_look_at_variables(monkeypatch: Patch) -> None:
    def kind() -> ProblemKind | None:
        found = check(HostedProgram(counting), "sc", engine="graphs").counterexample
        return None if found is None else found.kind

    assert kind() is ProblemKind.ASSERTION
    monkeypatch.setattr("vtlkit.checker.hosted.world.place_of", lambda frame: (id(frame.f_code), frame.f_lasti))
    assert kind() is not ProblemKind.ASSERTION


def test_a_wake_up_without_its_barrier(monkeypatch: Patch) -> None:
    # On x86 what follows, an atomic operation, is one.
    assert check(HostedProgram(sleeping, "rc11"), "rc11").verdict is Verdict.PROVED

    def wake(queue: CheckQueue) -> bool:
        for name in queue._world.book.queues.get(queue.name, ()):
            queue._tasks[name].wake_up(queue.name)
        return True

    monkeypatch.setattr(CheckQueue, "wake", wake)
    assert check(HostedProgram(sleeping, "rc11"), "rc11").verdict is Verdict.COUNTEREXAMPLE
