"""A task that goes round without news is followed no further; one that counts, or whose guest goes on, is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vtlkit.checker.check import MODELS, check
from vtlkit.checker.hosted import HostedProgram, program
from vtlkit.checker.ops import Assume
from vtlkit.checker.program import Threads
from vtlkit.checker.programs.threads import steps
from vtlkit.checker.protocols.rig import CheckedRig, hosted
from vtlkit.checker.result import ProblemKind, Result, Verdict
from vtlkit.checker.scenarios.rig import DONE, script
from vtlkit.engine.scripted import ops
from vtlkit.host.api import Cell, Host
from vtlkit.kvm.kvm_run import Io

TURNS = 7


def searched(reader: Callable[[Cell[int]], None], model: str, rounds: int, engine: str) -> Result:
    """One task reads a word that another writes once: first, so that the word is known to be shared."""

    def build(host: Host) -> None:
        word = host.cell(0, "word")
        host.spawn(lambda: word.store(1), "writer")
        host.spawn(lambda: reader(word), "reader")

    return check(HostedProgram(build, model, rounds=rounds), model, engine=engine)


def counts(word: Cell[int]) -> None:
    for _ in range(TURNS):
        word.load()
    raise AssertionError("is here")


def counts_in_a_collection(word: Cell[int]) -> None:
    seen: list[int] = []
    while len(seen) < TURNS:
        found = word.load()
        seen.append(found)
    raise AssertionError("is here")


def goes_over_some_things(word: Cell[int]) -> None:
    for _name in ("a", "b", "c", "d", "e", "f"):
        word.load()
    raise AssertionError("is here")


@pytest.mark.parametrize("rounds", [2, 3])
@pytest.mark.parametrize(("model", "engine"), [*((model, "graphs") for model in MODELS), ("sc", "states")])
@pytest.mark.parametrize("reader", [counts, counts_in_a_collection, goes_over_some_things])
def test_a_loop_that_counts_is_followed_to_its_end(
    reader: Callable[[Cell[int]], None], model: str, engine: str, rounds: int
) -> None:
    """Each round reads the same word at the same place; what is behind the loop fails."""
    found = searched(reader, model, rounds, engine).counterexample
    assert found is not None
    assert (found.kind, found.text) == (ProblemKind.ASSERTION, "is here")


@pytest.mark.parametrize("rounds", [2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_a_loop_that_waits_is_not_followed_for_ever(model: str, rounds: int) -> None:
    def waits(word: Cell[int]) -> None:
        while not word.load():
            pass

    result = searched(waits, model, rounds, "graphs")
    assert result.verdict is Verdict.PROVED
    assert result.executions
    assert any("went round without news" in note for note in result.notes)


class GivesUp(Threads):
    """Followed no further where more may come."""

    given_up = 1


def test_where_no_execution_ends_nothing_is_proved() -> None:
    result = check(GivesUp(steps(Assume(False))), "sc", engine="graphs")
    assert (result.verdict, result.executions) == (Verdict.BOUND, 0)
    assert "no execution came to its end" in result.notes


@pytest.mark.parametrize("model", MODELS)
def test_a_guest_that_goes_on_is_followed(model: str) -> None:
    """Every instruction looks for a kick, and finds none."""

    def build(host: Host) -> None:
        # Equal instructions: only how many are left tells one from the next.
        rig = CheckedRig(host, [script(*[ops.Compute(1)] * TURNS, ops.Out(DONE, 1, 0))])
        rig.spawn(lambda: expect(rig.vcpus[0].run()), "vcpu")
        rig.spawn(rig.vcpus[0].request_tlb_flush, "sender")

    def expect(exit_: object) -> None:
        assert not isinstance(exit_, Io), "is here"

    found = check(hosted(build, model, rounds=2), model).counterexample
    assert found is not None
    assert found.text.startswith("is here")


@pytest.mark.parametrize("model", MODELS)
def test_what_is_shared_may_be_found_in_the_middle_of_the_search(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that learns it is on its way out through `finally`: what that does is no operation any more."""

    def build(host: Host) -> None:
        words = [host.cell(0, f"word {number}") for number in range(3)]
        lock = host.lock("lock")

        def task() -> None:
            try:
                with lock:
                    words[0].fetch_add(1)
                    words[1].store(words[0].load())
            finally:
                words[2].fetch_add(1)

        host.spawn(task, "one")
        host.spawn(task, "other")

    known = check(HostedProgram(build, model), model, engine="graphs")
    monkeypatch.setattr(program, "_WALKS", 0)
    learnt = check(HostedProgram(build, model), model, engine="graphs")
    assert (
        (learnt.verdict, learnt.executions) == (known.verdict, known.executions) == (Verdict.PROVED, learnt.executions)
    )
