"""A loop that ends is not taken for one that goes round for ever, however alike its rounds look."""

from __future__ import annotations

import pytest

from vtlkit.checker.check import check
from vtlkit.checker.hosted import HostedProgram
from vtlkit.checker.result import ProblemKind, Verdict
from vtlkit.host.api import Host


@pytest.mark.parametrize("engine", ["graphs", "states"])
@pytest.mark.parametrize("rounds", [2, 3])
def test_a_loop_over_some_things_is_followed_to_its_end(engine: str, rounds: int) -> None:
    """Each round reads the same word at the same place; what is behind the loop fails."""

    def build(host: Host) -> None:
        word = host.cell(0, "word")

        def looker() -> None:
            for _name in ("a", "b", "c", "d", "e", "f"):
                word.load()
            raise AssertionError("behind the loop")

        host.spawn(looker, "looker")
        host.spawn(lambda: word.store(1), "writer")

    found = check(HostedProgram(build, "sc", rounds=rounds), "sc", engine=engine)
    assert found.counterexample is not None
    assert found.counterexample.kind is ProblemKind.ASSERTION


@pytest.mark.parametrize("rounds", [2, 3])
def test_a_loop_that_waits_is_still_left(rounds: int) -> None:
    def build(host: Host) -> None:
        word = host.cell(0, "word")

        def looker() -> None:
            while not word.load():
                pass

        # First, so that the word is known to be shared when the other looks.
        host.spawn(lambda: word.store(1), "writer")
        host.spawn(looker, "looker")

    program = HostedProgram(build, "sc", rounds=rounds)
    result = check(program, "sc", engine="graphs")
    assert result.verdict is Verdict.PROVED
    assert program.given_up
