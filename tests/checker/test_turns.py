"""Data under a lock, in a world in which another task has come further: who takes the lock finds what it must."""

from __future__ import annotations

import pytest

from vtlkit.checker.check import MODELS, check
from vtlkit.checker.hosted import HostedProgram
from vtlkit.checker.hosted.lockword import LockWord
from vtlkit.checker.result import Verdict
from vtlkit.host.api import Host

TURNS = 2


@pytest.mark.parametrize("model", MODELS)
def test_a_number_under_a_lock_is_what_those_made_it_who_had_the_lock_before(model: str) -> None:
    def build(host: Host) -> None:
        lock = host.lock("lock")
        count = [0]
        shown = host.cell(0, "shown")
        before = host.cell(0, "before")

        def task() -> None:
            for _ in range(TURNS):
                with lock:
                    seen = count[0]
                    # The word says the same as the number, as both belong to the lock.
                    word = shown.load()
                    assert word == seen == count[0], f"{word} is shown, and it is {seen}"
                    count[0] = seen + 1
                    shown.store(seen + 1)
            before.load()

        host.spawn(task, "one")
        host.spawn(task, "other")

    program = HostedProgram(build, model)
    result = check(program, model)
    assert program.causal
    # The orders in which two tasks take a lock twice each.
    assert (result.verdict, result.executions) == (Verdict.PROVED, 6)


def test_a_report_shows_of_a_lock_what_its_user_knows() -> None:
    assert repr(LockWord((None, 1, 0, ("before",)))) == "(None, 1, 0)"
