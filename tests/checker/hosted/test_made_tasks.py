"""Random protocols over the host API: both searches find the same, and all that the simulator comes to."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from tests.checker.hosted.made_tasks import LOCKS, WAITS, WORDS, Protocol, protocols
from tests.checker.hosted.outcomes import STUCK, by_chance, by_graphs, by_states

SLOW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
SEEDS = range(12)


def agree(protocol: Protocol, *models: str) -> None:
    for model in models:
        found = by_graphs(protocol.build, model)
        assert by_states(protocol.build, model) == found, model
        if model == "sc" and found != {STUCK}:
            seen = {by_chance(protocol.build, seed) for seed in SEEDS}
            assert seen <= found


@SLOW
@given(protocols(WORDS))
def test_words(protocol: Protocol) -> None:
    agree(protocol, "sc", "tso")


@SLOW
@given(protocols(LOCKS, LOCKS, WORDS, steps=2))
def test_locks_and_what_they_protect(protocol: Protocol) -> None:
    agree(protocol, "sc", "tso")


@SLOW
@given(protocols(WAITS, WORDS, steps=2))
def test_queues(protocol: Protocol) -> None:
    agree(protocol, "sc", "tso")


@SLOW
@given(protocols(WAITS, LOCKS, steps=2))
def test_queues_and_locks(protocol: Protocol) -> None:
    agree(protocol, "sc")


@SLOW
@given(protocols(WORDS, LOCKS, steps=2))
def test_a_weaker_model_allows_more(protocol: Protocol) -> None:
    sc, tso, rc11 = (by_graphs(protocol.build, model) for model in ("sc", "tso", "rc11"))
    assert sc <= tso <= rc11
