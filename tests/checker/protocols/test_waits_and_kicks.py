"""Waiting, requests and kick-all: what is followed, and single wake events."""

from __future__ import annotations

import pytest

from vtlkit.checker.check import MODELS, Limits, check
from vtlkit.checker.hosted import HostedProgram
from vtlkit.checker.protocols import Protocol, catalogue, kick, request, wait
from vtlkit.checker.result import Verdict

PROTOCOLS = (*wait.PROTOCOLS, *request.PROTOCOLS, *kick.PROTOCOLS)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_most_of_it_comes_to_its_end(protocol: Protocol) -> None:
    """What only waits shows less."""
    result = check(protocol.build("tso", protocol.sizes), "tso", engine=protocol.engine)
    assert result.executions is not None
    assert result.blocked is not None
    assert result.executions > result.blocked


@pytest.mark.parametrize("waker", ["NMI", "signal"])
def test_each_waker_alone_wakes_a_halted_vcpu(waker: str) -> None:
    program = wait.world(wakers=(waker,))("rc11", wait.PROTOCOLS[0].sizes)
    result = check(program, "rc11")
    assert result.verdict is Verdict.PROVED
    assert result.executions


@pytest.mark.parametrize("way", [way for way, _ in wait.WAYS.values()])
def test_an_nmi_alone_ends_each_wait(way: str) -> None:
    result = check(wait.world(way, wakers=("NMI",))("rc11", wait.PROTOCOLS[0].sizes), "rc11")
    assert result.verdict is Verdict.PROVED
    assert result.executions


@pytest.mark.parametrize("model", MODELS)
def test_unblock_needs_no_barrier_but_its_own(model: str) -> None:
    """It is taken by test-and-clear."""
    program = request.world("unblock", "enters_the_queue_without_a_barrier")(model, {"senders": 1})
    assert check(program, model).verdict is Verdict.PROVED


def test_two_kickers_share_a_count_under_a_lock_and_each_finds_what_the_other_left() -> None:
    """They go through the lock several times each; a world in which one is further must not be taken for another."""
    program = kick.world("unlock")("sc", {**kick.PROTOCOLS[0].sizes, "kickers": 2})
    assert isinstance(program, HostedProgram)
    result = check(program, "sc", limits=Limits(count=4000))
    assert program.causal
    assert result.counterexample is None


@pytest.mark.parametrize(
    ("name", "size", "value", "complaint"),
    [
        ("wait.halt", "vcpus", 0, "vcpus is at least 1"),
        ("wait.poll", "wakers", 4, r"wakers is 1 \(an interrupt\)"),
        ("request.event", "senders", 0, "senders is 1 to"),
        ("kick.sticky", "kickers", 0, "kickers is at least 1"),
        ("kick.sticky", "resumes", 2, "resumes is 0"),
        ("kick.unlock-halted", "runs", 2, "where guests halt"),
    ],
)
def test_sizes_that_cannot_be_are_refused(name: str, size: str, value: int, complaint: str) -> None:
    protocol = catalogue()[name]
    with pytest.raises(ValueError, match=complaint):
        protocol.build("sc", {**protocol.sizes, size: value})
