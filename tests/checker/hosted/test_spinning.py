"""A task that spins for ever is found by the search over graphs, and hides nobody who waits for ever."""

from __future__ import annotations

import pytest

from vtlkit.checker.check import MODELS, check
from vtlkit.checker.hosted import HostedProgram
from vtlkit.checker.result import ProblemKind, Verdict
from vtlkit.host.api import Host


def handover(host: Host, *, looks_again: bool, relaxes: bool = True) -> None:
    """One sleeps until there is work; who made it spins until it is done."""
    work, done = host.cell(0, "work"), host.cell(0, "done")
    queue = host.wait_queue("queue")

    def worker() -> None:
        if not work.load():
            queue.prepare()
            if not (looks_again and work.load()):
                host.schedule()
            queue.finish()
        done.store(1)

    def maker() -> None:
        work.xchg(1)
        queue.wake()
        while not done.load():
            if relaxes:
                host.relax()

    host.spawn(worker, "worker")
    host.spawn(maker, "maker")


def asked_too_late(host: Host, *, relaxes: bool) -> None:
    """Who looks too early does not answer, and the other spins for ever."""
    asked, answer = host.cell(0, "asked"), host.cell(0, "answer")

    def answers() -> None:
        if asked.load():
            answer.store(1)

    def asks() -> None:
        asked.store(1)
        while not answer.load():
            if relaxes:
                host.relax()

    host.spawn(answers, "answers")
    host.spawn(asks, "asks")


@pytest.mark.parametrize("relaxes", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_who_spins_hides_no_lost_wake_up(model: str, relaxes: bool) -> None:
    program = HostedProgram(lambda host: handover(host, looks_again=False, relaxes=relaxes), model)
    found = check(program, model, engine="graphs").counterexample
    assert found is not None
    assert found.kind is ProblemKind.LOST_WAKE_UP
    assert "worker" in found.text


@pytest.mark.parametrize("relaxes", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_who_spins_until_somebody_writes_is_no_failure(model: str, relaxes: bool) -> None:
    program = HostedProgram(lambda host: handover(host, looks_again=True, relaxes=relaxes), model)
    assert check(program, model, engine="graphs").verdict is Verdict.PROVED


@pytest.mark.parametrize("relaxes", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_who_spins_for_ever_is_a_livelock(model: str, relaxes: bool) -> None:
    program = HostedProgram(lambda host: asked_too_late(host, relaxes=relaxes), model)
    found = check(program, model, engine="graphs").counterexample
    assert found is not None
    assert found.kind is ProblemKind.LIVELOCK
    assert "asks at test_spinning.py" in found.text


def test_states_prove_nothing_of_who_spins_where_they_do_not_merge() -> None:
    def build(host: Host) -> None:
        lock, taken = host.lock("lock"), list[int]()
        handover(host, looks_again=False)

        def other() -> None:
            with lock:
                taken.append(1)

        host.spawn(other, "other")
        host.spawn(other, "another")

    program = HostedProgram(build, "sc")
    assert program.causal
    result = check(program, "sc", engine="states")
    assert result.verdict is Verdict.BOUND
    assert any("graphs" in note for note in result.notes)


@pytest.mark.parametrize("model", ["sc", "tso"])
def test_both_searches_find_the_livelock(model: str) -> None:
    program = HostedProgram(lambda host: asked_too_late(host, relaxes=True), model)
    found = check(program, model, engine="states").counterexample
    assert found is not None
    assert found.kind is ProblemKind.LIVELOCK
